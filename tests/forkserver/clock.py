"""Has time run faster for this process, as libfaketime does: a pause of 5 s then takes 0.5 s at a pace of 10.

The process' own code does not know: it is the clock and the wait of the standard library that change.
"""

import selectors
import time


def hurry(pace: float) -> None:
    """Multiply this process' monotonic time, and divide what its event loops wait."""
    start, monotonic = time.monotonic(), time.monotonic

    class Selector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            return super().select(timeout and timeout / pace)

    time.monotonic = lambda: start + (monotonic() - start) * pace
    selectors.DefaultSelector = Selector  # type: ignore[misc]
