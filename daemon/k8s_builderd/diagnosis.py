"""What holds a launch up, and why a chaincode ended: Kubernetes' states and events in one line each. Pure."""

from collections.abc import Iterable
from datetime import timedelta

from msgspec import Struct

from k8s_builderd.kube.objects import Event, Job, Pod, Terminated
from k8s_builderd.manifests import CONTAINER


class Diagnosis(Struct, frozen=True):
    """One thing that keeps the container from running.

    `cause` is the same for the same thing however its words change (attempts, back-off times); `hopeless` says that
    no waiting heals it.
    """

    cause: str
    text: str
    hopeless: bool = False


_REMEDIES = {
    "ErrImagePull": "check name and digest in image.json, and the service account's imagePullSecrets",
    "ImageInspectError": "the node's container runtime cannot read the image",
    "InvalidImageName": "correct the name in image.json and install the package anew",
    "CreateContainerConfigError": "check the image's user (FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT) and the pod template",
    "CreateContainerError": "look at the pod with kubectl describe",
    "RunContainerError": "look at the pod with kubectl describe",
}
_PULLING = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"}
_HARMLESS = {None, "", "ContainerCreating", "PodInitializing"}
_TELLING_EVENTS = {
    "FailedCreate": "the cluster refuses the pod",
    "FailedMount": "a volume cannot be mounted",
    "FailedAttachVolume": "a volume cannot be attached",
    "FailedCreatePodSandBox": "the node cannot set up the pod",
}


def diagnose(pod: Pod | None, events: Iterable[Event] = ()) -> list[Diagnosis]:
    """Return what keeps the container from running, by the pod's own state and by the events of Job and pod."""
    found = []
    if pod is not None:
        scheduled = pod.condition("PodScheduled")
        if scheduled is not None and scheduled.status == "False":
            words = scheduled.message or "no reason given"
            found.append(Diagnosis(f"unschedulable {words}", f"no node takes the pod ({scheduled.reason}): {words}"))
        waiting = pod.container(CONTAINER).waiting
        if waiting is not None and waiting.reason not in _HARMLESS:
            found.append(_waiting(waiting.reason or "", waiting.message or ""))
    for event in events:
        if event.reason in _TELLING_EVENTS:
            words = event.message or "no reason given"
            found.append(Diagnosis(f"{event.reason} {_stable(words)}", f"{_TELLING_EVENTS[event.reason]}: {words}"))
    return found


def _waiting(reason: str, message: str) -> Diagnosis:
    if reason in _PULLING:
        # ErrImagePull and ImagePullBackOff come in turn for as long as it lasts, the latter with the former's words.
        _, _, cause = message.partition("ErrImagePull: ")
        remedy = _REMEDIES["ErrImagePull"]
        return Diagnosis(
            "image pull", f"the image cannot be pulled ({reason}): {cause or message}. {_sentence(remedy)}"
        )
    text = f"the container cannot start ({reason}): {message or 'no reason given'}"
    if reason in _REMEDIES:
        text += f". {_sentence(_REMEDIES[reason])}"
    return Diagnosis(reason, text, hopeless=reason == "InvalidImageName")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _stable(message: str) -> str:
    # Each refused attempt names another pod ("quota-mqplp", "quota-nkq2m"): what they have in common is after it.
    head, separator, tail = message.partition(" is forbidden: ")
    return tail if separator else head


class Verdict(Struct, frozen=True):
    """How a chaincode ended: the exit code of `run`, and the line that says why."""

    code: int
    text: str


def verdict(job_gone: bool, pod: Pod | None, terminated: Terminated | None, job: Job | None) -> Verdict:
    """Say how the chaincode ended; only exit code 0 of a process that nobody told to end is a success."""
    if terminated is None and pod is None:
        failed = next((c for c in (job.status.conditions if job else None) or () if c.status == "True"), None)
        if job_gone or failed is None:
            return Verdict(1, "the chaincode's job was deleted before its pod was made")
        return Verdict(1, f"the chaincode's job failed without a pod: {failed.reason}: {failed.message}")
    cause = _cause_from_outside(job_gone, pod, terminated)
    if terminated is None:
        return Verdict(1, f"the chaincode's container is gone: {cause or 'its pod was removed from the cluster'}")
    how = _how(terminated)
    if cause:
        return Verdict(1, f"the chaincode {how}, because {cause}")
    return Verdict(0 if terminated.exit_code == 0 else 1, f"the chaincode {how}")


def _cause_from_outside(job_gone: bool, pod: Pod | None, terminated: Terminated | None) -> str:
    if pod is None:
        return "its job was deleted" if job_gone else ""
    if pod.status.reason:
        return f"its pod was removed ({pod.status.reason}): {pod.status.message or 'no reason given'}"
    if not _told_to_end(pod, terminated):
        return ""
    disruption = pod.condition("DisruptionTarget")
    if disruption is not None and disruption.status == "True":
        return f"its pod was evicted ({disruption.reason}): {disruption.message}"
    return "its job was deleted" if job_gone else "its pod was deleted"


def _told_to_end(pod: Pod, terminated: Terminated | None) -> bool:
    meta = pod.metadata
    if meta.deletion_timestamp is None:
        return False
    if terminated is None or terminated.finished_at is None:
        return True
    # deletionTimestamp lies the grace period after the request. Whole seconds: in doubt the deletion was the cause.
    asked = meta.deletion_timestamp - timedelta(seconds=meta.deletion_grace_period_seconds or 0)
    return terminated.finished_at >= asked


def _how(terminated: Terminated) -> str:
    code = terminated.exit_code
    if terminated.reason == "OOMKilled":
        return f"was killed for lack of memory (OOMKilled, exit code {code}): raise its memory limit"
    if terminated.reason in {"StartError", "ContainerCannotRun"}:
        return f"could not be started ({terminated.reason}, exit code {code}): {terminated.message}"
    if code > 128:
        return f"was ended by signal {terminated.signal or code - 128} (exit code {code})"
    text = f"ended with exit code {code}"
    return f"{text}: {terminated.message}" if terminated.message else text
