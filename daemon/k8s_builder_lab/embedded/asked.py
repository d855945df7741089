"""What a request asks for: verb, object, options and body, taken out of its path, query and JSON."""

from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from aiohttp import web

from k8s_builder_lab.embedded.faults import Verb
from k8s_builder_lab.embedded.objects import FOREGROUND, JOBS, ORPHAN, Key, Object, Resource
from k8s_builder_lab.embedded.status import ApiError, Cause, bad_request, invalid_log_options


def verb(request: web.Request) -> Verb:
    """Return the verb by which RBAC and faults know the request."""
    if request.path.endswith("/log"):
        return "log"
    if request.path.endswith("/eviction"):
        return "evict"
    if request.method == "GET" and "name" not in request.match_info:
        return "watch" if is_watch(request) else "list"
    return cast("Verb", {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch"}[request.method])


def dry_run(request: web.Request) -> bool:
    """Whether nothing is to be stored.

    :raises ApiError: 422, an unknown kind of it
    """
    if request.query.get("dryRun", "All") != "All":
        given = request.query["dryRun"]
        raise ApiError(
            422,
            "Invalid",
            f'CreateOptions.meta.k8s.io "" is invalid: dryRun: Unsupported value: ["{given}"]: supported values: "All"',
        )
    return "dryRun" in request.query


def only_metadata(request: web.Request) -> bool:
    """Whether the client wants no more of an object than its metadata."""
    return ";as=PartialObjectMetadata" in request.headers.get("Accept", "")


def is_watch(request: web.Request) -> bool:
    """Whether a list is to go on as a watch."""
    return flag(request, "watch")


def flag(request: web.Request, option: str) -> bool:
    """Whether an option of the query is on."""
    return request.query.get(option, "").lower() in {"true", "1"}


async def name(request: web.Request) -> str:
    """Return the name of the object that a request is about, empty for more than one.

    :raises ApiError: 400, the body of a creation is no object
    """
    if "name" in request.match_info:
        return request.match_info["name"]
    if request.method == "POST":
        return str(((await body(request)).get("metadata") or {}).get("name", ""))
    terms = [term.strip() for term in request.query.get("fieldSelector", "").split(",")]
    return next((term.partition("=")[2] for term in terms if term.startswith("metadata.name=")), "")


def key(request: web.Request) -> Key:
    """Return the namespace, empty where there is none, and the name in the path."""
    return request.match_info.get("namespace", ""), request.match_info["name"]


async def body(request: web.Request) -> Object:
    """Return the JSON object that was sent.

    :raises ApiError: 400, it is none
    """
    try:
        decoded: Any = msgspec.json.decode(await request.read())
    except msgspec.DecodeError as error:
        raise bad_request(f"the request's body is no JSON: {error}") from None
    if not isinstance(decoded, dict):
        raise bad_request("the request's body is no object")
    return decoded


class Deletion(msgspec.Struct, frozen=True):
    """The options of a deletion.

    grace: seconds, None: the object's own. uid: of the object that is meant, None: any.
    finalizer: what the propagation policy makes of the object until its dependants are seen to; None: nothing.
    """

    grace: int | None
    uid: str | None
    finalizer: str | None


async def deletion(request: web.Request, resource: Resource) -> Deletion:
    """Return what a DELETE asks for, in its body or its query. A Job's dependants are orphaned if it does not say.

    :raises ApiError: 400, not an object; 422, no such policy
    """
    options = await body(request) if request.can_read_body else {}
    policy = options.get("propagationPolicy") or request.query.get("propagationPolicy")
    finalizers = {"Background": None, "Foreground": FOREGROUND, "Orphan": ORPHAN}
    policy = policy or ("Orphan" if resource is JOBS else "Background")
    if policy not in finalizers:
        raise ApiError(
            422,
            "Invalid",
            f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: "{policy}": supported '
            'values: "Foreground", "Background", "Orphan", "nil"',
        )
    grace = options.get("gracePeriodSeconds", request.query.get("gracePeriodSeconds"))
    return Deletion(
        None if grace is None else int(grace),
        (options.get("preconditions") or {}).get("uid"),
        finalizers[policy],
    )


def revision(text: str) -> int:
    """Return a resourceVersion as the number that it is.

    :raises ApiError: 500, it is none
    """
    try:
        return int(text)
    except ValueError:
        raise ApiError(
            500,
            "",
            f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax',
        ) from None


def since(request: web.Request, now: float) -> str | None:
    """Return the second from which a log is wanted; the API cuts it to that and includes it.

    :param now: the time by the node's clock, to which an age refers.

    :raises ApiError: 400, not a time; 422, both, or an age that is none
    """
    pod, moment, age = request.match_info["name"], request.query.get("sinceTime"), request.query.get("sinceSeconds")
    if moment is not None and age is not None:
        message = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
        raise invalid_log_options(pod, Cause("[]", message, "FieldValueForbidden"))
    if age is not None:
        if int(age) <= 0:
            message = f"Invalid value: {age}: must be greater than 0"
            raise invalid_log_options(pod, Cause("sinceSeconds", message))
        return f"{datetime.fromtimestamp(now - int(age), UTC):%Y-%m-%dT%H:%M:%S}"
    if moment is None:
        return None
    try:
        at = datetime.fromisoformat(moment)
        if at.tzinfo is None:
            raise ValueError(moment)
    except ValueError:
        raise bad_request(
            f'parsing time "{moment}" as "2006-01-02T15:04:05Z07:00": cannot parse "{moment}" as "2006"'
        ) from None
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"


def merge(target: Object, patch: Object) -> Object:
    """Return `target` changed as RFC 7386 (JSON Merge Patch) has it."""
    merged = {**target}
    for field, value in patch.items():
        if value is None:
            merged.pop(field, None)
        elif isinstance(value, dict):
            inner = merged.get(field)
            merged[field] = merge(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[field] = value
    return merged
