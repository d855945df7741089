"""How long to wait before trying again."""

from collections.abc import Iterator
from random import Random, uniform


def delays(first: float, cap: float, rng: Random | None = None) -> Iterator[float]:
    """Yield waiting times in seconds: doubling from `first` up to `cap`, each drawn from its upper half."""
    # Not one of its own: it would have 2.5 KB of state, and each launch waits in several places.
    draw = uniform if rng is None else rng.uniform  # noqa: S311 - spreads load, keeps no secret
    while True:
        yield draw(first / 2, first)
        first = min(cap, first * 2)
