"""What removes objects that nobody deletes: dependants whose owners are gone, finished Jobs, old Events."""

import time
from calendar import timegm
from collections.abc import Iterator
from functools import partial

import anyio
from anyio.abc import TaskGroup, TaskStatus

from k8s_builder_lab.embedded.objects import (
    BY_KIND,
    EVENTS,
    FOREGROUND,
    JOBS,
    ORPHAN,
    RESOURCES,
    Object,
    Resource,
    is_deleting,
    key_of,
    seconds,
    without_finalizer,
)
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Change, Store
from k8s_builder_lab.embedded.timings import Timings

EVENT_SECONDS = 3600
"""How long an Event is kept, as by a real API server."""


class GarbageCollector:
    """Deletes in the background what has lost its owners, and does what a deletion policy asks of dependants."""

    def __init__(self, store: Store, timings: Timings) -> None:
        self._store = store
        self._timings = timings

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at everything, then follow the store until cancelled."""
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._expire_events)
                for resource in RESOURCES:
                    for obj in self._store.everything(resource):
                        self._look_at(resource, obj, tg, self._timings.garbage)
                task_status.started()
                async for change in changes:
                    self._consider(change, tg)

    def _consider(self, change: Change, tg: TaskGroup) -> None:
        if change.type != "DELETED":
            pause = self._timings.ownerless_noticed if change.type == "ADDED" else self._timings.garbage
            self._look_at(change.resource, change.object, tg, pause)
            return
        for resource, obj in self._dependants(change.object):
            if self._is_garbage(obj):
                tg.start_soon(self._delete_after, self._timings.garbage, resource, obj)
        for owner in change.object["metadata"].get("ownerReferences") or []:
            resource_of_owner = BY_KIND.get((owner["apiVersion"], owner["kind"]))
            if resource_of_owner is not None and (found := self._store.find_by_uid(resource_of_owner, owner["uid"])):
                self._look_at(resource_of_owner, found, tg, self._timings.garbage)

    def _look_at(self, resource: Resource, obj: Object, tg: TaskGroup, pause: float) -> None:
        finalizers = obj["metadata"].get("finalizers") or []
        if self._is_garbage(obj) and not is_deleting(obj):
            tg.start_soon(self._delete_after, pause, resource, obj)
        elif is_deleting(obj) and ORPHAN in finalizers:
            tg.start_soon(self._orphan, resource, obj)
        elif is_deleting(obj) and FOREGROUND in finalizers:
            tg.start_soon(self._delete_foreground, resource, obj)
        elif resource is JOBS and (finished := _finished_at(obj)) is not None and not is_deleting(obj):
            ttl = obj["spec"].get("ttlSecondsAfterFinished")
            if ttl is not None:
                tg.start_soon(self._expire, obj, finished + ttl)

    def _dependants(self, owner: Object) -> Iterator[tuple[Resource, Object]]:
        uid = owner["metadata"]["uid"]
        for resource in RESOURCES:
            for obj in self._store.everything(resource):
                if any(each["uid"] == uid for each in obj["metadata"].get("ownerReferences") or []):
                    yield resource, obj

    async def _orphan(self, resource: Resource, owner: Object) -> None:
        """Take the owner from its dependants, then let it go."""
        await self._timings.pause(self._timings.garbage)
        uid = owner["metadata"]["uid"]

        def disown(obj: Object) -> None:
            obj["metadata"]["ownerReferences"] = [
                each for each in obj["metadata"]["ownerReferences"] if each["uid"] != uid
            ]

        for kind, obj in self._dependants(owner):
            self._store.update(kind, *key_of(obj), disown)
        self._store.update(resource, *key_of(owner), partial(without_finalizer, finalizer=ORPHAN), uid=uid)

    async def _delete_foreground(self, resource: Resource, owner: Object) -> None:
        """Delete the dependants; the owner goes with the last of those that block it."""
        await self._timings.pause(self._timings.garbage)
        uid = owner["metadata"]["uid"]
        for kind, obj in self._dependants(owner):
            if not is_deleting(obj):
                self._delete(kind, obj)
        blocking = [
            reference
            for _, obj in self._dependants(owner)
            for reference in obj["metadata"]["ownerReferences"]
            if reference["uid"] == uid and reference.get("blockOwnerDeletion")
        ]
        if not blocking:
            self._store.update(resource, *key_of(owner), partial(without_finalizer, finalizer=FOREGROUND), uid=uid)

    def _is_garbage(self, obj: Object) -> bool:
        """Whether `obj` has owners and none of them is there: a name with another uid is another object."""
        owners = obj["metadata"].get("ownerReferences") or []
        return bool(owners) and not any(self._is_there(obj, owner) for owner in owners)

    async def _delete_after(self, pause: float, resource: Resource, obj: Object) -> None:
        await self._timings.pause(pause)
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
