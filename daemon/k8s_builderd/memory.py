"""When to look for garbage, and when to give memory back.

The daemon holds some hundred small objects for each chaincode, for as long as it runs. To walk all of them stops
everything for 0.1 to 0.6 s at a thousand chaincodes, and finds nothing: what has ended was freed by its last reference
(tests/daemon/test_garbage.py). So only what is new is looked at, and what has stayed is taken for what stays. An error
that comes again and again can leave garbage among it; so all is looked at, once, where far more memory is in use than
the launches that go on can need.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import NamedTuple

import anyio

YOUNG = 2_000
"""New objects after which Python looks at them."""

_NEVER = 1 << 30

INTERVAL = 5.0
"""Seconds between two looks."""

FEW = 50
"""Launches that have begun or ended since the last look, up to which what has come since then is few enough to be
looked at."""

ENOUGH = 100
"""Ended launches after which memory is given back."""

EACH, STRAY = 1_000, 100_000
"""Blocks of memory that a launch which goes on may need (it has some 500, or 84 KB), and how many more there may be: 10
MB."""

LATER = 12
"""Looks after which it is given back anyway: connections come and go without launches, most of all in an outage."""


def settle() -> None:
    """Take what is there now for what stays, and set the thresholds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, _NEVER, _NEVER)


class Due(NamedTuple):
    """What is to be done at a look."""

    collect: bool
    give_back: bool
    all: bool = False
    """Whether to collect among what has stayed, too."""


class Tidying:
    """Decides, look by look, what it is time for. Pure."""

    def __init__(self) -> None:
        """Begin, before the first launch."""
        self._moves = self._given_back_at = self._looks = 0
        self._rest: int | None = None
        self._looked_at_all = False

    def due(self, begun: int, ended: int, blocks: int = 0) -> Due:
        """Say what to do.

        :param begun: how many launches there have been so far.
        :param ended: how many of them have ended.
        :param blocks: how many blocks of memory are in use.
        """
        rest = blocks - EACH * (begun - ended)
        if self._rest is None or (self._looked_at_all and rest > self._rest):
            self._rest = rest  # what was there at the start, or has been looked at: no garbage
        self._looked_at_all = rest - self._rest > STRAY
        moves, self._moves = begun + ended - self._moves, begun + ended
        self._looks += 1
        give_back = ended - self._given_back_at >= ENOUGH or self._looks == LATER
        if give_back:
            self._given_back_at, self._looks = ended, 0
        return Due(moves <= FEW, give_back, self._looked_at_all)


async def tidy(begun: Callable[[], int], ended: Callable[[], int]) -> None:
    """Collect garbage and give memory back when it is time, until cancelled.

    :param begun: returns how many launches there have been so far.
    :param ended: returns how many of them have ended.
    """
    tidying = Tidying()
    while True:
        await anyio.sleep(INTERVAL)
        due = tidying.due(begun(), ended(), blocks())
        if due.all:
            gc.unfreeze()
        if due.all or due.collect:
            gc.collect()
        gc.freeze()
        if due.give_back:
            give_back()


_SIZES = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class _Mallinfo2(ctypes.Structure):
    """What glibc's mallinfo2(3) returns, in bytes."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _SIZES)


def blocks() -> int:
    """Return how many blocks of memory are in use; where only the bytes are known, of 100 bytes each.

    Both allocators know it at once. gc.get_freeze_count() walks all that stays: 36 ms at a thousand chaincodes.
    """
    if found := sys.getallocatedblocks():
        return found
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)  # of glibc 2.33 and later, with PYTHONMALLOC=malloc
    if mallinfo2 is None:
        return gc.get_freeze_count()
    mallinfo2.restype = _Mallinfo2
    return int(mallinfo2().uordblks) // 100


def give_back() -> None:
    """Give free memory back to the system where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
