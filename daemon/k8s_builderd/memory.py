"""When to look for garbage, and when to give memory back.

The daemon holds some hundred small objects for each chaincode, for as long as it runs. To walk all of them stops
everything for 0.1 to 0.6 s at a thousand chaincodes, and finds nothing: what has ended was freed by its last reference
(tests/daemon/test_garbage.py). So only what is new is ever looked at, and what has stayed is taken for what stays.
"""

import ctypes
import gc
from collections.abc import Callable
from typing import NamedTuple

import anyio

YOUNG = 2_000
"""New objects after which Python looks at them."""

_NEVER = 1 << 30

INTERVAL = 5.0
"""Seconds between two looks."""

FEW = 50
"""Launches since the last look up to which what has come since then is few enough to be looked at."""

ENOUGH = 100
"""Ended launches after which memory is given back."""

LATER = 6
"""Looks without another end after which it is given back once more: by then idle connections have been closed."""


def settle() -> None:
    """Take what is there now for what stays, and set the thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, _NEVER, _NEVER)


class Due(NamedTuple):
    """What is to be done at a look."""

    collect: bool
    give_back: bool


class Tidying:
    """Decides, look by look, what it is time for. Pure."""

    def __init__(self) -> None:
        """Begin, before the first launch."""
        self._begun = self._ended = self._given_back_at = 0
        self._quiet = LATER

    def due(self, begun: int, ended: int) -> Due:
        """Say what to do.

        :param begun: how many launches there have been so far.
        :param ended: how many of them have ended.
        """
        new, self._begun = begun - self._begun, begun
        self._quiet = self._quiet + 1 if ended == self._ended else 0
        self._ended = ended
        give_back = ended - self._given_back_at >= ENOUGH
        if give_back:
            self._given_back_at = ended
        return Due(new <= FEW, give_back or self._quiet == LATER)


async def tidy(begun: Callable[[], int], ended: Callable[[], int]) -> None:
    """Collect garbage and give memory back when it is time, until cancelled.

    :param begun: returns how many launches there have been so far.
    :param ended: returns how many of them have ended.
    """
    tidying = Tidying()
    while True:
        await anyio.sleep(INTERVAL)
        due = tidying.due(begun(), ended())
        if due.collect:
            gc.collect()
        gc.freeze()
        if due.give_back:
            give_back()


def give_back() -> None:
    """Give free memory back to the system where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
