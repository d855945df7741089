"""Records `k8s-builder demo` and draws it as docs/demo.svg, a terminal in which it happens again.

    python docs/render_demo.py     # needs the extra `demo`

The picture is text in an SVG, moved by CSS: no script, no font, no program that plays it. Who has asked their system
for less motion sees the end.
"""

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

from rich.color import ColorType
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).parent / "demo.svg"
COLUMNS, ROWS = 112, 26
CHARACTER, LINE, MARGIN = 7.25, 17, 14
"""Pixels: a character's width, a line's height, and what is left free around them."""
SHORTEST, LONGEST, PAUSE = 0.12, 0.9, 8.0
"""Seconds: between two lines at least and at most, and after the last one."""


def main() -> None:
    """Record, draw, and say where it is."""
    PICTURE.write_text(draw(record([sys.executable, "-m", "k8s_builder", "demo"])))
    sys.stdout.write(f"{PICTURE}\n")


def record(command: list[str]) -> list[tuple[float, str]]:
    """Return what a command prints to a terminal: each line, and the seconds since the one before."""
    controller, terminal = pty.openpty()
    inside = ["env", f"COLUMNS={COLUMNS}", "TERM=xterm-256color", *command]
    with subprocess.Popen(inside, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        lines = list(_timed(controller))
    os.close(controller)
    if process.returncode:
        raise SystemExit("".join(f"{line}\n" for _, line in lines))
    return lines


def _timed(controller: int) -> Iterator[tuple[float, str]]:
    pending, last = b"", time.monotonic()
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError:  # the other end is closed
            return
        *whole, pending = (pending + data).split(b"\n")
        for line in whole:
            now = time.monotonic()
            yield now - last, line.decode().rstrip("\r")
            last = now


def draw(lines: list[tuple[float, str]]) -> str:
    """Return the SVG: all lines in one group that moves up by whole lines, so that each comes in at the bottom."""
    console = Console(width=COLUMNS, force_terminal=True)
    rows: list[tuple[float, Text]] = []
    for seconds, whole in lines:
        line = whole.rsplit("\x1b[2K", 1)[-1]
        if line.endswith(" in progress"):
            continue
        text = Text.from_ansi(re.sub(r"(k8s-builder-demo)-\w+", r"\1", line))
        for part, piece in enumerate(text.wrap(console, COLUMNS)):
            rows.append((0.0 if part else min(max(seconds, SHORTEST), LONGEST), piece))
    times = [sum(seconds for seconds, _ in rows[: index + 1]) for index in range(len(rows))]
    length = times[-1] + PAUSE
    offsets = [(ROWS - index - 1) * LINE for index in range(len(rows))]
    frames = "".join(
        f"{100 * at / length:.3f}%{{transform:translateY({offset}px)}}"
        for at, offset in zip([0.0, *times], [ROWS * LINE, *offsets], strict=True)
    )
    body = "".join(_row(text, index) for index, (_, text) in enumerate(rows))
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, ROWS * LINE + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" width="{width:g}" role="img">'
        "<title>k8s-builder demo in a terminal</title><style>"
        "text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre;fill:#d9d9d9}"
        f"g.moves{{transform:translateY({offsets[-1]}px);animation:up {length:.2f}s step-end infinite}}"
        f"@keyframes up{{{frames}}}"
        "@media (prefers-reduced-motion:reduce){g.moves{animation:none}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#1b1d23"/>'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{COLUMNS * CHARACTER:g}" height="{ROWS * LINE}">'
        f'<g class="moves">{body}</g></svg></svg>\n'
    )


def _row(text: Text, index: int) -> str:
    """Return a line's text, in pieces of one colour each, every piece at its column."""
    if not text.plain.strip():
        return ""
    pieces, y = "", index * LINE + LINE - 5
    column = 0
    for segment in text.render(Console(width=COLUMNS)):
        words = segment.text.strip()
        if words:
            x = (column + len(segment.text) - len(segment.text.lstrip())) * CHARACTER
            length = f' textLength="{len(words) * CHARACTER:g}" lengthAdjust="spacingAndGlyphs"'
            pieces += f'<tspan x="{x:g}"{length}{_look(segment.style)}>{escape(words)}</tspan>'
        column += len(segment.text)
    return f'<text y="{y}">{pieces}</text>'


def _look(style: Style | None) -> str:
    if style is None:
        return ""
    look = ' font-weight="bold"' if style.bold else ""
    look += ' opacity="0.65"' if style.dim else ""
    if style.color is not None and style.color.type is not ColorType.DEFAULT:
        look += ' fill="#{:02x}{:02x}{:02x}"'.format(*style.color.get_truecolor(MONOKAI))
    return look


if __name__ == "__main__":
    main()
