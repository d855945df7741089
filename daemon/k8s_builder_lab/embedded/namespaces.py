"""The namespace controller: empties a namespace that is being deleted, and removes it then."""

from collections.abc import Iterator

import anyio
from anyio.abc import TaskGroup, TaskStatus

from k8s_builder_lab.embedded.objects import NAMESPACES, RESOURCES, Object, Resource, is_deleting
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.timings import Timings


class NamespaceController:
    """Deletes what is in a namespace whose deletion was asked for. Watches of it stay open."""

    def __init__(self, store: Store, timings: Timings) -> None:
        self._store = store
        self._timings = timings

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Look at every namespace, then follow the store until cancelled."""
        with self._store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                for namespace in self._store.everything(NAMESPACES):
                    self._look_at(namespace, tg)
                task_status.started()
                async for change in changes:
                    if change.resource is NAMESPACES and change.type == "MODIFIED":
                        self._look_at(change.object, tg)

    def _look_at(self, namespace: Object, tg: TaskGroup) -> None:
        if is_deleting(namespace):
            tg.start_soon(self._empty, namespace["metadata"]["name"])

    async def _empty(self, namespace: str) -> None:
        await self._timings.pause(self._timings.garbage)
        with self._store.subscribe() as changes:
            for resource, obj in list(self._content(namespace)):
                if self._store.find(resource, namespace, obj["metadata"]["name"], obj["metadata"]["uid"]) is not None:
                    self._store.delete(resource, namespace, obj["metadata"]["name"])
            while any(self._content(namespace)):
                await changes.receive()
        self._store.remove(NAMESPACES, "", namespace)

    def _content(self, namespace: str) -> Iterator[tuple[Resource, Object]]:
        for resource in RESOURCES:
            for obj in self._store.everything(resource):
                if obj["metadata"]["namespace"] == namespace:
                    yield resource, obj
