"""A followed log whose files are rotated at any moment comes to its newest line, and nobody has to print for it.

The follower's own code runs in a virtual time against a kubelet's log in memory: each request and each piece of an
answer takes a moment, and anything may happen meanwhile.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Literal, cast

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from k8s_builderd.kube import logs
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import Unavailable, Unreachable
from tests.kube.test_logs import Follower, Running
from tests.simulation.loop import Simulation

START = datetime(2026, 11, 23, 6, 57, tzinfo=UTC)
MOMENT = 0.001
"""Virtual seconds that a request takes, and each piece of its answer."""

SOON = 30.0
"""Virtual seconds in which all that is in the newest file has to have come, though nothing more is printed."""

Do = Literal["print", "rotate", "reset", "end", "refuse", "serve"]


class Step(Struct, frozen=True):
    """Something that happens so many milliseconds after the one before."""

    after: int
    do: Do
    lines: int = 1
    back: int = 0
    """Milliseconds by which the lines' timestamps go back, as where stdout and stderr mix."""


class File:
    """One file of a log."""

    def __init__(self) -> None:
        self.lines: list[tuple[datetime, bytes]] = []
        self.next: File | None = None


class Kubelet:
    """A running container's log, and the API's answers about it."""

    def __init__(self) -> None:
        self.container = Running()
        self.file = File()
        self.printed = 0
        self.refuses = False
        self.asked = 0
        self._open: set[Stream] = set()

    def do(self, step: Step) -> None:
        match step.do:
            case "print":
                at = START + timedelta(seconds=anyio.current_time(), milliseconds=-step.back)
                self.file.lines += [(at, b"line %d\n" % (self.printed + n)) for n in range(step.lines)]
                self.printed += step.lines
            case "rotate":
                self.file.next = File()
                self.file = self.file.next
            case "refuse" | "serve":
                self.refuses = step.do == "refuse"
            case "reset" | "end":
                for stream in self._open:
                    stream.cut(step.do)
        self.wake()

    def wake(self) -> None:
        for stream in self._open:
            stream.wake()

    def stop(self) -> None:
        self.container.end()
        self.wake()

    async def get(self, *_: Any) -> None:
        await anyio.sleep(MOMENT)

    @asynccontextmanager
    async def log(self, _: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        await anyio.sleep(MOMENT)
        self.asked += 1
        if self.refuses:
            raise Unavailable("no", verb="get", resource="pods/log")
        since = datetime.fromisoformat(query["sinceTime"]) if "sinceTime" in query else None
        stream = Stream(self, since, follow="follow" in query)
        self._open.add(stream)
        try:
            yield stream.pieces()
        finally:
            self._open.remove(stream)


class Stream:
    """One answer: it begins with the newest file, and crosses over to the next one if it follows."""

    def __init__(self, kubelet: Kubelet, since: datetime | None, *, follow: bool) -> None:
        self._kubelet = kubelet
        self._since = since
        self._follow = follow
        self._cut: Do | None = None
        self._waits = False
        self._changed = anyio.Event()

    def cut(self, how: Do) -> None:
        """Break off, or end cleanly where all has been told."""
        if how == "reset" or self._waits:
            self._cut = how

    def wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        file, told = self._kubelet.file, 0
        while True:
            changed = self._changed
            await anyio.sleep(MOMENT)
            if self._cut == "reset":
                raise Unreachable("reset", verb="get", resource="pods/log")
            if told < len(file.lines):
                at, text = file.lines[told]
                told += 1
                if self._since is None or at >= self._since:
                    yield at.strftime("%Y-%m-%dT%H:%M:%S.%f").encode() + b"000Z " + text
            elif not self._follow:
                return
            elif file.next is not None:
                file, told = file.next, 0
            elif self._cut or self._kubelet.container.ended:
                return
            else:
                self._waits = True
                await changed.wait()
                self._waits = False


steps = st.lists(
    st.builds(
        Step,
        after=st.sampled_from([0, 0, 1, 2, 3, 5, 10, 20, 100, 1500]),
        do=st.sampled_from(["print", "print", "print", "rotate", "rotate", "reset", "end", "refuse", "serve"]),
        lines=st.integers(1, 4),
        back=st.sampled_from([0, 0, 0, 1, 4]),
    ),
    max_size=14,
)


@settings(derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.integers(0, 1 << 16), st.sampled_from([1, 10, 1000]))
def test_what_is_left_by_rotations_comes_though_nothing_more_is_printed(
    steps: list[Step], seed: int, hurry: int
) -> None:
    kubelet, follower = Kubelet(), Follower()

    class Draw(Random):
        def uniform(self, a: float, b: float) -> float:
            return super().uniform(a, b) / hurry

    async def played() -> None:
        follow = partial(logs.follow, cast(Api, kubelet), "pod", "chaincode", kubelet.container, None, rng=Draw(seed))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(follow, deliver=follower._deliver, gap=follower._gap, refused=follower._refused))
            kubelet.do(Step(0, "print"))
            await follower.until(b"line 0\n")
            for step in [*steps, Step(0, "serve")]:
                await anyio.sleep(step.after / 1000)
                kubelet.do(step)
            await anyio.sleep(SOON)
            came = follower.lines
            for _, text in kubelet.file.lines:
                assert came.count(text) == 1, (came, text)
            kubelet.stop()
        assert follower.lines == came
        numbers = [int(n) for n in re.findall(rb"line (\d+)\n", came)]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == kubelet.printed or follower.gaps

    simulation = Simulation()
    try:
        simulation.run(played())
    finally:
        simulation.close()


def test_a_rest_that_is_refused_is_not_asked_for_in_a_storm() -> None:
    kubelet, follower = Kubelet(), Follower()

    async def played() -> None:
        async with anyio.create_task_group() as tasks:

            async def end() -> None:
                await follower.until(b"line 0\n")
                kubelet.do(Step(0, "refuse"))
                kubelet.stop()

            tasks.start_soon(end)
            kubelet.do(Step(0, "print"))
            follow = partial(logs.follow, cast(Api, kubelet), "pod", "chaincode", kubelet.container, None)
            with pytest.raises(logs.LogIncomplete):
                await follow(deliver=follower._deliver, gap=follower._gap, refused=follower._refused, rng=Random(1))
        assert kubelet.asked < 50

    simulation = Simulation()
    try:
        simulation.run(played())
    finally:
        simulation.close()


@pytest.mark.parametrize("rest", [0.0, 3600.0], ids=["ends", "is quiet for an hour"])
def test_a_nodes_clock_that_is_set_back_doubles_no_line(rest: float) -> None:
    """The lines before it have later times than the newest line has. No line was thrown away, and none was missed."""
    kubelet, follower = Kubelet(), Follower()

    async def play() -> None:
        follow = partial(logs.follow, cast(Api, kubelet), "pod", "chaincode", kubelet.container, None, rng=Random(1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(follow, deliver=follower._deliver, gap=follower._gap, refused=follower._refused))
            await anyio.sleep(60)
            for step in [*[Step(1000, "print")] * 40, *[Step(1000, "print", back=30_000)] * 5]:
                await anyio.sleep(step.after / 1000)
                kubelet.do(step)
            await anyio.sleep(rest)
            kubelet.stop()

    simulation = Simulation()
    try:
        simulation.run(play())
    finally:
        simulation.close()
    came = [int(number) for number in re.findall(rb"line (\d+)\n", follower.lines)]
    assert (came, follower.gaps) == (list(range(kubelet.printed)), 0)
