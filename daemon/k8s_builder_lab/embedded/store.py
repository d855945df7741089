"""The objects by kind, one resourceVersion counter, and the newest changes. Synchronous; knows no HTTP."""

import copy
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Literal

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from k8s_builder_lab.embedded import validation
from k8s_builder_lab.embedded.objects import (
    FINISHED,
    NAMESPACES,
    PODS,
    RESOURCES,
    Key,
    Object,
    Resource,
    is_deleting,
    key_of,
    seconds,
)
from k8s_builder_lab.embedded.selectors import Matches
from k8s_builder_lab.embedded.status import (
    already_exists,
    conflict,
    expired,
    namespace_not_found,
    namespace_terminating,
    not_found,
)

FIRST_REVISION = 1000
"""Where the counter starts, so that a resourceVersion of 1 is as old as it is in a cluster that has lived."""


class Change(msgspec.Struct, frozen=True):
    """One write: `object` is the state after it (of a deletion: the last), `previous` the one before (None: new)."""

    revision: int
    type: Literal["ADDED", "MODIFIED", "DELETED"]
    resource: Resource
    object: Object
    previous: Object | None


class Store:
    """What etcd and the watch cache are in a real cluster.

    An object that it returns is shared: whoever wants another state calls `update`.
    """

    def __init__(self, namespaces: tuple[str, ...] = ("default",), history: int = 4096) -> None:
        self.revision = FIRST_REVISION
        self.oldest = FIRST_REVISION
        self._objects: dict[Resource, dict[Key, Object]] = {resource: {} for resource in (NAMESPACES, *RESOURCES)}
        self._objects[NAMESPACES] = {("", name): _namespace(name) for name in namespaces}
        self._history: deque[Change] = deque(maxlen=history)
        self._subscribers: set[MemoryObjectSendStream[Change]] = set()

    # Reading

    def find(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object | None:
        """Return the object, or None if there is none (or, with `uid`, another of that name)."""
        found = self._objects[resource].get((namespace, name))
        return None if found is None or (uid is not None and found["metadata"]["uid"] != uid) else found

    def find_by_uid(self, resource: Resource, uid: str) -> Object | None:
        """Return the object of a kind with this uid, or None."""
        return next((obj for obj in self._objects[resource].values() if obj["metadata"]["uid"] == uid), None)

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Return the object.

        :raises ApiError: 404
        """
        found = self.find(resource, namespace, name)
        if found is None:
            raise not_found(resource, name)
        return found

    def select(self, resource: Resource, namespace: str, matches: Matches) -> list[Object]:
        """Return the objects that match, in the order of their names."""
        objects = self._objects[resource]
        return [objects[key] for key in sorted(objects) if key[0] == namespace and matches(objects[key])]

    def everything(self, resource: Resource) -> list[Object]:
        """Return all objects of a kind."""
        return [*self._objects[resource].values()]

    # Writing

    def create(self, resource: Resource, namespace: str, obj: Object, *, dry_run: bool = False) -> Object:
        """Check and store a new object and return it as stored; `dry_run` does all but store it.

        :raises ApiError: 400; 403, the namespace is being deleted; 404 of the namespace; 409, the name is taken; 422
        """
        obj = validation.accept(resource, obj, namespace)
        if (found := self.find(NAMESPACES, "", namespace)) is None:
            raise namespace_not_found(namespace)
        if is_deleting(found):
            raise namespace_terminating(resource, obj["metadata"]["name"], namespace)
        validation.check_spec(resource, obj)
        if key_of(obj) in self._objects[resource]:
            raise already_exists(resource, obj["metadata"]["name"])
        obj["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": seconds()}
        obj = copy.deepcopy(validation.with_defaults(resource, obj))
        return obj if dry_run else self._write("ADDED", resource, obj, None)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        change: Callable[[Object], None],
        *,
        uid: str | None = None,
    ) -> Object | None:
        """Let `change` alter a copy of the object and store it; a copy that is still equal is no write.

        An object that is only kept by its finalizers goes with the last of them. Returns the object as it stands
        afterwards, or None if it (with this `uid`, if given) is not there.
        """
        previous = self.find(resource, namespace, name, uid)
        if previous is None:
            return None
        obj = copy.deepcopy(previous)
        change(obj)
        if obj == previous:
            return previous
        before, after = previous["metadata"], obj["metadata"]
        if before.get("finalizers") and not after.get("finalizers") and after.get("deletionGracePeriodSeconds") == 0:
            return self.remove(resource, namespace, name)
        return self._write("MODIFIED", resource, obj, previous)

    def remove(self, resource: Resource, namespace: str, name: str, uid: str | None = None) -> Object | None:
        """Take an object out at once and return its last state; None if it was not there."""
        previous = self.find(resource, namespace, name, uid)
        if previous is None:
            return None
        return self._write("DELETED", resource, {**previous, "metadata": {**previous["metadata"]}}, previous)

    def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        grace: int | None = None,
        uid: str | None = None,
        finalizer: str | None = None,
    ) -> Object:
        """Delete as the API does and return the object as it then stands.

        A pod that has a node and has not ended only gets its deletionTimestamp, `grace` seconds (its own grace if
        None) from now; the kubelet removes it. What has finalizers, `finalizer` added, is removed with the last of
        them. Everything else is removed at once.

        :raises ApiError: 404; 409, it is not the one with this `uid`
        """
        obj = self.get(resource, namespace, name)
        if uid is not None and obj["metadata"]["uid"] != uid:
            raise conflict(
                resource,
                name,
                f"Precondition failed: UID in precondition: {uid}, UID in object meta: {obj['metadata']['uid']}",
            )
        period = self._grace(resource, obj, grace)

        def mark(marked: Object) -> None:
            metadata = marked["metadata"]
            before = metadata.get("deletionGracePeriodSeconds")
            if before is None and "generation" in metadata:
                metadata["generation"] += 1
            if before is None or period < before:
                metadata["deletionTimestamp"] = seconds(time.time() + period)
                metadata["deletionGracePeriodSeconds"] = period
            if finalizer is not None and finalizer not in (finalizers := metadata.setdefault("finalizers", [])):
                finalizers.append(finalizer)

        if resource is PODS or finalizer is not None or obj["metadata"].get("finalizers"):
            marked = self.update(resource, namespace, name, mark)
            assert marked is not None
            metadata = marked["metadata"]
            if metadata["deletionGracePeriodSeconds"] > 0 or metadata.get("finalizers"):
                return marked
        removed = self.remove(resource, namespace, name)
        assert removed is not None
        return removed

    def create_namespace(self, name: str) -> Object:
        """Create a namespace.

        :raises ApiError: 409
        """
        if self.find(NAMESPACES, "", name) is not None:
            raise already_exists(NAMESPACES, name)
        return self._write("ADDED", NAMESPACES, _namespace(name), None)

    def delete_namespace(self, name: str) -> Object:
        """Begin to delete a namespace; whoever empties it removes it.

        :raises ApiError: 404
        """

        def mark(namespace: Object) -> None:
            namespace["metadata"].setdefault("deletionTimestamp", seconds())
            namespace["status"]["phase"] = "Terminating"

        self.get(NAMESPACES, "", name)
        marked = self.update(NAMESPACES, "", name, mark)
        assert marked is not None
        return marked

    def _grace(self, resource: Resource, obj: Object, asked: int | None) -> int:
        """Return how many seconds an object still has."""
        before: int | None = obj["metadata"].get("deletionGracePeriodSeconds")
        if resource is not PODS or not obj["spec"].get("nodeName"):
            return 0
        if before is not None:
            return before if asked is None else min(before, asked)
        if obj["status"].get("phase") in FINISHED:
            return 0
        return int(obj["spec"]["terminationGracePeriodSeconds"]) if asked is None else asked

    def _write(
        self, kind: Literal["ADDED", "MODIFIED", "DELETED"], resource: Resource, obj: Object, previous: Object | None
    ) -> Object:
        self.revision += 1
        obj["metadata"]["resourceVersion"] = str(self.revision)
        if kind == "DELETED":
            del self._objects[resource][key_of(obj)]
        else:
            self._objects[resource][key_of(obj)] = obj
        if len(self._history) == self._history.maxlen:
            self.oldest = self._history[0].revision
        change = Change(self.revision, kind, resource, obj, previous)
        self._history.append(change)
        for subscriber in [*self._subscribers]:
            try:
                subscriber.send_nowait(change)
            except anyio.WouldBlock:  # too slow to follow: it sees the end and starts again where it was
                self._subscribers.discard(subscriber)
                subscriber.close()
        return obj

    # Following

    def compact(self) -> None:
        """Forget all changes: every resourceVersion that anyone has seen is now too old."""
        self.revision += 1
        self.oldest = self.revision
        self._history.clear()

    def changes(self, since: int) -> list[Change]:
        """Return the changes after the revision `since`.

        :raises ApiError: 410, they are forgotten
        """
        if since < self.oldest:
            raise expired(since, self.oldest)
        return [change for change in self._history if change.revision > since]

    def before(self, revision: int, count: int) -> list[Change]:
        """Return at most `count` remembered changes up to and including `revision`, oldest first."""
        return [change for change in self._history if change.revision <= revision][-count:]

    @contextmanager
    def subscribe(self, buffer: float = inf) -> Iterator[MemoryObjectReceiveStream[Change]]:
        """Hand out every change from now on; the stream ends for a reader more than `buffer` changes behind."""
        send, receive = anyio.create_memory_object_stream[Change](buffer)
        self._subscribers.add(send)
        try:
            with receive:
                yield receive
        finally:
            self._subscribers.discard(send)
            send.close()


def _namespace(name: str) -> Object:
    return {
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "uid": str(uuid.uuid4()),
            "resourceVersion": "1",
            "creationTimestamp": seconds(),
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "spec": {"finalizers": ["kubernetes"]},
        "status": {"phase": "Active"},
    }
