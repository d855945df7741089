"""Records Events (events.k8s.io/v1) in the background: they are for people, and nothing waits for them.

What happens again and again is one Event with a series, as client-go's recorder makes it: its second time is written at
once, the later ones are counted and written now and then. What cannot be written is dropped.
"""

import math
import secrets
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import structlog
from msgspec import Struct

from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, Forbidden, NamespaceNotFound, NotFound, NotServed
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import NEW_EVENTS

WAITING = 100
"""Events that may wait to be written; one more drops the oldest."""

SPACING = 0.25
"""Seconds before each request, so that launches go first."""

SERIES_ENDS = 360.0
"""Seconds without a repeat after which the next one is a new Event; a series is written as often at most."""

REFUSED_PAUSE = 3600.0
"""Seconds for which nothing is written once the right to is missing, or the API has no such Events."""

REMEMBERED = 512
"""Events whose repeats are counted."""

NOTE_LIMIT = 1024
"""Bytes of an Event's note, by the API server's rule."""

NAME_LIMIT = 128
"""Characters of an Event's reportingInstance, action and reason, by the API server's rule."""

_log = structlog.get_logger("k8s_builderd.events")


class Reference(Struct, frozen=True):
    """An object that an Event is about."""

    api_version: str
    kind: str
    name: str
    uid: str

    def body(self, namespace: str) -> dict[str, str]:
        """Return it as an ObjectReference."""
        return {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "namespace": namespace,
            "name": self.name,
            "uid": self.uid,
        }


class Happened(Struct, frozen=True):
    """Something to tell. `reason` and `action` are words in CamelCase, `type` is `Normal` or `Warning`."""

    regarding: Reference
    type: str
    reason: str
    action: str
    note: str
    related: Reference | None = None
    subject: str = ""
    """Two with the same `regarding`, `reason` and subject are one Event with a series."""


class _Series:
    """One Event that was written, and how often it has happened since."""

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.count = 1
        self.last = now
        self.last_observed = datetime.now(UTC)
        self.written = 1
        self.written_at = now


class Recorder:
    """Writes Events one after the other. `record` never waits and never fails."""

    def __init__(
        self,
        api: Api,
        controller: str,
        instance: str,
        *,
        spacing: float = SPACING,
        series_ends: float = SERIES_ENDS,
        refused_pause: float = REFUSED_PAUSE,
    ) -> None:
        """Prepare; `run` does the work.

        :param controller: the component that reports.
        :param instance: which of its instances: a pod's or host's name.
        """
        self._api = api
        self._spacing = spacing
        self._series_ends = series_ends
        self._refused_pause = refused_pause
        self._controller = controller
        self._instance = instance[:NAME_LIMIT]
        self._waiting: deque[tuple[Happened, datetime]] = deque(maxlen=WAITING)
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._refused_until = 0.0
        self._told_refused = False
        self._woken = anyio.Event()

    def record(self, happened: Happened) -> None:
        """Have it written soon, or never."""
        self._waiting.append((happened, datetime.now(UTC)))
        self._woken.set()

    async def run(self) -> None:
        """Write what there is to write, until cancelled."""
        while True:
            await self._wait()
            try:
                if self._waiting:
                    await self._write(*self._waiting.popleft())
                elif (due := self._next_series()) is not None:
                    await self._write_series(due)
            except Exception:  # noqa: BLE001 - a bug in telling what happens does not end what happens
                _log.exception("event_crashed")

    async def _wait(self) -> None:
        """Wait until there is something to write."""
        while not self._waiting:
            due = self._next_series()
            left = due.written_at + self._series_ends - anyio.current_time() if due is not None else math.inf
            if left <= 0:
                return
            self._woken = anyio.Event()
            with anyio.move_on_after(left):
                await self._woken.wait()

    def _next_series(self) -> _Series | None:
        """Return the series that is written next, because it has happened again since it was written."""
        unwritten = (it for it in self._series.values() if it.count > it.written)
        return min(unwritten, key=lambda it: it.written_at, default=None)

    async def _write(self, happened: Happened, at: datetime) -> None:
        now = anyio.current_time()
        if now < self._refused_until:
            return
        key = (happened.regarding.uid, happened.reason, happened.subject)
        known = self._series.get(key)
        if known is not None and now < known.last + self._series_ends:
            known.count += 1
            known.last, known.last_observed = now, at
            if known.written == 1:
                await self._write_series(known)
            return
        name = f"{happened.regarding.name}.{secrets.token_hex(8)}"
        await anyio.sleep(self._spacing)
        try:
            await self._api.create(NEW_EVENTS, ObjectOnly, self._body(name, happened, at))
        except ApiError as error:
            self._dropped(error)
            return
        self._series.pop(key, None)
        self._series[key] = _Series(name, now)
        if len(self._series) > REMEMBERED:
            del self._series[next(iter(self._series))]

    async def _write_series(self, series: _Series) -> None:
        series.written, series.written_at = series.count, anyio.current_time()
        patch = {"series": {"count": series.count, "lastObservedTime": _micro_time(series.last_observed)}}
        await anyio.sleep(self._spacing)
        try:
            await self._api.patch(NEW_EVENTS, ObjectOnly, series.name, patch)
        except NotFound as error:  # it has expired, or somebody has deleted it: the next one is a new Event
            series.last = -math.inf
            _log.debug("event_dropped", reason=str(error))
        except ApiError as error:
            self._dropped(error)

    def _dropped(self, error: ApiError) -> None:
        # An API server before Kubernetes 1.19 does not know the group.
        lacks_group = isinstance(error, NotFound | NotServed) and not isinstance(error, NamespaceNotFound)
        if not lacks_group and not (isinstance(error, Forbidden) and error.lacks_right):
            _log.debug("event_dropped", reason=str(error))
            return
        self._refused_until = anyio.current_time() + self._refused_pause
        self._waiting.clear()
        if not self._told_refused:
            self._told_refused = True
            _log.info("events_refused", reason=str(error))

    def _body(self, name: str, happened: Happened, at: datetime) -> Mapping[str, Any]:
        namespace = self._api.namespace
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _micro_time(at),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
            "action": happened.action[:NAME_LIMIT],
            "reason": happened.reason[:NAME_LIMIT],
            "regarding": happened.regarding.body(namespace),
            "note": _note(happened.note),
            "type": happened.type,
        }
        if happened.related is not None:
            body["related"] = happened.related.body(namespace)
        return body


def _micro_time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _note(text: str) -> str:
    """Return a text as an Event may carry it: printable, and no longer than allowed."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable.encode()[:NOTE_LIMIT].decode("utf-8", "ignore")
