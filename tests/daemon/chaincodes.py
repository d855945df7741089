"""Chaincodes that are told what to do by files, and what of them can be seen from outside."""

import shlex
import signal
from pathlib import Path
from typing import Self

import anyio

from tests.daemon.scene import Package, Running, Scene
from tests.embedded.cluster import PATIENCE
from tests.embedded.cluster import eventually as eventually

# Twenty lines a second until it is told to end; whatever else happens, each start is written down.
_SCRIPT = """
echo $$ >> {starts}
{prelude}
i=0
while [ ! -e {stop} ]; do echo "line $i"; i=$((i+1)); sleep 0.05; done
echo "last after $i"
exit {code}
"""


class Ticking:
    """A chaincode that logs twenty lines a second until `end`, and writes down each start of its process."""

    def __init__(self, package: Package, starts: Path, stop: Path) -> None:
        self.package = package
        self._starts = starts
        self._stop = stop

    @classmethod
    async def make(cls, scene: Scene, label: str = "basic_1.0", *, code: int = 0, prelude: str = "") -> Self:
        """Make one; `prelude` is what its shell does before its first line."""
        starts, stop = scene.directory / f"{label}.starts", scene.directory / f"{label}.stop"
        script = _SCRIPT.format(
            starts=shlex.quote(str(starts)), stop=shlex.quote(str(stop)), prelude=prelude, code=code
        )
        return cls(await scene.package(label, script=script), starts, stop)

    def end(self) -> None:
        """Have it end by itself."""
        self._stop.touch()

    @property
    def pids(self) -> list[int]:
        """The processes that it has had, in the order of their starts."""
        return [int(line) for line in self._starts.read_text().split()] if self._starts.exists() else []

    async def started(self, times: int = 1) -> int:
        """Wait for its first (or a later) start and return its pid."""
        await eventually(lambda: len(self.pids) >= times)
        return self.pids[times - 1]


def chaincode_lines(run: Running) -> list[bytes]:
    """Return what the chaincode itself has said."""
    return [line for line in run.lines if not line.startswith(b"run [")]


def assert_whole(run: Running) -> None:
    """Assert that the log of a ticking chaincode that ended by itself has come without a gap or a repeat."""
    *ticks, last = chaincode_lines(run)
    assert ticks == [b"line %d" % number for number in range(len(ticks))]
    assert last == b"last after %d" % len(ticks)


async def kill(daemon: Running, number: signal.Signals = signal.SIGKILL) -> None:
    """End a daemon, and wait for that."""
    daemon.send(number)
    assert await daemon.wait() == (0 if number == signal.SIGTERM else -number)


async def met(scene: Scene, times: int = 1) -> None:
    """Wait until so many requests have met the faults in force."""

    async def enough() -> bool:
        rules: list[dict[str, int]] = await scene.cluster.switch("GET", "faults")
        return sum(rule["met"] for rule in rules) >= times

    await eventually(enough)


async def forgotten(scene: Scene, daemon: Running, *, runs: int = 0) -> None:
    """Wait until the daemon knows of no more than so many runs."""

    async def few() -> bool:
        return f"k8s_builderd_runs {float(runs)}" in (await scene.health(daemon, "/metrics"))[1]

    await eventually(few)


async def no_faults(scene: Scene) -> None:
    """Have the cluster behave again."""
    await scene.cluster.switch("DELETE", "faults")


async def nothing_left(scene: Scene) -> None:
    """Wait until there is no Job, no pod, no Secret, and assert that no process is left either."""
    await scene.none("jobs", "pods", "secrets")
    assert (await scene.cluster.switch("GET", "state"))["processes"] == []


async def ended(running: Running) -> int:
    """Wait for the end of a process whose stderr may be read no more."""
    with anyio.fail_after(PATIENCE):
        return await running.process.wait()
