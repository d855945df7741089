"""Jobs and Pods of launches: Kubernetes' objects with what our annotations say of them."""

from msgspec import Struct, field
from msgspec.structs import force_setattr, replace

from k8s_builderd.fabric.names import (
    CHAINCODE_ANNOTATION,
    HOST_ANNOTATION,
    INSTANCE_LABEL,
    MSPID_ANNOTATION,
    PEER_ADDRESS_ANNOTATION,
    PEER_ANNOTATION,
    PEER_ID_ANNOTATION,
    TOKEN_ANNOTATION,
    LaunchKey,
)
from k8s_builderd.kube import objects


class Annotations(Struct, frozen=True, gc=False):
    """`metadata.annotations`. What others write there can be long (256 KiB) and is not kept."""

    token_sha256: str = field(default="", name=TOKEN_ANNOTATION)
    peer: str = field(default="", name=PEER_ANNOTATION)
    chaincode_id: str = field(default="", name=CHAINCODE_ANNOTATION)
    mspid: str = field(default="", name=MSPID_ANNOTATION)
    peer_address: str = field(default="", name=PEER_ADDRESS_ANNOTATION)
    peer_id: str = field(default="", name=PEER_ID_ANNOTATION)
    host: str = field(default="", name=HOST_ANNOTATION)


class Labels(Struct, frozen=True, gc=False):
    """`metadata.labels`, as far as they are read."""

    instance: str = field(default="", name=INSTANCE_LABEL)
    job_name: str = field(default="", name="job-name")
    """The Job controller's own, which stays on a pod whose Job is gone."""


class Meta(objects.Meta, frozen=True):
    """`metadata` of an object that a launch has made."""

    annotations: Annotations | None = None
    labels: Labels | None = None

    @property
    def launch_key(self) -> LaunchKey:
        """What was launched, by the annotations."""
        known = self.annotations or Annotations()
        return LaunchKey(known.chaincode_id, known.mspid, known.peer_address, known.peer_id)

    @property
    def token_sha256(self) -> str:
        """The value of `names.TOKEN_ANNOTATION`, empty where there is none."""
        return self.annotations.token_sha256 if self.annotations else ""

    @property
    def host(self) -> str:
        """The value of `names.HOST_ANNOTATION`, empty where there is none."""
        return self.annotations.host if self.annotations else ""

    @property
    def instance(self) -> str:
        """The instance of the daemon that made it, empty where there is none."""
        return self.labels.instance if self.labels else ""

    @property
    def peer(self) -> str:
        """The value of `names.PEER_ANNOTATION`, empty where there is none."""
        return self.annotations.peer if self.annotations else ""


class TemplateMeta(Struct, frozen=True, gc=False):
    """`spec.template.metadata` of a Job."""

    annotations: Annotations | None = None


class Template(Struct, frozen=True, gc=False):
    """`spec.template` of a Job, as far as it is read. The API server lets nobody change it."""

    metadata: TemplateMeta = TemplateMeta()


class JobSpec(Struct, frozen=True, gc=False):
    """`spec` of a Job."""

    template: Template = Template()


class Job(objects.Job, frozen=True):
    """The Job of a launch. Its annotations are those of its template, which nobody can overwrite."""

    metadata: Meta
    spec: JobSpec = JobSpec()

    def __post_init__(self) -> None:
        """Take the annotations that the Job was made with."""
        if (made_with := self.spec.template.metadata.annotations) is not None and made_with.token_sha256:
            force_setattr(self, "metadata", replace(self.metadata, annotations=made_with))

    @property
    def job_name(self) -> str:
        """Its own name."""
        return self.metadata.name


class Pod(objects.Pod, frozen=True):
    """The pod of a launch."""

    metadata: Meta

    @property
    def job_name(self) -> str:
        """The name of the Job that it was made for, which may be gone; empty where it was made for none."""
        owner = next((owner.name for owner in self.metadata.owner_references or () if owner.kind == "Job"), "")
        return owner or (self.metadata.labels.job_name if self.metadata.labels else "")

    @property
    def job_uid(self) -> str:
        """The uid of the Job that owns it; empty where none does, because somebody has deleted that without its pod."""
        return next((owner.uid for owner in self.metadata.owner_references or () if owner.kind == "Job"), "")
