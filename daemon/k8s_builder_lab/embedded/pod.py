"""One pod on the node: scheduled, mounted, pulled, run as local processes, ended. Owns its directory and processes."""

import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec

from k8s_builder_lab.embedded import podstatus, scheduler, volumes
from k8s_builder_lab.embedded.container import ContainerProcess, Ended, StartError, command_line
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.images import Image, Images, PullError
from k8s_builder_lab.embedded.logs import ContainerLog
from k8s_builder_lab.embedded.objects import PODS, SECRETS, Object, seconds
from k8s_builder_lab.embedded.pace import Pace
from k8s_builder_lab.embedded.podstatus import NODE, ContainerView, PodView
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.undertaker import Undertaker

SECRET_PATIENCE = 0.2
"""Seconds, not scaled, that a Secret may come after its pod without a FailedMount: measured as free of cost."""

FORCED_GRACE = 2.0
"""Seconds that the processes of a pod deleted with grace 0 still get, as measured."""

SHUTDOWN_GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL when the cluster itself ends."""


class Node(msgspec.Struct):
    """What all pods of the node share."""

    store: Store
    recorder: Recorder
    environment: Environment
    images: Images | Path
    pace: Pace
    directory: Path
    path: str
    log_limit: int
    undertaker: Undertaker


class Pod:
    """One pod's life. `run` is that life; `delete` and `evict` are told to it from outside."""

    def __init__(self, node: Node, pod: Object) -> None:
        self._node = node
        self._store = node.store
        self._pace = node.pace
        self._spec: Object = pod
        self._namespace: str = pod["metadata"]["namespace"]
        self._name: str = pod["metadata"]["name"]
        self._uid: str = pod["metadata"]["uid"]
        self._containers: list[Object] = pod["spec"]["containers"]
        self._directory = node.directory / self._uid
        self._volumes: dict[str, Path] = {}
        self._images: dict[str, Image] = {}
        self._view = PodView(
            [ContainerView(c["name"], c["image"], mounts=volumes.mount_statuses(c)) for c in self._containers]
        )
        self._starting = anyio.CancelScope()
        self._deletion = anyio.Event()
        self._deadline = anyio.CancelScope()
        self._grace: float | None = None
        self._evicted = ""
        self.ended = False
        self.logs: dict[str, ContainerLog] = {}
        self.processes: dict[str, ContainerProcess] = {}

    # Told from outside

    def delete(self, grace: float) -> None:
        """End the pod within `grace` seconds; told again with less, it is less."""
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
        self._directory.mkdir(mode=0o700)
        try:
            with self._starting:
                await self._schedule()
                await self._mount()
                await self._pull()
            if not self._deletion.is_set():
                await self._run_containers()
            await self._finish()
        finally:
            with anyio.CancelScope(shield=True):
                await self._end_processes()
            self._close_logs()
            self.ended = True

    def discard(self) -> None:
        """Remove what it left on the disk."""
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _schedule(self) -> None:
        await self._pace.pause(self._pace.scheduling)
        while True:
            environment = self._node.environment
            refusal = scheduler.refusal(self._spec, environment.node_labels, environment.node_taints)
            if refusal is None:
                break
            self._node.recorder.scheduling(self._spec, "Warning", "FailedScheduling", refusal, "Scheduling")
            self._change(partial(podstatus.scheduled, refusal=refusal))
            while scheduler.refusal(self._spec, environment.node_labels, environment.node_taints) == refusal:
                await self._pace.retry(1)
        self._change(partial(podstatus.scheduled, refusal=None))
        self._node.recorder.scheduling(
            self._spec,
            "Normal",
            "Scheduled",
            f"Successfully assigned {self._namespace}/{self._name} to {NODE}",
            "Binding",
        )

    async def _mount(self) -> None:
        await self._pace.pause(self._pace.kubelet_notices)
        self._view.started_at = seconds()
        self._tell()
        await self._secrets_come(SECRET_PATIENCE)
        delay = self._pace.mount_retry
        while missing := volumes.missing_secret(self._store, self._spec):
            volume, secret = missing
            self._event(
                "Warning",
                "FailedMount",
                f'MountVolume.SetUp failed for volume "{volume}" : secret "{secret}" not found',
            )
            await self._pace.retry(delay)
            delay = min(delay * 2, self._pace.mount_retry_cap)
        self._volumes = volumes.make(self._store, self._spec, self._directory)

    async def _secrets_come(self, patience: float) -> None:
        with self._store.subscribe() as changes, anyio.move_on_after(patience):
            while volumes.missing_secret(self._store, self._spec):
                async for change in changes:
                    if change.resource is SECRETS:
                        break

    async def _pull(self) -> None:
        await self._pace.pause(self._pace.sandbox)
        for container, view in zip(self._containers, self._view.containers, strict=True):
            image = self._images[view.name] = await self._pull_one(view)
            if image.pull_seconds:
                self._event("Normal", "Pulling", f'Pulling image "{view.image}"', view.name)
                await anyio.sleep(image.pull_seconds)
                self._event("Normal", "Pulled", f'Successfully pulled image "{view.image}"', view.name)
            else:
                self._event(
                    "Normal",
                    "Pulled",
                    f'Container image "{view.image}" already present on machine and can be accessed by the pod',
                    view.name,
                )
            self._view.sandbox = True
            self._tell()
            if image.behaviour == "pending":
                await anyio.sleep_forever()
            await self._refuse_root(container, view, image)

    async def _pull_one(self, view: ContainerView) -> Image:
        """Pull until it works, telling each failure in the order in which a real kubelet tells it."""
        first = True
        retry = self._pace.pull_retry
        while True:
            try:
                return self._node.environment.pull(self._node.images, view.image)
            except PullError as error:
                message, invalid_name = str(error), error.invalid_name
            self._view.sandbox = True
            if invalid_name:
                self._event("Warning", "InspectFailed", message, view.name)
                if not first:
                    self._wait_for(view, "InvalidImageName", message)
                self._tell()
                self._event("Warning", "Failed", "Error: InvalidImageName", view.name)
                await self._pace.retry(self._pace.pull_noticed if first else self._pace.pull_told)
            else:
                self._event("Normal", "Pulling", f'Pulling image "{view.image}"', view.name)
                self._event("Warning", "Failed", f'Failed to pull image "{view.image}": {message}', view.name)
                if not first:
                    self._wait_for(
                        view, "ImagePullBackOff", f'Back-off pulling image "{view.image}": ErrImagePull: {message}'
                    )
                self._tell()
                self._event("Warning", "Failed", "Error: ErrImagePull", view.name)
                await self._pace.retry(self._pace.pull_noticed if first else self._pace.pull_told)
                self._event("Normal", "BackOff", f'Back-off pulling image "{view.image}"', view.name)
                self._wait_for(view, "ErrImagePull", message)
                self._tell()
                self._event("Warning", "Failed", "Error: ImagePullBackOff", view.name)
                await self._pace.retry(retry)
                retry = min(retry * 2, self._pace.pull_retry_cap)
            first = False

    async def _refuse_root(self, container: Object, view: ContainerView, image: Image) -> None:
        context = {**(self._spec["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
        while image.runs_as_root and context.get("runAsNonRoot") and "runAsUser" not in context:
            message = (
                "container has runAsNonRoot and image will run as root "
                f'(pod: "{self._name}_{self._namespace}({self._uid})", container: {view.name})'
            )
            self._event("Warning", "Failed", f"Error: {message}", view.name)
            self._wait_for(view, "CreateContainerConfigError", message)
            self._tell()
            await self._pace.retry(self._pace.pull_told)

    def _wait_for(self, view: ContainerView, reason: str, message: str) -> None:
        self._view.address = True
        view.state = {"waiting": {"reason": reason, "message": message}}

    # Its containers

    async def _run_containers(self) -> None:
        async with anyio.create_task_group() as lifetime:
            lifetime.start_soon(self._stop_when_told)
            async with anyio.create_task_group() as tg:
                for container, view in zip(self._containers, self._view.containers, strict=True):
                    tg.start_soon(self._run_container, container, view)
            lifetime.cancel_scope.cancel()

    async def _run_container(self, container: Object, view: ContainerView) -> None:
        image = self._images[view.name]
        directory = self._directory / view.name
        home = directory / "work"
        home.mkdir(parents=True, mode=0o700)
        log = self.logs[view.name] = ContainerLog(directory, image.clock, self._node.log_limit)
        env = volumes.environment(self._spec, container, image.env, self._volumes)
        env = {"PATH": self._node.path, "HOME": str(home), "TMPDIR": str(home), **env}
        await self._pace.pause(self._pace.container_create)
        self._event("Normal", "Created", "Container created", view.name)
        await self._pace.pause(self._pace.container_start)
        view.container_id = f"embedded://{os.urandom(32).hex()}"
        self._view.address = True
        try:
            process = await ContainerProcess.start(command_line(container, image.command, env), env, home, log)
        except StartError as error:
            self._event("Warning", "Failed", f"Error: {error}", view.name)
            await self._pace.pause(self._pace.end_noticed)
            self._ended(view, 128, "StartError", 0, time.time(), str(error))
            return
        self.processes[view.name] = process
        self._node.undertaker.born(process.pid)
        try:
            self._event("Normal", "Started", "Container started", view.name)
            view.state = {"running": {"startedAt": seconds(process.started_at)}}
            self._view.phase = "Running"
            self._tell()
            if self._deletion.is_set():
                process.terminate()
            ended = await process.run()
        finally:
            # What is still alive here is ended by `run`.
            if process.gone:
                self._forget(view.name)
        await self._pace.pause(self._pace.end_noticed)
        self._told(view, process, ended, image)

    def _told(self, view: ContainerView, process: ContainerProcess, ended: Ended, image: Image) -> None:
        reason = "Error" if ended.exit_code else "Completed"
        if image.behaviour == "oom" and ended.exit_code == 137 and not process.killed:
            reason = "OOMKilled"
        self._ended(view, ended.exit_code, reason, process.started_at, ended.finished_at)

    def _ended(
        self, view: ContainerView, code: int, reason: str, started: float, finished: float, message: str = ""
    ) -> None:
        terminated = {"exitCode": code, "reason": reason}
        view.state = {
            "terminated": {
                **terminated,
                **({"message": message} if message else {}),
                "startedAt": seconds(started),
                "finishedAt": seconds(finished),
                "containerID": view.container_id,
            }
        }
        if not self._deletion.is_set():
            self._tell()

    async def _stop_when_told(self) -> None:
        await self._deletion.wait()
        assert self._grace is not None
        for name in self.processes:
            self._event("Normal", "Killing", f"Stopping container {name}", name)
        for process in self.processes.values():
            process.terminate()
        await self._pace.pause(self._pace.stop_told)
        self._tell()
        with self._deadline:
            await anyio.sleep_forever()
        for process in self.processes.values():
            process.kill()

    async def _finish(self) -> None:
        """Tell the end: the containers', then the pod's, then, if it was deleted, remove the object."""
        deleted = self._deletion.is_set()
        codes = [view.exit_code for view in self._view.containers]
        if not deleted:
            await self._pace.pause(self._pace.log_ends)
            self._close_logs()
            with anyio.move_on_after(self._pace.pod_finishes * self._pace.factor):
                await self._deletion.wait()
        if deleted and None in codes:
            await self._give_up()
        self._view.phase = "Failed" if any(codes) or None in codes else "Succeeded"
        self._view.sandbox = False
        if self._evicted:
            self._view.reason, self._view.message = "Evicted", self._evicted
            self._event("Warning", "Evicted", self._evicted)
            self._change(lambda pod: podstatus.disrupted(pod, "TerminationByKubelet", self._evicted))
        self._tell()
        self._close_logs()
        if deleted and not self._evicted:
            await self._pace.pause(self._pace.pod_removed)
        if not self._evicted:
            self._remove_if_deleted()

    async def _give_up(self) -> None:
        """Tell of containers that never were what a kubelet tells: it could not find them."""
        for view in self._view.containers:
            view.state = {"waiting": {"reason": "ContainerCreating"}}
        self._tell()
        await self._pace.pause(self._pace.stop_told)
        for view in self._view.containers:
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
        def now(pod: Object) -> None:
            pod["metadata"]["deletionGracePeriodSeconds"] = 0
            pod["metadata"]["deletionTimestamp"] = seconds()

        pod = self._store.find(PODS, self._namespace, self._name, self._uid)
        if pod is not None and "deletionTimestamp" in pod["metadata"]:
            self._change(now)
            self._store.remove(PODS, self._namespace, self._name, self._uid)

    async def _end_processes(self) -> None:
        """End what still lives when the cluster itself ends."""
        for process in self.processes.values():
            process.terminate()
        with anyio.move_on_after(SHUTDOWN_GRACE):
            for process in self.processes.values():
                await process.wait()
        for process in self.processes.values():
            process.kill()
            await process.wait()
        for name in [*self.processes]:
            self._forget(name)

    def _forget(self, name: str) -> None:
        self._node.undertaker.gone(self.processes.pop(name).pid)

    def _close_logs(self) -> None:
        for log in self.logs.values():
            log.close()

    # What it tells

    def _event(self, kind: str, reason: str, message: str, container: str = "") -> None:
        self._node.recorder.pod(self._spec, kind, reason, message, container)

    def _tell(self) -> None:
        self._change(lambda pod: podstatus.apply(pod, self._view))

    def _change(self, change: Callable[[Object], Any]) -> None:
        pod = self._store.update(PODS, self._namespace, self._name, change, uid=self._uid)
        if pod is not None:
            self._spec = pod
