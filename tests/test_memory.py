"""When garbage is looked for, and memory given back: never among so much that it takes long."""

import os
import subprocess
import sys

import pytest

from k8s_builderd import memory
from k8s_builderd.memory import EACH, ENOUGH, LASTING, LATER, STRAY, Tidying


@pytest.mark.parametrize(
    ("looks", "gives_back"),
    [
        ([(0, 0), (0, 0)], [False, False]),
        ([(1000, 0), (1000, ENOUGH - 1), (1000, ENOUGH), (1000, ENOUGH)], [False, False, True, False]),
        ([(1000, 900), (1000, 1000), (1000, 1000)], [True, True, False]),
        ([(1000, 60), (1010, 120), (1020, 180)], [False, True, False]),
    ],
    ids=["nothing", "enough end", "all end", "few end at a time"],
)
def test_when_memory_is_given_back(looks: list[tuple[int, int]], gives_back: list[bool]) -> None:
    tidying = Tidying()
    assert [tidying.due(begun, ended).give_back for begun, ended in looks] == gives_back


START = 60_000
ENOUGH_FOR_ALL = START + 1000 * EACH + STRAY
"""Blocks that a thousand launches may need, and what may be there beside."""


@pytest.mark.parametrize(
    ("looks", "all_at"),
    [
        ([(1000, 0, ENOUGH_FOR_ALL)] * 9, []),
        ([(1000, 0, ENOUGH_FOR_ALL + 1)] * LASTING, [LASTING]),
        ([*[(1000, 0, 2 * ENOUGH_FOR_ALL)] * (LASTING - 1), (1000, 0, ENOUGH_FOR_ALL)] * 3, []),
        ([(1000, 900, START + 100 * EACH + STRAY)] * 9, []),
        ([(1000, 900, START + 100 * EACH + STRAY + 1)] * LASTING, [LASTING]),
        # Launches may need more than they usually do, and a look takes 0.2 s at a thousand.
        ([(1000, 0, 2 * ENOUGH_FOR_ALL)] * 9, [LASTING]),
        ([(1000, 0, 2 * n * ENOUGH_FOR_ALL) for n in (1, 2) for _ in range(4)], [LASTING, 4 + LASTING]),
    ],
    ids=["enough", "more", "more for a moment", "fewer launches", "and more", "they need it", "and then more still"],
)
def test_all_is_looked_at_where_more_is_in_use_than_the_launches_need(
    looks: list[tuple[int, int, int]], all_at: list[int]
) -> None:
    tidying = Tidying()
    found = [tidying.due(*look).collect_all for look in [(0, 0, START), *looks]]
    assert [number for number, is_due in enumerate(found) if is_due] == all_at


def test_a_daemon_that_finds_many_launches_leaves_them_no_more_room() -> None:
    tidying = Tidying()
    assert not tidying.due(1000, 0, 1000 * EACH + STRAY).collect_all
    assert [tidying.due(1000, 1000, 2 * STRAY + 1).collect_all for _ in range(LASTING)][-1]


def test_memory_is_given_back_now_and_then() -> None:
    """Connections come and go without launches, and end some time after these."""
    tidying = Tidying()
    looks = [tidying.due(1000, 950), *(tidying.due(1000, 1000) for _ in range(3 * LATER))]
    assert [number for number, due in enumerate(looks) if due.give_back] == [0, LATER, 2 * LATER, 3 * LATER]


def test_what_is_there_at_the_start_is_never_looked_at_again() -> None:
    script = """
import gc
from k8s_builderd import memory
memory.settle()
print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000, gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False\n"


def test_what_has_stayed_is_not_looked_at_again_either() -> None:
    script = """
import gc
import anyio
from k8s_builderd import memory
memory.INTERVAL = 0.001
async def main():
    class Ring:
        def __init__(self):
            self.itself = self
    memory.settle()
    Ring()
    stays = [[] for _ in range(5000)]
    frozen = gc.get_freeze_count()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(memory.tidy, lambda: 0, lambda: 0)
        while gc.get_freeze_count() < frozen + 5000:
            await anyio.sleep(0.001)
        kinds = [type(it).__name__ for it in gc.get_objects()]
        gc.unfreeze()
        kinds += [type(it).__name__ for it in gc.get_objects()]
        print("Ring" in kinds, len(stays))
        tasks.cancel_scope.cancel()
anyio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False 5000\n"


def test_among_much_that_is_new_nothing_is_looked_for() -> None:
    script = """
import gc
from k8s_builderd import memory
memory.settle()
class Ring:
    def __init__(self):
        self.itself = self
for more in (memory.FEW, 0):
    Ring()
    stays = [[] for _ in range(more)]
    memory.look()
    print(len(gc.get_objects()) < 10, end=" ")
    gc.unfreeze()
    print(sum(type(it) is Ring for it in gc.get_objects()), end=" ")
    gc.collect()
    gc.freeze()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True 1 True 0 "


def test_what_was_taken_for_what_stays_is_collected_when_there_is_too_much_of_it() -> None:
    script = """
import gc
import weakref
import anyio
from k8s_builderd import memory
memory.INTERVAL = 0.001
gc.disable()
async def main():
    class Ring:
        def __init__(self):
            self.itself = self
    memory.settle()
    looks = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(memory.tidy, lambda: looks.append(None) or 0, lambda: 0)
        while not looks:  # at what is there at the start
            await anyio.sleep(0.001)
        rings = [Ring() for _ in range(2000)]
        while any(type(it) is Ring for it in gc.get_objects()):
            await anyio.sleep(0.001)
        one = weakref.ref(rings[0])
        rings.clear()
        memory.STRAY = 1000
        while one() is not None:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
anyio.run(main)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_memory_can_be_given_back_on_this_system() -> None:
    memory.give_back()


def test_how_much_is_in_use_is_known_under_either_allocator() -> None:
    script = """
import gc
from k8s_builderd import memory
memory.settle()
before = memory.blocks()
more = [[] for _ in range(10_000)]
gc.freeze()
print(0 < before <= memory.blocks() - 5000)
"""
    for allocator in ("default", "malloc"):
        environment = {**os.environ, "PYTHONMALLOC": allocator}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
        )
        assert done.stdout == "True\n", allocator
