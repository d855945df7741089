"""What a run of the benchmarks is to measure, and what it has measured."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure, Plot


class Plan:
    """How much is measured, and what with."""

    def __init__(self, *, quick: bool, go_builder: Path | None, kubectl: Path | None, assets: Path | None) -> None:
        self.quick = quick
        self.go_builder = go_builder
        self.kubectl = kubectl
        self.assets = assets
        self.figures: list[Figure] = []
        self.plots: list[Plot] = []

    def of(self, whole: int, quick: int) -> int:
        """Return how often."""
        return quick if self.quick else whole

    def add(
        self,
        what: str,
        unit: str,
        samples: Sequence[float],
        against: str = "",
        ratios: Sequence[float] = (),
        theirs: Sequence[float] = (),
    ) -> None:
        """Take in a figure."""
        self.figures.append(Figure(what, unit, list(samples), against, list(ratios), list(theirs)))
