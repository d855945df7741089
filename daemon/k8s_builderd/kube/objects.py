"""Structs for the fields of Kubernetes objects that we read, and for nothing else of them.

Tolerant of everything that Kubernetes may add. Manifests that we send are plain dicts.
"""

from datetime import datetime

from msgspec import Raw, Struct, field


class _Read(Struct, frozen=True, rename="camel", gc=False):
    pass


class OwnerReference(_Read, frozen=True):
    """One entry of `metadata.ownerReferences`."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class Meta(_Read, frozen=True):
    """`metadata` of any object."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: datetime | None = None
    deletion_grace_period_seconds: int | None = None
    owner_references: tuple[OwnerReference, ...] | None = None


class Condition(_Read, frozen=True):
    """One condition of a Job or Pod."""

    type: str
    status: str = "Unknown"
    reason: str | None = None
    message: str | None = None


class JobStatus(_Read, frozen=True):
    """`status` of a Job."""

    conditions: tuple[Condition, ...] | None = None


class Job(_Read, frozen=True):
    """A batch/v1 Job."""

    metadata: Meta
    status: JobStatus = field(default_factory=JobStatus)

    @property
    def finished(self) -> bool:
        """Say whether the Job is Complete or Failed; such a Job is left to people and to its TTL."""
        return any(c.type in {"Complete", "Failed"} and c.status == "True" for c in self.status.conditions or ())


class Waiting(_Read, frozen=True):
    """`state.waiting` of a container."""

    reason: str | None = None
    message: str | None = None


class Running(_Read, frozen=True):
    """`state.running` of a container."""

    started_at: datetime | None = None


class Terminated(_Read, frozen=True):
    """`state.terminated` of a container."""

    exit_code: int = 0
    signal: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: str | None = None
    message: str | None = None


class ContainerState(_Read, frozen=True):
    """`state` of a container: at most one of the three is set."""

    waiting: Waiting | None = None
    running: Running | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Read, frozen=True):
    """One entry of `status.containerStatuses`."""

    name: str
    state: ContainerState = field(default_factory=ContainerState)


class PodSpec(_Read, frozen=True):
    """`spec` of a Pod."""

    termination_grace_period_seconds: int = 30
    """The API server sets it where nobody has."""


class PodStatus(_Read, frozen=True):
    """`status` of a Pod."""

    phase: str = "Pending"
    reason: str | None = None
    message: str | None = None
    conditions: tuple[Condition, ...] | None = None
    container_statuses: tuple[ContainerStatus, ...] | None = None


class Pod(_Read, frozen=True):
    """A core/v1 Pod."""

    metadata: Meta
    status: PodStatus = field(default_factory=PodStatus)
    spec: PodSpec = field(default_factory=PodSpec)

    @property
    def grace(self) -> int:
        """Seconds that the processes have to end in after SIGTERM: those of the deletion, where there is one."""
        granted = self.metadata.deletion_grace_period_seconds
        return self.spec.termination_grace_period_seconds if granted is None else granted

    def container(self, name: str) -> ContainerState:
        """Return the state of the named container, empty while the kubelet has not told any."""
        return next((s.state for s in self.status.container_statuses or () if s.name == name), ContainerState())

    def condition(self, kind: str) -> Condition | None:
        """Return the condition of that type, where the Pod has one."""
        return next((c for c in self.status.conditions or () if c.type == kind), None)

    @property
    def ended(self) -> bool:
        """Say whether no container of the Pod can run any more."""
        return self.status.phase in {"Succeeded", "Failed"}


class Event(_Read, frozen=True):
    """A core/v1 Event."""

    metadata: Meta
    reason: str | None = None
    message: str | None = None


class ListMeta(_Read, frozen=True):
    """`metadata` of a list."""

    resource_version: str = ""


class RawList(_Read, frozen=True):
    """Any list, its items still undecoded."""

    metadata: ListMeta
    items: list[Raw] | None = None


class RawWatchEvent(_Read, frozen=True):
    """One line of a watch, its object still undecoded."""

    type: str
    object: Raw


class ObjectOnly(_Read, frozen=True):
    """An object of which nothing but its metadata matters."""

    metadata: Meta


class Identity(_Read, frozen=True):
    """The fields of `metadata` that tell which object and which state of it this is."""

    name: str = ""
    uid: str = ""
    resource_version: str = ""


class IdentityOnly(_Read, frozen=True):
    """An object of which the rest cannot be read, such as one with a time after the year 9999."""

    metadata: Identity


class StatusCause(_Read, frozen=True):
    """One entry of `details.causes` of a Status."""

    reason: str | None = None


class StatusDetails(_Read, frozen=True):
    """`details` of a Status."""

    kind: str | None = None
    causes: tuple[StatusCause, ...] | None = None
    retry_after_seconds: int | None = None


class Status(_Read, frozen=True):
    """The API server's answer to what it refuses."""

    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: StatusDetails | None = None
