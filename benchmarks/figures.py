"""Figures, and the ways in which they are shown: a table, JSON, and a page with plots."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from msgspec import Struct, to_builtins
from rich.console import Console
from rich.table import Table

BEGIN, END = "<!-- written by python -m benchmarks -->\n", "<!-- end -->\n"


class Figure(Struct, frozen=True):
    """One thing that was measured: all its samples, and what it is compared with.

    `ratios` are those of pairs measured one right after the other: what the machine does meanwhile is in both.
    `theirs` are the samples of what it is compared with, where they are told of nowhere else.
    """

    what: str
    unit: str
    samples: list[float]
    against: str = ""
    ratios: list[float] = []
    theirs: list[float] = []

    @property
    def cells(self) -> list[str]:
        """Return a row of the table."""
        ordered = sorted(self.samples)
        spread = f"{_number(ordered[0])} to {_number(ordered[-1])}" if len(ordered) > 1 else ""
        # A hundredth of fewer samples is less than one of them.
        last = _number(quantiles(ordered, n=100)[-1]) if len(ordered) >= 100 else ""
        ratio = f"{median(self.ratios):.2f}" if self.ratios else ""
        against = self.against + (f": {_number(median(self.theirs))} {self.unit}" if self.theirs else "")
        return [self.what, f"{_number(median(ordered))} {self.unit}".rstrip(), spread, last, ratio, against]


class Plot(Struct, frozen=True):
    """Points by series, for one picture."""

    name: str
    title: str
    x: str
    y: str
    series: dict[str, list[tuple[float, float]]]
    bars: bool = False


HEADINGS = ["what", "median", "from, to", "99 %", "ratio", "compared with"]


def show(figures: Sequence[Figure]) -> None:
    """Print the table."""
    table = Table(*HEADINGS)
    for figure in figures:
        table.add_row(*figure.cells)
    Console(width=None if Console().is_terminal else 140).print(table)


def write_json(path: Path, figures: Sequence[Figure], plots: Sequence[Plot]) -> None:
    """Write everything, samples included."""
    document: dict[str, Any] = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "figures": to_builtins(figures),
        "plots": to_builtins(plots),
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def machine() -> str:
    """Return what it was measured on."""
    return f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"


def write_page(page: Path, figures: Sequence[Figure], plots: Sequence[Plot]) -> None:
    """Put the table and the plots into a page, in place of those that are there.

    :raises ModuleNotFoundError: if matplotlib is not installed: it is in the extra `benchmarks`.
    """
    lines = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {machine()}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| " + " | ".join("---" for _ in HEADINGS) + " |",
        *("| " + " | ".join(figure.cells) + " |" for figure in figures),
        "",
    ]
    for plot in plots:
        draw(page.with_name(f"benchmarks-{plot.name}.svg"), plot)
        lines += [f"![{plot.title}](benchmarks-{plot.name}.svg)", ""]
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n".join(lines) + END + after)


def draw(path: Path, plot: Plot) -> None:
    """Draw one plot."""
    import matplotlib as mpl  # in the extra `benchmarks` only

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = plot.name
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for name, points in plot.series.items():
        if plot.bars:
            axes.barh([name], [points[0][1]])
        else:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name)
    axes.set(title=plot.title, xlabel=plot.y if plot.bars else plot.x, ylabel="" if plot.bars else plot.y)
    if not plot.bars:
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
