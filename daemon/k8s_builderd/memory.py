"""When to look for garbage, and when to give memory back.

The daemon holds some hundred small objects for each chaincode, for as long as it runs. To walk all of them stops
everything for 0.1 to 0.6 s at a thousand chaincodes, and finds nothing: what has ended was freed by its last reference
(tests/daemon/test_garbage.py). So only what is new is looked at, where it is not much, and what has stayed is taken for
what stays. An error that comes again and again can leave garbage among it; so all is looked at, once, where far more
memory is in use than the launches that go on can need.

Python's own rhythm does not do: it counts what is new less what is freed. Where a thousand connections break and come
anew, or a thousand chaincodes stop, it looks late, and then at all of that: 40 to 400 ms.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import NamedTuple

import anyio

INTERVAL = 1.0
"""Seconds between two looks at what is new."""

FEW = 10_000
"""New objects up to which they are few enough to be looked at: that takes some milliseconds."""

SELDOM = 5
"""Looks at what is new for one at how much memory is in use."""

ENOUGH = 100
"""Ended launches after which memory is given back."""

EACH, STRAY = 1_000, 100_000
"""Blocks of memory that a launch which goes on may need (it has some 500, or 84 KB), and how many more there may be: 10
MB."""

LASTING = 3
"""Looks at memory for which there must be more: connections that break and come anew are there twice for a moment."""

LATER = 12
"""Looks at memory after which it is given back anyway: connections come and go without launches, most of all in an
outage."""


def settle() -> None:
    """Take what is there now for what stays, and leave all looks to `tidy`."""
    gc.disable()
    gc.collect()
    gc.freeze()


class Due(NamedTuple):
    """What is to be done about memory."""

    give_back: bool
    collect_all: bool
    """Whether to look for garbage among what has stayed, too."""


class Tidying:
    """Decides, look by look, what it is time for. Pure."""

    def __init__(self) -> None:
        """Begin, before the first launch."""
        self._given_back_at = self._looks = 0
        self._rest: int | None = None
        self._looks_with_more = 0

    def due(self, begun: int, ended: int, blocks: int = 0) -> Due:
        """Say what to do.

        :param begun: how many launches there have been so far.
        :param ended: how many of them have ended.
        :param blocks: how many blocks of memory are in use.
        """
        rest = blocks - EACH * (begun - ended)
        if self._rest is None or (self._looks_with_more == LASTING and rest > self._rest):
            self._rest = rest  # what was there at the start, or has been looked at: no garbage
        self._looks_with_more = self._looks_with_more % LASTING + 1 if rest - self._rest > STRAY else 0
        self._looks += 1
        give_back = ended - self._given_back_at >= ENOUGH or self._looks == LATER
        if give_back:
            self._given_back_at, self._looks = ended, 0
        return Due(give_back, self._looks_with_more == LASTING)


async def tidy(begun: Callable[[], int], ended: Callable[[], int]) -> None:
    """Collect garbage and give memory back when it is time, until cancelled.

    :param begun: returns how many launches there have been so far.
    :param ended: returns how many of them have ended.
    """
    tidying = Tidying()
    while True:
        for _ in range(SELDOM):
            await anyio.sleep(INTERVAL)
            look()
        due = tidying.due(begun(), ended(), blocks())
        if due.collect_all:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        if due.give_back:
            give_back()


def look() -> None:
    """Collect garbage among what is new, if that is not much, and take the rest for what stays."""
    if sum(len(gc.get_objects(generation)) for generation in range(3)) <= FEW:
        gc.collect()
    gc.freeze()


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
