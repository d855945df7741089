"""Label and field selectors: what a list or a watch is about. Pure."""

import re
from collections.abc import Callable

from k8s_builder_lab.embedded.objects import EVENTS, PODS, Object, Resource
from k8s_builder_lab.embedded.status import bad_request, unsupported

Matches = Callable[[Object], bool]

_TERM = re.compile(r"(?P<key>[^=!,\s]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^=!,\s]*)")
_EXISTS = re.compile(r"(?P<negation>!?)\s*(?P<key>[A-Za-z0-9][-A-Za-z0-9_./]*)")

_FIELDS: dict[Resource, tuple[str, ...]] = {
    EVENTS: (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "reason",
        "type",
    ),
    PODS: ("spec.nodeName", "status.phase"),
}


def parse(resource: Resource, labels: str, fields: str) -> Matches:
    """Return what tells whether an object is meant by `labelSelector` and `fieldSelector`.

    Labels take equality, inequality and existence. Fields take equality and inequality of metadata.name and
    metadata.namespace, of a pod's spec.nodeName and status.phase, and of an event's involvedObject.kind, .namespace,
    .name and .uid, reason and type.

    :raises ApiError: 400, a selector that cannot be parsed or names another field
    """
    tests = [*_label_tests(labels), *_field_tests(resource, fields)]
    return lambda obj: all(test(obj) for test in tests)


def _label_tests(selector: str) -> list[Matches]:
    if "(" in selector:
        raise unsupported(f"set-based label selectors ({selector!r})")
    tests = []
    for term in filter(None, (part.strip() for part in selector.split(","))):
        if equality := _TERM.fullmatch(term):
            tests.append(_compares(("metadata", "labels"), **equality.groupdict()))
        elif exists := _EXISTS.fullmatch(term):
            tests.append(_exists(exists["key"], wanted=not exists["negation"]))
        else:
            raise bad_request(f"unable to parse requirement: {term!r}")
    return tests


def _field_tests(resource: Resource, selector: str) -> list[Matches]:
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(resource, ()))
    tests = []
    for term in filter(None, (part.strip() for part in selector.split(","))):
        equality = _TERM.fullmatch(term)
        if equality is None:
            raise bad_request(f"invalid selector: {selector!r}; can't understand {term!r}")
        if equality["key"] not in known:
            raise bad_request(f"field label not supported: {equality['key']}")
        *path, field = equality["key"].split(".")
        tests.append(_compares(tuple(path), field, equality["operator"], equality["value"]))
    return tests


def _compares(path: tuple[str, ...], key: str, operator: str, value: str) -> Matches:
    def test(obj: Object) -> bool:
        inner = obj
        for part in path:
            inner = inner.get(part) or {}
        found = inner.get(key)
        if operator == "!=":
            return bool(found != value)
        # A field that is not there is an empty field, but a label that is not there is not an empty label.
        return bool(found == value) or (found is None and value == "" and path[-1:] != ("labels",))

    return test


def _exists(key: str, *, wanted: bool) -> Matches:
    return lambda obj: (key in (obj["metadata"].get("labels") or {})) is wanted
