"""What a person asks of an API server and its namespace, before anything is launched there.

The daemon itself asks none of this but `try_create`. What it has no right to look at comes back as `Forbidden`.
"""

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from msgspec import Struct, field

from k8s_builderd.kube import objects
from k8s_builderd.kube.api import Answer, Api, decoded
from k8s_builderd.kube.objects import AccessReview, AccessStatus, Meta, ObjectOnly
from k8s_builderd.kube.resources import ACCESS_REVIEWS, SUBJECT_REVIEWS, VERSION, Resource
from k8s_builderd.kube.rights import Right

_ONLY_METADATA = "application/json;as={};g=meta.k8s.io;v=v1"
_WARNING = re.compile(r'\d{3} \S+ "((?:[^"\\]|\\.)*)"')


class _Read(Struct, frozen=True, rename="camel"):
    pass


class Server(Struct, frozen=True):
    """An API server that has answered."""

    version: str
    """Such as `v1.36.2`; empty where it is not told to us."""
    ahead: float | None
    """Seconds by which its clock is ahead of ours, as far as its Date header (whole seconds) tells; None without."""


class NamespaceMeta(Meta, frozen=True):
    """`metadata` of a Namespace."""

    labels: dict[str, str] | None = None


class Namespace(objects.Namespace, frozen=True):
    """A core/v1 Namespace with its labels."""

    metadata: NamespaceMeta


class LocalObjectReference(_Read, frozen=True):
    """The name of an object in the same namespace."""

    name: str = ""


class ServiceAccount(_Read, frozen=True):
    """A core/v1 ServiceAccount."""

    metadata: Meta
    image_pull_secrets: tuple[LocalObjectReference, ...] | None = None


class QuotaSpec(_Read, frozen=True):
    """`spec` of a ResourceQuota."""

    scopes: tuple[str, ...] | None = None
    scope_selector: dict[str, Any] | None = None


class QuotaStatus(_Read, frozen=True):
    """`status` of a ResourceQuota: quantities by resource, such as `count/jobs.batch` or `requests.cpu`."""

    hard: dict[str, str] = {}
    used: dict[str, str] = {}


class Quota(_Read, frozen=True):
    """A core/v1 ResourceQuota."""

    metadata: Meta
    spec: QuotaSpec = field(default_factory=QuotaSpec)
    status: QuotaStatus = field(default_factory=QuotaStatus)


class NodeSpec(_Read, frozen=True):
    """`spec` of a Node."""

    unschedulable: bool = False


class Node(_Read, frozen=True):
    """A core/v1 Node."""

    metadata: Meta
    spec: NodeSpec = field(default_factory=NodeSpec)


class _Version(_Read, frozen=True):
    git_version: str = ""


class _UserInfo(_Read, frozen=True):
    username: str = ""


class _SubjectStatus(_Read, frozen=True):
    user_info: _UserInfo = field(default_factory=_UserInfo)


class _SubjectReview(_Read, frozen=True):
    status: _SubjectStatus = field(default_factory=_SubjectStatus)


async def reach(api: Api) -> Server:
    """Return which API server this is, and what its clock says.

    :raises ApiError: as every function here does.
    """
    before = time.time()
    answer = await api.request("GET", "get", VERSION, "/version")
    return Server(decoded(_Version, answer.content, "get", VERSION).git_version, _ahead(answer, before, time.time()))


async def who(api: Api) -> str:
    """Return the name of the user that the API server takes us for.

    :raises NotServed: before Kubernetes 1.28.
    """
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    review = await api.create(SUBJECT_REVIEWS, _SubjectReview, body)
    return review.status.user_info.username


async def may(api: Api, right: Right) -> AccessStatus:
    """Return whether we have a right in the namespace. Asking takes no right."""
    attributes = {
        "namespace": api.namespace,
        "verb": right.verb,
        "group": right.resource.group,
        "resource": right.resource.plural,
        **({"subresource": right.subresource} if right.subresource else {}),
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    return (await api.create(ACCESS_REVIEWS, AccessReview, body)).status


async def try_create(api: Api, resource: Resource, body: Mapping[str, Any]) -> list[str]:
    """Have an object go through all of admission without being created (`dryRun=All`).

    :returns: the warnings of the API server.
    """
    query = {"fieldValidation": "Strict", "dryRun": "All"}
    answer = await api.request("POST", "create", resource, resource.path(api.namespace), query, body)
    return [re.sub(r"\\(.)", r"\1", text) for value in answer.warnings for text in _WARNING.findall(value)]


async def exists(api: Api, resource: Resource, name: str) -> None:
    """Look whether an object is there, without having its content sent.

    :raises NotFound: if it is not.
    """
    accept = _ONLY_METADATA.format("PartialObjectMetadata")
    answer = await api.request("GET", "get", resource, resource.path(api.namespace, name), accept=accept)
    decoded(ObjectOnly, answer.content, "get", resource)


async def names(api: Api, resource: Resource, selector: str) -> list[str]:
    """Return the names of all objects that a label selector chooses, without having their content sent."""
    accept = _ONLY_METADATA.format("PartialObjectMetadataList")
    path, query = resource.path(api.namespace), {"labelSelector": selector}
    answer = await api.request("GET", "list", resource, path, query, accept=accept)
    return [item.metadata.name for item in decoded(_Names, answer.content, "list", resource).items or ()]


class _Names(_Read, frozen=True):
    items: tuple[ObjectOnly, ...] | None = None


def _ahead(answer: Answer, before: float, after: float) -> float | None:
    try:
        date = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return None
    # The header is cut to the second, and was written between the request and the answer.
    least = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.fromtimestamp(after, UTC)).total_seconds()
    most = least + 1 + (after - before)
    return least if least > 0 else most if most < 0 else 0.0
