"""Launches, ends, kills and faults at random for a given time; then nothing may be left of any of it.

    python -m benchmarks.soak --seconds 600 --seed 1

An embedded cluster in this process, whose node has a clock of its own. Two daemons, each an instance of its own and
with half of the clients; all of them processes. In the first third the daemons are killed and started anew as well. The
first daemon of the other two thirds is the one that is looked at for leaks. Every log is compared line by line, every
exit code and every last line with what was done. Exit code 1: something is wrong.
"""

import json
import logging
import re
import shlex
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import anyio
import click

from tests.daemon.scene import Package, Running, Scene, open_scene
from tests.embedded.cluster import container_state

PATIENCE = 120.0
"""Seconds after which what has to come is taken not to come."""

IDLE = 40.0
"""Seconds after which the transport has closed all connections that it keeps for a next request (15 s, looked at
every 15 s)."""

SETTINGS: Any = {"RECONNECT_GRACE": "2s", "ORPHAN_GRACE": "20s", "WATCH_SILENCE": "5s", "REQUEST_TIMEOUT": "2s"}

SCRIPT = """
[ -e {deaf} ] && trap '' TERM
i=0
while [ $i -lt $(cat {burst}) ]; do echo "line $i"; i=$((i+1)); done
while [ ! -e {stop} ]; do echo "line $i"; i=$((i+1)); sleep 0.05; done
echo "last after $i"
exit $(cat {stop})
"""

STATUSES = (401, 429, 500, 503)
CALLS: tuple[Mapping[str, str], ...] = (
    {"verb": "create", "resource": "jobs"},
    {"verb": "create", "resource": "secrets"},
    {"verb": "get", "resource": "jobs"},
    {"verb": "delete", "resource": "jobs"},
    {"verb": "list", "resource": "events"},
    {"verb": "list", "resource": "pods"},
    {"verb": "log"},
)
CLOCK = 3.0
"""Seconds that the node's clock is ahead of everybody else's."""

WATCH_FAULTS = ("close", "expire", "error", "gone", "silent", "half", "duplicate", "replay")


class Wrong(Exception):
    """Raised when something did not come out as it must."""


@dataclass(frozen=True)
class Usage:
    """What a daemon holds: open descriptors by kind, threads, resident bytes, and its own gauges."""

    sockets: int
    descriptors: int
    threads: int
    resident: int
    gauges: Mapping[str, float]

    def __str__(self) -> str:
        """Return it in one line."""
        gauges = ", ".join(f"{name} {value:g}" for name, value in self.gauges.items())
        return (
            f"{self.descriptors} descriptors ({self.sockets} sockets), {self.threads} threads,"
            f" {self.resident / 1e6:.1f} MB resident, {gauges}"
        )


async def usage(scene: Scene, daemon: Running) -> Usage:
    """Look at a daemon."""
    # Its descriptors first: what asks for the metrics is a connection too, and it takes a moment to go.
    process = Path(f"/proc/{daemon.pid}")
    targets = [_target(link) for link in (process / "fd").iterdir()]
    exposition = (await scene.health(daemon, "/metrics"))[1]
    gauges = dict(re.findall(r"^k8s_builderd_(runs|connections|tasks) (\S+)$", exposition, re.MULTILINE))
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    return Usage(
        sum(target.startswith("socket:") for target in targets),
        len(targets),
        int(status["Threads"]),
        int(status["VmRSS"].split()[0]) * 1024,
        {name: float(value) for name, value in gauges.items()},
    )


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


async def until(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait until it holds.

    :raises Wrong: if that takes too long.
    """
    with anyio.move_on_after(patience):
        while not holds():  # noqa: ASYNC110 - lines, ends of processes and times, all at once
            await anyio.sleep(0.02)
    if not holds():
        raise Wrong(f"{what} did not come within {patience:g} s")


class Soak:
    """One run of the benchmark: the slots live one life after another while the faults go on."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.random = Random(seed)  # noqa: S311 - repeatable, keeps no secret
        self.daemon: Running
        self.second: Running
        """Of another instance: it shares the namespace, and nothing else."""
        self.second_socket = scene.socket.with_name("second.sock")
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.runs: list[Running] = []
        self.over = False
        self.past: list[bytes] = []
        """What earlier daemons have said."""

    def write_log(self, path: Path) -> None:
        """Append what the daemons have said."""
        with path.open("ab") as file:
            file.writelines(line + b"\n" for line in [*self.past, *self.daemon.lines, *self.second.lines])

    async def start_daemon(self) -> None:
        """Start the next daemon."""
        self.daemon = await self.scene.daemon(**SETTINGS)

    async def start_second(self) -> None:
        """Start the next daemon of the other instance."""
        self.second = await self.scene.daemon(**SETTINGS, INSTANCE="second", SOCKET=str(self.second_socket))

    async def live(self, slot: "Slot") -> None:
        """Live one life after another until it is over."""
        lives = [slot.ends, slot.fails, slot.is_stopped, slot.loses_run, slot.loses_reader, slot.is_deleted]
        lives += [
            slot.is_launched_twice,
            slot.is_replaced,
            slot.is_replaced_by_another_peer,
            slot.stops_reading,
            slot.is_frozen,
        ]
        while not self.over:
            life = self.random.choice(lives)
            try:
                await life()
            except Wrong as error:
                self.wrong.append(f"{time.strftime('%H:%M:%S')} slot {slot.number}, {life.__name__}: {error}")
                click.echo(f"WRONG: {self.wrong[-1]}")
                await slot.clear()
            self.counts[life.__name__] += 1

    async def faults(self, seconds: float, *, restarts: bool) -> None:
        """Do one thing after another to the API, and to the daemon too, for so long."""
        kinds = [self._status, self._status, self._cut_off, self._cut_off, self._watch, self._log, self._drop]
        kinds += [self._outage, self._restart]
        kinds += [self._replace, self._replace] if restarts else []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await anyio.sleep(self.random.uniform(0.2, 2))
            kind = self.random.choice(kinds)
            await kind()
            self.counts[f"fault{kind.__name__}"] += 1

    async def _status(self) -> None:
        code = self.random.choice(STATUSES)
        action = {"do": "status", "code": code, **({"retryAfter": 1} if code == 429 else {})}
        await self.scene.fault(**self.random.choice(CALLS), times=self.random.randint(1, 3), action=action)

    async def _cut_off(self) -> None:
        do, when = self.random.choice(["reset", "hang"]), self.random.choice(["before", "after"])
        call = self.random.choice(CALLS[:-1])
        await self.scene.fault(**call, times=1, action={"do": do, "when": when})

    async def _watch(self) -> None:
        do = self.random.choice(WATCH_FAULTS)
        count = {"events": self.random.randint(0, 3)} if do in {"close", "expire", "error", "silent", "half"} else {}
        await self.scene.fault(verb="watch", times=self.random.randint(1, 2), action={"do": do, **count})
        await self._drop()

    async def _log(self) -> None:
        cut = {"do": "cut", "bytes": self.random.randint(0, 5000), "reset": self.random.random() < 0.5}
        await self.scene.fault(verb="log", times=self.random.randint(1, 4), action=cut)
        await self._drop()

    async def _drop(self) -> None:
        await self.scene.cluster.switch("POST", "drop")

    async def _outage(self) -> None:
        await self.scene.cluster.switch("POST", "outage", {"on": True})
        await anyio.sleep(self.random.uniform(0.1, 3))
        await self.scene.cluster.switch("POST", "outage", {"on": False})

    async def _restart(self) -> None:
        down = self.random.uniform(0, 1)
        await self.scene.cluster.switch("POST", "restart", {"seconds": down, "forbidden": 0.2})
        await anyio.sleep(down)

    async def _replace(self) -> None:
        first = self.random.random() < 0.7
        daemon = self.daemon if first else self.second
        daemon.send(self.random.choice([signal.SIGKILL, signal.SIGTERM]))
        await daemon.wait()
        self.past += daemon.lines
        await anyio.sleep(self.random.choice([0, 0, 1, 3]))
        await (self.start_daemon() if first else self.start_second())

    async def settle(self) -> None:
        """Let the faults end, and wait until the daemon knows of nothing more."""
        await self.scene.cluster.switch("POST", "outage", {"on": False})
        await self.scene.cluster.switch("DELETE", "faults")
        gauges: Mapping[str, float] = {}
        with anyio.move_on_after(PATIENCE):
            while True:
                known = [(await usage(self.scene, daemon)).gauges for daemon in (self.daemon, self.second)]
                gauges = {name: sum(each[name] for each in known) for name in ("runs", "connections")}
                if not any(gauges.values()):
                    break
                await anyio.sleep(0.5)
            await anyio.sleep(IDLE)
            return
        self.wrong.append(f"the daemon still knows of {gauges}")

    async def leftovers(self) -> None:
        """Note what is left in the cluster that should not be."""
        state = await self.scene.cluster.switch("GET", "state")
        jobs, pods, secrets = [
            (await self.scene.cluster.list(plural))["items"] for plural in ("jobs", "pods", "secrets")
        ]
        names = {job["metadata"]["name"] for job in jobs}
        unfinished = [job["metadata"]["name"] for job in jobs if not job["status"].get("conditions")]
        left = {
            "processes": state["processes"],
            "unfinished jobs": unfinished,
            "pods that have not ended": [p["metadata"]["name"] for p in pods if "terminated" not in container_state(p)],
            "secrets without a job": [s["metadata"]["name"] for s in secrets if s["metadata"]["name"] not in names],
            "log streams": state["streams"]["log"] or [],
            "watches beside four": state["streams"]["watch"] if state["streams"]["watch"] != 4 else [],
            "programs": [run.pid for run in self.runs if not run.ended.is_set()],
        }
        self.wrong += [f"left: {what}: {found}" for what, found in left.items() if found]
        click.echo(f"finished jobs that wait for their TTL: {len(jobs)}, with {len(secrets)} secrets")


class Slot:
    """One chaincode of its own, and the lives that it may lead."""

    def __init__(self, soak: Soak, number: int, package: Package, directory: Path) -> None:
        self.number = number
        self._soak = soak
        self._package = package
        self._directory = directory
        self._peers = 0
        self._deaf = number % 4 == 3
        if self._deaf:
            (directory / "deaf").touch()

    @classmethod
    async def make(cls, soak: Soak, number: int) -> "Slot":
        """Make its package."""
        directory = soak.scene.directory / f"slot{number}"
        directory.mkdir()
        paths = {name: shlex.quote(str(directory / name)) for name in ("burst", "stop", "deaf")}
        return cls(soak, number, await soak.scene.package(f"cc{number}", script=SCRIPT.format(**paths)), directory)

    # What is done

    async def _call(self, *, read: bool = True) -> Running:
        socket = self._soak.second_socket if self.number % 2 else self._soak.scene.socket
        environment = {
            "FABRIC_K8S_BUILDER_SOCKET": str(socket),
            "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT": "2m",  # a busy machine takes its time to start a daemon
        }
        run = await self._soak.scene.call("run", self._package, read=read, **environment)
        self._soak.runs.append(run)
        return run

    async def _launch(self, *, read: bool = True) -> Running:
        """Launch until it runs: a launch that its peer has dropped is followed by the next request's."""
        (self._directory / "stop").unlink(missing_ok=True)
        self._write("burst", self._soak.random.choice([0, 0, 0, 2000]))
        told: list[str] = []
        for _ in range(6):
            run = await self._call(read=True)
            await until(lambda run=run: run.ended.is_set() or _ticks(run) > 0, "a first line")  # type: ignore[misc]
            if not run.ended.is_set():
                self._soak.counts["launches"] += 1
                return run
            if b"retry the request" not in run.lines[-1]:
                raise Wrong(f"a launch failed: {_tail(run)}")
            self._soak.counts["launches dropped by the peer"] += 1
            told.append(f"{time.strftime('%H:%M:%S')} {_tail(run)}")
        raise Wrong("six launches in a row did not succeed: " + "; ".join(told))

    async def _a_while(self, run: Running) -> None:
        more = _ticks(run) + self._soak.random.randint(0, 80)
        await until(lambda: run.ended.is_set() or _ticks(run) >= more, "more lines")

    def _end(self, code: int) -> None:
        self._write("stop", code)

    def _write(self, name: str, value: int) -> None:
        # Whole or not there: the chaincode looks at it all the time.
        (self._directory / "new").write_text(str(value))
        (self._directory / "new").rename(self._directory / name)

    async def _code(self, run: Running) -> int:
        try:
            await until(run.ended.is_set, "the end of `run`")
        except Wrong as error:
            raise Wrong(f"{error}: {_tail(run)}") from None
        return await run.process.wait()

    async def clear(self) -> None:
        """End what a life that went wrong has left."""
        for run in self._soak.runs:
            if not run.ended.is_set() and str(self._package.root) in _arguments(run.pid):
                _signal(run, signal.SIGCONT)
                _signal(run, signal.SIGTERM)
                await until(run.ended.is_set, "the end of `run`")

    # The lives

    async def ends(self, code: int = 0) -> None:
        """End by itself."""
        run = await self._launch()
        await self._a_while(run)
        self._end(code)
        found = await self._code(run)
        _check(run, whole=True)
        if found != min(code, 1) or not run.lines[-1].endswith(b"ended with exit code %d" % code):
            raise Wrong(f"exit code {found} after {code}: {_tail(run)}")

    async def fails(self) -> None:
        """End by itself, with an exit code."""
        await self.ends(3)

    async def is_stopped(self) -> None:
        """Be stopped by the peer."""
        run = await self._launch()
        await self._a_while(run)
        _signal(run, signal.SIGTERM)
        started = time.monotonic()
        await self._code(run)
        if time.monotonic() - started > 5:
            raise Wrong(f"a stop took {time.monotonic() - started:.1f} s: {_tail(run)}")
        _check(run)

    async def loses_run(self) -> None:
        """Have `run` killed."""
        run = await self._launch()
        await self._a_while(run)
        _signal(run, signal.SIGKILL)
        await self._code(run)
        _check(run)

    async def loses_reader(self) -> None:
        """Have the peer die."""
        run = await self._launch()
        await self._a_while(run)
        lines = len(run.lines)
        run.close()
        await self._code(run)
        _check(run, upto=lines)

    async def is_deleted(self) -> None:
        """Have somebody delete the Job."""
        run = await self._launch()
        await self._a_while(run)
        job = re.search(rb"kubernetes job \S+?/(\S+)", b"\n".join(run.lines[:10]))
        if job is None:
            raise Wrong(f"no line names the job: {_tail(run)}")
        await self._delete(job[1].decode())
        if await self._code(run) != 1 or not re.search(rb"delet|is gone", run.lines[-1]):
            raise Wrong(f"after the deletion of its job: {_tail(run)}")
        _check(run)

    async def _delete(self, job: str) -> None:
        cluster = self._soak.scene.cluster
        with anyio.move_on_after(PATIENCE):
            while True:
                try:
                    with anyio.move_on_after(1):
                        if (await cluster.delete("jobs", job)).status in {200, 404}:
                            return
                except OSError:
                    self._soak.counts["a deletion met a fault"] += 1
                await anyio.sleep(0.2)

    async def is_launched_twice(self) -> None:
        """Be launched again by the same peer while it comes up: the second reuses the Job, or is dropped."""
        (self._directory / "stop").unlink(missing_ok=True)
        self._write("burst", 0)
        old = await self._call()
        await until(lambda: old.ended.is_set() or b"kubernetes job" in b"".join(old.lines), "a job")
        new = await self._call()
        await until(lambda: new.ended.is_set() or _ticks(new) > 0, "a first line")
        if new.ended.is_set():
            if b"retry the request" not in new.lines[-1]:
                raise Wrong(f"launched twice: {_tail(new)}")
            self._end(0)  # one that comes back dropped, after its daemon's death, ends nobody
            await self._code(old)
            return
        if await self._code(old) != 1:
            raise Wrong(f"launched twice: {_tail(old)}")
        self._soak.counts["jobs reused"] += new.count("Reusing job")
        self._end(0)
        if await self._code(new) != 0:
            raise Wrong(f"exit code: {_tail(new)}")
        _check(new, whole=True)

    async def is_replaced(self) -> None:
        """Be launched again by the same peer, while it runs."""
        old = await self._launch()
        await self._a_while(old)
        new = await self._call()
        await until(lambda: new.ended.is_set() or _ticks(new) > 0, "the end of a dropped launch")
        if not new.ended.is_set() or b"retry the request" not in new.lines[-1] or await self._code(new) != 1:
            raise Wrong(f"launched again: {_tail(new)}")
        if await self._code(old) != 1:
            raise Wrong(f"replaced: {_tail(old)}")
        _check(old)

    async def is_replaced_by_another_peer(self) -> None:
        """Be launched again by a peer that has restarted, while it runs."""
        old = await self._launch()
        await self._a_while(old)
        self._peers += 1
        self._package.connect(root_cert=f"-----BEGIN CERTIFICATE-----\npeer {self._peers}\n")
        new = await self._launch()
        if await self._code(old) != 1:
            raise Wrong(f"replaced: {_tail(old)}")
        _check(old)
        self._end(0)
        if await self._code(new) != 0:
            raise Wrong(f"exit code: {_tail(new)}")
        _check(new, whole=True)

    async def stops_reading(self) -> None:
        """Have a peer that does not read for a while, and is stopped then."""
        (self._directory / "stop").unlink(missing_ok=True)
        self._write("burst", 20000)
        run = await self._call(read=False)
        await anyio.sleep(self._soak.random.uniform(0.5, 3))
        if self._soak.random.random() < 0.5:
            run.reading.set()
            await self._a_while(run)
        _signal(run, signal.SIGTERM)
        started = time.monotonic()
        with anyio.move_on_after(PATIENCE):
            await run.process.wait()
        if time.monotonic() - started > 5:
            raise Wrong(f"a stop took {time.monotonic() - started:.1f} s")
        run.reading.set()
        await self._code(run)
        _check(run)

    async def is_frozen(self) -> None:
        """Have `run` stopped by SIGSTOP for longer than the grace."""
        run = await self._launch()
        _signal(run, signal.SIGSTOP)
        await anyio.sleep(self._soak.random.uniform(0, 4))
        _signal(run, signal.SIGCONT)
        await self._a_while(run)
        self._end(0)
        if await self._code(run) != 0:
            raise Wrong(f"after SIGSTOP: {_tail(run)}")
        _check(run, whole=True)


def _signal(run: Running, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        run.send(number)


def _ticks(run: Running) -> int:
    return len(run.lines) - sum(line.startswith(b"run [") for line in run.lines[:20])


def _tail(run: Running) -> str:
    return " | ".join(line.decode(errors="replace") for line in run.lines[-4:])


def _check(run: Running, *, whole: bool = False, upto: int | None = None) -> None:
    """Compare a log line by line.

    :raises Wrong: if a line is missing, there twice, or (where the chaincode ended by itself) the last has not come.
    """
    lines = [line for line in run.lines[:upto] if not line.startswith(b"run [")]
    for number, line in enumerate(lines):
        if line not in {b"line %d" % number, b"last after %d" % number}:
            raise Wrong(f"a gap or a repeat: {line!r} where line {number} should be, of {len(lines)}: {_words(run)}")
    if whole and (not lines or not lines[-1].startswith(b"last after")):
        raise Wrong(f"the log's end is missing: {_words(run)}")


def _words(run: Running) -> str:
    """Return what the builder itself has said."""
    return " | ".join(line.decode(errors="replace") for line in run.lines if line.startswith(b"run ["))


def _arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def soak(seconds: float, seed: int, slots: int, growth: float, log: Path | None) -> bool:
    """Run it, say what happened, and return whether all was as it must be."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        async with open_scene(Path(directory), log_limit=1 << 30, bookmark_interval=2.0) as scene:
            await scene.cluster.switch("PATCH", "environment", {"nodeClock": CLOCK})
            run = Soak(scene, seed)
            await run.start_daemon()
            await run.start_second()
            made = [await Slot.make(run, number) for number in range(slots)]
            async with anyio.create_task_group() as tasks:
                for slot in made:
                    tasks.start_soon(run.live, slot)
                await run.faults(seconds / 3, restarts=True)
                click.echo(f"the daemon of the rest of the time: pid {run.daemon.pid}")
                await run.faults(seconds / 6, restarts=False)
                warm = await usage(scene, run.daemon)
                click.echo(f"warm:  {warm}")
                await run.faults(seconds / 2, restarts=False)
                click.echo(f"busy:  {await usage(scene, run.daemon)}")
                run.over = True
                # Lives that wait for the API are to end: it behaves from now on.
                await scene.cluster.switch("DELETE", "faults")
            await run.settle()
            last = await usage(scene, run.daemon)
            await run.leftovers()
            # What a daemon holds that has never done anything.
            if log is not None:
                run.write_log(log)
            broke = sum(d.count("_crashed") + d.count("Traceback") for d in (run.daemon, run.second))
            broke += sum(b"_crashed" in line or b"Traceback" in line for line in run.past)
            if broke:
                run.wrong.append(f"the daemon's log tells of {broke} mistakes of its own")
            for daemon in (run.daemon, run.second):
                daemon.send(signal.SIGTERM)
                if await daemon.wait() != 0:
                    run.wrong.append("a daemon did not end with 0")
            await run.start_daemon()
            await run.daemon.line("watch_synced", 2)
            await anyio.sleep(IDLE)
            fresh = await usage(scene, run.daemon)
            click.echo(f"last:  {last}\nfresh: {fresh}")
            for what in ("sockets", "descriptors", "threads"):
                if getattr(last, what) > getattr(fresh, what):
                    run.wrong.append(f"left: {what}: {getattr(last, what)}, a fresh daemon has {getattr(fresh, what)}")
            if last.gauges.get("tasks", 0) > fresh.gauges.get("tasks", 0):
                run.wrong.append(f"left: tasks: {last.gauges['tasks']:g} of {fresh.gauges['tasks']:g}")
            if last.resident - warm.resident > growth * 1e6:
                run.wrong.append(f"the daemon has grown by {(last.resident - warm.resident) / 1e6:.1f} MB")
    click.echo(json.dumps(dict(sorted(run.counts.items())), indent=2))
    for line in run.wrong:
        click.echo(f"WRONG: {line}")
    click.echo(f"seed {seed}, {seconds:g} s, {slots} slots: {len(run.wrong)} things are wrong")
    return not run.wrong


@click.command()
@click.option("--seconds", type=float, default=600, show_default=True, help="How long faults go on.")
@click.option("--seed", type=int, default=1, show_default=True, help="What is done is drawn from it.")
@click.option("--slots", type=int, default=8, show_default=True, help="Chaincodes at a time.")
@click.option("--growth", type=float, default=10, show_default=True, help="MB that a warm daemon may grow by.")
@click.option("--daemon-log", type=click.Path(path_type=Path), help="Where to write the daemons' logs.")
def main(seconds: float, seed: int, slots: int, growth: float, daemon_log: Path | None) -> None:
    """Run launches, ends, kills and faults at random, and check that nothing is left of them."""
    # What the embedded cluster says of connections that it was told to drop is no news.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    raise SystemExit(0 if anyio.run(soak, seconds, seed, slots, growth, daemon_log) else 1)


if __name__ == "__main__":
    main()
