"""When garbage is looked for, and memory given back: never among so much that it takes long."""

import os
import subprocess
import sys

import pytest

from k8s_builderd import memory
from k8s_builderd.memory import EACH, ENOUGH, FEW, LATER, STRAY, Tidying

NEITHER, COLLECT, GIVE_BACK, BOTH = (False, False), (True, False), (False, True), (True, True)


@pytest.mark.parametrize(
    ("looks", "due"),
    [
        ([(0, 0), (0, 0)], [COLLECT, COLLECT]),
        ([(FEW, 0), (2 * FEW, 0)], [COLLECT, COLLECT]),
        ([(FEW + 1, 0), (FEW + 1, 0)], [NEITHER, COLLECT]),
        ([(1000, 0), (2000, 0), (2000, 0)], [NEITHER, NEITHER, COLLECT]),
        ([(1000, 0), (1000, ENOUGH - 1), (1000, ENOUGH), (1000, ENOUGH)], [NEITHER, NEITHER, BOTH, COLLECT]),
        ([(1000, 900), (1000, 1000), (1000, 1000)], [GIVE_BACK, GIVE_BACK, COLLECT]),
        ([(1000, 60), (1010, 120), (1020, 150)], [NEITHER, GIVE_BACK, COLLECT]),
        ([(1000, 0), (1000, FEW + 1), (1000, FEW + 1)], [NEITHER, NEITHER, COLLECT]),
    ],
    ids=["nothing", "few come", "many come", "always many", "enough end", "all end", "few end at a time", "many end"],
)
def test_what_is_due(looks: list[tuple[int, int]], due: list[tuple[bool, bool]]) -> None:
    tidying = Tidying()
    assert [tidying.due(begun, ended)[:2] for begun, ended in looks] == due


def test_all_is_looked_at_where_more_is_in_use_than_the_launches_need() -> None:
    tidying = Tidying()
    start = 60_000
    looks = [
        (0, 0, start),
        (1000, 0, start + 1000 * EACH + STRAY),
        (1000, 0, start + 1000 * EACH + STRAY + 1),
        (1000, 0, start + 1000 * EACH),
        (1000, 900, start + 100 * EACH + STRAY),
        (1000, 900, start + 100 * EACH + STRAY + 1),
    ]
    assert [tidying.due(*look).all for look in looks] == [False, False, True, False, False, True]


def test_what_a_look_at_all_leaves_is_not_looked_at_again() -> None:
    """Launches may need more than they usually do: a look takes 0.2 s at a thousand."""
    tidying = Tidying()
    more = 1000 * (EACH + 2 * STRAY // 1000)
    looks = [(0, 0, 60_000), *[(1000, 0, 60_000 + more)] * 5, (1000, 0, 60_000 + more + STRAY + 1)]
    assert [tidying.due(*look).all for look in looks] == [False, True, *[False] * 4, True]


def test_a_daemon_that_finds_many_launches_leaves_them_no_more_room() -> None:
    tidying = Tidying()
    assert not tidying.due(1000, 0, 1000 * EACH + STRAY).all
    assert tidying.due(1000, 1000, 2 * STRAY + 1).all


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
print(gc.get_freeze_count() > 1000, len(gc.get_objects()) < 1000, gc.get_threshold()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"True True {memory.YOUNG}\n"


def test_what_has_stayed_is_not_looked_at_again_either() -> None:
    script = """
import gc
import anyio
from k8s_builderd import memory
memory.INTERVAL = 0.001
gc.disable()
async def main():
    class Ring:
        def __init__(self):
            self.itself = self
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
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(memory.tidy, lambda: 0, lambda: 0)
        await anyio.sleep(0.01)
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
