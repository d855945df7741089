"""When to look for garbage, and when to give memory back.

The daemon holds some hundred small objects for each chaincode, for as long as it runs. Python's own thresholds walk all
of them again and again: at a thousand chaincodes that stops everything for 0.1 to 0.2 s each time. So what is there at
the start is never looked at again, what is new is looked at often, and everything only when as much has ended as goes
on.
"""

import ctypes
import gc
from collections.abc import Callable

import anyio

YOUNG, MIDDLE = 2_000, 10
"""New objects after which the newest are looked at, and how often that is done before those that stayed are, too."""

_NEVER = 1 << 30

INTERVAL = 30.0
"""Seconds between two looks at how many launches have ended: longer than a connection is kept for a next request."""

ENOUGH = 100
"""Ended launches after which all objects are looked at, where no more go on than these."""

WHILE_BUSY = 10
"""So many times as many, if launches never cease to end: what a chaincode leaves that fails again and again adds up."""


def settle() -> None:
    """Take what is there now for what stays, and set the thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, _NEVER)


class Tidying:
    """Decides, look by look, whether it is time to collect everything and to give memory back. Pure."""

    def __init__(self, ended: int = 0) -> None:
        """Begin, with so many launches ended."""
        self._collected = self._last = ended

    def due(self, ended: int, alive: int) -> bool:
        """Say whether it is: as many have ended as go on, and none has since the last look, or ten times as many."""
        quiet, self._last = ended == self._last, ended
        if ended - self._collected < max(ENOUGH, alive) * (1 if quiet else WHILE_BUSY):
            return False
        self._collected = ended
        return True


async def tidy(ended: Callable[[], int], alive: Callable[[], int]) -> None:
    """Collect everything and give memory back when it is time, until cancelled.

    :param ended: returns how many launches have ended so far.
    :param alive: returns how many go on.
    """
    tidying = Tidying(ended())
    while True:
        await anyio.sleep(INTERVAL)
        if tidying.due(ended(), alive()):
            give_back()


def give_back() -> None:
    """Collect everything, and give free memory back to the system where the C library can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
