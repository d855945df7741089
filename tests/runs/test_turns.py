"""Turns: how many there are at a time, in which order, and who need not wait for one."""

import math
from collections import defaultdict

import anyio
import pytest

from k8s_builderd.runs.turns import Turns

pytestmark = pytest.mark.anyio


class Launches:
    """Launches that hold their turn until they are let go."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.asking: list[int] = []
        self.asked: dict[int, anyio.Event] = defaultdict(anyio.Event)
        self.answers: dict[int, anyio.Event] = defaultdict(anyio.Event)

    async def launch(self, number: int) -> None:
        async with self.turns.turn():
            self.asking.append(number)
            self.asked[number].set()
            await self.answers[number].wait()


async def test_as_many_ask_at_a_time_as_may_and_the_others_follow_in_their_order() -> None:
    launches = Launches(Turns(2, math.inf))
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(launches.launch, number)
        await anyio.wait_all_tasks_blocked()
        assert launches.asking == [0, 1]
        for answered, asking in [(1, [0, 1, 2]), (0, [0, 1, 2, 3]), (2, [0, 1, 2, 3, 4])]:
            launches.answers[answered].set()
            await anyio.wait_all_tasks_blocked()
            assert launches.asking == asking
        tasks.cancel_scope.cancel()


async def test_those_that_get_no_answer_hold_up_nobody_for_ever() -> None:
    launches = Launches(Turns(1, 0.01))
    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(launches.launch, number)
        for number in range(3):
            await launches.asked[number].wait()
        for number in range(3):
            launches.answers[number].set()  # whoever has no turn gives none back: there would be too many


async def test_a_launch_that_is_stopped_gives_its_turn_back() -> None:
    launches = Launches(Turns(1, math.inf))
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as stopped:
            stopped.start_soon(launches.launch, 0)
            stopped.start_soon(launches.launch, 1)
            await anyio.wait_all_tasks_blocked()
            stopped.cancel_scope.cancel()
        tasks.start_soon(launches.launch, 2)
        await anyio.wait_all_tasks_blocked()
        assert launches.asking == [0, 2]
        tasks.cancel_scope.cancel()
