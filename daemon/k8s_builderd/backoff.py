"""How long to wait before trying again."""

from collections.abc import Iterator
from random import Random


def delays(first: float, cap: float, rng: Random | None = None) -> Iterator[float]:
    """Yield waiting times in seconds: doubling from `first` up to `cap`, each drawn from its upper half."""
    draw = rng or Random()  # noqa: S311 - spreads load, keeps no secret
    while True:
        yield draw.uniform(first / 2, first)
        first = min(cap, first * 2)
