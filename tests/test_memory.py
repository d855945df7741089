"""When garbage is collected, and memory given back: as many launches must have ended as go on, and none just now."""

import gc
import subprocess
import sys

import pytest

from k8s_builderd import memory
from k8s_builderd.memory import ENOUGH, Tidying


@pytest.mark.parametrize(
    ("looks", "due"),
    [
        ([(0, 0), (0, 0)], [False, False]),
        ([(ENOUGH - 1, 0), (ENOUGH - 1, 0)], [False, False]),
        ([(ENOUGH, 0), (ENOUGH, 0), (ENOUGH, 0)], [False, True, False]),
        ([(ENOUGH, 0), (ENOUGH + 1, 0), (ENOUGH + 1, 0)], [False, False, True]),
        ([(9 * ENOUGH, 0), (10 * ENOUGH - 1, 0), (10 * ENOUGH, 0), (11 * ENOUGH, 0)], [False, False, True, False]),
        ([(9_000, 1000), (10_000, 1000), (19_999, 1000), (20_000, 1000)], [False, True, False, True]),
        ([(999, 1000), (999, 1000), (1000, 1000), (1000, 1000)], [False, False, False, True]),
        ([(500, 1000), (500, 1000), (500, 400)], [False, False, True]),
        ([(200, 0), (200, 0), (300, 0), (300, 0)], [False, True, False, True]),
    ],
    ids=[
        "nothing ended",
        "few",
        "enough",
        "still ending",
        "always ending",
        "always many",
        "as many as go on",
        "fewer go on",
        "again",
    ],
)
def test_when_everything_is_collected(looks: list[tuple[int, int]], due: list[bool]) -> None:
    tidying = Tidying()
    assert [tidying.due(ended, alive) for ended, alive in looks] == due


def test_what_is_there_at_the_start_is_never_looked_at_again() -> None:
    script = """
import gc
from k8s_builderd import memory
memory.settle()
print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000, gc.get_threshold()[:2])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"True True ({memory.YOUNG}, {memory.MIDDLE})\n"


def test_giving_back_collects_what_holds_itself() -> None:
    class Ring:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        Ring()
        memory.give_back()
        assert not [it for it in gc.get_objects() if isinstance(it, Ring)]
    finally:
        gc.enable()
