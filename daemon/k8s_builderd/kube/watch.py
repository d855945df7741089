"""A reflector: one kind of object under one label selector, listed and then watched, for as long as it runs.

Level, not edge: what a new list no longer has is reported as gone, so nothing that happened while no watch was
open is missed. Why this is not kubernetes_asyncio's Watch: that one asks again with the resourceVersion that has just
been refused as too old, spins on an empty stream, and never says what vanished.
"""

from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Generic, Protocol, TypeVar

import anyio
import msgspec
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.kube.api import Api, identity
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE, ApiError, Expired, Refusals, Silent, error_for_status
from k8s_builderd.kube.objects import Meta, ObjectOnly, RawWatchEvent, Status
from k8s_builderd.kube.resources import Resource

MAX_EVENT = 8 * 1024 * 1024
"""Bytes of one watch event; etcd refuses objects over 1.5 MiB, and JSON may escape what it holds."""

WATCH_TIMEOUT = 300
"""Seconds after which the API server ends a watch, so that a new one balances over its instances."""

WATCH_INTERVAL = 0.5
"""Seconds from the beginning of a watch to that of the next at least, whatever ends it, and although it delivers."""

LATE = 30.0
"""Seconds for which what has gone is remembered at least: an answer that still tells of it is never so late."""

_log = structlog.get_logger("k8s_builderd.watch")
_decode_event = msgspec.json.Decoder(RawWatchEvent).decode
_decode_bookmark = msgspec.json.Decoder(ObjectOnly).decode
_decode_status = msgspec.json.Decoder(Status).decode


class _Object(Protocol):
    @property
    def metadata(self) -> Meta: ...


Restarted = Callable[[str, str], None]
"""Is told that a watch begins anew: the resource in RBAC's words, and why."""


def unnoticed(resource: str, reason: str) -> None:
    """Take no notice of it."""


T = TypeVar("T", bound=_Object)
S = TypeVar("S")


class _Unreadable(ApiError):
    """Raised for a line of a watch that is not what the Kubernetes API sends: a list has to say what there is."""


class Applied(msgspec.Struct, Generic[T], frozen=True):
    """The object is there, in this state."""

    object: T


class Deleted(msgspec.Struct, Generic[T], frozen=True):
    """The object is gone, or has lost the label; this was its last known state."""

    object: T


class Gone:
    """What has gone lately: each object's uid, and the resourceVersion with which it went. Pure.

    An answer that was under way when an object went is not to bring it back. Nothing is kept for longer than that: a
    few small things that stay can keep a MiB of memory each from being given back.
    """

    def __init__(self) -> None:
        self._newer: dict[str, str] = {}
        self._older: dict[str, str] = {}
        self._parted_at = 0.0

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._newer) + len(self._older)

    def version(self, uid: str) -> str | None:
        """Return the resourceVersion with which it went, or None where nothing is known of that."""
        return self._newer.get(uid) or self._older.get(uid)

    def add(self, uid: str, version: str, now: float) -> None:
        """Remember it, and forget what `age` does: where a watch is forbidden, nothing but lists tells what goes."""
        self.age(now)
        self._newer[uid] = version

    def discard(self, uid: str) -> None:
        """Forget that it went: it is back."""
        self._newer.pop(uid, None)
        self._older.pop(uid, None)

    def clear(self) -> None:
        """Forget all."""
        self._newer, self._older = {}, {}

    def age(self, now: float) -> None:
        """Forget what has been remembered for long enough: `LATE` seconds at least, and until the second call after.

        :param now: seconds on a clock that never goes back.
        """
        if now - self._parted_at >= LATE:
            self._newer, self._older = {}, self._newer
            self._parted_at = now


class Reflector(Generic[T]):
    """Keeps `objects` (by uid) as the API server has them, and tells each change to one synchronous callback.

    `synced` is true while the last list or watch succeeded; `error` says what is wrong otherwise. An object that cannot
    be read keeps the state that was known before, and a callback that raises harms no other object.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        kind: type[T],
        selector: str,
        changed: Callable[[Applied[T] | Deleted[T]], None],
        *,
        silence: float = 130.0,
        interval: float = WATCH_INTERVAL,
        refusal: float = FORBIDDEN_PATIENCE,
        restarted: Restarted = unnoticed,
        rng: Random | None = None,
    ) -> None:
        """Prepare; `run` does the work.

        :param silence: seconds without a byte after which a watch counts as dead; two bookmarks' worth.
        :param interval: seconds between the beginnings of two watches at least.
        :param refusal: seconds for which a refusal proves nothing.
        :param restarted: is told of each new beginning: why is `closed`, `silent`, `crashed`, or `ApiError.kind`.
        """
        self.objects: dict[str, T] = {}
        self.ever_synced = anyio.Event()
        self.error: str | None = f"{resource.rbac} not listed yet"
        self._api = api
        self._resource = resource
        self._kind = kind
        self._decode = msgspec.json.Decoder(kind).decode
        self._selector = selector
        self._changed = changed
        self._silence = silence
        self._interval = interval
        self._restarted = restarted
        self._not_before = 0.0
        self._refusal = refusal
        self._refusals = Refusals(refusal)
        self._rng = rng or Random()  # noqa: S311 - spreads load, keeps no secret
        self._gone = Gone()
        self._untold: set[str] = set()
        """The uids of objects whose newest state could not be told, for a mistake of ours."""
        self._version = ""
        self._expired = False
        self._restart_delays()

    @property
    def synced(self) -> bool:
        """Say whether `objects` is what the API server has, but for what is on its way."""
        return self.error is None

    async def run(self) -> None:
        """List and watch until cancelled; whatever the API server does, this goes on."""
        version = ""
        while True:
            pause = 0.0
            try:
                if not version:
                    version = await self._relist()
                version = await self._watch(version)
            except Expired:
                # The normal case after a restart of the API server, which is well now: so no waiting, the first time.
                again, self._expired = self._expired, True
                version = ""
                self._restarted(self._resource.rbac, Expired.kind)
                self._failed("the resourceVersion has expired, listing again")
                if not again:
                    continue
            except ApiError as error:
                # A refusal is not cured by asking for the same again: only a list is. Where nothing but the watch is
                # forbidden, a list now and then still tells what happens.
                version = self._version if version and error.transient else ""
                self._failed(self._refusals.words(error, anyio.current_time()))
                self._restarted(self._resource.rbac, error.kind)
                pause = error.pause(0)
            except Exception:  # noqa: BLE001 - a bug of ours, not the API server's fault; watching goes on
                version = ""
                _log.exception("watch_crashed", resource=self._resource.rbac)
                self._failed("internal error in k8s-builderd: see watch_crashed in its log")
                self._restarted(self._resource.rbac, "crashed")
            else:
                continue
            await anyio.sleep(max(pause, next(self._delays)))

    def adopt(self, object: T) -> None:  # noqa: A002 - Kubernetes' word
        """Take in an object that a request of ours returned, before the watch tells of it."""
        self._apply(object)

    def lose(self, uid: str) -> None:
        """Take in that an object is no longer there, before the watch tells of it."""
        if (known := self.objects.get(uid)) is not None:
            self._delete(known, known.metadata.resource_version)

    def _restart_delays(self) -> None:
        self._delays = delays(0.2, 5.0, self._rng)

    def _failed(self, words: str) -> None:
        if self.error != words:
            _log.warning("watch_interrupted", resource=self._resource.rbac, reason=words)
        self.error = words

    async def _relist(self) -> str:
        listed = await self._api.list(self._resource, self._kind, labelSelector=self._selector)
        version = listed.version
        present = {item.metadata.uid for item in listed.items} | listed.unreadable
        if self._version.isdecimal() and version.isdecimal() and _newer(self._version, version):
            # Another past than the one we know: etcd was restored from a backup. Our versions mean nothing there.
            self._gone.clear()
            known, self.objects = self.objects, {}
            for uid in known.keys() - present:
                self._tell(Deleted(known[uid]))
            self.objects = {uid: known[uid] for uid in known.keys() & listed.unreadable}
        for item in listed.items:
            self._apply(item)
        # Where one cannot even be told from the others, none is known to be missing.
        missing = set() if "" in listed.unreadable else self.objects.keys() - present
        for uid in missing:
            # One that a request of ours created after this list was made is not missing from it.
            if not _newer(self.objects[uid].metadata.resource_version, version):
                self._delete(self.objects[uid], version)
        self._version = version
        self._synced()
        return version

    def _synced(self) -> None:
        if self.error is not None:
            _log.info("watch_synced", resource=self._resource.rbac, objects=len(self.objects))
        self.error = None
        self.ever_synced.set()

    async def _watch(self, version: str) -> str:
        query = {
            "resourceVersion": version,
            "labelSelector": self._selector,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(int(WATCH_TIMEOUT * self._rng.uniform(1, 2))),
        }
        self._version = version
        await anyio.sleep_until(self._not_before)
        self._not_before = anyio.current_time() + self._interval
        quiet = True
        async with self._api.watch(self._resource, query) as chunks:
            self._refusals = Refusals(self._refusal)
            self._synced()
            lines = _lines(chunks)
            while True:
                with anyio.move_on_after(self._silence) as deadline:
                    line = await anext(lines, None)
                if deadline.cancelled_caught:
                    self._failed(
                        f"the watch of {self._resource.rbac} has been silent for {self._silence:g} s, opening another"
                    )
                    self._restarted(self._resource.rbac, Silent.kind)
                    if quiet:
                        # From a resourceVersion that the server has not reached, as after a restore, a watch is silent
                        # too: only a new list helps.
                        return ""
                    break
                if line is None:
                    self._restarted(self._resource.rbac, "closed")
                    break
                self._gone.age(anyio.current_time())  # bookmarks come each minute
                self._take(self._read(_decode_event, line))
                if quiet:
                    # Only a stream that delivers ends the back-off: one that is opened and cut at once does not.
                    quiet = self._expired = False
                    self._restart_delays()
        if quiet:
            await anyio.sleep(next(self._delays))
        return self._version

    def _take(self, event: RawWatchEvent) -> None:
        match event.type:
            case "BOOKMARK":
                self._version = self._read(_decode_bookmark, event.object).metadata.resource_version
            case "ADDED" | "MODIFIED" | "DELETED":
                self._take_object(event)
            case "ERROR":
                status = self._read(_decode_status, event.object)
                kind = error_for_status(status.code or 500)
                raise kind(status.message or "the watch failed", verb="watch", resource=self._resource.rbac)

    def _take_object(self, event: RawWatchEvent) -> None:
        deleted = event.type == "DELETED"
        try:
            item = self._read(self._decode, event.object)
        except _Unreadable as error:
            meta = identity(event.object)
            if not (meta.uid and meta.resource_version):
                raise
            _log.warning("object_unreadable", resource=self._resource.rbac, name=meta.name, reason=str(error))
            if deleted and (known := self.objects.get(meta.uid)) is not None:
                self._delete(known, meta.resource_version)
            self._version = meta.resource_version
            return
        self._version = item.metadata.resource_version
        if deleted:
            self._delete(item, self._version)
        else:
            self._apply(item)

    def _read(self, decode: Callable[[bytes | msgspec.Raw], S], data: bytes | msgspec.Raw) -> S:
        try:
            return decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise _Unreadable(f"it cannot be read ({error})", verb="watch", resource=self._resource.rbac) from error

    def _tell(self, change: Applied[T] | Deleted[T]) -> None:
        try:
            self._changed(change)
        except Exception:  # noqa: BLE001 - a bug of ours in what is made of one object
            # The newest state stays in `objects`, and the next list tells it again.
            self._untold.add(change.object.metadata.uid)
            name = change.object.metadata.name
            _log.exception("change_crashed", resource=self._resource.rbac, name=name)

    def _apply(self, item: T) -> None:
        uid = item.metadata.uid
        known = self.objects.get(uid)
        # A late or repeated word about the past changes nothing; one that is newer brings back what has regained its
        # label.
        latest = known.metadata.resource_version if known is not None else self._gone.version(uid)
        if latest is None or _newer(item.metadata.resource_version, latest) or (known and uid in self._untold):
            self._gone.discard(uid)
            self._untold.discard(uid)
            self.objects[uid] = item
            self._tell(Applied(item))

    def _delete(self, item: T, version: str) -> None:
        uid = item.metadata.uid
        known = self.objects.get(uid)
        if known is not None and _newer(known.metadata.resource_version, version):
            return
        self.objects.pop(uid, None)
        self._untold.discard(uid)
        self._gone.add(uid, version, anyio.current_time())
        if known is not None:
            self._tell(Deleted(item))


def _newer(version: str, than: str) -> bool:
    # Kubernetes promises since 1.35 that resourceVersions of one resource compare as numbers; they always did.
    if version.isdecimal() and than.isdecimal():
        return (len(version), version) > (len(than), than)
    return version != than


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield whole lines; half a line at the end of the stream is dropped, the next watch brings it whole."""
    rest = bytearray()
    async for chunk in chunks:
        start = len(rest)
        rest += chunk
        if b"\n" not in chunk:
            if len(rest) > MAX_EVENT:
                raise Expired(f"a watch event is longer than {MAX_EVENT} bytes")
            continue
        end = rest.rindex(b"\n", start) + 1
        whole, rest = bytes(rest[:end]), rest[end:]
        for line in whole.split(b"\n"):
            if line.strip():
                yield line
