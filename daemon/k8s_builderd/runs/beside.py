"""Runs one thing with others beside it. Errors come out as they are, not in a group."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def beside(main: Callable[[], Awaitable[T]], *others: Callable[[], Awaitable[object]]) -> T:
    """Return what `main` returns; the others run meanwhile and are cancelled then.

    The first error of any of them cancels the rest, and is raised.
    """
    failures: list[Exception] = []
    results: list[T] = []

    async def guarded(work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised below
            failures.append(error)
            tasks.cancel_scope.cancel()

    async def keep() -> None:
        results.append(await main())

    async with anyio.create_task_group() as tasks:
        for other in others:
            tasks.start_soon(guarded, other)
        await guarded(keep)
        tasks.cancel_scope.cancel()
    if failures:
        raise failures[0]
    return results[0]
