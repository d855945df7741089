"""events.k8s.io/v1: the newer form of an Event. It is the same object as the core one, under other names.

What is refused, and in which words, is as a real API server was seen to answer.
"""

import re

from k8s_builder_lab.embedded import validation
from k8s_builder_lab.embedded.asked import merge
from k8s_builder_lab.embedded.objects import EVENTS, NEW_EVENTS, Object
from k8s_builder_lab.embedded.status import Cause, already_exists, invalid, not_found
from k8s_builder_lab.embedded.store import Store

NOTE_LIMIT = 1024
NAME_LIMIT = 128

_CORE = {
    "regarding": "involvedObject",
    "note": "message",
    "reportingController": "reportingComponent",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
}
_NEW = {core: new for new, core in _CORE.items()}
_NAME_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_NAME_PART_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_IMMUTABLE = ("reportingController", "reportingInstance", "action", "reason", "regarding", "related", "note", "type")


def create(store: Store, namespace: str, body: Object) -> Object:
    """Check and store an event and return it.

    :raises ApiError: as `Store.create` does
    """
    event = validation.accept(NEW_EVENTS, body, namespace)
    check(event)
    if store.find(EVENTS, namespace, event["metadata"]["name"]) is not None:
        raise already_exists(NEW_EVENTS, event["metadata"]["name"])
    return from_core(store.create(EVENTS, namespace, to_core(event)))


def get(store: Store, namespace: str, name: str) -> Object:
    """Return an event.

    :raises ApiError: 404
    """
    found = store.find(EVENTS, namespace, name)
    if found is None:
        raise not_found(NEW_EVENTS, name)
    return from_core(found)


def patch(store: Store, namespace: str, name: str, changes: Object) -> Object:
    """Change an event by a JSON Merge Patch and return it.

    :raises ApiError: 404; 422, more than its series is changed
    """
    before = get(store, namespace, name)
    after = {**merge(before, changes), "metadata": before["metadata"]}
    check_change(before, after)
    changed = store.update(EVENTS, namespace, name, lambda event: event.update(to_core(after)))
    assert changed is not None
    return from_core(changed)


def to_core(event: Object) -> Object:
    """Return the core Event that an event of events.k8s.io is."""
    return {**{_CORE.get(field, field): value for field, value in event.items()}, "apiVersion": EVENTS.api_version}


def from_core(event: Object) -> Object:
    """Return the event of events.k8s.io that a core Event is."""
    return {**{_NEW.get(field, field): value for field, value in event.items()}, "apiVersion": NEW_EVENTS.api_version}


def check(event: Object) -> None:
    """Check an event that is to be created.

    :raises ApiError: 422
    """
    causes = []
    if (event.get("regarding") or {}).get("namespace", "") != event["metadata"]["namespace"]:
        causes.append(Cause("involvedObject.namespace", 'Invalid value: "": does not match event.namespace'))
    if not event.get("eventTime"):
        causes.append(Cause("eventTime", "Required value", "FieldValueRequired"))
    controller = event.get("reportingController") or ""
    if not controller:
        causes.append(Cause("reportingController", "Required value", "FieldValueRequired"))
        causes.append(Cause("reportingController", 'Invalid value: "": name part must be non-empty'))
    if not _NAME_PART.fullmatch(controller):
        causes.append(Cause("reportingController", f'Invalid value: "{controller}": {_NAME_PART_RULE}'))
    for field in ("reportingInstance", "action", "reason"):
        if not event.get(field):
            causes.append(Cause(field, "Required value", "FieldValueRequired"))
        elif len(event[field]) > NAME_LIMIT:
            causes.append(Cause(field, f'Invalid value: "": can have at most {NAME_LIMIT} characters'))
    if len((event.get("note") or "").encode()) > NOTE_LIMIT:
        causes.append(Cause("message", f'Invalid value: "": can have at most {NOTE_LIMIT} characters'))
    if event.get("type") not in {"Normal", "Warning"}:
        causes.append(Cause("type", f'Invalid value: "": has invalid value: {event.get("type") or ""}'))
    causes += [
        Cause(_CORE[field], 'Invalid value: "": needs to be unset')
        for field in ("deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount")
        if event.get(field)
    ]
    _refuse(event, causes + _series_causes(event))


def check_change(before: Object, after: Object) -> None:
    """Check what a patch made of an event: its series, and nothing else.

    :raises ApiError: 422
    """
    causes = [
        Cause(_CORE.get(field, field), f'Invalid value: "{after.get(field)}": field is immutable')
        for field in _IMMUTABLE
        if before.get(field) != after.get(field)
    ]
    _refuse(after, causes + _series_causes(after))


def _series_causes(event: Object) -> list[Cause]:
    series = event.get("series")
    if series is None:
        return []
    causes = []
    if int(series.get("count") or 0) < 2:
        causes.append(Cause("series.count", 'Invalid value: "": should be at least 2'))
    if not series.get("lastObservedTime"):
        causes.append(Cause("series.lastObservedTime", "Required value", "FieldValueRequired"))
    return causes


def _refuse(event: Object, causes: list[Cause]) -> None:
    if causes:
        raise invalid(EVENTS, event["metadata"]["name"], causes)
