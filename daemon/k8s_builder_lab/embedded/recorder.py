"""Events about Jobs and Pods, as controllers, scheduler and kubelet record them."""

import time
from contextlib import suppress

from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import EVENTS, Object, microseconds, seconds
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Store

REMEMBERED = 10_000
"""Events that are counted up when they happen again; an older one becomes a new Event."""


class Recorder:
    """Writes Events; the same event again raises the count of the first, as the real recorders do."""

    def __init__(self, store: Store, node: str, environment: Environment) -> None:
        self._store = store
        self._node = node
        self._environment = environment
        self._known: dict[tuple[str, ...], str] = {}

    def job(self, job: Object, kind: str, reason: str, message: str) -> None:
        """Record what the job controller says about a Job."""
        self._count(job, kind, reason, message, "job-controller", "", "", seconds())

    def pod(self, pod: Object, kind: str, reason: str, message: str, path: str = "") -> None:
        """Record what the kubelet says, by its own clock, about a pod or the container at `path` in it."""
        now = seconds(time.time() + self._environment.node_clock)
        self._count(pod, kind, reason, message, "kubelet", self._node, path, now)

    def scheduling(self, pod: Object, kind: str, reason: str, message: str, action: str) -> None:
        """Record what the scheduler says; its events have an eventTime and neither count nor other times."""
        self._create(
            pod,
            {
                "involvedObject": _reference(pod, ""),
                "reason": reason,
                "message": message,
                "source": {},
                "firstTimestamp": None,
                "lastTimestamp": None,
                "type": kind,
                "eventTime": microseconds(),
                "action": action,
                "reportingComponent": "default-scheduler",
                "reportingInstance": "default-scheduler-embedded",
            },
        )

    def _count(
        self, obj: Object, kind: str, reason: str, message: str, component: str, host: str, path: str, now: str
    ) -> None:
        known = (obj["metadata"]["uid"], kind, reason, message, path)
        namespace = obj["metadata"]["namespace"]

        def again(event: Object) -> None:
            event["count"] += 1
            event["lastTimestamp"] = now

        if known in self._known and self._store.update(EVENTS, namespace, self._known[known], again) is not None:
            return
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]
        self._known[known] = self._create(
            obj,
            {
                "involvedObject": _reference(obj, path),
                "reason": reason,
                "message": message,
                "source": {"component": component, **({"host": host} if host else {})},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
                "type": kind,
                "eventTime": None,
                "reportingComponent": component,
                "reportingInstance": host,
            },
        )

    def _create(self, obj: Object, event: Object) -> str:
        namespace = obj["metadata"]["namespace"]
        name = f"{obj['metadata']['name']}.{time.time_ns():016x}"
        while self._store.find(EVENTS, namespace, name) is not None:
            name = f"{obj['metadata']['name']}.{time.time_ns():016x}"
        with suppress(ApiError):  # the namespace is being deleted: a recorder drops what it may not write
            self._store.create(EVENTS, namespace, {"metadata": {"name": name, "namespace": namespace}, **event})
        return name


def _reference(obj: Object, path: str) -> Object:
    reference = {
        "kind": obj["kind"],
        "namespace": obj["metadata"]["namespace"],
        "name": obj["metadata"]["name"],
        "uid": obj["metadata"]["uid"],
        "apiVersion": obj["apiVersion"],
        "resourceVersion": obj["metadata"]["resourceVersion"],
    }
    return reference | ({"fieldPath": path} if path else {})
