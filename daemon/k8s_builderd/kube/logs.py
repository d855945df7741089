"""Follows one container's log to its very end, through every break, without a lost or a doubled line."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, Invalid, NotFound, Refusals, Unreachable
from k8s_builderd.kube.loglines import Batch, Position, Reader

DRAIN_TIMEOUT = 30.0
"""Seconds for which the rest of an ended container's log is asked for before it is given up."""

PROOF, DOUBTFUL_PROOF = 2, 4
"""How often the rest of an ended log must come to nothing: where the end is plain to see, and where it is not."""

REFUSED_PAUSE = 10.0
"""Seconds between two requests for a log that the API server goes on refusing."""

_log = structlog.get_logger("k8s_builderd.logs")


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
    drain: float = DRAIN_TIMEOUT,
    rng: Random | None = None,
) -> None:
    """Pass on every line after a position, until the container has ended and all of its log has come.

    An end of the stream proves nothing: a clean one also comes when the kubelet is killed. Only passes that began
    after the container had ended, came to a clean end, and brought nothing that was not known show that there is no
    more.

    :param name: the container's name.
    :param after: where to go on; None for the beginning.
    :param deliver: takes each batch; while it waits nothing is read, so a slow reader costs no memory.
    :param gap: is called once when lines after `after` have been thrown away (only the newest file is served after a
        rotation), before the lines that are left.
    :param refused: is told when the API server refuses the log; it is asked again nevertheless.
    :param drain: seconds from the container's end, or from an API server's return, in which the rest has to come.
    :raises LogIncomplete: if the API server does not give the rest in that time.
    """
    passage = _Passage(api, pod, name, after, deliver, gap)
    pauses = delays(0.1, 5.0, rng)
    give_up: float | None = None
    refusals = Refusals()
    reported = False
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
                return  # its log went with it
        except ApiError as error:
            _log.info("log_interrupted", pod=pod, reason=str(error))
            if give_up is not None and not isinstance(error, Unreachable) and anyio.current_time() > give_up:
                raise LogIncomplete(f"the rest of the chaincode's log could not be read: {error}") from error
            if isinstance(error, Unreachable):
                give_up = None  # the log is not lost because nobody answers
            if not isinstance(error, Invalid) and refusals.last(error, anyio.current_time()):
                # Invalid says that the container waits to start. The rest is no reason to stop listening: a Role can be
                # mended.
                if not reported:
                    await refused(error)
                reported = True
                pause = REFUSED_PAUSE if give_up is None else pause
        else:
            if give_up is not None and anyio.current_time() > give_up and passage.position == before:
                raise LogIncomplete("the chaincode's log does not come to an end")
        if passage.position != before:
            pauses = delays(0.1, 5.0, rng)
            refusals, reported = Refusals(), False
        with anyio.move_on_after(pause):
            await container.changed()


class _Passage:
    """Where one follower is in a log, and the two ways to go on from there."""

    def __init__(
        self,
        api: Api,
        pod: str,
        name: str,
        after: Position | None,
        deliver: Callable[[Batch], Awaitable[None]],
        gap: Callable[[], Awaitable[None]],
    ) -> None:
        self.position = after
        self._api = api
        self._pod = pod
        self._container_name = name
        self._deliver = deliver
        self._gap = gap
        self._reported: set[str] = set()
        self._shown: tuple[bool, tuple[int, bytes]] | None = None
        self._barren = 0
        self._missed = False

    async def run(self, *, ended: bool) -> bool:
        """Go on until a stream ends; return whether that was the end of the log.

        On a followed stream, not having seen the position yet proves nothing. So what is there already is read to its
        end first, which does prove it, and is followed after that.
        """
        before = self.position
        if before is None:
            reader = await self._read(None, follow=not ended)
        else:
            reader = await self._read(before, follow=False)
            missed, self._missed = self._missed, reader.beside and not reader.found and not reader.preceded
            if reader.passed_by or (missed and self._missed):
                # A rotation throws away the beginning of a log: the position is gone, and perhaps what came after it.
                reader = await self._read(before, follow=not ended, everything=True)
            elif self._missed:
                return False  # thrown away, or the answer was cut just before it: the next one tells
            elif not ended:
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
        for batch in reader.end():
            await self._pass_on(batch)
        return True

    async def _read(self, after: Position | None, *, follow: bool, everything: bool = False) -> Reader:
        query = {"container": self._container_name, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if after is not None:
            query["sinceTime"] = after.since
        reader = Reader(None if everything else after, reported=self._reported)
        async with self._api.log(self._pod, query) as chunks:
            async for chunk in chunks:
                for batch in reader.feed(chunk):
                    if everything:
                        await self._gap()
                        everything = False
                    await self._pass_on(batch)
                if reader.passed_by:
                    break
        return reader

    async def _pass_on(self, batch: Batch) -> None:
        await self._deliver(batch)
        self.position = batch.position
