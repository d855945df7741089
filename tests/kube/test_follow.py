"""A followed log whose answers are cut anywhere, again and again, comes exactly: random logs, random cuts."""

import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import anyio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from k8s_builderd.kube.api import Api
from k8s_builderd.kube.loglines import PIECE
from tests.embedded.cluster import PATIENCE
from tests.kube.rogue import Reply, Request, rogue
from tests.kube.test_loglines import START, Log, expected, logs
from tests.kube.test_logs import Follower, Running


class Answer(Struct, frozen=True):
    """What becomes of one answer: how many lines there were by then, after how many bytes it is cut, and how."""

    there: int
    size: int
    clean: bool


class Served:
    """A log that grows from answer to answer; when the answers are used up, its container has ended."""

    def __init__(self, log: Log, answers: list[Answer]) -> None:
        self.container = Running()
        self._log = log
        self._answers = iter(answers)
        self._there = 0

    async def answer(self, request: Request, reply: Reply) -> None:
        turn = next(self._answers, None)
        if turn is None:
            self.container.end()
            turn = Answer(len(self._log.lines), 1 << 30, clean=True)
        self._there = max(self._there, min(turn.there, len(self._log.lines)))
        data = self._stored(request.query.get("sinceTime"))[: turn.size]
        await reply.chunked(*([data] if data else []), end=turn.clean)

    def _stored(self, since: str | None) -> bytes:
        there = self._log.lines[: self._there]
        if since is not None:
            start = datetime.fromisoformat(since)
            there = [line for line in there if START + timedelta(seconds=line.at // 10**9) >= start]
        whole = self._there == len(self._log.lines)
        return Log(there, newline=self._log.newline or not whole).served(None)


async def followed(log: Log, answers: list[Answer]) -> Follower:
    served, follower = Served(log, answers), Follower(pause=0.001)
    with tempfile.TemporaryDirectory() as directory:
        async with (
            rogue(served.answer) as server,
            Api.open(str(server.kubeconfig(Path(directory) / "kubeconfig")), "default") as api,
        ):
            with anyio.fail_after(PATIENCE):
                await follower.run(api, "pod", served.container)
    return follower


sizes = st.integers(0, 300) | st.sampled_from([0, 1, 30, 31, 32, 4096, PIECE, PIECE + 31, 200_000, 1 << 30])
resets = st.lists(st.builds(Answer, there=st.integers(0, 25), size=sizes, clean=st.just(False)), max_size=6)
clean = st.builds(Answer, there=st.integers(0, 25), size=sizes, clean=st.just(True))


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), resets, clean, resets)
def test_answers_cut_anywhere_lose_and_repeat_nothing(
    log: Log, before: list[Answer], once: Answer, after: list[Answer]
) -> None:
    """Broken off any number of times, and once cleanly: twice within lines of one time is as a rotation is."""
    follower = anyio.run(followed, log, [*before, once, *after])
    assert follower.lines == expected(log.lines)
    assert follower.gaps == 0
