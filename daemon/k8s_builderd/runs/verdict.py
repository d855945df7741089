"""How a chaincode ended: Kubernetes' states and events in one line. Pure."""

import re
from collections.abc import Iterable
from typing import Protocol

from msgspec import Struct

from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Job, Pod
from k8s_builderd.kube.objects import Condition, ContainerSpec, Event, Terminated
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.diagnosis import NO_WORDS, Diagnosis, node_name, see_log, with_remedy

QUICK_EXIT = 10.0
"""Seconds after its start in which a process that is denied something ends because of that."""

TAIL = 4096
"""Bytes of the end of a chaincode's log in which `verdict` looks for a reason."""


class Seen(Protocol):
    """What `verdict` has to know of a Job and its pod; nothing in it is forgotten once it was seen."""

    @property
    def job(self) -> Job | None:
        """The Job, by its newest state."""

    @property
    def job_gone(self) -> bool:
        """Whether the Job's object is gone."""

    @property
    def pod(self) -> Pod | None:
        """The pod, by its newest state."""

    @property
    def pod_gone(self) -> bool:
        """Whether the pod's object is gone."""

    @property
    def terminated(self) -> Terminated | None:
        """How the chaincode's container ended."""

    @property
    def told_to_end(self) -> bool:
        """Whether somebody was seen to ask for the pod's end, no later than its container's end."""

    @property
    def started(self) -> bool:
        """Whether the chaincode's container runs or has run."""


class Verdict(Struct, frozen=True):
    """How a chaincode ended: the exit code of `run`, and the line that says why."""

    code: int
    category: Category
    text: str


class _Cause(Struct, frozen=True):
    category: Category
    text: str


_FIRST_SIGNAL, _LAST_SIGNAL = 129, 192
"""Exit codes that stand for signals 1 to 64; a process that ends with -1 has 255."""

_POD_REASONS = {
    "Evicted": Category.EVICTED,
    "Preempting": Category.PREEMPTED,
    "Terminated": Category.NODE_SHUTDOWN,
    "NodeShutdown": Category.NODE_SHUTDOWN,
    "Shutdown": Category.NODE_SHUTDOWN,
    "NodeLost": Category.NODE_LOST,
    "DeadlineExceeded": Category.DEADLINE_EXCEEDED,
}
"""`status.reason` of a pod that the kubelet or the control plane ended."""

_DISRUPTIONS = {
    "EvictionByEvictionAPI": Category.DRAINED,
    "DeletionByTaintManager": Category.EVICTED,
    "PreemptionByScheduler": Category.PREEMPTED,
    "DeletionByPodGC": Category.NODE_LOST,
}
"""Reasons of the condition DisruptionTarget, but for `_BY_KUBELET`."""

_BY_KUBELET = "TerminationByKubelet"
_KUBELETS_WORDS = (
    (re.compile("node shutdown"), Category.NODE_SHUTDOWN),
    (re.compile("critical pod"), Category.PREEMPTED),
)
"""What the condition's message says of why the kubelet ends a pod; of an eviction it says what is short."""

_EVICTION_EVENTS = {
    "Evicted": Category.EVICTED,
    "Preempted": Category.PREEMPTED,
    "Preempting": Category.PREEMPTED,
    "TaintManagerEviction": Category.EVICTED,
}
_BECAUSE = {
    Category.EVICTED: "its pod was evicted",
    Category.DRAINED: "its pod was evicted",
    Category.PREEMPTED: "its pod was preempted",
    Category.NODE_SHUTDOWN: "its node was shut down",
    Category.NODE_LOST: "its node was lost",
    Category.DEADLINE_EXCEEDED: "its pod exceeded its activeDeadlineSeconds",
    Category.NODE_REJECTED: "its node rejected the pod",
}
_PROBES = (
    (re.compile("^Liveness probe (failed|errored)"), Category.LIVENESS_PROBE, "livenessProbe"),
    (re.compile("^Startup probe (failed|errored)"), Category.STARTUP_PROBE, "startupProbe"),
)
_AFTER_A_POD = {"BackoffLimitExceeded", "PodFailurePolicy"}
"""Reasons for which a Job fails after its pod has; ours allows for no second one."""

_FORMAT_ERROR = re.compile("exec format error", re.IGNORECASE)
_DENIED = re.compile(
    "operation not permitted|no new privileges|listen EACCES"
    r"|\b(bind|chown|setuid|setgid|setgroups|su-exec|gosu)\b.*permission denied",
    re.IGNORECASE,
)


def verdict(
    seen: Seen, events: Iterable[Event] = (), *, pods_known: bool, knew_pod: bool = False, last_lines: bytes = b""
) -> Verdict | None:
    """Say how the chaincode ended; only exit code 0 of a process that nobody told to end is a success.

    Unknown is not ended: without a pod in `seen` there is a verdict only where the caller says that the pods are known,
    and while the container may still be running there is none.

    :param events: the pod's. They alone tell of a probe that failed, and of an eviction that ended with exit code 0.
    :param pods_known: whether the Job's pods have been listed since its end was seen. While the watch of pods is
        interrupted they have not: ask the API for them.
    :param knew_pod: whether an earlier daemon has seen the pod, which may be gone without a trace.
    :param last_lines: the end of the chaincode's log, of which `TAIL` bytes are enough.
    :returns: the verdict, or None where the caller has to ask for the pods first or to wait.
    """
    pod = seen.pod
    if pod is None:
        return _without_pod(seen, knew_pod=knew_pod) if pods_known else None
    events = tuple(events)
    cause = _cause(seen, pod, events)
    if seen.terminated is None:
        if seen.pod_gone or pod.ended or pod.never_starts(CONTAINER):
            return _without_exit_code(seen, pod, cause)
        return None
    how = _how(pod, seen.terminated, last_lines)
    if cause is not None:
        return Verdict(1, cause.category, f"the chaincode {how.text}, because {cause.text}")
    text = f"the chaincode {how.text}"
    if running := _still_running(seen, pod):
        text = f"{text.rstrip('.')}. Still running in its pod: {', '.join(running)}"
    return Verdict(0 if how.category is Category.COMPLETED else 1, how.category, text)


def left_behind(seen: Seen) -> Diagnosis | None:
    """Return what to say where somebody has deleted the Job without its pod, so that the chaincode goes on.

    Deleting the Job, which is what a stop does, does not end such a chaincode.
    """
    pod = seen.pod
    if pod is None or not seen.job_gone or seen.pod_gone or seen.terminated is not None or seen.told_to_end:
        return None
    # Kubernetes takes the reference away before it removes the Job; where it stands, the pod is about to be deleted.
    if any(owner.kind == "Job" for owner in pod.metadata.owner_references or ()):
        return None
    text = (
        "its job was deleted without its pod (--cascade=orphan), so the chaincode keeps running."
        f" To end it, run kubectl delete pod/{pod.metadata.name} secret/{pod.job_name}"  # nobody else deletes that
    )
    return Diagnosis(Category.JOB_ORPHANED, "orphaned", text)


def _without_pod(seen: Seen, *, knew_pod: bool) -> Verdict | None:
    conditions = {c.type: c for c in (seen.job.status.conditions if seen.job else None) or () if c.status == "True"}
    failed = conditions.get("Failed")
    if knew_pod or "Complete" in conditions or (failed is not None and failed.reason in _AFTER_A_POD):
        return Verdict(
            1,
            Category.POD_GONE,
            "the chaincode's pod was removed before its exit code and the rest of its log were read",
        )
    if failed is not None:
        text = f"the chaincode's job failed before it had a pod: {failed.reason}: {failed.message}"
        return Verdict(1, Category.JOB_FAILED, text)
    if seen.job_gone:
        return Verdict(1, Category.JOB_DELETED, "the chaincode's job was deleted before it had a pod")
    return None


def _without_exit_code(seen: Seen, pod: Pod, cause: _Cause | None) -> Verdict:
    """Judge a pod that has ended or is gone without a word on how the chaincode's container ended."""
    failed = pod.failed_init
    # That the Job is gone is no cause while nobody has told the pod to end.
    by_itself = cause is None or (cause.category is Category.JOB_DELETED and not seen.told_to_end)
    if by_itself and failed is not None and failed.state.terminated is not None:
        ended = failed.state.terminated
        how = f" ({ended.reason}): {ended.message}" if ended.message else f" with exit code {ended.exit_code}"
        text = f"init container {failed.name} failed{how}, so the chaincode never started"
        return Verdict(1, Category.INIT_CONTAINER_FAILED, with_remedy(text, see_log(pod, failed.name)))
    running = pod.container(CONTAINER).running is not None
    if running and seen.pod_gone and (lost := _may_go_on(pod, cause)) is not None:
        return Verdict(1, lost.category, lost.text)
    what = "the chaincode's exit code is not known" if seen.started else "the chaincode never started"
    if cause is None:
        why = "its pod was removed" if seen.pod_gone else f"its pod {pod.status.phase.lower()} without giving a reason"
        cause = _Cause(Category.POD_GONE, why)
    return Verdict(1, cause.category, f"{what}, because {cause.text}")


def _may_go_on(pod: Pod, cause: _Cause | None) -> _Cause | None:
    """Return what to say of a pod that was removed although nobody has seen its container end."""
    if cause is not None and cause.category is Category.NODE_LOST:
        text = (
            f"node{node_name(pod)} does not answer, and its pod was removed."
            " The process may keep running until it is back"
        )
        return _Cause(Category.NODE_LOST, text)
    if pod.metadata.deletion_grace_period_seconds == 0:
        text = (
            "the pod was force-deleted while the chaincode was running."
            f" If its node{node_name(pod)} does not answer, the process may keep running until the node is back"
        )
        return _Cause(Category.POD_FORCE_DELETED, text)
    return None


def _cause(seen: Seen, pod: Pod, events: tuple[Event, ...]) -> _Cause | None:
    """Return what ended the container from outside, or None if it ended by itself for all that is known."""
    if (reason := pod.status.reason) is not None:
        category = _POD_REASONS.get(reason, Category.EVICTED if seen.started else Category.NODE_REJECTED)
        return _told(category, reason, pod.status.message)
    disruption = pod.condition("DisruptionTarget")
    if disruption is not None and disruption.status == "True":
        category = _disruption(disruption)
        # An eviction says so before it deletes the pod, and is not always carried out. The collection of the pods of
        # a lost node deletes nothing first, and the kubelet nothing at all.
        if seen.told_to_end or category is Category.NODE_LOST or disruption.reason == _BY_KUBELET:
            if category is Category.EVICTED and any(event.reason == "NodeNotReady" for event in events):
                category = Category.NODE_LOST
            return _told(category, disruption.reason or "", disruption.message)
    if (evicted := _evicted(events)) is not None:
        return evicted
    if seen.told_to_end or (seen.job_gone and seen.terminated is None):
        if seen.job_gone:
            return _Cause(Category.JOB_DELETED, "its job was deleted")
        return _Cause(Category.POD_DELETED, "its pod was deleted")
    return _probe(events)


def _disruption(condition: Condition) -> Category:
    if condition.reason == _BY_KUBELET:
        words = condition.message or ""
        return next((category for sign, category in _KUBELETS_WORDS if sign.search(words)), Category.EVICTED)
    return _DISRUPTIONS.get(condition.reason or "", Category.EVICTED)


def _evicted(events: tuple[Event, ...]) -> _Cause | None:
    for event in events:
        category = _EVICTION_EVENTS.get(event.reason or "")
        # The taint manager has one reason for both: "Marking for deletion Pod", "Cancelling deletion of Pod".
        if category is not None and not (event.message or "").startswith("Cancelling"):
            return _told(category, event.reason or "", event.message)
    return None


def _probe(events: tuple[Event, ...]) -> _Cause | None:
    ours = [event for event in events if event.container == CONTAINER]
    if not any(event.reason == "Killing" for event in ours):
        return None
    for event in ours:
        for sign, category, name in _PROBES:
            if event.reason == "Unhealthy" and sign.search(event.message or ""):
                words = (event.message or "").strip().rstrip(":")
                text = f"the kubelet killed it: {words[0].lower()}{words[1:]}"
                return _Cause(category, with_remedy(text, f"Check {name} in the pod template"))
    return None


def _told(category: Category, reason: str, message: str | None) -> _Cause:
    return _Cause(category, f"{_BECAUSE[category]} ({reason}): {message or NO_WORDS}")


def _how(pod: Pod, terminated: Terminated, last_lines: bytes) -> _Cause:
    code = terminated.exit_code
    log = last_lines[-TAIL:].decode("utf-8", "replace")
    if terminated.reason == "ContainerStatusUnknown":
        text = "ended, but its node does not know how" if terminated.started_at else "never started"
        return _Cause(Category.CONTAINER_STATUS_UNKNOWN, f"{text} ({terminated.reason})")
    if terminated.reason == "OOMKilled":
        return _Cause(Category.OOM_KILLED, _out_of_memory(pod, code))
    if terminated.reason in {"StartError", "ContainerCannotRun"}:
        text = f"could not be started ({terminated.reason}, exit code {code}): {terminated.message or NO_WORDS}"
        if _FORMAT_ERROR.search(text):
            return _Cause(Category.IMAGE_ARCHITECTURE, with_remedy(text, _other_platform(pod)))
        remedy = "Check the image's entrypoint, and command in the pod template"
        return _Cause(Category.START_ERROR, with_remedy(text, remedy))
    if _FIRST_SIGNAL <= code <= _LAST_SIGNAL:
        number = terminated.signal or code - _FIRST_SIGNAL + 1
        return _Cause(Category.SIGNAL, f"was killed by signal {number} (exit code {code})")
    text = f"ended with exit code {code}"
    if code == 0:
        return _Cause(Category.COMPLETED, f"{text}: {terminated.message}" if terminated.message else text)
    if _quickly(terminated) and (found := _FORMAT_ERROR.search(log)):
        return _Cause(Category.IMAGE_ARCHITECTURE, with_remedy(f"{text}: {found[0]}", _other_platform(pod)))
    if _quickly(terminated) and _has_no_capabilities(pod) and (found := _DENIED.search(log)):
        return _Cause(Category.MISSING_CAPABILITY, with_remedy(f"{text}: {found[0]}", _CAPABILITY_REMEDY))
    return _Cause(Category.EXIT_CODE, f"{text}: {terminated.message}" if terminated.message else text)


_CAPABILITY_REMEDY = (
    "Its container runs without capabilities. If it needs one, add it in FABRIC_K8S_BUILDER_POD_TEMPLATE, or set"
    " FABRIC_K8S_BUILDER_SECURITY_PROFILE=compatible"
)


def _quickly(terminated: Terminated) -> bool:
    # Both times are the node's own.
    start, end = terminated.started_at, terminated.finished_at
    return start is not None and end is not None and (end - start).total_seconds() <= QUICK_EXIT


def _spec(pod: Pod) -> ContainerSpec:
    return next((spec for spec in pod.spec.containers or () if spec.name == CONTAINER), ContainerSpec(CONTAINER))


def _has_no_capabilities(pod: Pod) -> bool:
    context = _spec(pod).security_context
    capabilities = context.capabilities if context is not None else None
    return capabilities is not None and "ALL" in map(str.upper, capabilities.drop or ())


def _other_platform(pod: Pod) -> str:
    selector = pod.spec.node_selector
    arch = f" ({selector.arch})" if selector is not None and selector.arch else ""
    return (
        f"The image was built for another platform than its node{node_name(pod)}{arch}."
        " Build it for that platform, or select other nodes in the pod template"
    )


def _out_of_memory(pod: Pod, code: int) -> str:
    resources = _spec(pod).resources
    limit = resources.limits.memory if resources is not None and resources.limits is not None else None
    what = f"its memory limit of {limit}" if limit is not None else "a memory limit, or reserve memory"
    remedy = f"Raise {what}" if limit is not None else f"Set {what} with requests"
    return f"ran out of memory (OOMKilled, exit code {code}). {remedy} in the pod template"


def _still_running(seen: Seen, pod: Pod) -> list[str]:
    """Return the containers that go on without the chaincode; the kubelet stops sidecars, and no other."""
    if seen.told_to_end or seen.pod_gone or pod.ended:
        return []
    return [s.name for s in pod.status.container_statuses or () if s.name != CONTAINER and s.state.running]
