"""The job controller: a pod for each Job, and the Job's status from what becomes of the pod.

Every Job is treated as having backoffLimit 0 and one completion: the first pod decides.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import anyio
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream

from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import FINISHED, JOBS, PODS, Object, seconds, suffix
from k8s_builder_lab.embedded.pace import Pace
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Change, Store

_LONGEST_BASE = 57
"""Characters of the Job's name that a pod's name has room for, before the dash and its suffix."""


class JobController:
    """Gives each Job a room of its own, which is closed when the Job is deleted."""

    def __init__(self, store: Store, recorder: Recorder, environment: Environment, pace: Pace) -> None:
        self._store = store
        self._recorder = recorder
        self._environment = environment
        self._pace = pace

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled."""
        rooms: dict[str, anyio.CancelScope] = {}
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                task_status.started()
                async for change in changes:
                    uid = change.object["metadata"]["uid"]
                    if change.resource is JOBS and change.type == "ADDED":
                        rooms[uid] = anyio.CancelScope()
                        tg.start_soon(self._follow, change.object, rooms[uid])
                    elif change.resource is JOBS and change.type == "DELETED":
                        rooms.pop(uid).cancel()

    async def _follow(self, job: Object, scope: anyio.CancelScope) -> None:
        with scope:
            await self._pace.pause(self._pace.job_accepted)
            await _OneJob(self._store, self._recorder, self._environment, self._pace, job).run()


class _OneJob:
    """One Job from its creation to its end."""

    def __init__(self, store: Store, recorder: Recorder, environment: Environment, pace: Pace, job: Object) -> None:
        self._store = store
        self._recorder = recorder
        self._environment = environment
        self._pace = pace
        self._job = job
        self._namespace: str = job["metadata"]["namespace"]
        self._name: str = job["metadata"]["name"]
        self._uid: str = job["metadata"]["uid"]

    async def run(self) -> None:
        with self._store.subscribe() as changes:
            pod = await self._create_pod()
            uid = pod["metadata"]["uid"]
            self._tell({"active": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0})
            failing = False
            async for change in changes:
                if not _is_about(change, uid):
                    continue
                # A Job looks at its pod only so often; what happens meanwhile is seen together.
                await self._pace.pause(self._pace.job_sync)
                newest = [change, *(each for each in _drained(changes) if _is_about(each, uid))][-1]
                phase = newest.object["status"]["phase"]
                deleting = "deletionTimestamp" in newest.object["metadata"]
                if phase == "Succeeded" and not failing:
                    self._succeed(uid)
                    return
                if newest.type == "DELETED" or (phase == "Failed" and not deleting):
                    self._fail(uid)
                    return
                if deleting and not failing:
                    failing = True
                    self._mark_failing(uid)
                elif not failing:
                    ready = int(_is_ready(newest.object))
                    self._tell({"active": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": ready})

    async def _create_pod(self) -> Object:
        retry = self._pace.create_retry
        while True:
            name = f"{self._name[:_LONGEST_BASE]}-{suffix()}"
            refusal = self._refusal(name)
            if refusal is None:
                try:
                    pod = self._store.create(PODS, self._namespace, self._pod(name))
                except ApiError as error:
                    refusal = str(error)
                else:
                    self._recorder.job(self._job, "Normal", "SuccessfulCreate", f"Created pod: {name}")
                    return pod
            self._recorder.job(self._job, "Warning", "FailedCreate", f"Error creating: {refusal}")
            self._tell({"terminating": 0, "uncountedTerminatedPods": {}, "ready": 0})
            await self._pace.retry(retry)
            retry = min(retry * 2, self._pace.create_retry_cap)

    def _refusal(self, name: str) -> str | None:
        """Return why admission does not let the pod in, or None."""
        environment = self._environment
        account = self._job["spec"]["template"]["spec"].get("serviceAccountName") or "default"
        if account not in environment.service_accounts:
            # At this point the pod has no name yet.
            return (
                f'pods "{self._name[:_LONGEST_BASE]}-" is forbidden: error looking up service account '
                f'{self._namespace}/{account}: serviceaccount "{account}" not found'
            )
        if environment.refuse_pods:
            return f'pods "{name}" is forbidden: {environment.refuse_pods}'
        if environment.pod_quota is not None:
            used = sum(
                pod["metadata"]["namespace"] == self._namespace and pod["status"]["phase"] not in FINISHED
                for pod in self._store.everything(PODS)
            )
            if used >= environment.pod_quota:
                return (
                    f'pods "{name}" is forbidden: exceeded quota: none, requested: pods=1, used: pods={used}, '
                    f"limited: pods={environment.pod_quota}"
                )
        return None

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
                "generation": 1,
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

    def _succeed(self, pod: str) -> None:
        reached = ("CompletionsReached", "Reached expected number of succeeded pods")
        counting = {"terminating": 0, "uncountedTerminatedPods": {"succeeded": [pod]}, "ready": 0}
        counted = {"succeeded": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0}
        self._tell(counting, ("SuccessCriteriaMet", *reached))
        self._tell({"completionTime": seconds(), **counted}, ("Complete", *reached))
        self._recorder.job(self._job, "Normal", "Completed", "Job completed")

    def _mark_failing(self, pod: str) -> None:
        target = ("FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        self._tell({"terminating": 1, "uncountedTerminatedPods": {"failed": [pod]}, "ready": 0}, target)
        self._tell({"failed": 1, "terminating": 1, "uncountedTerminatedPods": {}, "ready": 0})

    def _fail(self, pod: str) -> None:
        exceeded = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        counted = {"failed": 1, "terminating": 0, "uncountedTerminatedPods": {}, "ready": 0}
        if not (self._job["status"].get("conditions") or []):
            counting = {"terminating": 0, "uncountedTerminatedPods": {"failed": [pod]}, "ready": 0}
            self._tell(counting, ("FailureTarget", *exceeded))
        elif self._job["status"].get("terminating"):
            self._tell(counted)
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


def _is_about(change: Change, pod: str) -> bool:
    return change.resource is PODS and bool(change.object["metadata"]["uid"] == pod)


def _drained(changes: MemoryObjectReceiveStream[Change]) -> Iterator[Change]:
    """Take what is there already."""
    with contextlib.suppress(anyio.WouldBlock):
        while True:
            yield changes.receive_nowait()


def _is_ready(pod: Object) -> bool:
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for condition in pod["status"].get("conditions") or []
    )
