"""Tasks that go on beside a piece of work, and end with it. Errors come out as they are, not in a group.

What is over leaves nothing to the garbage collector. A task that its group cancels would: its exception, and all frames
that it has passed, hold each other. So what goes on beside something is cancelled in a scope of its own.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

T = TypeVar("T")


@asynccontextmanager
async def background() -> AsyncIterator[TaskGroup]:
    """Hand out a task group that is cancelled at the end of the body.

    The first error, of the body or of a task, cancels the rest and is raised.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure = group.exceptions[0]
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # or it would hold this frame, and this frame it


class Bell:
    """Wakes all who wait for it at the moment. One that nobody waits for is but a small object."""

    __slots__ = ("_rings",)

    def __init__(self) -> None:
        self._rings: anyio.Event | None = None

    def ring(self) -> None:
        """Wake them."""
        if self._rings is not None:
            self._rings.set()
            self._rings = None

    async def wait(self) -> None:
        """Wait for the next time that it rings."""
        if self._rings is None:
            self._rings = anyio.Event()
        await self._rings.wait()


async def beside(main: Callable[[], Awaitable[T]], *others: Callable[[], Awaitable[object]]) -> T:
    """Return what `main` returns; the others run meanwhile."""
    # Shielded: what cancels the caller cancels `main`, and the end of `main` cancels these.
    scopes = [anyio.CancelScope(shield=True) for _ in others]
    async with background() as tasks:
        for other, scope in zip(others, scopes, strict=True):
            tasks.start_soon(_within, scope, other)
        try:
            return await main()
        finally:
            for scope in scopes:
                scope.cancel()


async def in_time(seconds: float | None, work: Callable[[], Awaitable[T]]) -> T:
    """Return what `work` returns.

    Not anyio.fail_after: from Python 3.12 on its error and the frames that it has passed hold each other.

    :raises TimeoutError: if it takes longer than that.
    """
    with anyio.move_on_after(seconds):
        return await work()
    raise TimeoutError


async def _within(scope: anyio.CancelScope, work: Callable[[], Awaitable[object]]) -> None:
    with scope:
        await work()
