"""The rights that the daemon needs in the namespace of its Jobs, each a rule of RBAC.

deploy/role grants exactly these. /readyz and `k8s-builder doctor` ask for them.
"""

from msgspec import Struct

from k8s_builderd.kube.resources import EVENTS, JOBS, NEW_EVENTS, PODS, SECRETS, Resource


class Right(Struct, frozen=True):
    """One verb on one kind of object."""

    verb: str
    resource: Resource
    subresource: str = ""
    needed: bool = True
    """Whether the daemon cannot do its work without it."""

    @property
    def what(self) -> str:
        """The resource and subresource in RBAC's words: `jobs.batch`, `pods/log`."""
        return self.resource.rbac + (f"/{self.subresource}" if self.subresource else "")

    def __str__(self) -> str:
        """Return it in RBAC's words: `create jobs.batch`, `get pods/log`."""
        return f"{self.verb} {self.what}"


RIGHTS = (
    Right("create", JOBS),
    Right("get", JOBS),
    Right("list", JOBS),
    Right("watch", JOBS),
    Right("delete", JOBS),
    Right("get", PODS),
    Right("list", PODS),
    Right("watch", PODS),
    Right("get", PODS, "log"),
    Right("list", EVENTS, needed=False),
    Right("create", SECRETS),
    Right("create", NEW_EVENTS, needed=False),
    Right("patch", NEW_EVENTS, needed=False),
)
