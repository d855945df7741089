"""The kinds of objects that are asked for, and where they live in the API."""

import msgspec


class Resource(msgspec.Struct, frozen=True):
    """A kind of object: where it lives in the API, and RBAC's name for it."""

    prefix: str
    plural: str
    rbac: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group, empty for the core group."""
        return self.prefix.split("/")[2] if self.prefix.startswith("/apis/") else ""

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, of one object, or of a subresource of it."""
        where = ["namespaces", namespace] if self.namespaced else []
        parts = [self.prefix, *where, self.plural, name, subresource]
        return "/".join(part for part in parts if part)


JOBS = Resource("/apis/batch/v1", "jobs", "jobs.batch")
PODS = Resource("/api/v1", "pods", "pods")
SECRETS = Resource("/api/v1", "secrets", "secrets")
EVENTS = Resource("/api/v1", "events", "events")
NEW_EVENTS = Resource("/apis/events.k8s.io/v1", "events", "events.events.k8s.io")
SERVICE_ACCOUNTS = Resource("/api/v1", "serviceaccounts", "serviceaccounts")
QUOTAS = Resource("/api/v1", "resourcequotas", "resourcequotas")
NAMESPACES = Resource("/api/v1", "namespaces", "namespaces", namespaced=False)
NODES = Resource("/api/v1", "nodes", "nodes", namespaced=False)
VERSION = Resource("", "version", "version", namespaced=False)
ACCESS_REVIEWS = Resource(
    "/apis/authorization.k8s.io/v1",
    "selfsubjectaccessreviews",
    "selfsubjectaccessreviews.authorization.k8s.io",
    namespaced=False,
)
RULES_REVIEWS = Resource(
    "/apis/authorization.k8s.io/v1",
    "selfsubjectrulesreviews",
    "selfsubjectrulesreviews.authorization.k8s.io",
    namespaced=False,
)
SUBJECT_REVIEWS = Resource(
    "/apis/authentication.k8s.io/v1",
    "selfsubjectreviews",
    "selfsubjectreviews.authentication.k8s.io",
    namespaced=False,
)
