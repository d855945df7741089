"""What one daemon sees of the model cluster: the methods of `kube.api.Api`, late, failing or silent as it is told."""

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import anyio
import msgspec

from k8s_builderd.kube.api import Listing
from k8s_builderd.kube.errors import (
    ApiError,
    Invalid,
    NotFound,
    Unavailable,
    Unreachable,
    error_for_status,
    error_without_status,
)
from k8s_builderd.kube.resources import Resource
from tests.simulation.cluster import BOOKMARKS, Change, Cluster, Container, Object

T = TypeVar("T")


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    `what`: `refused` (nothing was done), `lost` (done, but the answer does not come), `late` (no answer, and done a few
    seconds later), `hang` (no answer, nothing done), `slow`, a status such as `503`, `page` (a proxy's 404); for
    watches also `silent`, `expired`, `short` (closes after each event); for logs also `silent`, `cut` (a clean end too
    early).
    """

    verb: str
    plural: str
    what: str
    times: float = 1

    def concerns(self, verb: str, plural: str) -> bool:
        return self.times > 0 and self.verb in {verb, "*"} and self.plural in {plural, "*"}


class Stream:
    """An open watch or log of one daemon."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.silent = False
        self.broken = False
        self.expired = False
        self.closed = False
        self._wake = anyio.Event()

    def wake(self, _: object = None) -> None:
        self._wake.set()

    def drop(self) -> None:
        """Break it, as when its connection is reset."""
        self.broken = True
        self.wake()

    async def woken(self, seconds: float | None = None) -> None:
        """Wait for something new, so many seconds at most."""
        with anyio.move_on_after(seconds):
            await self._wake.wait()
        self._wake = anyio.Event()
        while self.silent and not self.broken:
            await self._wake.wait()
            self._wake = anyio.Event()


class ModelApi:
    """The API server, as one daemon sees it."""

    def __init__(self, cluster: Cluster, patience: float) -> None:
        self.namespace = "fabric"
        self.cluster = cluster
        self.sim = cluster.sim
        self.patience = patience
        self.up = True
        """Whether requests of this daemon reach the API server."""
        self.faults: list[Fault] = []
        self.lag: dict[str, float] = {"jobs": 0.01, "pods": 0.01}
        """By how many seconds its watches are late."""
        self.streams: list[Stream] = []
        self.requests: list[tuple[float, str, str]] = []
        """When, verb and plural of all that was asked."""
        self.deleting: Callable[[Object], None] = lambda job: None
        self.creating: Callable[[Object], None] = lambda job: None
        self.dead = False
        """Whether its daemon is no more: then nothing that it asks is carried out."""

    server = "https://model"

    # Requests

    def _fault(self, verb: str, plural: str) -> str:
        self.requests.append((self.sim.now, verb, plural))
        for fault in self.faults:
            if fault.concerns(verb, plural):
                fault.times -= 1
                return fault.what
        return ""

    async def _request(self, verb: str, resource: Resource, work: Callable[[], T]) -> T:
        fault = self._fault(verb, resource.plural)
        await anyio.sleep(self.cluster.random.uniform(0.003, 0.015))
        if not self.up or fault == "refused":
            raise self._unreachable(verb, resource.rbac, "connection refused")
        if fault == "slow":
            await anyio.sleep(self.patience * 0.8)
        if fault == "late":
            self.sim.after(self.cluster.random.uniform(0, 9), self._late, work)
        if fault in {"hang", "late"}:
            await anyio.sleep(self.patience)
            raise self._unreachable(verb, resource.rbac, "no answer in time")
        self._refuse(fault, verb, resource.rbac)
        if self.dead:
            await anyio.sleep_forever()
        try:
            answer = work()
        except ApiError as error:
            raise type(error)(error.args[0], verb=verb, resource=resource.rbac) from None
        await anyio.sleep(self.cluster.random.uniform(0.003, 0.015))
        if fault == "lost" or not self.up:
            raise self._unreachable(verb, resource.rbac, "connection reset")
        return answer

    def _late(self, work: Callable[[], object]) -> None:
        with suppress(ApiError):
            work()

    @staticmethod
    def _unreachable(verb: str, rbac: str, why: str) -> Unreachable:
        return Unreachable(f"the Kubernetes API does not answer ({why})", verb=verb, resource=rbac)

    async def list(self, resource: Resource, kind: type[T], **selectors: str) -> Listing[T]:
        def work() -> Listing[T]:
            chosen = [
                item
                for item in self.cluster.objects[resource.plural].values()
                if _matches(item["metadata"].get("labels") or {}, selectors.get("labelSelector", ""))
                and _has(item, selectors.get("fieldSelector", ""))
            ]
            readable: list[T] = []
            unreadable = set()
            for item in chosen:
                try:
                    readable.append(_decoded(item, kind))
                except msgspec.MsgspecError:
                    unreadable.add(item["metadata"]["uid"])
            return Listing(str(self.cluster.version), readable, unreadable)

        return await self._request("list", resource, work)

    async def get(self, resource: Resource, kind: type[T], name: str) -> T:
        return await self._request("get", resource, lambda: _decoded(self._found(resource, name), kind))

    async def create(self, resource: Resource, kind: type[T], body: Mapping[str, Any]) -> T:
        copy = json.loads(json.dumps(body))

        def work() -> T:
            if self.cluster.find(resource.plural, copy["metadata"]["name"]) is not None:
                raise error_for_status(409)("already exists")
            made = self.cluster.add(resource.plural, copy)
            if resource.plural == "jobs":
                self.creating(made)
            return _decoded(self._found(resource, made["metadata"]["name"]), kind)

        return await self._request("create", resource, work)

    async def delete(self, resource: Resource, name: str, uid: str) -> None:
        def work() -> None:
            item = self._found(resource, name)
            if item["metadata"]["uid"] != uid:
                raise Unavailable("the precondition does not hold")
            if resource.plural == "jobs":
                self.deleting(item)
            self.cluster.delete(resource.plural, name)

        await self._request("delete", resource, work)

    def _found(self, resource: Resource, name: str) -> Object:
        found = self.cluster.find(resource.plural, name)
        if found is None:
            raise NotFound(f"{resource.plural} {name!r} not found")
        return found

    # Watches

    @asynccontextmanager
    async def watch(self, resource: Resource, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        fault = await self._opened("watch", resource.plural, resource.rbac)
        stream = Stream(resource.plural)
        stream.silent = fault == "silent"
        stream.expired = fault == "expired"
        self.streams.append(stream)
        self.cluster.changed.append(stream.wake)
        chunks = self._changes(stream, resource, query, short=fault == "short")
        try:
            yield chunks
        finally:
            self.cluster.changed.remove(stream.wake)
            self.streams.remove(stream)

    async def _opened(self, verb: str, plural: str, rbac: str) -> str:
        """Wait for the head of an answer without end."""
        fault = self._fault(verb, plural)
        await anyio.sleep(self.cluster.random.uniform(0.003, 0.015))
        if not self.up or fault in {"refused", "lost", "late"}:
            raise self._unreachable(verb, rbac, "connection refused")
        if fault == "hang":
            await anyio.sleep(self.patience)
            raise self._unreachable(verb, rbac, "no answer in time")
        self._refuse(fault, verb, rbac)
        return fault

    @staticmethod
    def _refuse(fault: str, verb: str, rbac: str) -> None:
        if fault == "page":
            raise error_without_status(404)("HTTP 404 Not Found", verb=verb, resource=rbac)
        if fault.isdecimal():
            raise error_for_status(int(fault))(f"HTTP {fault}", verb=verb, resource=rbac)

    async def _changes(
        self, stream: Stream, resource: Resource, query: Mapping[str, str], *, short: bool
    ) -> AsyncIterator[bytes]:
        plural, selector = resource.plural, query["labelSelector"]
        version = int(query["resourceVersion"])
        end = self.sim.now + float(query.get("timeoutSeconds", "1800"))
        bookmark = self.sim.now + BOOKMARKS
        while True:
            if stream.broken or not self.up:
                raise self._unreachable("watch", resource.rbac, "connection reset")
            if stream.expired or version < self.cluster.oldest:
                status = {"code": 410, "reason": "Expired", "message": "too old resource version"}
                yield _line("ERROR", status)
                return
            due: Change | None = None
            for change in self._after(version):
                if change.at + self.lag.get(plural, 0) > self.sim.now:
                    due = change
                    break
                version = change.version
                if change.plural == plural and (kind := _told_as(change, selector)):
                    yield b'{"type":"%s","object":%s}\n' % (kind.encode(), change.content)
                    if short:
                        return
            now = self.sim.now
            if now >= end:
                return
            if now >= bookmark:
                bookmark = now + BOOKMARKS
                yield _line("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})
            next_time = min(end, bookmark, due.at + self.lag.get(plural, 0) if due else end)
            await stream.woken(max(next_time - now, 0.001))

    def _after(self, version: int) -> Iterator[Change]:
        # Versions are consecutive, the first change has the version 2.
        yield from self.cluster.history[max(version - 1, 0) :]

    # Logs

    @asynccontextmanager
    async def log(self, pod: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        follow = query.get("follow") == "true"
        fault = await self._opened("log", "pods", "pods/log")
        item = self.cluster.find("pods", pod)
        if item is None:
            raise NotFound(f'pods "{pod}" not found', verb="get", resource="pods/log")
        worker = self.cluster.workers.get(item["metadata"]["uid"])
        if worker is None or worker.container is None:
            raise Invalid("the container is waiting to start", verb="get", resource="pods/log")
        if worker.node.down and not follow:
            await anyio.sleep(self.patience)
            raise self._unreachable("get", "pods/log", "no answer in time")
        stream = Stream("log")
        stream.silent = fault == "silent"
        container = worker.container
        self.streams.append(stream)
        container.printed.append(stream.wake)
        try:
            yield self._lines(stream, container, query.get("sinceTime", ""), follow=follow, cut=fault == "cut")
        finally:
            container.printed.remove(stream.wake)
            self.streams.remove(stream)

    async def _lines(
        self, stream: Stream, container: Container, since: str, *, follow: bool, cut: bool
    ) -> AsyncIterator[bytes]:
        at = 0
        begin = datetime.fromisoformat(since) if since else None
        if stream.silent:
            await stream.woken(0)
        while True:
            if stream.broken or not self.up:
                raise self._unreachable("get", "pods/log", "connection reset")
            if container.pod.node.down:
                await stream.woken(0.5)
                continue
            chunk = []
            for stamped, text in container.lines[at:]:
                if begin is None or datetime.fromisoformat(stamped) >= begin:
                    chunk.append(b"%s %s\n" % (stamped.encode(), text))
            at = len(container.lines)
            if cut:
                whole = b"".join(chunk)
                yield whole[: self.cluster.random.randint(0, len(whole))]
                return
            if chunk:
                yield b"".join(chunk)
            if not follow:
                return
            if container.ended_at is not None and self.sim.now >= container.ended_at + 0.8:
                return
            await stream.woken(None if container.alive else 0.8)

    # What happens to it

    def drop(self, what: str = "") -> None:
        """Break the open streams of a kind, or all of them."""
        for stream in list(self.streams):
            if what in {"", stream.what}:
                stream.drop()

    def silence(self, what: str) -> None:
        """Have the open streams of a kind bring nothing more, without an end."""
        for stream in self.streams:
            if stream.what == what:
                stream.silent = True

    def expire(self) -> None:
        """Have the open watches end with a 410."""
        for stream in self.streams:
            if stream.what != "log":
                stream.expired = True
                stream.wake()

    def lose(self) -> None:
        """Be cut off from the API server."""
        self.up = False
        self.drop()

    def heal(self) -> None:
        """Behave again. What is silent stays so, as it does in real life."""
        self.up = True
        self.faults.clear()
        self.lag = {"jobs": 0.01, "pods": 0.01}


def _decoded(item: Object, kind: type[T]) -> T:
    return msgspec.json.decode(json.dumps(item), type=kind)


def _line(kind: str, item: Object) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _told_as(change: Change, selector: str) -> str:
    """Return the type of the event that a watch tells a change by, or nothing: who loses its label is told as gone."""
    if _matches(change.labels, selector):
        return change.type if _matches(change.before, selector) else "ADDED"
    return "DELETED" if _matches(change.before, selector) else ""


def _matches(labels: Mapping[str, str], selector: str) -> bool:
    wanted = (part.split("=", 1) for part in selector.split(",") if part)
    return all(labels.get(name) == value for name, value in wanted)


def _has(item: Object, selector: str) -> bool:
    for part in selector.split(","):
        if part:
            path, value = part.split("=", 1)
            found: Any = item
            for name in path.split("."):
                found = found.get(name, {})
            if found != value:
                return False
    return True
