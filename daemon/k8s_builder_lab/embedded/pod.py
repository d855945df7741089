"""One pod on the node: mounted, initialized, run as local processes, ended. Owns its directory and containers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from k8s_builder_lab.embedded import podstatus, volumes
from k8s_builder_lab.embedded.container import MINIMUM_GRACE, Container
from k8s_builder_lab.embedded.logs import ContainerLog
from k8s_builder_lab.embedded.node import Node
from k8s_builder_lab.embedded.objects import PODS, SECRETS, Object
from k8s_builder_lab.embedded.podstatus import ContainerView, Kind, PodView

SECRET_PATIENCE = 0.2
"""Seconds, not scaled, that a Secret may come after its pod without a FailedMount: measured as free of cost."""

SHUTDOWN_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL when the cluster itself ends."""


class Pod:
    """One pod's life. `run` is that life; `delete` and `evict` are told to it from outside."""

    def __init__(self, node: Node, pod: Object) -> None:
        self.node = node
        self.spec: Object = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self._name: str = pod["metadata"]["name"]
        self._uid: str = pod["metadata"]["uid"]
        self.directory = node.directory / self._uid
        self.volumes: dict[str, Path] = {}
        init: list[Object] = pod["spec"].get("initContainers") or []
        main: list[Object] = pod["spec"]["containers"]
        self._waiting = "PodInitializing" if init else "ContainerCreating"
        self.view = PodView(
            [_view(each, self._waiting, init=True) for each in init], [_view(each, self._waiting) for each in main]
        )
        self._init = [Container(self, each, view) for each, view in zip(init, self.view.init, strict=True)]
        self._main = [Container(self, each, view) for each, view in zip(main, self.view.main, strict=True)]
        self.containers = {each.view.name: each for each in (*self._init, *self._main)}
        self._starting = anyio.CancelScope()
        self._deletion = anyio.Event()
        self._deadline = anyio.CancelScope()
        self._grace: float | None = None
        self._evicted = ""
        self.ended = False

    # Told from outside

    def delete(self, grace: float) -> None:
        """End the pod within `grace` seconds; told again with less, it is less."""
        grace = max(grace, MINIMUM_GRACE)
        if self._grace is None or grace < self._grace:
            self._grace = grace
            self._deadline.deadline = min(self._deadline.deadline, anyio.current_time() + grace)
        self._deletion.set()
        self._starting.cancel()

    def evict(self, message: str) -> None:
        """End the pod as a kubelet does that runs out of something: it is Failed, and its object stays."""
        self._evicted = message
        self.delete(0)

    # Its life

    async def run(self) -> None:
        """Live; when cancelled, end the processes and leave the objects as they are."""
        self.directory.mkdir(mode=0o700)
        try:
            async with anyio.create_task_group() as self._logs:
                async with anyio.create_task_group() as lifetime:
                    lifetime.start_soon(self._stop_when_told)
                    await self._run_containers()
                    lifetime.cancel_scope.cancel()
                await self._finish()
                self._logs.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                async with anyio.create_task_group() as tg:
                    for container in self.containers.values():
                        tg.start_soon(container.end, SHUTDOWN_GRACE)
            self.ended = True

    def discard(self) -> None:
        """Remove what it left on the disk."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _mount(self) -> None:
        timings, store = self.node.timings, self.node.store
        await self.node.step(timings.kubelet_notices)
        self.view.started_at = self.node.stamp()
        self.tell()
        await self._secrets_come(SECRET_PATIENCE)
        delay = timings.mount_retry
        while missing := volumes.missing_secret(store, self.spec):
            volume, secret = missing
            self.event(
                "Warning",
                "FailedMount",
                f'MountVolume.SetUp failed for volume "{volume}" : secret "{secret}" not found',
            )
            await self.node.retry(delay)
            delay = min(delay * 2, timings.mount_retry_cap)
        self.volumes = volumes.make(store, self.spec, self.directory)
        await self.node.step(timings.sandbox)

    async def _secrets_come(self, patience: float) -> None:
        with self.node.store.subscribe() as changes, anyio.move_on_after(patience):
            while volumes.missing_secret(self.node.store, self.spec):
                async for change in changes:
                    if change.resource is SECRETS:
                        break

    async def _run_containers(self) -> None:
        """Run the init containers one after another, then the containers; end the sidecars after them."""
        async with anyio.create_task_group() as limit:
            async with anyio.create_task_group() as beside:
                async with anyio.create_task_group() as main:
                    with self._starting:
                        await self._mount()
                        if await self._initialize(beside):
                            for container in self._main:
                                main.start_soon(container.live)
                                await container.under_way.wait()
                            self.tell()
                for container in reversed(self._init):
                    container.stop()
                limit.start_soon(self._kill_sidecars)
            limit.cancel_scope.cancel()

    async def _initialize(self, beside: TaskGroup) -> bool:
        """Run the init containers; say whether the containers may begin."""
        for container in self._init:
            beside.start_soon(container.live)
            await container.under_way.wait()
            self.tell()
            await container.settled.wait()
            if container.view.kind == "init" and container.view.exit_code:
                return False
            if not container.view.is_complete:
                await anyio.sleep_forever()  # a sidecar that ended before it had started: nothing starts it again
        return True

    async def _kill_sidecars(self) -> None:
        await anyio.sleep(max(self.spec["spec"]["terminationGracePeriodSeconds"], MINIMUM_GRACE))
        await self.node.step()
        for container in self._init:
            container.kill()

    async def _stop_when_told(self) -> None:
        await self._deletion.wait()
        assert self._grace is not None
        await self.node.step()
        for container in (*self._main, *(each for each in self._init if each.view.kind == "init")):
            container.stop()
        await self.node.step(self.node.timings.stop_told)
        self.tell()
        with self._deadline:
            await anyio.sleep_forever()
        await self.node.step()
        for container in self.containers.values():
            container.kill()

    async def _finish(self) -> None:
        """Tell the end: the containers', then the pod's, then, if it was deleted, remove the object."""
        if not self._deletion.is_set():
            with anyio.move_on_after(self.node.timings.pod_finishes * self.node.timings.factor):
                await self._deletion.wait()
        await self.node.step()
        deleted = self._deletion.is_set()
        if deleted and self.view.verdict is None:
            await self._give_up()
        self.view.phase = self.view.verdict or "Failed"
        self.view.sandbox = False
        if self._evicted:
            self.view.reason, self.view.message = "Evicted", self._evicted
            self.event("Warning", "Evicted", self._evicted)
            now = self.node.stamp()
            self._change(lambda pod: podstatus.disrupted(pod, "TerminationByKubelet", self._evicted, now))
        self.tell()
        if deleted and not self._evicted:
            await self.node.step(self.node.timings.pod_removed)
        if not self._evicted:
            self._remove_if_deleted()

    async def _give_up(self) -> None:
        """Tell of containers that never were what a kubelet tells: it could not find them."""
        never = [view for view in self.view.main if view.exit_code is None]
        for view in never:
            view.state = {"waiting": {"reason": self._waiting}}
        self.tell()
        await self.node.step(self.node.timings.stop_told)
        for view in never if self.view.is_initialized else []:
            view.lost = True
            view.state = {
                "terminated": {
                    "exitCode": 137,
                    "reason": "ContainerStatusUnknown",
                    "message": "The container could not be located when the pod was terminated",
                    "startedAt": None,
                    "finishedAt": None,
                }
            }

    def _remove_if_deleted(self) -> None:
        pod = self.node.store.find(PODS, self._namespace, self._name, self._uid)
        if pod is not None and "deletionTimestamp" in pod["metadata"]:
            self.node.store.delete(PODS, self._namespace, self._name, grace=0)

    # What it tells

    def event(self, kind: str, reason: str, message: str, path: str = "") -> None:
        """Record an event about the pod, or about the container whose `path` it is."""
        self.node.recorder.pod(self.spec, kind, reason, message, path)

    def tell(self) -> None:
        """Write the pod's status."""
        now = self.node.stamp()
        self._change(lambda pod: podstatus.apply(pod, self.view, now))

    def container_ended(self) -> None:
        """Tell that a container has ended; of a pod that is being deleted, that comes with its end."""
        if not self._deletion.is_set():
            self.tell()

    def close_later(self, log: ContainerLog) -> None:
        """End the log of a container that has ended, once its readers have had the time that a kubelet gives them."""

        async def close() -> None:
            await self.node.step(self.node.timings.log_ends)
            log.close()

        self._logs.start_soon(close)

    def _change(self, change: Callable[[Object], Any]) -> None:
        pod = self.node.store.update(PODS, self._namespace, self._name, change, uid=self._uid)
        if pod is not None:
            self.spec = pod


def _view(container: Object, reason: str, *, init: bool = False) -> ContainerView:
    kind: Kind = "main"
    if init:
        kind = "sidecar" if container.get("restartPolicy") == "Always" else "init"
    state = {"waiting": {"reason": reason}}
    mounts = volumes.mount_statuses(container)
    return ContainerView(container["name"], container["image"], kind, state, mounts=mounts)
