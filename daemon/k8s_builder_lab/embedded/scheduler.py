"""Gives pods their node, or says why the only node does not take them."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import anyio
from anyio.abc import TaskStatus

from k8s_builder_lab.embedded import podstatus
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import FINISHED, PODS, Object, key_of, seconds
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.timings import Timings

_TAIL = " no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."


class Scheduler:
    """Binds every pod that the node takes, and tries again what it does not take."""

    def __init__(self, store: Store, recorder: Recorder, environment: Environment, timings: Timings) -> None:
        self._store = store
        self._recorder = recorder
        self._environment = environment
        self._timings = timings

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled."""
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                for pod in self._store.everything(PODS):
                    tg.start_soon(self._schedule, pod)
                task_status.started()
                async for change in changes:
                    if change.resource is PODS and change.type == "ADDED":
                        tg.start_soon(self._schedule, change.object)

    async def _schedule(self, pod: Object) -> None:
        if pod["spec"].get("nodeName"):
            return
        (namespace, name), uid = key_of(pod), pod["metadata"]["uid"]
        await self._timings.pause(self._timings.scheduling)
        told = None
        while self._store.find(PODS, namespace, name, uid) is not None:
            why = self._refusal(pod)
            if why is None:
                self._store.update(PODS, namespace, name, partial(podstatus.scheduled, refusal=None, now=seconds()))
                message = f"Successfully assigned {namespace}/{name} to {podstatus.NODE}"
                self._recorder.scheduling(pod, "Normal", "Scheduled", message, "Binding")
                return
            if why != told:
                told = why
                self._recorder.scheduling(pod, "Warning", "FailedScheduling", why, "Scheduling")
                self._store.update(PODS, namespace, name, partial(podstatus.scheduled, refusal=why, now=seconds()))
            await self._timings.retry(1)

    def _refusal(self, pod: Object) -> str | None:
        environment = self._environment
        others = (
            other
            for other in self._store.everything(PODS)
            if other["spec"].get("nodeName") and other["status"]["phase"] not in FINISHED
        )
        if environment.node_cordoned:
            return f"0/1 nodes are available: 1 node(s) were unschedulable.{_TAIL}"
        return refusal(pod, environment.node_labels, environment.node_taints, environment.node_cpu, others)


def refusal(
    pod: Object, labels: Mapping[str, str], taints: Sequence[str], cpu: float, others: Iterable[Object]
) -> str | None:
    """Return the scheduler's sentence if the node does not take the pod, else None.

    Looks at nodeSelector, required node affinity, tolerations of `key=value:NoSchedule` taints, and whether what the
    pod and those on the node request fits into so many cores.
    """
    spec = pod["spec"]
    if not _selected(spec, labels):
        return f"0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.{_TAIL}"
    for taint in taints:
        assignment, _, effect = taint.rpartition(":")
        key, _, value = assignment.partition("=")
        if effect != "PreferNoSchedule" and not any(
            _tolerates(toleration, key, value, effect) for toleration in spec.get("tolerations") or []
        ):
            return f"0/1 nodes are available: 1 node(s) had untolerated taint {{{key}: {value}}}.{_TAIL}"
    wanted = _cores(pod)
    if wanted and wanted + sum(map(_cores, others)) > cpu:
        return f"0/1 nodes are available: 1 Insufficient cpu.{_TAIL}"
    return None


def _cores(pod: Object) -> float:
    """Return what the containers of a pod request of the processor, in cores."""
    requests = [(each.get("resources") or {}).get("requests") or {} for each in pod["spec"]["containers"]]
    quantities = [str(request.get("cpu", 0)) for request in requests]
    return sum(float(each.removesuffix("m")) / (1000 if each.endswith("m") else 1) for each in quantities)


def _selected(spec: Object, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    # Terms are alternatives; what one term has must all hold, and a term with nothing in it matches no node.
    fields = {"metadata.name": podstatus.NODE}
    return any(
        all(wanted)
        for term in affinity.get("nodeSelectorTerms") or []
        if (
            wanted := [_holds(it, labels) for it in term.get("matchExpressions") or []]
            + [_holds(it, fields) for it in term.get("matchFields") or []]
        )
    )


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


def _tolerates(toleration: Object, key: str, value: str, effect: str) -> bool:
    if toleration.get("effect") not in {None, "", effect}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", key}
    return bool(toleration.get("key") == key and toleration.get("value", "") == value)
