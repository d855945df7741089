"""Runs one thing with others beside it. Errors come out as they are, not in a group.

What has ended leaves nothing to the garbage collector. A task that a task group cancels would: its exception, and all
the frames that it came through, hold each other. So each thing here is cancelled in a scope of its own, and ends by
itself.
"""

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
    main_scope = anyio.CancelScope()
    # Shielded: what cancels the caller cancels `main`, and the end of `main` cancels these.
    scopes = [anyio.CancelScope(shield=True) for _ in others]

    async def guarded(work: Callable[[], Awaitable[object]], scope: anyio.CancelScope) -> None:
        with scope:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)
                main_scope.cancel()

    async def keep() -> None:
        results.append(await main())

    async with anyio.create_task_group() as tasks:
        for other, scope in zip(others, scopes, strict=True):
            tasks.start_soon(guarded, other, scope)
        try:
            await guarded(keep, main_scope)
        finally:
            for scope in scopes:
                scope.cancel()
    try:
        if failures:
            raise failures[0]
        return results[0]
    finally:
        failures.clear()  # or the error would hold this frame, and this frame the error
