"""Follows one container's log to its very end, through every break, without a lost or a doubled line."""

import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Protocol, TypeVar

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE, ApiError, Invalid, NotFound, Refusals, Silent, Unreachable
from k8s_builderd.kube.loglines import Batch, Position, Reader
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import PODS
from k8s_builderd.tasks import beside

DRAIN_TIMEOUT = 30.0
"""Seconds for which the rest of an ended container's log is asked for before it is given up.

A third of it is the longest that one answer may be silent, so that there is time for another.
"""

ON_ITS_WAY = 5.0
"""Seconds that a followed stream has for what is known to be there, and for its end once the container has ended and
the rest is not to be had otherwise. One of a kubelet that is frozen never ends, nor does one of a node that is lost.
"""

AT_END = 0.02
"""Seconds of silence, once the container has ended, after which the rest is asked for beside the followed stream, which
a kubelet ends up to 1 s after the container (measured); and the longest first pause between two looks at the rest.
"""

SILENCE, LONGEST_SILENCE = 60.0, 900.0
"""Seconds without a line after which it is asked what a running container's log holds, doubled each time up to the cap.

Between the API server and a kubelet a connection can die without a word, and the log stands still. A look costs one
request, and where nothing is new the stream stays as it is: a thousand idle containers ask 1.5 times a second together.
"""

ASTRAY = 1.0
"""Seconds for the next piece of a followed stream whose lines are held back, because the place to go on has not come.

Where a rotation has thrown that place away, it never comes, and nothing that is printed within 50 ms of it tells so: a
chaincode that then says no more would have its last lines held back. An answer that ends is what tells.
"""

PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two attempts to read on."""

SAME_OUTAGE = 60.0
"""Seconds after an error within which the same one is no news."""

PROOF, DOUBTFUL_PROOF = 2, 4
"""How often the rest of an ended log must come to nothing: where the end is plain to see, and where it is not."""

REFUSED_PAUSE = 10.0
"""Seconds between two requests for a log that the API server goes on refusing."""

_log = structlog.get_logger("k8s_builderd.logs")

T = TypeVar("T")


class Container(Protocol):
    """What has to be known of a container while its log is followed; the watches know it."""

    @property
    def ended(self) -> bool:
        """Say whether the container has ended, so that its log grows no more."""

    @property
    def gone(self) -> bool:
        """Say whether the pod's object is gone, so that there is no log any more."""

    async def changed(self) -> None:
        """Wait until one of the two may have changed."""


class LogIncomplete(ApiError):
    """Raised when the container has ended and the rest of its log could not be had."""


def unnoticed(error: ApiError) -> None:
    """Take no notice of an interruption."""


async def follow(
    api: Api,
    pod: str,
    name: str,
    container: Container,
    after: Position | None,
    *,
    deliver: Callable[[Batch], Awaitable[None]],
    gap: Callable[[], Awaitable[None]],
    refused: Callable[[ApiError], Awaitable[None]],
    interrupted: Callable[[ApiError], None] = unnoticed,
    prefix: bytes = b"",
    drain: float = DRAIN_TIMEOUT,
    silence: float = SILENCE,
    refusal: float = FORBIDDEN_PATIENCE,
    rng: Random | None = None,
) -> None:
    """Pass on every line after a position, until the container has ended and all of its log has come.

    An end of the stream proves nothing: a clean one also comes when the kubelet is killed. Only passes that began
    after the container had ended, came to a clean end, and brought nothing that was not known show that there is no
    more. Nor does silence prove anything: while the container runs, it is asked now and then whether there is more, and
    once it has ended, a stream that brings nothing is left.

    :param name: the container's name.
    :param after: where to go on; None for the beginning.
    :param deliver: takes each batch; while it waits nothing is read, so a slow reader costs no memory.
    :param gap: is called once when lines after `after` have been thrown away (only the newest file is served after a
        rotation), before the lines that are left.
    :param refused: is told when the API server refuses the log; it is asked again nevertheless.
    :param interrupted: is told each time that the log cannot be read on, with the error.
    :param prefix: stands in front of each line.
    :param drain: seconds from the container's end, from an API server's return, or from the last line that came, in
        which the rest has to come.
    :param silence: seconds without a line after which it is asked for the first time whether there is more.
    :param refusal: seconds of refusals after which `refused` is told.
    :raises LogIncomplete: if the API server does not give the rest in that time.
    """
    passage = _Passage(api, pod, name, container, after, deliver, gap, prefix=prefix, drain=drain, silence=silence)
    pauses = delays(PAUSE, LONGEST_PAUSE, rng)
    give_up: float | None = None
    refusals = Refusals(refusal)
    reported = False
    told, told_at = "", 0.0
    while True:
        ended = container.ended
        pause = next(pauses)
        if ended and give_up is None:
            give_up = anyio.current_time() + drain
        before = passage.position
        try:
            if await passage.run(ended=ended):
                return
        except NotFound:
            if container.gone or ended:
                if not passage.whole:
                    raise LogIncomplete("it was not read to its end, and the pod is gone") from None
                return  # its log went with it
        except ApiError as error:
            # An outage is a line for each chaincode, and not one for each of its attempts.
            again = str(error) == told and anyio.current_time() < told_at + SAME_OUTAGE
            (_log.debug if again else _log.info)("log_interrupted", pod=pod, reason=str(error))
            told, told_at = str(error), anyio.current_time()
            interrupted(error)
            if give_up is not None:
                if isinstance(error, Unreachable) and not await _answers(api, pod):
                    give_up = None  # the log is not lost because the API server is away
                elif anyio.current_time() > give_up:
                    raise LogIncomplete(f"{error}") from error
            if give_up is None:  # else the rest is asked for while it is there
                pause += error.pause(0)
            if not isinstance(error, Invalid) and refusals.last(error, anyio.current_time()):
                # Invalid says that the container waits to start. The rest is no reason to stop listening: a Role can be
                # mended.
                if not reported:
                    await refused(error)
                reported = True
                pause = REFUSED_PAUSE if give_up is None else pause
        else:
            if give_up is not None and anyio.current_time() > give_up and passage.position == before:
                raise LogIncomplete("every answer was cut short")
        if passage.position != before:
            give_up = None
            refusals, reported = Refusals(refusal), False
        if container.ended and not ended:
            pauses = delays(AT_END, LONGEST_PAUSE, rng)
            continue  # what the rest is, shows only now
        if passage.position != before:
            pauses = delays(AT_END if ended else PAUSE, LONGEST_PAUSE, rng)
        with anyio.move_on_after(pause):
            await container.changed()


async def _answers(api: Api, pod: str) -> bool:
    """Say whether the API server is there: then it is a node that keeps a log back."""
    try:
        await api.get(PODS, ObjectOnly, pod)
    except Unreachable:
        return False
    except ApiError:
        return True
    return True


class _Passage:
    """Where one follower is in a log, and the two ways to go on from there."""

    def __init__(
        self,
        api: Api,
        pod: str,
        name: str,
        container: Container,
        after: Position | None,
        deliver: Callable[[Batch], Awaitable[None]],
        gap: Callable[[], Awaitable[None]],
        *,
        prefix: bytes,
        drain: float,
        silence: float,
    ) -> None:
        self.position = after
        self.whole = False
        """Whether an answer has come to its end, and nothing has failed since."""
        self.broken = False
        """Whether a followed stream broke off and no answer has come to its end since: the log may have more."""
        self._api = api
        self._pod = pod
        self._name = name
        self._container = container
        self._deliver = deliver
        self._gap = gap
        self._prefix = prefix
        self._reported: set[str] = set()
        self._kept_up = False
        """Whether the last followed stream went on from the position to a clean end, and nothing has failed since."""
        self._shown: tuple[bool, tuple[int, bytes]] | None = None
        self._barren = 0
        self._astray = 0
        """How many answers in a row have come to their end astray."""
        self._patience = drain / 3
        self._on_its_way = min(ON_ITS_WAY, self._patience)
        self._silence = silence
        self._expect_silence()

    async def run(self, *, ended: bool) -> bool:
        """Go on until a stream ends; return whether that was the end of the log.

        On a followed stream, not having seen the position yet proves nothing. So what is there already is read to its
        end first, which does prove it, and is followed after that.
        """
        before = self.position
        if before is None and (ended or not self.broken):
            reader = await self._read(None, follow=not ended)
        elif before is None:
            # No followed stream has brought a line: what is there comes first.
            await self._read(None, follow=False)
            reader = await self._read(self.position, follow=True)
        else:
            reader = await self._read(before, follow=False)
            self._astray = self._astray + 1 if reader.astray else 0
            if (reader.passed_by and not reader.found) or self._astray >= (PROOF if reader.beside else DOUBTFUL_PROOF):
                # A rotation throws away the beginning of a log: the position is gone, and perhaps what came after it.
                reader = await self._read(before, follow=False, everything=True)
            elif reader.astray:
                return False  # thrown away, or the answer was cut just before it: the next one tells
            if not ended:
                reader = await self._read(self.position, follow=True)
        if not ended or self.position != before:
            self._shown = None
            return False
        return await self._exhausted(reader)

    async def _exhausted(self, reader: Reader) -> bool:
        """Say whether passes over an ended log that brought nothing new have shown its end.

        One may have been cut just where the last one was. Where it shows nothing, not even the place where to go on,
        or half a line, that is the likelier: it is the end all the same if it stays so (an empty log, one that was
        rotated just there, a last line without a line feed).
        """
        known, self._shown = self._shown, (reader.found, reader.tail)
        self._barren = self._barren + 1 if self._shown == known else 1
        if reader.preceded and not reader.found:
            return False
        whole = reader.found and self.position is not None and reader.tail == (0, b"")
        if self._barren < (PROOF if whole else DOUBTFUL_PROOF):
            return False
        gone = not reader.found
        if gone and not self._kept_up:
            # The newest file has nothing, or half a line: what was before it may have been thrown away unread.
            await self._gap()
        for batch in reader.end(gone=gone):
            await self._pass_on(batch)
        return True

    async def _read(self, after: Position | None, *, follow: bool, everything: bool = False) -> Reader:
        reader = Reader(None if everything else after, reported=self._reported, prefix=self._prefix)
        stream = _Stream(math.inf if follow else self._patience)

        async def receive() -> None:
            gap = everything
            async with AsyncExitStack() as stack:
                answer = self._api.log(self._pod, self._query(after, follow=follow))
                chunks = await stream.receive(lambda: stack.enter_async_context(answer))
                # The end of an answer tells whether the position is gone: a clock may have been set back.
                while not (follow and reader.passed_by) and (
                    chunk := await stream.receive(lambda: anext(chunks, b""), astray=follow and reader.astray)
                ):
                    for batch in reader.feed(chunk):
                        if gap:
                            await self._gap()
                            gap = False
                        await self._pass_on(batch)

        try:
            if follow:
                await beside(receive, lambda: self._supervise(stream))
            else:
                await receive()
        except _Enough as enough:
            self.broken = enough.more
            self.whole = not enough.more
            self._kept_up = not enough.more
            return reader
        except ApiError as error:
            self.whole = self.whole and isinstance(error, NotFound)
            self.broken = self.broken or (follow and isinstance(error, Unreachable))
            self._kept_up = False
            raise
        self.broken = False
        self.whole = reader.found
        if follow:
            self._kept_up = reader.found
        return reader

    def _query(self, after: Position | None, *, follow: bool) -> dict[str, str]:
        query = {"container": self._name, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if after is not None:
            query["sinceTime"] = after.since
        return query

    async def _pass_on(self, batch: Batch) -> None:
        await self._deliver(batch)
        self.position = batch.position
        self._expect_silence()

    # Silent streams

    def _expect_silence(self) -> None:
        """Begin anew to wait ever longer until it is asked whether there is more."""
        self._intervals = delays(self._silence, max(self._silence, LONGEST_SILENCE))
        self._interval = next(self._intervals)

    async def _supervise(self, stream: "_Stream") -> None:
        """Leave a followed stream that brings nothing although there is more, or although the container has ended."""
        asked = -math.inf
        while not self._container.ended:
            due = max(stream.since, asked) + self._interval
            # Lines that come meanwhile make it due earlier; so look up now and then.
            with anyio.move_on_after(min(self._silence, max(0.0, due - anyio.current_time()))):
                await self._container.changed()
                continue
            if anyio.current_time() < max(stream.since, asked) + self._interval:
                continue
            more = await self._has_more()
            asked = anyio.current_time()
            self._interval = next(self._intervals)
            if more and await stream.is_silent_for(self._on_its_way):
                stream.leave("the connection delivers nothing although the log has more")
                return
        while not await stream.is_silent_for(min(AT_END, self._on_its_way)):
            pass
        # Not left before it is seen that the rest is to be had: a log may go with its pod.
        with anyio.move_on_after(self._on_its_way):
            if (more := await self._has_more()) is not None:
                stream.leave_for_good(more=more)
                return
        while not await stream.is_silent_for(self._on_its_way):
            pass
        stream.leave("the connection stays open although the container has ended")

    async def _has_more(self) -> bool | None:
        """Say whether the log holds more than what has been passed on; None where nobody says."""
        reader = Reader(self.position, reported=set(self._reported))
        try:
            async with self._api.log(self._pod, self._query(self.position, follow=False)) as chunks:
                async for chunk in chunks:
                    if any(reader.feed(chunk)):
                        return True
        except ApiError as error:
            _log.info("log_interrupted", pod=self._pod, reason=str(error))
            return None
        if reader.astray or (reader.passed_by and not reader.found):
            return True
        return False if reader.found else None


class _Enough(Exception):
    """Raised where a stream that is well is left, because what it may bring is to be had faster, or for sure."""

    def __init__(self, more: bool) -> None:
        """Take whether there is a rest."""
        super().__init__()
        self.more = more


class _Stream:
    """The waiting for an answer and its pieces, which can be ended without touching what is made of them."""

    def __init__(self, patience: float) -> None:
        """Begin.

        :param patience: seconds that one wait may take.
        """
        self.since = math.inf
        """Since when it is waited for the next piece; infinite while none is waited for."""
        self._patience = patience
        self._waits = 0
        self._waiting: anyio.CancelScope | None = None
        self._why = "no answer in time"
        self._left = False
        self._more: bool | None = None

    async def receive(self, piece: Callable[[], Awaitable[T]], *, astray: bool = False) -> T:
        """Wait for a piece.

        :param astray: whether lines are held back, so that another answer is asked for where none comes soon.
        :raises Unreachable: if it takes too long, or the stream was left.
        :raises _Enough: if it was left for good, or stays astray.
        """
        if self._more is not None:
            raise _Enough(self._more)
        self._waits += 1
        self.since = anyio.current_time()
        patience = min(self._patience, ASTRAY) if astray else self._patience
        with anyio.CancelScope(deadline=self.since + patience) as self._waiting:
            try:
                return await piece()
            finally:
                self.since, self._waiting = math.inf, None
        if self._more is not None:
            raise _Enough(self._more)
        if astray and not self._left:
            raise _Enough(more=True)
        kind = Silent if self._left else Unreachable
        raise kind(self._why, verb="get", resource="pods/log")

    async def is_silent_for(self, seconds: float) -> bool:
        """Wait for so long, and say whether the piece that was waited for is still to come."""
        before = self._waits
        await anyio.sleep(seconds)
        return self._waiting is not None and self._waits == before

    def leave(self, why: str) -> None:
        """End the wait for the next piece."""
        if self._waiting is not None:
            self._why, self._left = why, True
            self._waiting.cancel()

    def leave_for_good(self, *, more: bool) -> None:
        """End this wait for a piece, or the next one; the stream is well, but not needed any more."""
        self._more = more
        if self._waiting is not None:
            self._waiting.cancel()
