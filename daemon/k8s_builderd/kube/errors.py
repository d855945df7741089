"""What can go wrong between us and the API server, told with the verb and resource that it happened to."""

import re
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import ClassVar

from k8s_builderd.errors import BuilderError

FORBIDDEN_PATIENCE = 5.0
"""Seconds for which a 401 or 403 proves nothing: an API server that has just started gives them for a moment."""

LONGEST_PAUSE = 30.0
"""Seconds that a Retry-After is obeyed for at most: what is to be deleted must not live on for a day."""

ROLE_REMEDY = (
    # Whether a namespace is there, RBAC does not tell those who have no right in it.
    "Check the Role of the daemon's service account (docs/operations.md lists the rights it needs), and that the"
    " namespace still exists: a Role is deleted with its namespace"
)


class ApiError(BuilderError):
    """The API server refused a request, or could not be asked.

    `verb` and `resource` are RBAC's words (`create`, `jobs.batch`), `reason` is the Status object's.
    """

    transient: ClassVar[bool] = False
    """Whether asking again can succeed, however often it has failed."""
    may_pass: ClassVar[bool] = False
    """Whether this is what an API server that has just started says for a moment; see `Refusals`."""
    kind: ClassVar[str] = "other"
    """One word for what it is, of a small fixed set."""

    def __init__(
        self, message: str, *, verb: str = "", resource: str = "", reason: str = "", retry_after: float | None = None
    ) -> None:
        self.verb = verb
        self.resource = resource
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(f"cannot {verb} {resource}: {message}" if verb else message)

    def pause(self, at_least: float) -> float:
        """Return the seconds to wait before asking again: what the API server wants, within reason."""
        return max(at_least, min(self.retry_after or 0, LONGEST_PAUSE))


class Unreachable(ApiError):
    """Raised when no answer came: connection refused, reset, or timed out. The request may have been carried out."""

    transient = True
    kind = "unreachable"


class Silent(Unreachable):
    """Raised for a stream that was left because it brought nothing."""

    kind = "silent"


class Unavailable(ApiError):
    """Raised for 429, for 5xx, and where a proxy answers for the API server: asking again later can succeed."""

    transient = True
    kind = "unavailable"


class NotServed(Unavailable):
    """Raised for a 404 of the path itself: a proxy says it, or an API server that does not know such objects.

    Whether the object is there, it does not say.
    """


class Unauthorized(ApiError):
    """Raised for 401: the API server does not know our credentials, or they cannot be read."""

    may_pass = True
    kind = "unauthorized"
    remedy = (
        "Check the service account's token or the kubeconfig's user, and that the namespace still exists: a service"
        " account is deleted with its namespace"
    )


class Forbidden(ApiError):
    """Raised for 403: RBAC, a quota or an admission plugin says no."""

    may_pass = True
    kind = "forbidden"

    @property
    def lacks_right(self) -> bool:
        """Say whether a right is missing; else a quota or an admission plugin says no."""
        return _RBAC.search(self.args[0]) is not None

    @property
    def remedy(self) -> str:  # type: ignore[override]
        """What helps: only RBAC's refusals are a matter of the Role."""
        if self.lacks_right:
            return ROLE_REMEDY
        return "Raise the quota of the namespace" if "exceeded quota" in self.args[0] else ""


class NamespaceTerminating(Forbidden):
    """Raised for a 403 because the namespace is being deleted: nothing can be created in it any more."""

    may_pass = False
    remedy = "The namespace is being deleted: create it again, with the daemon's Role and RoleBinding"


class NotFound(ApiError):
    """Raised for 404: the object, or its namespace, is not there."""

    kind = "not found"


class NamespaceNotFound(NotFound):
    """Raised for a 404 of the namespace itself."""

    remedy = "Create the namespace, with the daemon's Role and RoleBinding, or configure another one"


class AlreadyExists(ApiError):
    """Raised for 409 of a create: the name is taken."""

    kind = "already exists"


class Expired(ApiError):
    """Raised for 410: the resourceVersion is too old to watch from, so the list has to be read again."""

    kind = "expired"


class Invalid(ApiError):
    """Raised for 400 and 422: the request can never succeed as it is."""

    kind = "invalid"


class Refusals:
    """Tells a refusal that is meant from that of an API server which has just started.

    Only refusals in a row count: after a time without an answer the API server may have started anew.
    """

    def __init__(self, patience: float = FORBIDDEN_PATIENCE) -> None:
        """Begin.

        :param patience: seconds for which a refusal proves nothing.
        """
        self._patience = patience
        self._since: float | None = None

    def last(self, error: ApiError, now: float) -> bool:
        """Take in how an attempt has failed, and say whether it has been refused for longer than that.

        :param now: by `anyio.current_time()`.
        """
        if error.transient:
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now > self._since + self._patience

    def words(self, error: ApiError, now: float) -> str:
        """Take in how an attempt has failed, and return what to tell of it: no remedy for what may pass by itself."""
        if self.last(error, now) or not error.may_pass:
            return str(error)
        if error.verb:
            return f"cannot {error.verb} {error.resource}: the Kubernetes API refuses it for now, retrying"
        return str(error.args[0])


_RBAC = re.compile(r'User ".*" cannot \S+ resource')

_BY_STATUS: Mapping[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: AlreadyExists,
    410: Expired,
    422: Invalid,
    429: Unavailable,
}


def error_for_status(
    status: int, reason: str = "AlreadyExists", *, kind: str = "", causes: Collection[str] = ()
) -> type[ApiError]:
    """Return the class of error that stands for an HTTP status.

    :param reason: of its Status object.
    :param kind: the plural of what the Status is about (`details.kind`); empty where it does not say.
    :param causes: the reasons in `details.causes`.
    """
    if status == HTTPStatus.CONFLICT and reason != "AlreadyExists":
        return Unavailable  # two changes met, such as of a quota's count: the next attempt can succeed
    if status == HTTPStatus.NOT_FOUND and kind == "namespaces":
        return NamespaceNotFound
    if status == HTTPStatus.FORBIDDEN and "NamespaceTerminating" in causes:
        return NamespaceTerminating
    return _BY_STATUS.get(status, Unavailable if status >= 500 else ApiError)


def error_without_status(status: int) -> type[ApiError]:
    """Return the class of error that stands for an HTTP status without a Status object.

    Then the API server has decided nothing: it does not know the path, or a proxy has answered in its place. Only who
    does not know our credentials says so in whatever form it likes.
    """
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return _BY_STATUS[status]
    return NotServed if status == HTTPStatus.NOT_FOUND else Unavailable
