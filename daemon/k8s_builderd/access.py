"""Knows whether the API server still lets this daemon do its work, although its watches are open.

An API server keeps a watch open when the token that it was opened with is revoked, the right is taken away, or the
namespace is deleted. What is found here is for people: it ends no launch and deletes nothing.
"""

from random import Random

import anyio
import structlog

from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import (
    ROLE_REMEDY,
    ApiError,
    Forbidden,
    NamespaceNotFound,
    NamespaceTerminating,
    NotFound,
    NotServed,
    Unauthorized,
)
from k8s_builderd.kube.objects import AccessReview, Namespace, ObjectOnly, RulesReview
from k8s_builderd.kube.resources import ACCESS_REVIEWS, JOBS, NAMESPACES, RULES_REVIEWS, SECRETS
from k8s_builderd.kube.rights import RIGHTS

Right = tuple[str, str]
"""RBAC's verb and resource, such as `create` and `jobs.batch`."""

NEEDED: tuple[Right, ...] = tuple((right.verb, right.what) for right in RIGHTS if right.needed)
"""The rights without which a launch, its log or its stop fails."""

SOONEST = 1.0
"""Seconds between two questions at least, whatever other requests are told."""

WHILE_WRONG = 10.0
"""Seconds between two questions at most while something is wrong, so that it is soon seen to be right again."""

_AUTHORIZATION = "authorization.k8s.io/v1"

_log = structlog.get_logger("k8s_builderd.access")


class Access:
    """What is wrong, by the last answers to any request and by a question now and then."""

    def __init__(self, rng: Random | None = None) -> None:
        self._login = ""
        self._namespace = ""
        self._rights: dict[Right, str] = {}
        self._doubt = anyio.Event()
        self._told: str | None = None
        self._rng = rng or Random()  # noqa: S311 - spreads load, keeps no secret

    @property
    def error(self) -> str | None:
        """Say what is wrong, or None."""
        if self._login or self._namespace:
            return self._login or self._namespace
        if len(self._rights) <= 1:
            return next(iter(self._rights.values()), None)
        named = [" ".join(right) for right in NEEDED if right in self._rights]
        missing = "all rights" if len(named) == len(NEEDED) else ", ".join(named)
        return f"missing: {missing}. {ROLE_REMEDY}"

    def answered(self, verb: str, resource: str, error: ApiError | None) -> None:
        """Take in how a request has ended. A refusal counts at once, and is looked into."""
        right, before = (verb, resource), self.error
        match error:
            case None:
                self._login = ""
                self._rights.pop(right, None)
                if verb == "create" and right in NEEDED:
                    self._namespace = ""
            case Unauthorized():
                self._login = str(error)
            case NamespaceNotFound() | NamespaceTerminating():
                self._namespace = str(error)
            case Forbidden() if _lacks_right(error) and right in NEEDED:
                self._login = ""
                self._rights[right] = str(error)
        if before is None and self.error is not None:
            self._doubt.set()

    async def keep_asking(self, api: Api, interval: float) -> None:
        """Ask the API server now and then, until cancelled.

        :param interval: seconds between two questions while nothing is wrong.
        """
        while True:
            await self._ask(api)
            self._tell()
            self._doubt = anyio.Event()
            await anyio.sleep(min(SOONEST, interval))
            pause = (min(interval, WHILE_WRONG) if self.error else interval) * self._rng.uniform(0.75, 1.25)
            with anyio.move_on_after(pause):
                await self._doubt.wait()

    async def _ask(self, api: Api) -> None:
        try:
            body = {
                "apiVersion": _AUTHORIZATION,
                "kind": "SelfSubjectRulesReview",
                "spec": {"namespace": api.namespace},
            }
            listed = await api.create(RULES_REVIEWS, RulesReview, body)
            for verb, resource in NEEDED:
                if not await self._is_granted(api, listed, verb, resource):
                    self._rights[verb, resource] = (
                        f"missing: {verb} {resource}, in the namespace {api.namespace}. {ROLE_REMEDY}"
                    )
                else:
                    self._rights.pop((verb, resource), None)
            # Nobody needs this right. Who has it may have the others by a ClusterRole, and does not lose them with the
            # namespace; who has not loses a Role with it.
            if listed.grants("get", "", NAMESPACES.plural):
                await self._look_at_namespace(api)
            elif self._namespace:
                await self._try_namespace(api)
        except (Forbidden, NotFound, NotServed):
            await self._list_nothing(api)
        except ApiError:
            return  # a 401 has counted, by `answered`; that there is no answer, the watches tell

    async def _is_granted(self, api: Api, listed: RulesReview, verb: str, resource: str) -> bool:
        name, _, group = resource.partition(".")
        if listed.grants(verb, group, name):
            return True
        plural, _, subresource = name.partition("/")
        attributes = {
            "namespace": api.namespace,
            "verb": verb,
            "group": group,
            "resource": plural,
            "subresource": subresource,
        }
        body = {
            "apiVersion": _AUTHORIZATION,
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        return (await api.create(ACCESS_REVIEWS, AccessReview, body)).status.allowed

    async def _look_at_namespace(self, api: Api) -> None:
        try:
            found = await api.get(NAMESPACES, Namespace, api.namespace)
        except NotFound:
            self._namespace = f"the namespace {api.namespace} does not exist. {NamespaceNotFound.remedy}"
            return
        ends = found.status.phase == "Terminating"
        self._namespace = (
            f"the namespace {api.namespace} is being deleted: create it again, with the daemon's Role and RoleBinding"
            if ends
            else ""
        )

    async def _try_namespace(self, api: Api) -> None:
        """Find out whether a namespace that was gone is there again."""
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "k8s-builderd"}}
        try:
            await api.create(SECRETS, ObjectOnly, body, dry_run=True)
        except (NamespaceNotFound, NamespaceTerminating):
            return
        except ApiError as error:
            if error.transient or isinstance(error, Unauthorized) or _lacks_right(error):
                return
        self._namespace = ""

    async def _list_nothing(self, api: Api) -> None:
        """Ask the API server's cache for a Job that there is not: where reviews are refused, this tells a little."""
        try:
            await api.list(JOBS, ObjectOnly, fieldSelector="metadata.name=k8s-builderd", resourceVersion="0")
        except ApiError:
            return  # it has counted, by `answered`

    def _tell(self) -> None:
        if self.error != self._told:
            if self.error is not None:
                _log.warning("access_lost", reason=self.error)
            else:
                _log.info("access_ok")
        self._told = self.error


def _lacks_right(error: ApiError) -> bool:
    return isinstance(error, Forbidden) and error.lacks_right
