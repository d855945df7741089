"""One thing with others beside it: what ends whom, which error comes out, and that nothing is left of it."""

import gc
from collections.abc import Awaitable, Callable

import anyio
import pytest

from k8s_builderd.beside import beside

pytestmark = pytest.mark.anyio


class Oops(Exception):
    """What goes wrong here."""


async def fails() -> None:
    await anyio.lowlevel.checkpoint()
    raise Oops


async def returns() -> int:
    await anyio.lowlevel.checkpoint()
    return 7


async def main_returns() -> None:
    assert await beside(returns, anyio.sleep_forever, anyio.sleep_forever) == 7


async def main_fails() -> None:
    with pytest.raises(Oops):
        await beside(fails, anyio.sleep_forever)


async def another_fails() -> None:
    with pytest.raises(Oops):
        await beside(anyio.sleep_forever, fails, anyio.sleep_forever)


async def both_fail() -> None:
    with pytest.raises(Oops):
        await beside(fails, fails)


async def another_ends_first() -> None:
    async def main() -> int:
        await anyio.wait_all_tasks_blocked()
        return 1

    assert await beside(main, returns) == 1


async def is_cancelled() -> None:
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            await anyio.lowlevel.checkpoint()
            scope.cancel()

        await beside(anyio.sleep_forever, cancel, anyio.sleep_forever)
    assert scope.cancelled_caught


WAYS = [main_returns, main_fails, another_fails, both_fail, another_ends_first, is_cancelled]


@pytest.mark.parametrize("way", WAYS)
async def test_its_end(way: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(30):
        await way()


async def test_the_others_are_over_when_it_returns() -> None:
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


@pytest.mark.parametrize("way", [main_returns, another_ends_first, is_cancelled])
async def test_it_leaves_nothing_to_the_garbage_collector(way: Callable[[], Awaitable[None]]) -> None:
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


async def test_an_error_leaves_nothing_either() -> None:
    async def once() -> bool:
        try:
            await beside(anyio.sleep_forever, fails)
        except Oops:
            return True
        return False

    assert await once()
    gc.collect()
    gc.disable()
    try:
        assert await once()
        await anyio.wait_all_tasks_blocked()
        assert gc.collect() == 0
    finally:
        gc.enable()
