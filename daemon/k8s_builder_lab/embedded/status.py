"""The Status bodies of the API, in the words that a real API server was recorded with. No I/O."""

from typing import Any

from k8s_builder_lab.embedded.objects import Object, Resource
from k8s_builder_lab.embedded.rights import asked_for


class ApiError(Exception):
    """A request that the API refuses: `code` is the HTTP status, `body` the Status object."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.body = failure(code, reason, message, details)


def failure(code: int, reason: str, message: str, details: dict[str, Any] | None = None) -> Object:
    """Return the Status of a failure."""
    body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    if reason:
        body["reason"] = reason
    if details:
        body["details"] = details
    body["code"] = code
    return body


def success(resource: Resource, name: str, uid: str) -> Object:
    """Return the Status that answers a deletion."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {**_about(resource, name), "uid": uid},
    }


def _about(resource: Resource, name: str, *, kind: bool = False) -> dict[str, Any]:
    details = {"name": name, "group": resource.group, "kind": resource.kind if kind else resource.plural}
    return {field: value for field, value in details.items() if value}


def bad_request(message: str) -> ApiError:
    """400: the request itself makes no sense."""
    return ApiError(400, "BadRequest", message)


def unsupported(what: str) -> ApiError:
    """400: a real cluster would do it, this one does not; better said than guessed."""
    return bad_request(f"the embedded cluster does not support {what}")


def unauthorized() -> ApiError:
    """401: no token, or not ours."""
    return ApiError(401, "Unauthorized", "Unauthorized")


USER = "embedded"
"""The name of whoever has the token."""


def forbidden(verb: str, resource: Resource, namespace: str, name: str) -> ApiError:
    """403, as RBAC words it: for a create the object has no name yet.

    :param verb: as faults know it.
    """
    subject = resource.qualified + (f' "{name}"' if name else "")
    verb, plural = asked_for(verb, resource)
    return ApiError(
        403,
        "Forbidden",
        f'{subject} is forbidden: User "{USER}" cannot {verb} resource "{plural}" in API group "{resource.group}" '
        + (f'in the namespace "{namespace}"' if namespace else "at the cluster scope"),
        _about(resource, name),
    )


def refused_by_admission(resource: Resource, name: str, message: str) -> ApiError:
    """403, in the words of an admission plugin."""
    return ApiError(403, "Forbidden", message, _about(resource, name))


def not_found(resource: Resource, name: str) -> ApiError:
    """404 of an object."""
    return ApiError(404, "NotFound", f'{resource.qualified} "{name}" not found', _about(resource, name))


def namespace_not_found(namespace: str) -> ApiError:
    """404 of the namespace that an object should be created in."""
    return ApiError(404, "NotFound", f'namespaces "{namespace}" not found', {"name": namespace, "kind": "namespaces"})


def method_not_allowed() -> ApiError:
    """405: the path is there, the verb is not."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def namespace_terminating(resource: Resource, name: str, namespace: str) -> ApiError:
    """403 of a create in a namespace that is being deleted."""
    cause = f"namespace {namespace} is being terminated"
    return ApiError(
        403,
        "Forbidden",
        f'{resource.qualified} "{name}" is forbidden: unable to create new content in namespace {namespace} because it'
        " is being terminated",
        {
            **_about(resource, name),
            "causes": [{"reason": "NamespaceTerminating", "message": cause, "field": "metadata.namespace"}],
        },
    )


def already_exists(resource: Resource, name: str) -> ApiError:
    """409 of a create whose name is taken."""
    return ApiError(409, "AlreadyExists", f'{resource.qualified} "{name}" already exists', _about(resource, name))


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    """409 of a precondition that does not hold."""
    return ApiError(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}',
        _about(resource, name, kind=True),
    )


def expired(asked: int, oldest: int) -> ApiError:
    """410: the changes since that resourceVersion are forgotten."""
    return ApiError(410, "Expired", f"too old resource version: {asked} ({oldest})")


def unsupported_media_type(given: str) -> ApiError:
    """415 of a patch type that is not a merge patch."""
    return ApiError(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: "
        f"application/merge-patch+json (got {given or 'none'})",
    )


class Cause(Exception):
    """One field that breaks a rule; several make a 422."""

    def __init__(self, field: str, message: str, reason: str = "FieldValueInvalid") -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.reason = reason


def invalid(resource: Resource, name: str, causes: list[Cause]) -> ApiError:
    """422: all fields that break a rule, in one message."""
    told = [f"{cause.field}: {cause.message}" for cause in causes]
    return ApiError(
        422,
        "Invalid",
        f'{resource.qualified_kind} "{name}" is invalid: ' + (told[0] if len(told) == 1 else f"[{', '.join(told)}]"),
        {
            **_about(resource, name, kind=True),
            "causes": [{"reason": c.reason, "message": c.message, "field": c.field} for c in causes],
        },
    )


def invalid_log_options(pod: str, cause: Cause) -> ApiError:
    """422 of the options of a log."""
    return ApiError(
        422,
        "Invalid",
        f'PodLogOptions "{pod}" is invalid: {cause.field}: {cause.message}',
        {
            "name": pod,
            "kind": "PodLogOptions",
            "causes": [{"reason": cause.reason, "message": cause.message, "field": cause.field}],
        },
    )


def too_large_version(asked: int, current: int) -> ApiError:
    """504 of a list that asks for a state newer than there is."""
    return ApiError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {asked}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
        retry_after=1,
    )
