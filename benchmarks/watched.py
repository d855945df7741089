"""A daemon that says, when it is asked, for how long its event loop stood still.

    python -m benchmarks.watched FILE

SIGUSR1 begins, and the next one ends: FILE gets a JSON object then. Wall time says little on a busy machine, so each is
told by the CPU time of the loop's own thread as well.
"""

import asyncio
import gc
import json
import signal
import sys
import time
from pathlib import Path

from k8s_builderd import __main__

BEAT = 0.002
"""Seconds between two looks at how late the event loop is."""


class Watched:
    """The longest collection, and the longest time between two turns of the event loop, in ms."""

    def __init__(self, report: Path) -> None:
        self._report = report
        self._beat: asyncio.TimerHandle | None = None
        self._longest: dict[str, float] = {}
        self._collection = self._turn = self._now()
        gc.callbacks.append(self._collected)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.thread_time()

    def _take(self, name: str, since: tuple[float, float], less: float = 0.0) -> None:
        wall, cpu = self._now()
        for kind, milliseconds in (("wall", (wall - since[0] - less) * 1e3), ("CPU", (cpu - since[1]) * 1e3)):
            self._longest[f"{name} {kind}"] = max(self._longest.get(f"{name} {kind}", 0.0), milliseconds)

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "stop":
            self._take("collection", self._collection)
        self._collection = self._now()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._take("pause", self._turn, less=BEAT)
        self._turn = self._now()
        self._beat = loop.call_later(BEAT, self._look, loop)

    def switch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin, or end and tell."""
        if self._beat is None:
            self._longest.clear()
            self._turn = self._now()
            self._beat = loop.call_later(BEAT, self._look, loop)
            return
        self._beat.cancel()
        self._beat = None
        unfinished = self._report.with_suffix(".new")
        unfinished.write_text(json.dumps(self._longest))
        unfinished.rename(self._report)


def main() -> None:
    """Run the daemon."""
    watched = Watched(Path(sys.argv.pop(1)))

    def switch(*_: object) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(watched.switch, loop)

    signal.signal(signal.SIGUSR1, switch)
    __main__.main()


if __name__ == "__main__":
    main()
