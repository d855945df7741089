"""The peer stops reading `run`'s stderr while its chaincode prints at full speed: only that one log waits."""

import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.chaincodes import Ticking, assert_whole, chaincode_lines, ended, eventually, kill, nothing_left
from tests.daemon.scene import Package, Running, Scene, open_scene

pytestmark = pytest.mark.anyio

MEGABYTES = 48
LINES = MEGABYTES * 1024
BOUND = 16 * 1024 * 1024
"""Bytes that the daemon may grow by while it cannot pass on three times as many."""

# Each line is a kilobyte with its number in front; what comes after the flood comes when it is told to.
FLOOD = """
import os, sys, time
out = os.fdopen(1, "wb", buffering=1 << 20)
for number in range({lines}):
    out.write(b"%09d " % number + b"x" * 1013 + b"\\n")
out.flush()
open({done}, "w").close()
while not os.path.exists({more}):
    time.sleep(0.02)
out.write(b"and on\\n")
out.flush()
"""


@pytest.fixture
async def scene(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Scene]:
    """A cluster that keeps all of a log: what a node throws away in the meantime is no matter of the daemon's."""
    async with open_scene(tmp_path, log_limit=1 << 40) as scene:
        yield scene


class Flooding:
    """A chaincode that prints many megabytes as fast as it can, then waits to be told to end."""

    def __init__(self, package: Package, done: Path, more: Path) -> None:
        self.package = package
        self._done = done
        self._more = more

    @classmethod
    async def make(cls, scene: Scene) -> "Flooding":
        done, more = scene.directory / "flood.done", scene.directory / "flood.more"
        code = FLOOD.format(lines=LINES, done=repr(str(done)), more=repr(str(more)))
        script = f"exec {sys.executable} -c {shlex.quote(code)}"
        return cls(await scene.package("flood", script=script), done, more)

    async def printed(self) -> None:
        """Wait until it has printed all of its flood, into the node's file."""
        await eventually(self._done.exists)

    def go_on(self) -> None:
        self._more.touch()


def resident(process: Running) -> int:
    """Return the bytes that a process holds in memory, by the kernel's word."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def in_order(lines: list[bytes]) -> bool:
    """Tell whether all of the flood is there, once and in order; a bool, because no report should hold megabytes."""
    return len(lines) == LINES and all(
        line.startswith(b"%09d x" % number) and len(line) == 1023 for number, line in enumerate(lines)
    )


async def test_the_daemon_stays_flat_others_go_on_and_nothing_is_lost(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene, "other")
    other = await scene.call("run", ticking.package)
    await other.line("line 2")
    before = resident(daemon)
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    # Another chaincode's log flows as it did, for as long as it takes to see.
    await other.line(b"line %d" % (len(chaincode_lines(other)) + 20))
    assert resident(daemon) - before < BOUND
    assert resident(run) < 32 * 1024 * 1024
    # The reader comes back.
    run.reading.set()
    await eventually(lambda: len(run.lines) > LINES)  # all of it, and the builder's own first line
    flooding.go_on()
    assert await run.wait() == 0
    *numbered, last = chaincode_lines(run)
    assert in_order(numbered)
    assert last == b"and on"
    assert resident(daemon) - before < BOUND
    ticking.end()
    assert await other.wait() == 0
    assert_whole(other)


async def test_a_stop_works_at_once_although_nobody_reads(scene: Scene) -> None:
    """The peer kills it after 5 s; it needs none of that."""
    await scene.daemon()
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    run.send(signal.SIGTERM)
    # 3 s on an idle machine, of which the wait for a sign of the reader is 0.25; the peer's 5 are the limit.
    assert await ended(run) == 0
    await nothing_left(scene)


async def test_the_daemon_is_replaced_while_nobody_reads(scene: Scene) -> None:
    """What the client holds, and what is in the pipe, has its place in the log: the next daemon goes on after it."""
    daemon = await scene.daemon()
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    await kill(daemon)
    await scene.daemon()
    run.reading.set()
    flooding.go_on()
    assert await run.wait() == 0
    *numbered, last = chaincode_lines(run)
    assert in_order(numbered)
    assert last == b"and on"


async def test_a_run_that_nobody_reads_comes_back_to_the_next_daemon(scene: Scene) -> None:
    """Or its chaincode would be an orphan after a while."""
    daemon = await scene.daemon()
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    await kill(daemon)
    daemon = await scene.daemon()

    async def is_back() -> bool:
        return "k8s_builderd_connections 1.0" in (await scene.health(daemon, "/metrics"))[1]

    await eventually(is_back)
    run.reading.set()
    flooding.go_on()
    assert await run.wait() == 0
    *numbered, last = chaincode_lines(run)
    assert in_order(numbered)
    assert last == b"and on"


async def test_a_reader_that_never_comes_back_is_the_peers_end(scene: Scene) -> None:
    await scene.daemon()
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    run.close()
    assert await ended(run) == 0
    await nothing_left(scene)


@pytest.mark.parametrize("job", ["stays", "goes"])
async def test_the_chaincode_ends_while_nobody_reads(scene: Scene, job: str) -> None:
    """Its Job may be gone after its time when the reader comes back: what is lost with it is told."""
    await scene.daemon()
    flooding = await Flooding.make(scene)
    run = await scene.call("run", flooding.package, read=False)
    await flooding.printed()
    flooding.go_on()
    name = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(name, lambda pod: pod["status"]["phase"] == "Succeeded")
    if job == "goes":
        await scene.cluster.delete("jobs", name)
        await nothing_left(scene)
    run.reading.set()
    assert await run.wait() == 0
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 0")
    *numbered, last = chaincode_lines(run)
    assert (in_order(numbered) and last == b"and on") or (job == "goes" and run.count("is missing") == 1)
