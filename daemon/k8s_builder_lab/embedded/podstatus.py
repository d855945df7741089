"""A pod's status as the kubelet writes it, from what the kubelet knows. Pure."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from k8s_builder_lab.embedded.objects import Object

NODE = "node1"
_ADDRESS = "127.0.0.1"

Kind = Literal["init", "sidecar", "main"]
"""An init container that has to succeed, one that runs beside the others (restartPolicy Always), or a container."""


class ContainerView(msgspec.Struct):
    """What the kubelet knows of one container.

    `state` is the API's own: waiting, running or terminated. `lost` says that it is told as ended but never began.
    `started` and `ready` are what its probes say while it runs; without a probe they follow the process.
    """

    name: str
    image: str
    kind: Kind = "main"
    state: dict[str, Any] = msgspec.field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    started: bool = False
    ready: bool = False
    lost: bool = False
    container_id: str = ""
    mounts: list[dict[str, Any]] = msgspec.field(default_factory=list)

    @property
    def exit_code(self) -> int | None:
        """The exit code, None before the end."""
        terminated = self.state.get("terminated")
        return None if terminated is None else int(terminated["exitCode"])

    @property
    def path(self) -> str:
        """Where it stands in the pod, as events name it."""
        return f"spec.{'containers' if self.kind == 'main' else 'initContainers'}{{{self.name}}}"

    @property
    def is_complete(self) -> bool:
        """Whether the containers after this init container may begin."""
        return self.started if self.kind == "sidecar" else self.exit_code == 0


class PodView(msgspec.Struct):
    """What the kubelet knows of one pod: its init containers and its containers, each in their order."""

    init: list[ContainerView]
    main: list[ContainerView]
    phase: str = "Pending"
    started_at: str = ""
    sandbox: bool = False
    address: bool = False
    reason: str = ""
    message: str = ""

    @property
    def containers(self) -> list[ContainerView]:
        """All of them."""
        return [*self.init, *self.main]

    @property
    def is_initialized(self) -> bool:
        """Whether its containers may begin."""
        return all(view.is_complete for view in self.init) or any("waiting" not in view.state for view in self.main)

    @property
    def verdict(self) -> Literal["Succeeded", "Failed"] | None:
        """What its containers have come to; None while one of them may still do something."""
        if any(view.kind == "init" and view.exit_code for view in self.init):
            return "Failed"
        beside = [view for view in self.init if view.kind == "sidecar" and "running" in view.state]
        codes = [None if view.lost else view.exit_code for view in self.main]
        if beside or None in codes:
            return None
        return "Failed" if any(codes) else "Succeeded"


def apply(pod: Object, view: PodView, now: str) -> None:
    """Write what `view` says at the time `now` into the status of `pod`.

    The phase follows the containers while they wait or run. That they have ended, the kubelet tells in the phase
    later (PodView.phase), in the conditions at once.
    """
    status = pod["status"]
    generation = pod["metadata"].get("generation", 1)
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    if view.verdict is None and view.phase in {"Pending", "Running"}:
        view.phase = "Pending" if any("waiting" in each.state for each in view.main) else "Running"
    # A condition that is not the kubelet's own (DisruptionTarget) comes first once the kubelet has written.
    own = _conditions(view)
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
        "containerStatuses": [_container_status(container) for container in view.main],
    }
    if view.init:
        status["initContainerStatuses"] = [_container_status(container) for container in view.init]
    if view.address:
        status |= {"podIP": _ADDRESS, "podIPs": [{"ip": _ADDRESS}]}
    if view.reason:
        status |= {"reason": view.reason, "message": view.message}


def scheduled(pod: Object, refusal: str | None, now: str) -> None:
    """Write the scheduler's word into the status of `pod`: None, or why it has no node."""
    if refusal is None:
        pod["spec"]["nodeName"] = NODE
    condition: Object = {
        "type": "PodScheduled",
        "status": "True" if refusal is None else "False",
        "lastProbeTime": None,
        "lastTransitionTime": now,
    }
    if refusal is not None:
        condition |= {"observedGeneration": 1, "reason": "Unschedulable", "message": refusal}
    pod["status"]["conditions"] = [condition]


def disrupted(pod: Object, reason: str, message: str, now: str) -> None:
    """Add the condition that says that somebody means to end the pod."""
    conditions = [*(pod["status"].get("conditions") or [])]
    conditions = [condition for condition in conditions if condition["type"] != "DisruptionTarget"]
    pod["status"]["conditions"] = [
        *conditions,
        {
            "type": "DisruptionTarget",
            "status": "True",
            "lastProbeTime": None,
            "lastTransitionTime": now,
            "reason": reason,
            "message": message,
        },
    ]


def _conditions(view: PodView) -> dict[str, tuple[str, str, str]]:
    """Return status, reason and message of each condition, in the order in which the kubelet writes them."""
    verdict = view.verdict
    initialized = ("True", "PodCompleted" if verdict == "Succeeded" else "", "")
    if not view.is_initialized:
        incomplete = _names(each for each in view.init if not each.is_complete)
        initialized = ("False", "ContainersNotInitialized", f"containers with incomplete status: [{incomplete}]")
    unready = _names(each for each in view.containers if each.kind != "init" and not _is_ready(each))
    if verdict is not None:
        ready = ("False", "PodFailed" if verdict == "Failed" else "PodCompleted", "")
    elif unready:
        ready = ("False", "ContainersNotReady", f"containers with unready status: [{unready}]")
    else:
        ready = ("True", "", "")
    return {
        "PodReadyToStartContainers": ("True" if view.sandbox else "False", "", ""),
        "Initialized": initialized,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": ("True", "", ""),
    }


def _names(views: Iterable[ContainerView]) -> str:
    return " ".join(view.name for view in views)


def _is_ready(container: ContainerView) -> bool:
    if container.kind == "init":
        return container.exit_code == 0
    return "running" in container.state and container.started and container.ready


def _container_status(container: ContainerView) -> Object:
    name, _, digest = container.image.partition("@")
    pulled = container.container_id != ""
    status: Object = {
        "name": container.name,
        "state": container.state,
        "lastState": {},
        "ready": _is_ready(container),
        "restartCount": 0,
        "image": name if pulled and digest else container.image,
        "imageID": container.image if pulled else "",
    }
    if pulled:
        status["containerID"] = container.container_id
    status["started"] = "running" in container.state and container.started
    if container.mounts:
        status["volumeMounts"] = container.mounts
    return status
