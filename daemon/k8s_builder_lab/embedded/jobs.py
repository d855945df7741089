"""The job controller: a pod for each Job, and the Job's status from what becomes of the pod.

Every Job is treated as having backoffLimit 0 and one completion: the first pod decides.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from k8s_builder_lab.embedded import admission
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import (
    FINISHED,
    JOBS,
    PODS,
    TRACKING,
    Object,
    is_deleting,
    key_of,
    seconds,
    suffix,
    without_finalizer,
)
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Change, Store
from k8s_builder_lab.embedded.timings import Timings

_LONGEST_BASE = 57
"""Characters of the Job's name that a pod's name has room for, before the dash and its suffix."""


class JobController:
    """Gives each Job a room of its own, which is closed when the Job is deleted."""

    def __init__(self, store: Store, recorder: Recorder, environment: Environment, timings: Timings) -> None:
        self._store = store
        self._recorder = recorder
        self._environment = environment
        self._timings = timings

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at everything, then follow the store until cancelled."""
        rooms: dict[str, anyio.CancelScope] = {}
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                for job in self._store.everything(JOBS):
                    self._consider(job, rooms, tg)
                for pod in self._store.everything(PODS):
                    self._release_orphan(pod)
                task_status.started()
                async for change in changes:
                    uid = change.object["metadata"]["uid"]
                    if change.resource is PODS:
                        self._release_orphan(change.object)
                    elif change.resource is JOBS and change.type == "DELETED":
                        self._close(uid, rooms)
                    elif change.resource is JOBS:
                        self._consider(change.object, rooms, tg)

    def _consider(self, job: Object, rooms: dict[str, anyio.CancelScope], tg: TaskGroup) -> None:
        uid = job["metadata"]["uid"]
        if is_deleting(job):
            self._close(uid, rooms)
        elif uid not in rooms:
            rooms[uid] = anyio.CancelScope()
            tg.start_soon(self._follow, job, rooms[uid])

    def _close(self, uid: str, rooms: dict[str, anyio.CancelScope]) -> None:
        """Leave a Job that is being deleted: its pods are no longer counted."""
        if room := rooms.pop(uid, None):
            room.cancel()
        for pod in self._store.everything(PODS):
            if _controller(pod) == uid:
                self._release_orphan(pod)

    def _release_orphan(self, pod: Object) -> None:
        """Let go of a pod that no Job will count."""
        if TRACKING in (pod["metadata"].get("finalizers") or []):
            uid = _controller(pod)
            job = None if uid is None else self._store.find_by_uid(JOBS, uid)
            if job is None or is_deleting(job):
                _release(self._store, pod)

    async def _follow(self, job: Object, scope: anyio.CancelScope) -> None:
        with scope:
            await self._timings.pause(self._timings.job_accepted)
            await _OneJob(self._store, self._recorder, self._environment, self._timings, job).run()


class _OneJob:
    """One Job from its creation, or from where an earlier controller left it, to its end."""

    def __init__(
        self, store: Store, recorder: Recorder, environment: Environment, timings: Timings, job: Object
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._environment = environment
        self._timings = timings
        self._job = job
        self._namespace: str = job["metadata"]["namespace"]
        self._name: str = job["metadata"]["name"]
        self._uid: str = job["metadata"]["uid"]

    async def run(self) -> None:
        if self._conditions & {"Complete", "Failed"}:
            return
        with self._store.subscribe() as changes:
            pod = next((pod for pod in self._store.everything(PODS) if _controller(pod) == self._uid), None)
            if pod is not None or "FailureTarget" in self._conditions:
                if self._sync(pod):
                    return
            else:
                pod = await self._create_pod()
                self._tell({"active": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0})
            async for change in changes:
                if pod is None or change.object["metadata"]["uid"] != pod["metadata"]["uid"]:
                    continue
                # A Job looks at its pod only so often; what happens meanwhile is seen together.
                await self._timings.pause(self._timings.job_sync)
                _drain(changes)
                if self._sync(self._store.find_by_uid(PODS, pod["metadata"]["uid"])):
                    return

    def _sync(self, pod: Object | None) -> bool:
        """Bring the Job's status up to its pod's; say whether the Job has finished."""
        failing = "FailureTarget" in self._conditions
        phase = None if pod is None else pod["status"]["phase"]
        if pod is None or phase == "Failed" or (failing and phase in FINISHED):
            self._fail(pod)
            return True
        if phase == "Succeeded":
            self._succeed(pod)
            return True
        if is_deleting(pod) and not failing:
            self._mark_failing(pod)
        elif not failing:
            ready = int(_is_ready(pod))
            self._tell({"active": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": ready})
        return False

    @property
    def _conditions(self) -> set[str]:
        return {condition["type"] for condition in self._job["status"].get("conditions") or []}

    async def _create_pod(self) -> Object:
        retry = self._timings.create_retry
        while True:
            generated = f"{self._name[:_LONGEST_BASE]}-"
            name = generated + suffix()
            template = self._pod(name)
            refusal = admission.refusal(self._store, self._environment, self._namespace, template, generated)
            if refusal is None:
                try:
                    pod = self._store.create(PODS, self._namespace, template)
                except ApiError as error:
                    refusal = str(error)
                else:
                    self._recorder.job(self._job, "Normal", "SuccessfulCreate", f"Created pod: {name}")
                    return pod
            self._recorder.job(self._job, "Warning", "FailedCreate", f"Error creating: {refusal}")
            self._tell({"terminating": 0, "uncountedTerminatedPods": {}, "ready": 0})
            await self._timings.retry(retry)
            retry = min(retry * 2, self._timings.create_retry_cap)

    def _pod(self, name: str) -> Object:
        template = self._job["spec"]["template"]
        metadata = {
            field: template["metadata"][field] for field in ("labels", "annotations") if template["metadata"].get(field)
        }
        return {
            "metadata": {
                **metadata,
                "name": name,
                "generateName": f"{self._name[:_LONGEST_BASE]}-",
                "namespace": self._namespace,
                "finalizers": [TRACKING],
                "ownerReferences": [
                    {
                        "apiVersion": JOBS.api_version,
                        "kind": JOBS.kind,
                        "name": self._name,
                        "uid": self._uid,
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
            "spec": template["spec"],
        }

    def _succeed(self, pod: Object) -> None:
        reached = ("CompletionsReached", "Reached expected number of succeeded pods")
        uncounted = {"succeeded": [pod["metadata"]["uid"]]}
        counted = {"succeeded": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0}
        self._tell(
            {"terminating": 0, "uncountedTerminatedPods": uncounted, "ready": 0}, ("SuccessCriteriaMet", *reached)
        )
        _release(self._store, pod)
        self._tell({"completionTime": seconds(), **counted}, ("Complete", *reached))
        self._recorder.job(self._job, "Normal", "Completed", "Job completed")

    def _mark_failing(self, pod: Object) -> None:
        target = ("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        uncounted = {"failed": [pod["metadata"]["uid"]]}
        self._tell({"terminating": 1, "uncountedTerminatedPods": uncounted, "ready": 0}, target)
        _release(self._store, pod)
        self._tell({"failed": 1, "terminating": 1, "uncountedTerminatedPods": {}, "ready": 0})

    def _fail(self, pod: Object | None) -> None:
        exceeded = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        counted = {"failed": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0}
        if "FailureTarget" not in self._conditions:
            uncounted = {"failed": [pod["metadata"]["uid"]]} if pod is not None else {}
            counting = {"terminating": 0, "uncountedTerminatedPods": uncounted, "ready": 0}
            self._tell(counting, ("FailureTarget", *exceeded))
        elif self._job["status"].get("terminating"):
            self._tell(counted)
        if pod is not None:
            _release(self._store, pod)
        self._tell(counted, ("Failed", *exceeded))
        self._recorder.job(self._job, "Warning", *exceeded)

    def _tell(self, counts: dict[str, Any], condition: tuple[str, str, str] | None = None) -> None:
        """Write the Job's status: these counts instead of the old ones, and one condition more."""

        def change(job: Object) -> None:
            before = job["status"]
            conditions = [*(before.get("conditions") or [])]
            if condition is not None:
                kind, reason, message = condition
                conditions.append(
                    {
                        "type": kind,
                        "status": "True",
                        "lastProbeTime": seconds(),
                        "lastTransitionTime": seconds(),
                        "reason": reason,
                        "message": message,
                    }
                )
            job["status"] = {
                **({"conditions": conditions} if conditions else {}),
                "startTime": before.get("startTime") or seconds(),
                **counts,
            }

        self._update(change)

    def _update(self, change: Callable[[Object], None]) -> None:
        job = self._store.update(JOBS, self._namespace, self._name, change, uid=self._uid)
        if job is not None:
            self._job = job


def _controller(pod: Object) -> str | None:
    """Return the uid of the object that controls a pod."""
    owners = pod["metadata"].get("ownerReferences") or []
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def _release(store: Store, pod: Object) -> None:
    """Take the finalizer from a pod: it is counted, or nobody counts it."""
    uid = pod["metadata"]["uid"]
    store.update(PODS, *key_of(pod), partial(without_finalizer, finalizer=TRACKING), uid=uid)


def _drain(changes: MemoryObjectReceiveStream[Change]) -> None:
    """Take what is there already."""
    with contextlib.suppress(anyio.WouldBlock):
        while True:
            changes.receive_nowait()


def _is_ready(pod: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions") or []
    )
