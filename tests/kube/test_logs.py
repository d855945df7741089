"""A followed log comes whole and once, whatever becomes of the streams that bring it."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Any, Self

import anyio
import pytest
from anyio.abc import TaskGroup
from structlog.testing import capture_logs

from k8s_builderd.backoff import delays
from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Pod
from k8s_builderd.kube import logs
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE, ApiError
from k8s_builderd.kube.loglines import Batch, Position, Reader
from k8s_builderd.kube.resources import PODS
from k8s_builderd.kube.watch import Reflector
from k8s_builderd.runs.observed import Observed
from k8s_builderd.tasks import background
from tests.embedded.cluster import DIGEST, PATIENCE, Cluster, job
from tests.kube.rogue import Reply, Request, rogue, status

pytestmark = pytest.mark.anyio


class Soon(Random):
    """Waits shortly, so that ten failures in a row are no minute."""

    def __init__(self, seconds: float = 0.005) -> None:
        super().__init__()
        self._seconds = seconds

    def uniform(self, a: float, b: float) -> float:
        return self._seconds


class Follower:
    """One who follows a log: what has come, how many gaps were told, and the end."""

    def __init__(self, pause: float = 0.005) -> None:
        self.pause = pause
        self.lines = b""
        self.gaps = 0
        self.refusals: list[str] = []
        self.interruptions: list[str] = []
        self.position: Position | None = None
        self.ended = anyio.Event()
        self._changed = anyio.Event()

    async def run(
        self,
        api: Api,
        pod: str,
        container: logs.Container,
        after: Position | None = None,
        drain: float = logs.DRAIN_TIMEOUT,
        silence: float = logs.SILENCE,
        refusal: float = FORBIDDEN_PATIENCE,
    ) -> None:
        await logs.follow(
            api,
            pod,
            CONTAINER,
            container,
            after,
            deliver=self._deliver,
            gap=self._gap,
            refused=self._refused,
            interrupted=lambda error: self.interruptions.append(error.kind),
            drain=drain,
            silence=silence,
            refusal=refusal,
            rng=Soon(self.pause),
        )
        self.ended.set()
        self._pulse()

    async def _deliver(self, batch: Batch) -> None:
        self.lines += batch.lines
        self.position = batch.position
        self._pulse()

    async def _gap(self) -> None:
        self.gaps += 1
        self._pulse()

    async def _refused(self, error: ApiError) -> None:
        self.refusals.append(str(error))
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, wanted: bytes | Callable[[], Any]) -> None:
        """Wait until this has come."""
        with anyio.move_on_after(PATIENCE):
            while not (wanted in self.lines if isinstance(wanted, bytes) else wanted()):
                await self._changed.wait()
            return
        raise AssertionError(f"{wanted!r} did not come: {self.lines[-500:]!r}, {self.gaps} gaps")

    async def end(self) -> bytes:
        with anyio.fail_after(PATIENCE):
            await self.ended.wait()
        return self.lines


class Printer:
    """A running container that prints what it is told to, through a pipe."""

    def __init__(self, cluster: Cluster, api: Api, pod: str, observed: Observed, pipe: int, tasks: TaskGroup) -> None:
        self.cluster = cluster
        self.pod = pod
        self.observed = observed
        self._api = api
        self._pokes = 0
        self._pipe = pipe
        self._tasks = tasks

    @classmethod
    @asynccontextmanager
    async def open(cls, cluster: Cluster, api: Api, fifo: Path, clock: str = "exact") -> AsyncIterator[Self]:
        os.mkfifo(fifo)
        pipe = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # both, so that neither end waits for the other
        observed = Observed()
        body = job("printer", "cat", str(fifo), container={"image": f"localhost/{clock}@{DIGEST}"})
        await cluster.create(body)
        async with anyio.create_task_group() as tasks:
            reflector = Reflector(api, PODS, Pod, "app=printer", lambda change: observed.fold(change, 0.0), rng=Soon())
            tasks.start_soon(reflector.run)
            with anyio.fail_after(PATIENCE):
                while not observed.started:
                    await observed.changed()
            assert observed.pod is not None
            printer = cls(cluster, api, observed.pod.metadata.name, observed, pipe, tasks)
            try:
                yield printer
            finally:
                printer.close()
            tasks.cancel_scope.cancel()

    async def say(self, data: bytes) -> bytes:
        rest = data
        while rest:
            rest = rest[await anyio.to_thread.run_sync(os.write, self._pipe, rest) :]
        return data

    def close(self) -> None:
        """Have the container come to its end."""
        pipe, self._pipe = self._pipe, -1
        if pipe >= 0:
            os.close(pipe)

    def follow(self, after: Position | None = None, **options: float) -> Follower:
        follower = Follower()
        self._tasks.start_soon(partial(follower.run, self._api, self.pod, self.observed, after, **options))
        return follower

    async def fault(self, **rule: Any) -> None:
        await self.cluster.switch("POST", "faults", {"verb": "log", **rule})

    async def away(self, follower: Follower) -> None:
        """Break the follower's stream, and let it not come back yet."""
        await self.fault(times=None, action={"do": "status", "code": 500})
        await self.cluster.switch("POST", "drop")

    async def back(self) -> None:
        await self.cluster.switch("DELETE", "faults")

    async def rotate(self) -> None:
        await self.cluster.switch("POST", f"pods/{self.cluster.namespace}/{self.pod}/rotate")

    async def poke(self) -> None:
        """Change something about the pod, so that its watchers look up."""
        self._pokes += 1
        await self.cluster.patch("pods", self.pod, {"metadata": {"annotations": {"poke": str(self._pokes)}}})

    async def met(self, times: int) -> None:
        """Wait until the fault has been met so often."""
        with anyio.fail_after(PATIENCE):
            while (await self.cluster.switch("GET", "faults"))[0]["met"] < times:
                await self.poke()

    async def stored(self, text: bytes) -> None:
        """Wait until the cluster has this in the log, though the follower is away."""
        with anyio.fail_after(PATIENCE):
            async with self.cluster.open(self.cluster.path("pods", self.pod, "log"), follow="true") as answer:
                data = b""
                while text not in data:
                    data += await answer.content.readany()


@pytest.fixture
async def printer(cluster: Cluster, api: Api, tmp_path: Path) -> AsyncIterator[Printer]:
    async with Printer.open(cluster, api, tmp_path / "fifo") as printer:
        yield printer


def numbered(start: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(start, end))


async def test_a_log_is_followed_from_its_beginning_to_its_end(printer: Printer) -> None:
    said = await printer.say(numbered(0, 10))
    follower = printer.follow()
    await follower.until(b"line 9\n")
    said += await printer.say(numbered(10, 20))
    await follower.until(b"line 19\n")
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 0


async def test_what_was_printed_before_anybody_came_and_after_the_end_is_read(printer: Printer) -> None:
    said = await printer.say(numbered(0, 1000) + b"no newline")
    printer.close()
    with anyio.fail_after(PATIENCE):
        while not printer.observed.ended:
            await printer.observed.changed()
    assert await printer.follow().end() == said + b"\n"


async def test_the_last_line_without_a_newline_comes_at_the_end(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(b"one\r\n\n\xff\xfe\ntwo")
    await follower.until(b"\xff\xfe\n")
    printer.close()
    assert await follower.end() == said.replace(b"\r", b"") + b"\n"  # the runtime drops CR before LF


@pytest.mark.parametrize("reset", [False, True], ids=["clean", "reset"])
@pytest.mark.parametrize("size", [0, 1, 20, 31, 33, 200, 4096])
async def test_a_stream_cut_anywhere_while_the_container_runs_is_gone_on_with(
    printer: Printer, size: int, reset: bool
) -> None:
    await printer.fault(times=4, action={"do": "cut", "bytes": size, "reset": reset})
    said = await printer.say(numbered(0, 300))
    follower = printer.follow()
    await follower.until(b"line 299\n")
    said += await printer.say(numbered(300, 310))
    await follower.until(b"line 309\n")
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 0
    assert set(follower.interruptions) <= {"unreachable"}
    assert bool(follower.interruptions) == reset


@pytest.mark.parametrize("reset", [False, True], ids=["clean", "reset"])
async def test_a_long_line_cut_in_its_middle_comes_in_its_pieces_once(printer: Printer, reset: bool) -> None:
    for size in (40_000, 150_000, 10_000, 90_000):
        await printer.fault(action={"do": "cut", "bytes": size, "reset": reset})
    await printer.say(b"before\n" + b"x" * 200_000 + b"\nafter\n")
    follower = printer.follow()
    await follower.until(b"after\n")
    printer.close()
    lines = (await follower.end()).splitlines()
    assert (lines[0], lines[-1]) == (b"before", b"after")
    assert b"".join(line.partition(b" [piece ")[0] for line in lines[1:-1]) == b"x" * 200_000
    assert [line.count(b" [piece %d" % number) for number, line in enumerate(lines[1:-1], 1)] == [1] * 7
    assert follower.gaps == 0


async def test_a_clean_end_of_the_stream_is_no_end_of_the_chaincode(printer: Printer) -> None:
    follower = printer.follow()
    said = b""
    for number in range(5):
        await printer.fault(action={"do": "cut", "bytes": 1})  # the next stream that is opened
        await printer.cluster.switch("POST", "drop")
        said += await printer.say(b"line %d\n" % number)
        await follower.until(said)
    assert not follower.ended.is_set()
    printer.close()
    assert await follower.end() == said


@pytest.mark.parametrize(("code", "times"), [(400, 3), (404, 3), (500, 10), (503, 3), (429, 3)], ids=str)
async def test_refusals_while_the_container_runs_are_waited_out(printer: Printer, code: int, times: int) -> None:
    """400: it is waiting to start; 404: not known to this API server yet."""
    said = await printer.say(numbered(0, 10))
    await printer.fault(times=times, action={"do": "status", "code": code})
    with capture_logs() as logged:
        follower = printer.follow()
        await follower.until(b"line 9\n")
    levels = [line["log_level"] for line in logged if line["event"] == "log_interrupted"]
    once = ["info", *["debug"] * (times - 1)]  # a line for each chaincode, not for each attempt
    assert levels == ([] if code == HTTPStatus.NOT_FOUND else once)
    await printer.fault(times=times, action={"do": "status", "code": code})
    await printer.cluster.switch("POST", "drop")
    said += await printer.say(numbered(10, 20))
    await follower.until(b"line 19\n")
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 0


@pytest.mark.parametrize("code", [401, 403])
async def test_a_log_that_is_refused_is_told_once_and_asked_for_again(printer: Printer, code: int) -> None:
    """An API server that has just started answers 403 for a moment, and a Role can be mended."""
    said = await printer.say(numbered(0, 10))
    await printer.fault(times=None, action={"do": "status", "code": code})
    follower = printer.follow(refusal=0.3)
    await follower.until(lambda: follower.refusals)
    assert "cannot get pods/log" in follower.refusals[0]
    await printer.poke()
    await printer.met(4)
    await printer.back()
    await printer.poke()
    await follower.until(b"line 9\n")
    printer.close()
    assert await follower.end() == said
    assert (follower.gaps, len(follower.refusals)) == (0, 1)


async def test_a_log_is_asked_for_when_the_api_server_wants_it(kubeconfig: Path) -> None:
    asked: list[float] = []

    async def answer(request: Request, reply: Reply) -> None:
        asked.append(anyio.current_time())
        if len(asked) <= 2:
            await reply.whole(429, {"kind": "Status", "code": 429, "details": {"retryAfterSeconds": 1}})
        else:
            container.end()
            await reply.chunked(stamped(1))

    container, follower = Running(), Follower()
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", container)
    assert asked[1] - asked[0] >= 1
    assert asked[2] - asked[1] >= 1
    assert follower.lines == b"line 1\n"


async def test_an_outage_of_the_api_loses_nothing(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    await printer.cluster.switch("POST", "outage", {"on": True})
    said += await printer.say(numbered(10, 20))
    await printer.cluster.switch("POST", "outage", {"on": False})
    await follower.until(b"line 19\n")
    assert (follower.lines, follower.gaps) == (said, 0)


async def test_an_end_during_an_outage_is_noticed_after_it_with_the_rest_of_the_log(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    await printer.cluster.switch("POST", "outage", {"on": True})
    said += await printer.say(numbered(10, 2000))
    printer.close()
    await printer.cluster.switch("POST", "outage", {"on": False})
    assert await follower.end() == said
    assert follower.gaps == 0


@pytest.mark.parametrize("clock", ["jitter", "coarse"])
async def test_timestamps_that_go_back_or_stand_still_lose_and_repeat_nothing(
    cluster: Cluster, api: Api, tmp_path: Path, clock: str
) -> None:
    async with Printer.open(cluster, api, tmp_path / "fifo", clock) as printer:
        follower = printer.follow()
        said = b""
        for turn in range(6):
            for size in (1000 + 800 * turn, 3000 + 900 * turn):
                await printer.fault(action={"do": "cut", "bytes": size, "reset": True})
            await printer.cluster.switch("POST", "drop")
            said += await printer.say(b"same\n" * 50 + b"%d\n" % turn + b"same\n" * 50)
            await follower.until(lambda said=said: len(follower.lines) >= len(said))  # type: ignore[misc]
            assert follower.lines == said
        printer.close()
        assert await follower.end() == said
        assert follower.gaps == 0


# Rotation


async def test_a_follower_that_is_not_cut_crosses_a_rotation(printer: Printer) -> None:
    follower = printer.follow()
    said = b""
    for turn in range(3):
        said += await printer.say(numbered(turn * 10, turn * 10 + 10))
        await follower.until(b"line %d\n" % (turn * 10 + 9))
        await printer.rotate()
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 0


async def test_lines_rotated_away_are_told_as_one_gap_and_all_that_is_left_comes(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    await printer.away(follower)
    await printer.say(numbered(10, 20))
    await printer.rotate()
    after = await printer.say(numbered(20, 30))
    await printer.back()
    await printer.stored(b"line 29\n")
    await follower.until(b"line 29\n")
    more = await printer.say(numbered(30, 40))
    await follower.until(b"line 39\n")
    assert follower.gaps == 1
    printer.close()
    # What was printed around the rotation may lie on either side of it.
    assert await follower.end() in {said + numbered(n, 20) + after + more for n in range(10, 21)}
    assert follower.gaps == 1


async def test_a_rotation_between_two_lines_loses_none(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    await printer.away(follower)
    await printer.rotate()
    said += await printer.say(numbered(10, 20))
    await printer.back()
    await follower.until(b"line 19\n")
    printer.close()
    assert await follower.end() == said
    assert follower.gaps <= 1  # that nothing is missing cannot be known


async def test_a_rotation_before_the_end_is_told_when_the_rest_is_read(printer: Printer) -> None:
    follower = printer.follow()
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    await printer.away(follower)
    await printer.rotate()
    await printer.say(b"last\n")
    printer.close()
    with anyio.fail_after(PATIENCE):
        while not printer.observed.ended:
            await printer.observed.changed()
    await printer.back()
    assert await follower.end() == said + b"last\n"
    assert follower.gaps == 1


# Taken up by a new daemon


async def test_a_new_follower_goes_on_after_the_position_of_the_old_one(printer: Printer) -> None:
    said = await printer.say(numbered(0, 100))
    first = printer.follow()
    await first.until(b"line 99\n")
    position = first.position
    said += await printer.say(numbered(100, 110))
    second = printer.follow(position)
    await second.until(b"line 109\n")
    printer.close()
    await second.end()
    assert numbered(0, 100) + second.lines == said
    assert second.gaps == 0


async def test_a_position_of_another_log_is_a_gap_and_not_the_end(printer: Printer) -> None:
    said = await printer.say(numbered(0, 10))
    follower = printer.follow(Position("2026-01-01T00:00:00.000000001Z", "0" * 16))
    await follower.until(b"line 9\n")
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 1


# The end


async def test_a_pod_that_is_gone_has_no_log_to_wait_for(printer: Printer) -> None:
    said = await printer.say(numbered(0, 10))
    follower = printer.follow()
    await follower.until(b"line 9\n")
    await printer.cluster.delete("jobs", "printer")
    assert await follower.end() == said


async def test_a_slow_reader_gets_everything_in_the_end(printer: Printer) -> None:
    class Slow(Follower):
        async def _deliver(self, batch: Batch) -> None:
            await anyio.sleep(0.01)
            await super()._deliver(batch)

    follower = Slow()
    printer._tasks.start_soon(follower.run, printer._api, printer.pod, printer.observed)
    said = await printer.say(numbered(0, 100_000))
    printer.close()
    assert await follower.end() == said


async def test_a_followed_stream_that_stays_open_and_silent_does_not_outlive_the_container(
    printer: Printer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its head comes. The rest does: so nothing was interrupted, and no clock has ended the stream."""
    monkeypatch.setattr(logs, "ON_ITS_WAY", 10 * PATIENCE)
    await printer.fault(action={"do": "hang"})
    follower = printer.follow(drain=30 * PATIENCE)
    await printer.met(1)
    said = await printer.say(numbered(0, 10))
    printer.close()
    assert await follower.end() == said
    assert follower.gaps == 0
    assert follower.interruptions == []


async def test_a_followed_stream_that_stands_still_is_asked_for_anew(printer: Printer) -> None:
    """The container goes on and prints; a dead connection to its kubelet brings nothing, and does not end."""
    await printer.fault(action={"do": "hang"})
    follower = printer.follow(drain=3.0, silence=0.1)
    await printer.met(1)
    said = await printer.say(numbered(0, 10))
    await follower.until(b"line 9\n")
    said += await printer.say(numbered(10, 20))
    await follower.until(b"line 19\n")
    assert (follower.lines, follower.gaps) == (said, 0)
    assert not follower.ended.is_set()
    assert follower.interruptions == ["silent"]


# Servers that are worse


class Ended:
    """A container that has ended."""

    ended = True
    gone = False

    async def changed(self) -> None:
        await anyio.sleep_forever()


class Running(Ended):
    """One that runs until it is told to have ended."""

    def __init__(self) -> None:
        self.ended = False
        self._changed = anyio.Event()

    def end(self) -> None:
        self.ended = True
        self._changed.set()
        self._changed = anyio.Event()

    async def changed(self) -> None:
        await self._changed.wait()


def stamped(*numbers: int) -> bytes:
    return b"".join(b"2026-11-23T06:57:%02d.000000000Z line %d\n" % (number, number) for number in numbers)


@asynccontextmanager
async def following(
    kubeconfig: Path, served: Any, container: Running, patience: float = 10.0, **options: Any
) -> AsyncIterator[Follower]:
    async with (
        rogue(served.answer) as server,
        Api.open(str(server.kubeconfig(kubeconfig)), "default", patience=patience) as api,
    ):
        follower = options.pop("follower", None) or Follower()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(follower.run, api, "pod", container, **options))
            yield follower
            tasks.cancel_scope.cancel()


WORDS = b"failed to create fsnotify watcher: too many open files"


async def test_a_kubelet_that_cannot_follow_neither_repeats_lines_nor_invents_a_gap(kubeconfig: Path) -> None:
    """A node without free inotify watches ends each followed stream with these words, and cleanly."""
    container, passes = Running(), 0

    async def answer(request: Request, reply: Reply) -> None:
        nonlocal passes
        passes += 1
        log = stamped(*range(1, min(2 + passes, 9)))
        if "follow" in request.query:
            log += WORDS + b"\n"
        if passes > 12:
            container.end()
        await reply.chunked(log)

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", container)
    lines = [line for line in follower.lines.splitlines() if line != WORDS]
    assert lines == [b"line %d" % number for number in range(1, 9)]
    assert follower.gaps == 0


async def test_an_answer_that_breaks_off_before_the_position_is_no_gap(kubeconfig: Path) -> None:
    """A kubelet that is killed while it reads its file ends the answer cleanly, in front of the line that is sought."""
    answers = [stamped(1, 2, 3, 4), b"", stamped(3), stamped(3)[:-4], stamped(3, 4, 5)]
    turns = iter(answers)

    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(next(turns, stamped(3, 4, 5, 6)))

    container = Running()
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follower.run, api, "pod", container)
            await follower.until(b"line 6\n")
            container.end()
    assert follower.lines == b"".join(b"line %d\n" % number for number in range(1, 7))
    assert follower.gaps == 0


async def test_the_rest_of_an_ended_log_that_breaks_off_cleanly_is_asked_for_again(kubeconfig: Path) -> None:
    """A half line is the last one only if it stays so."""
    whole = stamped(1, 2, 3, 4)[:-1]
    answers = iter([whole[:60], whole[:90], b"", whole])

    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(next(answers, whole))

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", Ended())
    assert follower.lines == b"line 1\nline 2\nline 3\nline 4\n"
    assert follower.gaps == 0


async def test_the_rest_of_an_ended_log_is_not_lost_because_nobody_answers(kubeconfig: Path) -> None:
    """The time in which it has to come begins anew when the API server is back, however long that has taken."""
    drain = 2.0
    back = anyio.current_time() + drain + 0.5

    async def answer(request: Request, reply: Reply) -> None:
        if anyio.current_time() > back:
            await reply.chunked(stamped(1, 2))

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", Ended(), drain=drain)
    assert follower.lines == b"line 1\nline 2\n"


async def test_the_rest_of_an_ended_log_that_is_refused_is_given_up(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(500, {"kind": "Status", "code": 500, "message": "no"})

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        with anyio.fail_after(PATIENCE), pytest.raises(logs.LogIncomplete):
            await Follower().run(api, "pod", Ended(), drain=0.0)


@pytest.mark.parametrize(
    "cuts",
    [
        [b""] * 3,
        [stamped(3)] * 5,
        [stamped(3)[:-4]] * 5,
        [stamped(3, 4)[:-4]] * 5,
        [stamped(3, 4)],
        [stamped(3, 4, 5)[:-4]] * 3,
    ],
    ids=["at once", "after a line", "in a line", "in the line sought", "after the line sought", "in the line after it"],
)
async def test_the_rest_of_an_ended_log_that_breaks_off_in_one_place_again_and_again_is_asked_for_again(
    kubeconfig: Path, cuts: list[bytes]
) -> None:
    """What comes before the line that is sought says that it was not thrown away, so there is more to come."""
    whole = stamped(3, 4, 5, 6)
    answers = iter([*cuts, whole])

    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(next(answers, whole))

    [*_, batch] = Reader().feed(stamped(3, 4))
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", Ended(), batch.position)
    assert follower.lines == b"line 5\nline 6\n"
    assert follower.gaps == 0


@pytest.mark.parametrize(
    "broken",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2b\r\n2026-11-23T0",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + stamped(1),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.1 2",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_answers_that_are_no_http_are_tried_again(kubeconfig: Path, broken: bytes) -> None:
    turns = iter([broken, broken, broken])

    async def answer(request: Request, reply: Reply) -> None:
        data = next(turns, None)
        if data is None:
            await reply.chunked(stamped(1, 2))
        elif data:
            await reply.raw(data)

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", Ended())
    assert follower.lines == b"line 1\nline 2\n"


async def test_what_is_asked_for_is_asked_in_the_apis_words(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(stamped(7, 8))

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        first = Follower()
        await first.run(api, "pod", Ended())
        second = Follower()
        await second.run(api, "pod", Ended(), first.position)
    one, other = server.asked[0], server.asked[1]
    assert one.path == other.path == "/api/v1/namespaces/ns/pods/pod/log"
    assert one.query == {"container": "chaincode", "timestamps": "true"}
    assert other.query == {"container": "chaincode", "timestamps": "true", "sinceTime": "2026-11-23T06:57:07+00:00"}
    assert second.lines == b""
    assert second.gaps == 0


# Lines that come right after a rotation

RIGHT_AFTER = b"2026-11-23T06:57:02.010000000Z line 3\n"


class Rotated:
    """A log whose only lines were read, and whose file is then rotated away: at first the next one is empty.

    Its new line is 10 ms later than the last one, so its time does not tell that anything was thrown away.
    """

    def __init__(self) -> None:
        self.followed = 0

    async def answer(self, request: Request, reply: Reply) -> None:
        if "follow" not in request.query:
            await reply.chunked(*([RIGHT_AFTER] if self.followed > 1 else []))
            return
        self.followed += 1
        if self.followed == 1:
            await reply.chunked(stamped(1, 2))
            return
        await reply.chunked(RIGHT_AFTER, end=False)
        await anyio.sleep_forever()


async def test_a_line_that_comes_right_after_a_rotation_does_not_wait_for_a_later_one(kubeconfig: Path) -> None:
    """The chaincode that printed it may say no more for days."""
    async with following(kubeconfig, Rotated(), Running()) as follower:
        await follower.until(b"line 3\n")
    assert (follower.lines, follower.gaps) == (b"line 1\nline 2\nline 3\n", 1)
    assert follower.interruptions == []


async def test_a_stream_that_is_dead_is_left_where_the_log_holds_a_line_right_after_a_rotation(
    kubeconfig: Path,
) -> None:
    class Dead(Rotated):
        async def answer(self, request: Request, reply: Reply) -> None:
            if "follow" in request.query and self.followed:
                self.followed += 1
                await anyio.sleep_forever()
            else:
                await super().answer(request, reply)

    async with following(kubeconfig, Dead(), Running(), drain=3.0, silence=0.05) as follower:
        await follower.until(b"line 3\n")
    assert (follower.lines, follower.gaps) == (b"line 1\nline 2\nline 3\n", 1)
    assert follower.interruptions[0] == "silent"


@pytest.mark.parametrize(
    ("rest", "comes"),
    [(b"", b""), (b"2026-11-23T06:57:02.010000000Z panic", b"panic\n")],
    ids=["nothing", "half a line"],
)
async def test_a_rotation_right_before_the_end_is_a_gap_and_takes_no_last_words_away(
    kubeconfig: Path, rest: bytes, comes: bytes
) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(*([rest] if rest else []))

    [*_, batch] = Reader().feed(stamped(1, 2))
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            await follower.run(api, "pod", Ended(), batch.position)
    assert (follower.lines, follower.gaps) == (comes, 1)


# Streams that fall silent


class Silent:
    """A log of so many lines, whose followed streams fall silent after so many of them."""

    def __init__(self, there: int, brought: int) -> None:
        self.there = there
        self.brought = brought
        self.followed = 0
        self.looks: list[float] = []
        self.streams: list[Reply] = []
        self.away = False
        self._changed = anyio.Event()

    async def until(self, wanted: Callable[[], Any]) -> None:
        """Wait until a request has made this so."""
        with anyio.fail_after(PATIENCE):
            while not wanted():
                await self._changed.wait()

    async def looked(self, times: int) -> None:
        await self.until(lambda: len(self.looks) >= times)

    def pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def answer(self, request: Request, reply: Reply) -> None:
        if self.away:
            await anyio.sleep_forever()
        if not request.path.endswith("/log"):
            await reply.whole(200, {"metadata": {"name": "pod"}})
        elif "follow" in request.query:
            self.followed += 1
            self.streams.append(reply)
            self.pulse()
            first = 1 if "sinceTime" not in request.query else max(1, int(request.query["sinceTime"][17:19]))
            if self.brought:
                await reply.chunked(stamped(*range(first, self.brought + 1)), end=False)
            await anyio.sleep_forever()
        else:
            self.looks.append(anyio.current_time())
            self.pulse()
            await reply.chunked(stamped(*range(1, self.there + 1)))


@pytest.mark.parametrize("brought", [0, 2], ids=["no head", "some lines"])
async def test_the_rest_is_read_where_the_stream_does_not_end(kubeconfig: Path, brought: int) -> None:
    served, container = Silent(4, brought), Running()
    async with following(kubeconfig, served, container, drain=3.0) as follower:
        await served.until(lambda: served.followed)
        await follower.until(lambda: len(follower.lines) == brought * len("line 1\n"))
        container.end()
        assert await follower.end() == b"line 1\nline 2\nline 3\nline 4\n"
    assert (served.followed, follower.gaps) == (1, 0)


@pytest.mark.parametrize(("there", "brought"), [(4, 0), (4, 2), (2, 2), (0, 0)])
async def test_an_open_stream_does_not_put_off_the_end_where_the_rest_is_to_be_had(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, there: int, brought: int
) -> None:
    """A kubelet ends its streams up to a second late. Here it never does, and no clock ends them either."""
    monkeypatch.setattr(logs, "ON_ITS_WAY", 10 * PATIENCE)
    served, container = Silent(there, brought), Running()
    async with following(kubeconfig, served, container, drain=30 * PATIENCE) as follower:
        await served.until(lambda: served.followed)
        await follower.until(lambda: len(follower.lines) == brought * len("line 1\n"))
        container.end()
        assert await follower.end() == b"".join(b"line %d\n" % number for number in range(1, there + 1))
    assert follower.interruptions == []
    # One look beside the stream; one pass for the rest; and the proof, which the look is no part of.
    whole = there > 0
    assert len(served.looks) == 1 + (there > brought) + (logs.PROOF if whole else logs.DOUBTFUL_PROOF)


async def test_a_rest_that_is_known_and_goes_with_its_pod_is_missing(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Going(Silent):
        async def answer(self, request: Request, reply: Reply) -> None:
            if self.looks:
                await reply.whole(404, status(404, "NotFound", "it is gone"))
            else:
                await super().answer(request, reply)

    monkeypatch.setattr(logs, "ON_ITS_WAY", 10 * PATIENCE)
    container = Running()
    async with rogue(Going(4, 2).answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower = Follower()
        with anyio.fail_after(PATIENCE):
            async with background() as tasks:
                tasks.start_soon(end_after, follower, b"line 2\n", container)
                with pytest.raises(logs.LogIncomplete):
                    await follower.run(api, "pod", container, drain=30 * PATIENCE)
    assert follower.lines == b"line 1\nline 2\n"


class Frozen:
    """A kubelet that answers nobody, behind an API server that is well."""

    def __init__(self, how: str = "hangs") -> None:
        self.tries = 0
        self.how = how
        self.away = False

    async def answer(self, request: Request, reply: Reply) -> None:
        if self.away or request.path.endswith("/log"):
            self.tries += "follow" not in request.query
            if self.how == "hangs":
                await anyio.sleep_forever()
        else:
            await reply.whole(200, {"metadata": {"name": "pod"}})


@pytest.mark.parametrize("how", ["hangs", "breaks off"])
async def test_a_rest_that_a_node_keeps_back_is_given_up_after_more_than_one_try(kubeconfig: Path, how: str) -> None:
    """The API server is there: so it is not waited for as long as it takes."""
    served, container = Frozen(how), Running()
    async with (
        rogue(served.answer) as server,
        Api.open(str(server.kubeconfig(kubeconfig)), "default") as api,
        background() as tasks,
    ):
        tasks.start_soon(ends_soon, container)
        with anyio.fail_after(PATIENCE), pytest.raises(logs.LogIncomplete, match="cannot get pods/log"):
            await Follower().run(api, "pod", container, drain=0.9)
    assert served.tries > 1


async def ends_soon(container: Running) -> None:
    await anyio.sleep(0.1)
    container.end()


async def test_a_rest_is_not_given_up_while_the_api_server_is_away(kubeconfig: Path) -> None:
    served, container = Silent(4, 2), Running()
    async with following(kubeconfig, served, container, patience=0.3, drain=0.9) as follower:
        await follower.until(b"line 2\n")
        served.away = True
        container.end()
        await anyio.sleep(1.5)
        assert not follower.ended.is_set()
        served.away = False
        assert await follower.end() == b"line 1\nline 2\nline 3\nline 4\n"


async def test_a_proxys_404_is_not_the_end_of_a_log(kubeconfig: Path) -> None:
    class BehindAProxy(Silent):
        async def answer(self, request: Request, reply: Reply) -> None:
            if container.ended and self.pages:
                self.pages -= 1
                await reply.whole(404, b"<html>no route")
            else:
                await super().answer(request, reply)

        pages = 4

    served, container = BehindAProxy(4, 2), Running()
    async with following(kubeconfig, served, container, drain=1.5) as follower:
        await follower.until(b"line 2\n")
        container.end()
        assert await follower.end() == b"line 1\nline 2\nline 3\nline 4\n"
    assert not served.pages


@pytest.mark.parametrize("cut", [False, True], ids=["ended", "silent"])
async def test_a_log_that_went_with_its_pod_is_missing_where_its_stream_did_not_end(
    kubeconfig: Path, cut: bool
) -> None:
    class Gone(Silent):
        async def answer(self, request: Request, reply: Reply) -> None:
            if container.ended:
                await reply.whole(404, status(404, "NotFound", "it is gone"))
            elif cut:
                await super().answer(request, reply)
            else:
                await reply.chunked(stamped(1, 2), end=False)
                brought.set()
                await container.changed()
                await reply.raw(b"0\r\n\r\n")

    brought, container = anyio.Event(), Running()
    async with rogue(Gone(4, 2).answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        follower, missing = Follower(), False
        with anyio.fail_after(PATIENCE):
            async with background() as tasks:
                tasks.start_soon(end_after, follower, b"line 2\n", container)
                try:
                    await follower.run(api, "pod", container, drain=0.9)
                except logs.LogIncomplete:
                    missing = True
    assert (follower.lines, missing) == (b"line 1\nline 2\n", cut)


async def end_after(follower: Follower, lines: bytes, container: Running) -> None:
    await follower.until(lines)
    container.end()


@pytest.mark.parametrize("brought", [0, 2], ids=["no head", "some lines"])
async def test_a_silent_stream_is_replaced_where_the_log_has_more(kubeconfig: Path, brought: int) -> None:
    served, container = Silent(4, brought), Running()
    async with following(kubeconfig, served, container, drain=3.0, silence=0.05) as follower:
        await follower.until(b"line 4\n")
        served.there = served.brought = 6
        await follower.until(b"line 6\n")
        container.end()
        assert await follower.end() == b"".join(b"line %d\n" % number for number in range(1, 7))
    assert follower.gaps == 0


async def test_a_quiet_stream_is_kept_and_looked_after_ever_more_seldom(kubeconfig: Path) -> None:
    """A thousand quiet chaincodes are no storm."""
    served, container, silence = Silent(2, 2), Running(), 0.05
    async with following(kubeconfig, served, container, silence=silence) as follower:
        await follower.until(b"line 2\n")
        since = anyio.current_time() - silence  # of the wait that began about now
        await served.looked(6)
        assert served.looks[5] - since >= silence * (0.5 + 1 + 2 + 4 + 8 + 16)
    assert (served.followed, follower.lines) == (1, b"line 1\nline 2\n")


async def test_a_line_begins_the_time_of_a_silence_anew(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float] = []

    def counted(first: float, cap: float, rng: Random | None = None) -> Iterator[float]:
        begun.append(first)
        return delays(first, cap, rng)

    monkeypatch.setattr(logs, "delays", counted)
    served, container = Silent(2, 2), Running()
    async with following(kubeconfig, served, container, silence=0.05) as follower:
        await follower.until(b"line 2\n")
        await served.looked(4)
        before = begun.count(0.05)
        served.there = 3
        await served.streams[0].chunk(stamped(3))
        await follower.until(b"line 3\n")
        await served.looked(len(served.looks) + 2)
        assert begun.count(0.05) == before + 1
    assert (served.followed, follower.lines) == (1, b"line 1\nline 2\nline 3\n")


async def test_what_is_on_its_way_is_waited_for(kubeconfig: Path) -> None:
    """A look has seen a line that the stream brings a moment later: it is well, and is kept."""
    served, container = Silent(3, 2), Running()
    async with following(kubeconfig, served, container, drain=3.0, silence=0.05) as follower:
        await follower.until(b"line 2\n")
        await served.looked(1)
        await served.streams[0].chunk(stamped(3))
        await follower.until(b"line 3\n")
        await served.looked(len(served.looks) + 2)
    assert (served.followed, follower.lines, follower.gaps) == (1, b"line 1\nline 2\nline 3\n", 0)


async def test_a_reader_that_takes_its_time_is_no_silence_of_the_stream(kubeconfig: Path) -> None:
    """Nor is it interrupted: what it has half taken would come twice."""

    class Slow(Follower):
        async def _deliver(self, batch: Batch) -> None:
            began.set()
            await go_on.wait()
            await super()._deliver(batch)

    began, go_on, slow = anyio.Event(), anyio.Event(), Slow()
    served, container = Silent(4, 2), Running()
    async with following(kubeconfig, served, container, drain=3.0, silence=0.3, follower=slow) as follower:
        await began.wait()
        await anyio.sleep(0.5)
        container.end()
        await anyio.sleep(0.5)
        assert served.looks == []
        go_on.set()
        assert await follower.end() == b"line 1\nline 2\nline 3\nline 4\n"
    assert (served.followed, follower.gaps) == (1, 0)


async def test_a_look_that_fails_says_nothing(kubeconfig: Path) -> None:
    class Refusing(Silent):
        async def answer(self, request: Request, reply: Reply) -> None:
            if "follow" in request.query:
                await super().answer(request, reply)
            else:
                self.looks.append(0)
                self.pulse()
                await reply.whole(500)

    served, container = Refusing(2, 2), Running()
    async with following(kubeconfig, served, container, silence=0.05) as follower:
        await follower.until(b"line 2\n")
        await served.looked(3)
    assert served.followed == 1
