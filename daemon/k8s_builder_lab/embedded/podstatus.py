"""A pod's status as the kubelet writes it, from what the kubelet knows. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec

from k8s_builder_lab.embedded.objects import Object, seconds

NODE = "node1"
_ADDRESS = "127.0.0.1"


class ContainerView(msgspec.Struct):
    """What the kubelet knows of one container.

    `state` is the API's own: waiting, running or terminated. `lost` says that it is told as ended but never began.
    """

    name: str
    image: str
    state: dict[str, Any] = msgspec.field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    lost: bool = False
    container_id: str = ""
    mounts: list[dict[str, Any]] = msgspec.field(default_factory=list)

    @property
    def exit_code(self) -> int | None:
        """The exit code, None before the end."""
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])


class PodView(msgspec.Struct):
    """What the kubelet knows of one pod."""

    containers: list[ContainerView]
    phase: str = "Pending"
    started_at: str = ""
    sandbox: bool = False
    address: bool = False
    reason: str = ""
    message: str = ""


def apply(pod: Object, view: PodView) -> None:
    """Write what `view` says into the status of `pod`."""
    status = pod["status"]
    generation = pod["metadata"].get("generation", 1)
    now = seconds()
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    # A condition that is not the kubelet's own (DisruptionTarget) comes first once the kubelet has written.
    own = _conditions(view.containers, sandbox=view.sandbox)
    written = [condition for kind, condition in conditions.items() if kind not in own]
    for kind, (value, reason, message) in own.items():
        before = conditions.get(kind)
        same = before is not None and before["status"] == value
        condition: Object = {
            "type": kind,
            "observedGeneration": generation,
            "status": value,
            "lastProbeTime": None,
            "lastTransitionTime": before["lastTransitionTime"] if same and before else now,
        }
        written.append(condition | {key: text for key, text in (("reason", reason), ("message", message)) if text})
    status |= {
        "observedGeneration": generation,
        "phase": view.phase,
        "conditions": written,
        "hostIP": _ADDRESS,
        "hostIPs": [{"ip": _ADDRESS}],
        "startTime": view.started_at,
        "containerStatuses": [_container_status(container) for container in view.containers],
    }
    if view.address:
        status |= {"podIP": _ADDRESS, "podIPs": [{"ip": _ADDRESS}]}
    if view.reason:
        status |= {"reason": view.reason, "message": view.message}


def scheduled(pod: Object, refusal: str | None) -> None:
    """Write the scheduler's word into the status of `pod`: None, or why it has no node."""
    if refusal is None:
        pod["spec"]["nodeName"] = NODE
    condition: Object = {
        "type": "PodScheduled",
        "status": "True" if refusal is None else "False",
        "lastProbeTime": None,
        "lastTransitionTime": seconds(),
    }
    if refusal is not None:
        condition |= {"observedGeneration": 1, "reason": "Unschedulable", "message": refusal}
    pod["status"]["conditions"] = [condition]


def disrupted(pod: Object, reason: str, message: str) -> None:
    """Add the condition that says that somebody means to end the pod."""
    conditions = [*(pod["status"].get("conditions") or [])]
    conditions = [condition for condition in conditions if condition["type"] != "DisruptionTarget"]
    pod["status"]["conditions"] = [
        *conditions,
        {
            "type": "DisruptionTarget",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": seconds(),
            "reason": reason,
            "message": message,
        },
    ]


def _conditions(containers: Sequence[ContainerView], *, sandbox: bool) -> dict[str, tuple[str, str, str]]:
    """Return status, reason and message of each condition, in the order in which the kubelet writes them."""
    codes = [None if container.lost else container.exit_code for container in containers]
    ended = all(code is not None for code in codes)
    unready = [container.name for container in containers if "running" not in container.state]
    if ended:
        verdict = "PodFailed" if any(codes) else "PodCompleted"
        ready = ("False", verdict, "")
    elif unready:
        ready = ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = ("True", "", "")
    return {
        "PodReadyToStartContainers": ("True" if sandbox else "False", "", ""),
        "Initialized": ("True", "PodCompleted" if ended and not any(codes) else "", ""),
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": ("True", "", ""),
    }


def _container_status(container: ContainerView) -> Object:
    name, _, digest = container.image.partition("@")
    pulled = container.container_id != ""
    running = "running" in container.state
    status: Object = {
        "name": container.name,
        "state": container.state,
        "lastState": {},
        "ready": running,
        "restartCount": 0,
        "image": name if pulled and digest else container.image,
        "imageID": container.image if pulled else "",
    }
    if pulled:
        status["containerID"] = container.container_id
    status["started"] = running
    if container.mounts:
        status["volumeMounts"] = container.mounts
    return status
