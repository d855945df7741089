"""What the operator sees of the demo: numbered steps, what happens in them, and how each one ended."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import anyio
from rich.console import Console
from rich.text import Text

_INDENT = "      "


class Screen:
    """Steps on a terminal with colours and a spinner, elsewhere as plain lines, each written at once."""

    def __init__(self, steps: int) -> None:
        self.step_name = ""
        """The step that is under way, or the last one."""
        # Lines are never folded where nobody sees a terminal: they may be read by a program.
        self._console = Console(highlight=False, soft_wrap=True)
        self._steps = steps
        self._number = 0

    @contextmanager
    def step(self, name: str, seconds: float) -> Iterator[None]:
        """Announce a step and say how long it took. Raises TimeoutError after `seconds`."""
        self._number += 1
        self.step_name = name
        self._print(f"[{self._number}/{self._steps}] {name}", "bold")
        began = time.monotonic()
        spinner = self._console.status("in progress") if self._console.is_terminal else nullcontext()
        with spinner, anyio.fail_after(seconds):
            yield
        self._print(f"{_INDENT}done in {time.monotonic() - began:.1f} s", "dim")

    def say(self, words: str) -> None:
        """Tell something that was found to hold."""
        self._print(f"{_INDENT}{words}", "green")

    def show(self, source: str, words: str) -> None:
        """Show a line of somebody else: a program's stderr, the peer's log."""
        line = Text(f"{_INDENT}{source} | ", style="cyan")
        self._console.print(line.append(words, style="default"))

    def end(self, words: str, *, good: bool) -> None:
        """Tell how the demo ended."""
        self._print(words, "bold green" if good else "bold red")

    def _print(self, words: str, style: str) -> None:
        self._console.print(Text(words, style=style))
