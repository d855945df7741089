"""Has launches that come at once ask the API server in turn, a few at a time.

Asked for all together, all would be there at the end, each over a connection of its own, and each Secret long after its
Job. In turn the first are there at once and the last no later. A kubelet that finds no Secret tries again after 0.5 s.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

AT_ONCE = 6
LONGEST_WAIT = 1.0
"""Seconds that a launch waits for its turn: one that gets no answer holds up the others no longer."""


class Turns:
    """So many turns at a time, and one for whoever has waited for long enough."""

    def __init__(self, at_once: int = AT_ONCE, longest_wait: float = LONGEST_WAIT) -> None:
        """Prepare; nobody has a turn."""
        self._places = anyio.Semaphore(at_once, max_value=at_once)
        self._longest_wait = longest_wait

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and have it until the context is left."""
        with anyio.move_on_after(self._longest_wait) as waiting:
            await self._places.acquire()
        try:
            yield
        finally:
            if not waiting.cancelled_caught:
                self._places.release()
