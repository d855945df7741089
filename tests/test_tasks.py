"""Work beside other work: what ends it, and which error comes out."""

import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio
import pytest

from k8s_builderd.tasks import background, beside

pytestmark = pytest.mark.anyio


class Failed(Exception):
    pass


async def fails() -> None:
    raise Failed from KeyError("why")


async def test_the_tasks_end_with_the_body() -> None:
    ended = False

    async def goes_on() -> None:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    async with background() as tasks:
        tasks.start_soon(goes_on)
        await anyio.wait_all_tasks_blocked()
    assert ended


async def test_the_bodys_error_comes_out_as_itself() -> None:
    async def work() -> None:
        async with background() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await fails()

    with pytest.raises(Failed) as failed:
        await work()
    assert isinstance(failed.value.__cause__, KeyError)


async def test_a_tasks_error_ends_the_body_and_comes_out_as_itself() -> None:
    async def work() -> None:
        async with background() as tasks:
            tasks.start_soon(fails)
            await anyio.sleep_forever()

    with pytest.raises(Failed) as failed:
        await work()
    assert isinstance(failed.value.__cause__, KeyError)


async def test_the_first_of_two_errors_counts() -> None:
    async def fails_as_well() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError

    with pytest.raises(Failed):
        await beside(fails_as_well, fails)


async def test_what_the_main_one_returns_is_returned() -> None:
    async def main() -> int:
        await anyio.wait_all_tasks_blocked()
        return 5

    assert await beside(main, anyio.sleep_forever) == 5


async def test_an_error_beside_it_counts_more_than_what_it_returns() -> None:
    async def main() -> int:
        await anyio.lowlevel.checkpoint()
        return 5

    with pytest.raises(Failed):
        await beside(main, fails)


async def test_a_cancellation_from_outside_is_no_error() -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await beside(anyio.sleep_forever, anyio.sleep_forever)
    assert scope.cancelled_caught


async def test_what_goes_on_beside_is_over_when_a_cancellation_comes_out() -> None:
    over = []

    async def other() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            over.append(True)

    with anyio.CancelScope() as scope:

        async def main() -> None:
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.sleep_forever()

        await beside(main, other, other)
    assert over == [True, True]


async def returns() -> None:
    await beside(partial(anyio.sleep, 0), anyio.sleep_forever, anyio.sleep_forever)


async def is_cancelled() -> None:
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            await anyio.lowlevel.checkpoint()
            scope.cancel()

        await beside(anyio.sleep_forever, cancel, anyio.sleep_forever)


async def is_failed_by_the_main_one() -> None:
    with suppress(Failed):
        await beside(fails, anyio.sleep_forever)


async def is_failed_by_another() -> None:
    with suppress(Failed):
        await beside(anyio.sleep_forever, fails, anyio.sleep_forever)


@pytest.mark.parametrize("way", [returns, is_cancelled, is_failed_by_the_main_one, is_failed_by_another])
async def test_what_is_over_leaves_nothing_to_the_garbage_collector(way: Callable[[], Awaitable[None]]) -> None:
    await way()
    await anyio.wait_all_tasks_blocked()
    gc.collect()
    gc.disable()
    try:
        await way()
        await anyio.wait_all_tasks_blocked()
        assert gc.collect() == 0
    finally:
        gc.enable()
