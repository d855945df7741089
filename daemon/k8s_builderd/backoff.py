"""How long to wait before trying again, and how often something may be done."""

from collections.abc import Iterator
from random import Random, uniform


def delays(first: float, cap: float, rng: Random | None = None) -> Iterator[float]:
    """Yield waiting times in seconds: doubling from `first` up to `cap`, each drawn from its upper half."""
    # Not one of its own: it would have 2.5 KB of state, and each launch waits in several places.
    draw = uniform if rng is None else rng.uniform  # noqa: S311 - spreads load, keeps no secret
    while True:
        yield draw(first / 2, first)
        first = min(cap, first * 2)


class Allowance:
    """So many at once, and after that one each so many seconds. Pure: the caller says what time it is."""

    def __init__(self, at_once: int, every: float, now: float) -> None:
        self._most, self._every = at_once, every
        self._left, self._counted_at = float(at_once), now

    def take(self, now: float) -> bool:
        """Take one, and return whether there was one."""
        self._left = min(self._most, self._left + (now - self._counted_at) / self._every)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
