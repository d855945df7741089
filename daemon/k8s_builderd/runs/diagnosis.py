"""What holds a launch up: Kubernetes' states and events in one line each. Pure."""

import re
from collections.abc import Iterable

from msgspec import Struct

from k8s_builderd.fabric.manifests import CERTS, CONTAINER
from k8s_builderd.fabric.objects import Pod
from k8s_builderd.kube.objects import ContainerStatus, Event
from k8s_builderd.runs.category import Category


class Diagnosis(Struct, frozen=True):
    """One thing that keeps the container from running.

    `cause` is the same for the same thing however its words change (attempts, back-off times). `hopeless` says that
    waiting does not help.
    """

    category: Category
    cause: str
    text: str
    hopeless: bool = False


NO_WORDS = "no reason given"
"""What stands for Kubernetes' words where it has none."""

_PULLING = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable", "SignatureValidationFailed"}
_OTHER_PLATFORM = re.compile("no match for platform|no matching manifest for|no image found in .* for architecture")
_OUR_SECRET = re.compile(f'volume "{CERTS}" .*not found')
_AS_ROOT = re.compile("runAsNonRoot|non-numeric user")
_REFUSALS = (
    (
        re.compile("looking up service account"),
        Category.SERVICE_ACCOUNT_MISSING,
        "Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT",
    ),
    (
        re.compile("exceeded quota|failed quota"),
        Category.QUOTA_EXCEEDED,
        "Raise the quota, or set what it counts under resources in the pod template",
    ),
    (
        re.compile("violates PodSecurity.*runAsNonRoot != true"),
        Category.POD_SECURITY,
        "Set FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT=true",
    ),
    (
        re.compile("violates PodSecurity"),
        Category.POD_SECURITY,
        "Correct the pod template, or the namespace's Pod Security level",
    ),
    (
        re.compile("(minimum|maximum) .* usage per (Container|Pod)|limit to request ratio per"),
        Category.LIMIT_RANGE,
        "Correct resources in the pod template",
    ),
    (re.compile("is forbidden: |denied"), Category.ADMISSION_REFUSED, ""),
)
_UNSCHEDULABLE = (
    (
        # Where a node is named that lacks something, that one is not what the affinity is about.
        re.compile("^(?!.*Insufficient ).*affinity", re.DOTALL),
        "Label a node fabric-builder-k8s-role=<role>, or correct FABRIC_K8S_BUILDER_NODE_ROLE or"
        " FABRIC_K8S_BUILDER_NODE_NAME",
    ),
    (re.compile("untolerated taint"), "Add a toleration to the pod template, or remove the taint"),
    (re.compile("Insufficient "), "Add capacity, or lower the requests in the pod template"),
    (re.compile("scheduling gates"), "Find out who sets schedulingGates on the pod, and why they are not removed"),
)
_PREPARED = {"Pulling", "Pulled", "Created", "Started"}
"""Events of a pod whose volumes are mounted and whose sandbox is there."""


def diagnose(pod: Pod | None, events: Iterable[Event] = ()) -> list[Diagnosis]:
    """Return what keeps the container from running now; the last one is the nearest to it.

    :param events: those of the Job and of the pod. They stay for an hour, so what the pod has overcome since is left
        out: a refused pod that was created after all, a volume that was mounted at last.
    """
    events = tuple(events)
    found = []
    prepared = _prepared(pod, events)
    for event in events:
        words = event.message or NO_WORDS
        cause = f"{event.reason} {_stable(words)}"
        if event.reason == "FailedCreate" and pod is None:
            found.append(_refused(cause, words.removeprefix("Error creating: ")))
        elif event.reason == "FailedMount" and not prepared:
            remedy = "k8s-builderd creates it, and the kubelet retries" if _OUR_SECRET.search(words) else ""
            found.append(_diagnosis(Category.VOLUME_MOUNT, cause, f"a volume cannot be mounted: {words}", remedy))
        elif event.reason == "FailedAttachVolume" and not prepared:
            found.append(_diagnosis(Category.VOLUME_MOUNT, cause, f"a volume cannot be attached: {words}"))
        elif event.reason == "FailedCreatePodSandBox" and not prepared:
            found.append(_diagnosis(Category.POD_SANDBOX, cause, f"the node cannot set up the pod: {words}"))
    if pod is not None:
        found += _told_by(pod)
    return found


def _told_by(pod: Pod) -> Iterable[Diagnosis]:
    scheduled = pod.condition("PodScheduled")
    if scheduled is not None and scheduled.status == "False":
        words = scheduled.message or NO_WORDS
        remedy = next((remedy for sign, remedy in _UNSCHEDULABLE if sign.search(words)), "")
        text = f"the pod cannot be scheduled: {words}"
        yield _diagnosis(Category.UNSCHEDULABLE, f"unschedulable {words}", text, remedy)
    for status in pod.status.init_container_statuses or ():
        waiting = status.state.waiting
        if waiting is not None and not waiting.normal:
            yield _init_waiting(pod, status, waiting.reason or "", waiting.message or "")
    waiting = pod.container(CONTAINER).waiting
    if waiting is not None and not waiting.normal:
        yield _waiting(pod, waiting.reason or "", waiting.message or "")


def _waiting(pod: Pod, reason: str, message: str) -> Diagnosis:
    words = message or NO_WORDS
    if reason in _PULLING:
        words = _pull_error(words)
        if _OTHER_PLATFORM.search(words):
            return _diagnosis(
                Category.IMAGE_ARCHITECTURE,
                "image-architecture",
                f"the image is not available for the platform of its node{node_name(pod)}: {words}",
                "Push it for that platform, or select other nodes in the pod template",
            )
        return _diagnosis(
            Category.IMAGE_PULL,
            "image-pull",
            f"the image cannot be pulled ({reason}): {words}",
            "Check name and digest in image.json, and the service account's imagePullSecrets",
        )
    if reason == "InvalidImageName":
        text = with_remedy(
            f"the image name is not valid: {words}", "Correct the name in image.json and install the package again"
        )
        return Diagnosis(Category.INVALID_IMAGE_NAME, reason, text, hopeless=True)
    text = f"the container cannot be created ({reason}): {words}"
    if reason == "ImageInspectError":
        text = f"the image cannot be read ({reason}): {words}"
        return _diagnosis(Category.IMAGE_PULL, reason, text, "Check the node's container runtime and disk")
    if _AS_ROOT.search(words):
        remedy = "Give the image a USER with a number, or unset FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT"
        return _diagnosis(Category.RUN_AS_NON_ROOT, reason, text, remedy)
    if reason == "CreateContainerConfigError":
        return _diagnosis(Category.CONTAINER_CONFIG, reason, text, "Create it, or correct the pod template")
    return _diagnosis(
        Category.CREATE_CONTAINER, reason, text, f"For more, run kubectl describe pod {pod.metadata.name}"
    )


def _init_waiting(pod: Pod, status: ContainerStatus, reason: str, message: str) -> Diagnosis:
    name = f"{_kind(pod, status.name)} {status.name}"
    cause = f"init {status.name} {reason}"
    words = message or NO_WORDS
    template = "Correct it where it comes from: the pod template, or an admission webhook"
    if reason in _PULLING or reason in {"InvalidImageName", "ImageInspectError"}:
        text = f"the image of {name} cannot be pulled ({reason}): {_pull_error(words)}"
        return _diagnosis(Category.INIT_CONTAINER_IMAGE_PULL, f"init {status.name} image", text, template)
    if reason == "CrashLoopBackOff":
        last = status.last_state.terminated
        text = f"{name} keeps failing" + (f", last with exit code {last.exit_code}" if last else "")
        return _diagnosis(Category.INIT_CONTAINER_FAILED, cause, text, see_log(pod, status.name, previous=True))
    return _diagnosis(Category.INIT_CONTAINER_CONFIG, cause, f"{name} cannot be created ({reason}): {words}", template)


def _refused(cause: str, words: str) -> Diagnosis:
    category, remedy = next(
        ((category, remedy) for sign, category, remedy in _REFUSALS if sign.search(words)), (Category.FAILED_CREATE, "")
    )
    return _diagnosis(category, cause, f"the pod cannot be created: {words}", remedy)


def stage(pod: Pod | None, events: Iterable[Event] = (), *, created: bool = True, refusal: str = "") -> Diagnosis:
    """Say how far a launch has come, for where nothing is known to hold it up.

    :param created: whether the API has created the Job.
    :param refusal: what the API says instead, for the moment; empty where it says nothing.
    """
    if not created:
        text = refusal or "the Kubernetes API has not answered the request to create the job yet"
        return Diagnosis(Category.API_UNAVAILABLE, "creation", text)
    if pod is None:
        text = "no pod has been created for the job yet: check that kube-controller-manager is running"
        return Diagnosis(Category.POD_NOT_CREATED, "no pod", text)
    if pod.spec.node_name is None:
        text = "no node has been chosen for the pod yet: check that kube-scheduler is running"
        return Diagnosis(Category.POD_NOT_SCHEDULED, "no node", text)
    if not pod.status.container_statuses and not pod.status.init_container_statuses:
        text = f"node{node_name(pod)} has not started the pod yet: check that its kubelet is running"
        return Diagnosis(Category.POD_NOT_STARTED, "not started", text)
    events = tuple(events)
    for status in pod.status.init_container_statuses or ():
        name = f"{_kind(pod, status.name)} {status.name}"
        if _pulls(status.name, events):
            text = f"the image of {name} is being pulled{_by_node(pod)}"
            return Diagnosis(Category.IMAGE_PULLING, f"pulling {status.name}", text)
        if status.state.running is None or (pod.is_sidecar(status.name) and status.started):
            continue
        if pod.is_sidecar(status.name):
            text = f"{name} has not started yet: its startup probe has not succeeded"
            return Diagnosis(Category.SIDECAR_NOT_STARTED, f"sidecar {status.name}", text)
        text = f"{name} is running; the chaincode starts after it"
        return Diagnosis(Category.INIT_CONTAINER_RUNNING, f"running {status.name}", text)
    if _pulls(CONTAINER, events):
        return Diagnosis(Category.IMAGE_PULLING, "pulling", f"the image is being pulled{_by_node(pod)}")
    text = f"the container is being created. For more, run kubectl describe pod {pod.metadata.name}"
    return Diagnosis(Category.CONTAINER_CREATING, "creating", text)


_UNREADY_REMEDY = (
    "It keeps running, and the peer does not ask. Correct readinessProbe in the pod template, or leave it out"
)


def degraded(pod: Pod) -> list[Diagnosis]:
    """Return what is wrong with a pod although its chaincode runs: with its other containers, and with its readiness.

    None of it ends the chaincode. A container that is just starting is not ready either: it takes a while to tell.
    """
    others = [s for s in pod.status.init_container_statuses or () if pod.is_sidecar(s.name)]
    others += [s for s in pod.status.container_statuses or () if s.name != CONTAINER]
    found = [fault for status in others if (fault := _beside(pod, status)) is not None]
    for status in pod.status.container_statuses or ():
        is_up = status.state.running is not None and status.started is not False  # by its startup probe
        if status.name == CONTAINER and is_up and status.ready is False:
            text = "the chaincode runs, but its readiness probe does not succeed"
            found.append(_diagnosis(Category.NOT_READY, "readiness", text, _UNREADY_REMEDY))
    return found


def _beside(pod: Pod, status: ContainerStatus) -> Diagnosis | None:
    name, cause = f"{_kind(pod, status.name)} {status.name}", f"beside {status.name}"
    if (ended := status.state.terminated) is not None and ended.exit_code != 0:
        how = f"{ended.reason}, exit code {ended.exit_code}" if ended.reason else f"exit code {ended.exit_code}"
        text = f"{name} failed ({how}), and the chaincode keeps running"
        return _diagnosis(Category.SIDECAR_FAILED, cause, text, see_log(pod, status.name))
    if (waiting := status.state.waiting) is not None and not waiting.normal:
        fault = _init_waiting(pod, status, waiting.reason or "", waiting.message or "")
        return Diagnosis(Category.SIDECAR_FAILED, cause, fault.text)
    return None


def _prepared(pod: Pod | None, events: Iterable[Event]) -> bool:
    """Say whether the pod has got beyond its volumes and its sandbox."""
    if pod is None:
        return False
    states = [s.state for s in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ()))]
    return any(
        state.running or state.terminated or (state.waiting is not None and not state.waiting.normal)
        for state in states
    ) or any(event.reason in _PREPARED for event in events)


def _pulls(container: str, events: Iterable[Event]) -> bool:
    told = {event.reason for event in events if event.container == container}
    return "Pulling" in told and not told & {"Pulled", "Created", "Started"}


def _pull_error(message: str) -> str:
    # ErrImagePull and ImagePullBackOff come in turn for as long as it lasts, the latter with the former's words.
    return message.partition("ErrImagePull: ")[2] or message


def _kind(pod: Pod, container: str) -> str:
    if pod.is_sidecar(container):
        return "sidecar"
    return "init container" if pod.is_init_container(container) else "container"


def node_name(pod: Pod) -> str:
    """Return the name of the pod's node behind a space, empty where it has none."""
    return f" {pod.spec.node_name}" if pod.spec.node_name else ""


def _by_node(pod: Pod) -> str:
    return f" by node {pod.spec.node_name}" if pod.spec.node_name else ""


def see_log(pod: Pod, container: str, *, previous: bool = False) -> str:
    """Return the advice to look into a container's log.

    :param previous: that of its last process, not of the one that runs.
    """
    return f"See its log: kubectl logs {pod.metadata.name} -c {container}{' --previous' if previous else ''}"


def _diagnosis(category: Category, cause: str, text: str, remedy: str = "") -> Diagnosis:
    return Diagnosis(category, cause, with_remedy(text, remedy))


def with_remedy(text: str, remedy: str) -> str:
    """Return the text and what to do, where something is known that helps."""
    return f"{text.rstrip('.')}. {remedy}" if remedy else text


def _stable(message: str) -> str:
    # Each refused attempt names another pod ("quota-mqplp", "quota-nkq2m"): what they have in common is after it.
    # Each sandbox has another id.
    head, separator, tail = message.partition(" is forbidden: ")
    return re.sub("[0-9a-f]{12,}", "*", tail if separator else head)
