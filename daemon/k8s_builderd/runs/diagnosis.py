"""What holds a launch up, and why a chaincode ended: Kubernetes' states and events in one line each. Pure."""

import re
from collections.abc import Iterable

from msgspec import Struct

from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Pod
from k8s_builderd.kube.objects import Event, Terminated
from k8s_builderd.runs.observed import STARTING, Observed


class Diagnosis(Struct, frozen=True):
    """One thing that keeps the container from running.

    `cause` is the same for the same thing however its words change (attempts, back-off times); `hopeless` says that
    no waiting heals it.
    """

    cause: str
    text: str
    hopeless: bool = False


_REMEDIES = {
    "affinity": "Label a node fabric-builder-k8s-role=<role>, or correct FABRIC_K8S_BUILDER_NODE_ROLE",
    "service account": "Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT",
    "non-root": "Set FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT=true",
    "ErrImagePull": "Check name and digest in image.json, and the service account's imagePullSecrets",
    "ImageInspectError": "The node's container runtime cannot read the image",
    "InvalidImageName": "Correct the name in image.json and install the package anew",
    "CreateContainerConfigError": "Check the image's user (FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT) and the pod template",
    "CreateContainerError": "Look at the pod with kubectl describe",
    "RunContainerError": "Look at the pod with kubectl describe",
}
_PULLING = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"}
_FIRST_SIGNAL, _LAST_SIGNAL = 129, 192
"""Exit codes that stand for signals 1 to 64; a process that ends with -1 has 255."""

_EVICTIONS = {"Evicted", "Preempted", "Preempting", "TaintManagerEviction"}
_SIGNS = {"looking up service account": "service account", "runAsNonRoot != true": "non-root"}
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
            text = f"no node takes the pod ({scheduled.reason}): {words}"
            if "affinity" in words:
                text = _with_remedy(text, "affinity")
            found.append(Diagnosis(f"unschedulable {words}", text))
        waiting = pod.container(CONTAINER).waiting
        if waiting is not None and waiting.reason not in STARTING:
            found.append(_waiting(waiting.reason or "", waiting.message or ""))
    for event in events:
        if event.reason in _TELLING_EVENTS:
            words = event.message or "no reason given"
            text = f"{_TELLING_EVENTS[event.reason]}: {words}"
            for sign, cause in _SIGNS.items():
                if sign in words:
                    text = _with_remedy(text, cause)
            found.append(Diagnosis(f"{event.reason} {_stable(words)}", text))
    return found


def stage(pod: Pod | None) -> str:
    """Say how far a launch has come, where nothing is known to hold it up."""
    if pod is None:
        return "no pod has been made for the job: check that kube-controller-manager runs"
    if pod.condition("PodScheduled") is None:
        return "no node has been chosen for the pod: check that kube-scheduler runs"
    return "the pod has its node, but its container does not run yet: look at the pod with kubectl describe"


def _waiting(reason: str, message: str) -> Diagnosis:
    if reason in _PULLING:
        # ErrImagePull and ImagePullBackOff come in turn for as long as it lasts, the latter with the former's words.
        _, _, cause = message.partition("ErrImagePull: ")
        text = f"the image cannot be pulled ({reason}): {cause or message}"
        return Diagnosis("image pull", _with_remedy(text, "ErrImagePull"))
    text = f"the container cannot start ({reason}): {message or 'no reason given'}"
    if reason in _REMEDIES:
        text = _with_remedy(text, reason)
    return Diagnosis(reason, text, hopeless=reason == "InvalidImageName")


def _with_remedy(text: str, cause: str) -> str:
    return f"{text.rstrip('.')}. {_REMEDIES[cause]}"


def _stable(message: str) -> str:
    # Each refused attempt names another pod ("quota-mqplp", "quota-nkq2m"): what they have in common is after it.
    # Each sandbox has another id.
    head, separator, tail = message.partition(" is forbidden: ")
    return re.sub("[0-9a-f]{12,}", "*", tail if separator else head)


class Verdict(Struct, frozen=True):
    """How a chaincode ended: the exit code of `run`, and the line that says why."""

    code: int
    text: str


def verdict(seen: Observed, events: Iterable[Event] = (), *, knew_pod: bool = False) -> Verdict:
    """Say how the chaincode ended; only exit code 0 of a process that nobody told to end is a success.

    :param knew_pod: whether an earlier daemon has seen the pod, which may be gone without a trace.
    :param events: the pod's. The kubelet forgets in the pod itself that it evicted a process that then ended with 0.
    """
    terminated = seen.terminated
    if terminated is None and seen.pod is None and knew_pod:
        return Verdict(1, "the chaincode's container is gone: its pod was removed while no daemon watched it")
    if terminated is None and seen.pod is None:
        conditions = (seen.job.status.conditions if seen.job else None) or ()
        failed = next((c for c in conditions if c.status == "True"), None)
        if seen.job_gone or failed is None:
            return Verdict(1, "the chaincode's job was deleted before its pod was made")
        return Verdict(1, f"the chaincode's job failed without a pod: {failed.reason}: {failed.message}")
    cause = _cause_from_outside(seen) or _eviction(events)
    if terminated is None:
        return Verdict(1, f"the chaincode's container is gone: {cause or 'its pod was removed from the cluster'}")
    how = _how(terminated)
    if cause:
        return Verdict(1, f"the chaincode {how}, because {cause}")
    return Verdict(0 if terminated.exit_code == 0 else 1, f"the chaincode {how}")


def _cause_from_outside(seen: Observed) -> str:
    pod = seen.pod
    if pod is None:
        return "its job was deleted" if seen.job_gone else ""
    if pod.status.reason:
        return f"its pod was removed ({pod.status.reason}): {pod.status.message or 'no reason given'}"
    if not seen.told_to_end:
        return "its job was deleted" if seen.job_gone and seen.terminated is None else ""
    disruption = pod.condition("DisruptionTarget")
    if disruption is not None and disruption.status == "True":
        return f"its pod was evicted ({disruption.reason}): {disruption.message}"
    return "its job was deleted" if seen.job_gone else "its pod was deleted"


def _eviction(events: Iterable[Event]) -> str:
    told = next((event for event in events if event.reason in _EVICTIONS), None)
    return f"its pod was evicted ({told.reason}): {told.message}" if told is not None else ""


def _how(terminated: Terminated) -> str:
    code = terminated.exit_code
    if terminated.reason == "ContainerStatusUnknown":
        return "never ran, for all its node can tell (ContainerStatusUnknown)"
    if terminated.reason == "OOMKilled":
        return f"was killed for lack of memory (OOMKilled, exit code {code}): raise its memory limit"
    if terminated.reason in {"StartError", "ContainerCannotRun"}:
        return (
            f"could not be started ({terminated.reason}, exit code {code}): {terminated.message}."
            " Check the image's entrypoint, and the pod template's command"
        )
    if _FIRST_SIGNAL <= code <= _LAST_SIGNAL:
        return f"was ended by signal {terminated.signal or code - _FIRST_SIGNAL + 1} (exit code {code})"
    text = f"ended with exit code {code}"
    return f"{text}: {terminated.message}" if terminated.message else text
