"""An asyncio event loop whose time is virtual: when nothing is ready, the clock jumps to the next timer.

The daemon's own code runs on it, thousands of seconds in one. There is no file descriptor, no thread and no clock in
it, and tasks are numbered, so that one seed always gives one history.
"""

import asyncio
import itertools
import math
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_TICK = 1e-9
"""The shortest time that goes by: adding less to a large number would not change it."""


class Stuck(AssertionError):
    """Raised when somebody waits and nothing will ever happen: no timer is set and nothing is ready."""


class _Selector(selectors.BaseSelector):
    """Watches nothing. Waiting moves the clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.next_time: Callable[[], float] = lambda: math.inf
        """When the loop's next timer is due."""
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = selectors.SelectorKey(fileobj, -1, events, data)
        self._keys[fileobj] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys[fileobj]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (timeout > 0 and self.next_time() == math.inf):
            raise Stuck("somebody waits for what will never happen")
        if timeout > 0:
            self.now += max(timeout, _TICK)
        return []


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of their numbers, not of their addresses."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class Loop(asyncio.SelectorEventLoop):
    """The event loop."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._virtual.next_time = lambda: self._scheduled[0].when()  # type: ignore[attr-defined]
        self._clock_resolution = _TICK
        numbers = itertools.count(1)

        def make(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **rest: Any) -> asyncio.Task[Any]:
            task = _Task(work, loop=loop, **rest)
            task.number = next(numbers)
            return task

        self.set_task_factory(make)  # type: ignore[arg-type]

    def time(self) -> float:
        return self._virtual.now

    def stand_still(self, seconds: float) -> None:
        self._virtual.now += seconds


class Simulation:
    """A virtual time in which tasks and timers live, and which is moved on from outside, step by step."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.errors: list[BaseException] = []
        """What nobody caught, in a task or in a callback."""
        self.loop.set_exception_handler(self._caught)

    def _caught(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.errors.append(context.get("exception") or AssertionError(context["message"]))

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.loop.time()

    def after(self, delay: float, action: Callable[..., None], *args: Any) -> asyncio.TimerHandle:
        """Do something later."""
        return self.loop.call_later(max(delay, 0), action, *args)

    def spawn(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> asyncio.Task[Any]:
        """Start a task; its error, if it has one, is kept in `errors`."""

        async def guarded() -> None:
            try:
                await work(*args)
            except Exception as error:  # noqa: BLE001 - whoever looks is told
                self.errors.append(error)

        return self.loop.create_task(guarded())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run until this has a result; everything else goes on meanwhile."""
        return self.loop.run_until_complete(work)

    def call(self, action: Callable[..., T], *args: Any) -> T:
        """Call a function in the loop."""

        async def called() -> T:
            return action(*args)

        return self.run(called())

    def advance(self, seconds: float) -> None:
        """Let so much time go by."""
        self.run(asyncio.sleep(seconds))

    def stand_still(self, seconds: float) -> None:
        """Let time go by in which nothing is done: all that is due then is done afterwards."""
        self.loop.stand_still(seconds)

    def advance_until(self, holds: Callable[[], bool], seconds: float, step: float = 0.05) -> bool:
        """Let time go by until it holds, so many seconds at most; return whether it does."""
        end = self.now + seconds
        while not holds() and self.now < end:
            self.advance(step)
        return holds()

    @property
    def tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return sorted(asyncio.all_tasks(self.loop), key=hash)

    def close(self) -> None:
        """End everything."""
        for task in self.tasks:
            task.cancel()
        self.run(_gather(self.tasks))
        self.loop.close()


async def _gather(tasks: list[asyncio.Task[Any]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)
