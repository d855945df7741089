"""The kinds that the embedded cluster keeps, and the small facts that all rooms share. No I/O."""

import random
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

Object = dict[str, Any]
"""A Kubernetes object as it travels: decoded JSON. One that the store has handed out is never changed in place."""

Key = tuple[str, str]
"""Namespace and name."""


class Resource(msgspec.Struct, frozen=True):
    """One kind, by the words that the API uses for it."""

    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`v1` or `batch/v1`."""
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def path(self) -> str:
        """Where the API serves the group: `/api/v1` or `/apis/batch/v1`."""
        return f"/apis/{self.group}/v1" if self.group else "/api/v1"

    @property
    def qualified(self) -> str:
        """The plural as messages write it: `jobs.batch`, `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified_kind(self) -> str:
        """The kind as messages write it: `Job.batch`, `Pod`."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


JOBS = Resource("jobs", "Job", "batch")
PODS = Resource("pods", "Pod")
SECRETS = Resource("secrets", "Secret")
EVENTS = Resource("events", "Event")
NEW_EVENTS = Resource("events", "Event", "events.k8s.io")
"""Events in the form of the newer group; they are kept as core ones."""
NAMESPACES = Resource("namespaces", "Namespace", namespaced=False)
NODES = Resource("nodes", "Node", namespaced=False)
SERVICE_ACCOUNTS = Resource("serviceaccounts", "ServiceAccount")
QUOTAS = Resource("resourcequotas", "ResourceQuota")
ACCESS_REVIEWS = Resource(
    "selfsubjectaccessreviews", "SelfSubjectAccessReview", "authorization.k8s.io", namespaced=False
)
RULES_REVIEWS = Resource("selfsubjectrulesreviews", "SelfSubjectRulesReview", "authorization.k8s.io", namespaced=False)
SUBJECT_REVIEWS = Resource("selfsubjectreviews", "SelfSubjectReview", "authentication.k8s.io", namespaced=False)

RESOURCES = (JOBS, PODS, SECRETS, EVENTS)
"""Those that are stored, in a namespace."""
BY_KIND = {(resource.api_version, resource.kind): resource for resource in RESOURCES}

FINISHED = ("Succeeded", "Failed")
"""The phases in which a pod's containers have all ended."""

TRACKING = "batch.kubernetes.io/job-tracking"
"""The finalizer that keeps a Job's pod until the job controller has counted it."""

FOREGROUND = "foregroundDeletion"
"""The finalizer of an object that goes after its dependants."""

ORPHAN = "orphan"
"""The finalizer of an object whose dependants are to lose their owner, and to stay."""

SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""The characters of a generated suffix: no vowels, so no words."""


def key_of(obj: Object) -> Key:
    """Return the namespace and name of `obj`; a namespace itself is in none."""
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def is_deleting(obj: Object) -> bool:
    """Whether the deletion of `obj` was asked for."""
    return "deletionTimestamp" in obj["metadata"]


def without_finalizer(obj: Object, finalizer: str) -> None:
    """Take a finalizer from `obj`."""
    left = [each for each in obj["metadata"].get("finalizers") or [] if each != finalizer]
    obj["metadata"].pop("finalizers", None)
    if left:
        obj["metadata"]["finalizers"] = left


def seconds(at: float | None = None) -> str:
    """Return a time (seconds since the epoch, now if None) as metav1.Time writes it, cut to the whole second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def microseconds() -> str:
    """Return now as metav1.MicroTime writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def suffix() -> str:
    """Return five random characters, as a Job's pods get behind their dash."""
    return "".join(random.choices(SAFE_ALPHABET, k=5))  # noqa: S311 (a name, not a secret)
