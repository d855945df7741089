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

    @property
    def normal(self) -> bool:
        """Say whether every container waits for this while it starts."""
        return self.reason in {None, "", "ContainerCreating", "PodInitializing"}


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
    """One entry of `status.containerStatuses` or `status.initContainerStatuses`."""

    name: str
    state: ContainerState = field(default_factory=ContainerState)
    last_state: ContainerState = field(default_factory=ContainerState)
    started: bool | None = None
    """Whether it runs and has passed its startup probe, where it has one."""
    ready: bool | None = None
    """Whether it runs and passes its readiness probe, where it has one."""


class Limits(_Read, frozen=True):
    """`resources.limits` of a container."""

    memory: str | int | float | None = None


class Resources(_Read, frozen=True):
    """`resources` of a container."""

    limits: Limits | None = None


class Capabilities(_Read, frozen=True):
    """`securityContext.capabilities` of a container."""

    add: tuple[str, ...] | None = None
    drop: tuple[str, ...] | None = None


class SecurityContext(_Read, frozen=True):
    """`securityContext` of a container."""

    capabilities: Capabilities | None = None


class RestartRule(_Read, frozen=True):
    """One entry of `restartPolicyRules` of a container."""

    action: str = ""


class ContainerSpec(_Read, frozen=True):
    """One entry of `spec.containers` or `spec.initContainers`."""

    name: str
    restart_policy: str | None = None
    """The container's own; `Always` makes a sidecar of an init container."""
    restart_policy_rules: tuple[RestartRule, ...] | None = None
    resources: Resources | None = None
    security_context: SecurityContext | None = None


class NodeSelector(_Read, frozen=True):
    """`spec.nodeSelector` of a Pod."""

    arch: str | None = field(default=None, name="kubernetes.io/arch")


class PodSpec(_Read, frozen=True):
    """`spec` of a Pod."""

    node_name: str | None = None
    node_selector: NodeSelector | None = None
    termination_grace_period_seconds: int = 30
    """The API server sets it where nobody has."""
    restart_policy: str | None = None
    init_containers: tuple[ContainerSpec, ...] | None = None
    containers: tuple[ContainerSpec, ...] | None = None


class PodStatus(_Read, frozen=True):
    """`status` of a Pod."""

    phase: str = "Pending"
    reason: str | None = None
    message: str | None = None
    conditions: tuple[Condition, ...] | None = None
    init_container_statuses: tuple[ContainerStatus, ...] | None = None
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

    @property
    def failed_init(self) -> ContainerStatus | None:
        """Return the init container that has failed for good, so that no container after it ever starts.

        It shows in the init container alone: the others stay `waiting: PodInitializing` for ever, also when the Pod
        has Failed. One that the kubelet starts again, as it does with a sidecar, has not failed for good.
        """
        specs = {spec.name: spec for spec in self.spec.init_containers or ()}
        for status in self.status.init_container_statuses or ():
            ended = status.state.terminated
            if ended is None or ended.exit_code == 0:
                continue
            spec = specs.get(status.name, ContainerSpec(status.name))
            policy = spec.restart_policy or self.spec.restart_policy
            if policy == "Never" and (self.ended or not spec.restart_policy_rules):
                return status
        return None

    def never_starts(self, name: str) -> bool:
        """Say whether the named container has not started and never will, so that it has no log either."""
        state = self.container(name)
        if state.running is not None:
            return False
        if state.terminated is not None:
            return state.terminated.started_at is None
        return self.ended or self.failed_init is not None

    def is_sidecar(self, name: str) -> bool:
        """Say whether the named init container is a sidecar: one that runs beside the containers after it."""
        return any(spec.name == name and spec.restart_policy == "Always" for spec in self.spec.init_containers or ())

    def is_init_container(self, name: str) -> bool:
        """Say whether the named container is one of the init containers, sidecars included."""
        return any(spec.name == name for spec in self.spec.init_containers or ())


class InvolvedObject(_Read, frozen=True):
    """`involvedObject` of an Event."""

    field_path: str | None = None


class Event(_Read, frozen=True):
    """A core/v1 Event."""

    metadata: Meta
    reason: str | None = None
    message: str | None = None
    involved_object: InvolvedObject | None = None
    reporting_component: str | None = None

    @property
    def container(self) -> str:
        """The name of the container that the event is about, empty where it is about none.

        The field path is `spec.containers{chaincode}`, or `spec.initContainers{proxy}`.
        """
        path = (self.involved_object and self.involved_object.field_path) or ""
        return path.partition("{")[2].rstrip("}")


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


class NamespaceStatus(_Read, frozen=True):
    """`status` of a Namespace."""

    phase: str = ""


class Namespace(_Read, frozen=True):
    """A core/v1 Namespace."""

    metadata: Meta
    status: NamespaceStatus = field(default_factory=NamespaceStatus)


class ResourceRule(_Read, frozen=True):
    """One entry of `status.resourceRules` of a SelfSubjectRulesReview; `*` stands for any."""

    verbs: tuple[str, ...] = ()
    api_groups: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    resource_names: tuple[str, ...] | None = None


class RulesStatus(_Read, frozen=True):
    """`status` of a SelfSubjectRulesReview."""

    resource_rules: tuple[ResourceRule, ...] | None = None


class RulesReview(_Read, frozen=True):
    """An authorization.k8s.io/v1 SelfSubjectRulesReview."""

    status: RulesStatus = field(default_factory=RulesStatus)

    def grants(self, verb: str, group: str, resource: str) -> bool:
        """Say whether a rule is listed that gives a right on all objects of a resource.

        That none is listed proves nothing: an authorizer that is a webhook lists none.
        """
        return any(
            not rule.resource_names
            and {verb, "*"} & set(rule.verbs)
            and {group, "*"} & set(rule.api_groups or ())
            and {resource, "*"} & set(rule.resources or ())
            for rule in self.status.resource_rules or ()
        )


class AccessStatus(_Read, frozen=True):
    """`status` of a SelfSubjectAccessReview."""

    allowed: bool = False
    reason: str = ""


class AccessReview(_Read, frozen=True):
    """An authorization.k8s.io/v1 SelfSubjectAccessReview."""

    status: AccessStatus = field(default_factory=AccessStatus)


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

    kind: str | None = None
    """`Status`; anything else is the answer of somebody else."""
    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: StatusDetails | None = None
