"""The two answers that do not end by themselves: a watch and a followed log, faults included."""

import random
from collections.abc import Sequence

import anyio
import msgspec
from aiohttp import web
from anyio.streams.memory import MemoryObjectReceiveStream

from k8s_builder_lab.embedded import faults, transport
from k8s_builder_lab.embedded.faults import Action
from k8s_builder_lab.embedded.logs import Reader
from k8s_builder_lab.embedded.node import Gate
from k8s_builder_lab.embedded.objects import Object, Resource
from k8s_builder_lab.embedded.selectors import Matches
from k8s_builder_lab.embedded.status import failure
from k8s_builder_lab.embedded.store import Change

BUFFER = 1000
"""Changes that a watch may be behind before it is ended, to start again where it was."""


class _Over(Exception):
    """The stream is to end here."""


class Watch:
    """Says what happens to the objects of one kind in one namespace that match."""

    def __init__(
        self,
        request: web.Request,
        resource: Resource,
        namespace: str,
        matches: Matches,
        action: Action | None,
        *,
        bookmark_interval: float | None,
    ) -> None:
        self._request = request
        self._resource = resource
        self._namespace = namespace
        self._matches = matches
        self._action = action
        self._bookmark_interval = bookmark_interval
        self._left: int | None = None
        if isinstance(action, faults.Close | faults.Expire | faults.Error | faults.Silent | faults.Half):
            self._left = action.events
        self._response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def send(
        self,
        first: Sequence[Object],
        old: Sequence[Change],
        changes: MemoryObjectReceiveStream[Change],
        since: int,
        timeout: float,  # noqa: ASYNC109 (the client's own word for how long its watch lasts)
    ) -> web.StreamResponse:
        """Send `first` as ADDED, then the changes after revision `since`: those of `old`, then `changes`.

        Ends after `timeout` seconds, or when `changes` ends.
        """
        self._revision = since
        await self._response.prepare(self._request)
        try:
            with anyio.move_on_after(timeout):
                if self._left == 0:
                    await self._misbehave()
                for obj in first:
                    await self._event("ADDED", obj)
                for change in old:
                    await self._change(change)
                await self._follow(changes)
        except _Over:
            pass
        await self._response.write_eof()
        return self._response

    async def _follow(self, changes: MemoryObjectReceiveStream[Change]) -> None:
        while True:
            with anyio.move_on_after(self._bookmark_interval) as scope:
                try:
                    change = await changes.receive()
                except anyio.EndOfStream:
                    return
            if scope.cancelled_caught:
                await self._bookmark()
            elif change.revision > self._revision:
                self._revision = change.revision
                await self._change(change)

    async def _bookmark(self) -> None:
        metadata = {"resourceVersion": str(self._revision), "creationTimestamp": None}
        bookmark = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        await self._write("BOOKMARK", bookmark)

    async def _change(self, change: Change) -> None:
        """Say what a change means to one who sees only what matches."""
        if change.resource is not self._resource or change.object["metadata"]["namespace"] != self._namespace:
            return
        before = change.previous is not None and self._matches(change.previous)
        now = change.type != "DELETED" and self._matches(change.object)
        if now:
            await self._event("MODIFIED" if before else "ADDED", change.object)
        elif before:
            assert change.previous is not None
            # With the labels that it was selected by, but as of this change.
            version = {"resourceVersion": change.object["metadata"]["resourceVersion"]}
            await self._event("DELETED", {**change.previous, "metadata": {**change.previous["metadata"], **version}})

    async def _event(self, kind: str, obj: Object) -> None:
        if isinstance(self._action, faults.Padding):
            obj = _padded(obj, self._action.bytes)
        if isinstance(self._action, faults.Half) and self._left == 0:
            line = _line(kind, obj)
            await self._response.write(line[: len(line) // 2])
            raise _Over
        await self._write(kind, obj)
        if isinstance(self._action, faults.Duplicate):
            await self._write(kind, obj)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                await self._misbehave()

    async def _misbehave(self) -> None:
        match self._action:
            case faults.Silent():
                await anyio.sleep_forever()
            case faults.Expire():
                message = f"too old resource version: {self._revision} ({self._revision + 1})"
                await self._write("ERROR", failure(410, "Expired", message))
            case faults.Error(code=code, message=message):
                await self._write("ERROR", failure(code, "InternalError", message))
            case faults.Half():
                return  # of the next event
        raise _Over

    async def _write(self, kind: str, obj: Object) -> None:
        await self._response.write(_line(kind, obj))


def refused(error: Object) -> web.StreamResponse:
    """Answer a watch with one ERROR event, as the API answers one whose resourceVersion is too old."""
    return web.Response(body=_line("ERROR", error), content_type="application/json")


def _line(kind: str, obj: Object) -> bytes:
    return msgspec.json.encode({"type": kind, "object": obj}) + b"\n"


def _padded(obj: Object, size: int) -> Object:
    annotations = {**(obj["metadata"].get("annotations") or {}), "embedded/padding": "x" * size}
    return {**obj, "metadata": {**obj["metadata"], "annotations": annotations}}


def default_timeout() -> float:
    """Return how long a watch lasts whose client does not say: half an hour to an hour."""
    return random.uniform(1800, 3600)  # noqa: S311 (so that watches do not all end together)


async def send_log(request: web.Request, reader: Reader, action: Action | None, gate: Gate) -> web.StreamResponse:
    """Send a log from `reader` until its end; while the kubelet is frozen, `gate` lets nothing pass."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    left = action.bytes if isinstance(action, faults.Cut | faults.Silent) else None
    while left is None or left > 0:
        data = await reader.receive()
        await gate.passed()
        if not data:
            break
        await response.write(data if left is None else data[:left])
        left = None if left is None else left - len(data)
    if isinstance(action, faults.Silent | faults.Linger):
        await anyio.sleep_forever()
    if isinstance(action, faults.Cut) and action.reset and left is not None and left <= 0:
        await response.drain()
        transport.reset(request)
        return response
    await response.write_eof()
    return response
