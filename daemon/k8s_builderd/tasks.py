"""Tasks that go on beside a piece of work, and end with it. Errors come out as they are, not in a group."""

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

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
        raise failure


async def beside(main: Callable[[], Awaitable[T]], *others: Callable[[], Coroutine[Any, Any, object]]) -> T:
    """Return what `main` returns; the others run meanwhile."""
    async with background() as tasks:
        for other in others:
            tasks.start_soon(other)
        return await main()
