"""What removes objects that nobody deletes: dependants whose owners are gone, finished Jobs, old Events."""

import time
from calendar import timegm

import anyio
from anyio.abc import TaskGroup, TaskStatus

from k8s_builder_lab.embedded.objects import BY_KIND, EVENTS, JOBS, RESOURCES, Object, Resource, seconds
from k8s_builder_lab.embedded.pace import Pace
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Change, Store

EVENT_SECONDS = 3600
"""How long an Event is kept, as by a real API server."""


class GarbageCollector:
    """Deletes in the background, as propagationPolicy Background has it."""

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled."""
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._expire_events)
                task_status.started()
                async for change in changes:
                    self._consider(change, tg)

    def _consider(self, change: Change, tg: TaskGroup) -> None:
        metadata = change.object["metadata"]
        if change.type == "DELETED":
            for resource in RESOURCES:
                for obj in self._store.everything(resource):
                    owners = obj["metadata"].get("ownerReferences") or []
                    if any(owner["uid"] == metadata["uid"] for owner in owners) and self._is_garbage(obj):
                        tg.start_soon(self._delete_after, self._pace.garbage, resource, obj)
        elif change.type == "ADDED" and self._is_garbage(change.object):
            tg.start_soon(self._delete_after, self._pace.ownerless_noticed, change.resource, change.object)
        elif change.resource is JOBS and (finished := _finished_at(change.object)) is not None:
            ttl = change.object["spec"].get("ttlSecondsAfterFinished")
            if ttl is not None:
                tg.start_soon(self._expire, change.object, finished + ttl)

    def _is_garbage(self, obj: Object) -> bool:
        """Whether `obj` has owners and none of them is there: a name with another uid is another object."""
        owners = obj["metadata"].get("ownerReferences") or []
        return bool(owners) and not any(self._is_there(obj, owner) for owner in owners)

    async def _delete_after(self, pause: float, resource: Resource, obj: Object) -> None:
        await self._pace.pause(pause)
        self._delete(resource, obj)

    def _is_there(self, obj: Object, owner: Object) -> bool:
        resource = BY_KIND.get((owner["apiVersion"], owner["kind"]))
        if resource is None:  # a kind that this cluster does not keep: not known to be gone
            return True
        return self._store.find(resource, obj["metadata"]["namespace"], owner["name"], owner["uid"]) is not None

    async def _expire(self, job: Object, at: float) -> None:
        await anyio.sleep(max(0, at - time.time()))
        self._delete(JOBS, job)

    async def _expire_events(self) -> None:
        while True:
            await anyio.sleep(60)
            oldest = seconds(time.time() - EVENT_SECONDS)
            for event in self._store.everything(EVENTS):
                if event["metadata"]["creationTimestamp"] < oldest:
                    self._delete(EVENTS, event)

    def _delete(self, resource: Resource, obj: Object) -> None:
        metadata = obj["metadata"]
        try:
            self._store.delete(resource, metadata["namespace"], metadata["name"], uid=metadata["uid"])
        except ApiError:
            return  # gone already, or another one of that name


def _finished_at(job: Object) -> float | None:
    """Return when the Job became Complete or Failed, in seconds since the epoch; None before."""
    for condition in job["status"].get("conditions") or []:
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return timegm(time.strptime(condition["lastTransitionTime"], "%Y-%m-%dT%H:%M:%SZ"))
    return None
