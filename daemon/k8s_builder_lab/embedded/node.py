"""What all pods of the only node share, its clock, and the gate that a frozen kubelet does not pass."""

import time
from pathlib import Path

import anyio
import msgspec

from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.images import Images
from k8s_builder_lab.embedded.objects import seconds
from k8s_builder_lab.embedded.reaper import Reaper
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.timings import Timings


class Gate:
    """Open, or closed until somebody opens it."""

    def __init__(self) -> None:
        self._opened: anyio.Event | None = None

    @property
    def is_open(self) -> bool:
        """Whether one may pass."""
        return self._opened is None

    def close(self) -> None:
        """Let nobody pass from now on."""
        self._opened = self._opened or anyio.Event()

    def open(self) -> None:
        """Let all pass who wait, and all who come."""
        if self._opened is not None:
            self._opened.set()
            self._opened = None

    async def passed(self) -> None:
        """Return once the gate is open."""
        while self._opened is not None:
            await self._opened.wait()


class Node(msgspec.Struct):
    """The node as its kubelet sees it.

    gate: closed while the kubelet is frozen: the containers go on, and nobody tells of it.
    """

    store: Store
    recorder: Recorder
    environment: Environment
    images: Images | Path
    timings: Timings
    directory: Path
    path: str
    log_limit: int
    reaper: Reaper
    gate: Gate

    def now(self) -> float:
        """Return the time by the node's clock, in seconds since the epoch."""
        return time.time() + self.environment.node_clock

    def nanoseconds(self) -> int:
        """Return the time by the node's clock, in nanoseconds since the epoch."""
        return time.time_ns() + int(self.environment.node_clock * 1_000_000_000)

    def stamp(self) -> str:
        """Return the time by the node's clock as metav1.Time writes it."""
        return seconds(self.now())

    async def step(self, duration: float = 0) -> None:
        """Take one of the durations of `Timings` for what comes next, and wait while the kubelet is frozen."""
        if duration:
            await self.timings.pause(duration)
        await self.gate.passed()

    async def retry(self, duration: float) -> None:
        """Wait before another try, and while the kubelet is frozen."""
        await self.timings.retry(duration)
        await self.gate.passed()
