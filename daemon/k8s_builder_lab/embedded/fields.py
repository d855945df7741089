"""Which fields an object can have, for `fieldValidation=Strict`. Pure.

fields.json has them by type: those of a Job, a Pod and a Secret of Kubernetes 1.36, by its OpenAPI document. `[X]` is a
list of X, `{X}` an object with any keys.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import msgspec

from k8s_builder_lab.embedded.objects import Object, Resource
from k8s_builder_lab.embedded.status import ApiError, bad_request

TYPES: dict[str, dict[str, str]] = msgspec.json.decode(files(__package__).joinpath("fields.json").read_bytes())

_QUANTITIES = {
    ("ResourceRequirements", "limits"),
    ("ResourceRequirements", "requests"),
    ("VolumeResourceRequirements", "limits"),
    ("VolumeResourceRequirements", "requests"),
    ("PodSpec", "overhead"),
    ("EmptyDirVolumeSource", "sizeLimit"),
    ("ResourceFieldSelector", "divisor"),
}
_QUANTITY = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)([eEinumkKMGTP]*[-+]?[0-9]*)")
_SUFFIX = re.compile("([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")


def check(resource: Resource, obj: Object, *, strict: bool) -> None:
    """Check that an object can be read, and if it is `strict`, that it has no field that its kind has not.

    :raises ApiError: 400, as the API server words it.
    """
    if resource.kind not in TYPES:
        return
    for fault in _unreadable(resource.kind, obj):
        raise _refused(resource, fault)
    unknown = [f'unknown field "{path}"' for path in _unknown(resource.kind, obj, "")] if strict else []
    if unknown:
        raise _refused(resource, f"strict decoding error: {', '.join(unknown)}")


def _refused(resource: Resource, why: str) -> ApiError:
    version = resource.api_version.rpartition("/")[2]
    return bad_request(f'{resource.kind} in version "{version}" cannot be handled as a {resource.kind}: {why}')


def _unknown(kind: str, value: Any, path: str) -> Iterator[str]:
    if kind.startswith("[") and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(kind[1:-1], item, f"{path}[{index}]")
    elif kind in TYPES and isinstance(value, dict):
        for field, inner in value.items():
            place = f"{path}.{field}".lstrip(".")
            if field in {"kind", "apiVersion"} and not path:
                continue
            if field not in TYPES[kind]:
                yield place
            else:
                yield from _unknown(TYPES[kind][field], inner, place)


def _unreadable(kind: str, value: Any) -> Iterator[str]:
    """Find what is no quantity. The API server does not say which field it is."""
    if kind.startswith("[") and isinstance(value, list):
        for item in value:
            yield from _unreadable(kind[1:-1], item)
    elif kind in TYPES and isinstance(value, dict):
        for field, inner in value.items():
            if (kind, field) in _QUANTITIES:
                for quantity in inner.values() if isinstance(inner, dict) else [inner]:
                    yield from _no_quantity(quantity)
            else:
                yield from _unreadable(TYPES[kind].get(field, ""), inner)


def _no_quantity(value: Any) -> Iterator[str]:
    if value is None:
        return
    match = _QUANTITY.fullmatch(str(value))
    if match is None:
        yield "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
    elif not _SUFFIX.fullmatch(match[1]):
        yield "unable to parse quantity's suffix"
