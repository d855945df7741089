"""One container as the kubelet cares for it: pulled, configured, started, probed, stopped, its log closed."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import anyio

from k8s_builder_lab.embedded import probes, volumes
from k8s_builder_lab.embedded.images import Image, PullError
from k8s_builder_lab.embedded.logs import ContainerLog
from k8s_builder_lab.embedded.node import Node
from k8s_builder_lab.embedded.objects import Object, seconds
from k8s_builder_lab.embedded.podstatus import ContainerView, PodView
from k8s_builder_lab.embedded.runtime import ContainerProcess, Ended, StartError, command_line, execute

MINIMUM_GRACE = 2.0
"""Seconds that processes get between SIGTERM and SIGKILL however short the pod's grace is, as measured."""


class Keeper(Protocol):
    """What a container needs of its pod."""

    node: Node
    spec: Object
    view: PodView
    directory: Path
    volumes: dict[str, Path]

    def container_ended(self) -> None:
        """Tell, or do not tell yet, that a container has ended."""

    def close_later(self, log: ContainerLog) -> None:
        """End the log of a container that has ended."""

    def tell(self) -> None:
        """Write the pod's status."""

    def event(self, kind: str, reason: str, message: str, path: str = "") -> None:
        """Record an event, about the container whose `path` it is."""


class Container:
    """One container's life. `live` is that life; `stop`, `kill` and `end` are told to it from outside. Never restarted.

    under_way: it runs, or was seen to have to wait, so that the next container may have its turn.
    settled: the containers after this init container may begin, or never will.
    """

    def __init__(self, pod: Keeper, spec: Object, view: ContainerView) -> None:
        self._pod = pod
        self._node = pod.node
        self._timings = pod.node.timings
        self._spec = spec
        self._starting = anyio.CancelScope()
        self._probing = anyio.CancelScope()
        self._stopped = False
        self.view = view
        self.under_way = anyio.Event()
        self.settled = anyio.Event()
        self.process: ContainerProcess | None = None
        self.log: ContainerLog | None = None

    # Told from outside

    def stop(self) -> None:
        """Send SIGTERM; if the container has not begun, it never will."""
        if self._stopped:
            return
        self._stopped = True
        self._starting.cancel()
        self._probing.cancel()
        if self.process is not None:
            self._event("Normal", "Killing", f"Stopping container {self.view.name}")
            self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        if self.process is not None:
            self.process.kill()

    async def end(self, grace: float) -> None:
        """End what still lives when the cluster itself ends."""
        if self.process is not None:
            self.process.terminate()
            with anyio.move_on_after(grace):
                await self.process.wait()
            self.process.kill()
            await self.process.wait()
            self._forget()
        if self.log is not None:
            self.log.close()

    # Its life

    async def live(self) -> None:
        """Live; when cancelled, leave the process to `end`."""
        try:
            begun: tuple[Image, dict[str, str]] | None = None
            with self._starting:
                image = await self._pull()
                env = await self._configure(image)
                await self._node.step(self._timings.container_create)
                self._event("Normal", "Created", "Container created")
                await self._node.step(self._timings.container_start)
                begun = image, env
            if begun is not None:
                await self._run(*begun)
        finally:
            self.under_way.set()
            self.settled.set()

    async def _run(self, image: Image, env: dict[str, str]) -> None:
        view = self.view
        directory = self._pod.directory / view.name
        home = directory / "work"
        home.mkdir(parents=True, mode=0o700)
        log = self.log = ContainerLog(directory, image.clock, self._node.log_limit, self._node.nanoseconds)
        env = {"PATH": self._node.path, "HOME": str(home), "TMPDIR": str(home), **env}
        view.container_id = f"embedded://{os.urandom(32).hex()}"
        self._pod.view.address = True
        command = command_line(self._spec, image.command, env)
        try:
            process = await ContainerProcess.start(command, env, home, log, self._node.now)
        except StartError as error:
            self._event("Warning", "Failed", f"Error: {error}")
            await self._node.step(self._timings.end_noticed)
            self._tell_end(Ended(128, self._node.now()), "StartError", 0, str(error))
            self._pod.close_later(log)
            return
        self.process = process
        self._node.reaper.born(process.pid)
        try:
            self._event("Normal", "Started", "Container started")
            view.state = {"running": {"startedAt": seconds(process.started_at)}}
            view.started = "startupProbe" not in self._spec
            view.ready = "readinessProbe" not in self._spec
            if self.under_way.is_set():  # the others did not wait for it, so nobody tells of it
                self._pod.tell()
            self.under_way.set()
            if self._stopped:
                process.terminate()
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._probe, partial(self._execute, env, home))
                ended = await process.run()
                tg.cancel_scope.cancel()
        finally:
            # What is still alive here is ended by `end`.
            if process.gone:
                self._forget()
        await self._node.step(self._timings.end_noticed)
        reason = "Error" if ended.exit_code else "Completed"
        if image.behaviour == "oom" and ended.exit_code == 137 and not process.killed:
            reason = "OOMKilled"
        self._tell_end(ended, reason, process.started_at)
        self.settled.set()
        self._pod.close_later(log)

    def _tell_end(self, ended: Ended, reason: str, started_at: float, message: str = "") -> None:
        self.view.state = {
            "terminated": {
                "exitCode": ended.exit_code,
                "reason": reason,
                **({"message": message} if message else {}),
                "startedAt": seconds(started_at),
                "finishedAt": seconds(ended.finished_at),
                "containerID": self.view.container_id,
            }
        }
        self._pod.container_ended()

    def _forget(self) -> None:
        if self.process is not None:
            self._node.reaper.gone(self.process.pid)
            self.process = None

    # Its image and its configuration

    async def _pull(self) -> Image:
        """Pull until it works, telling each failure in the order in which a real kubelet tells it."""
        first = True
        retry = self._timings.pull_retry
        reference = self.view.image
        while True:
            try:
                image = self._node.environment.pull(self._node.images, reference)
                break
            except PullError as error:
                message, invalid_name = str(error), error.invalid_name
            self._pod.view.sandbox = True
            noticed = self._timings.pull_noticed if first else self._timings.pull_told
            if invalid_name:
                self._event("Warning", "InspectFailed", message)
                if not first:
                    self._wait_for("InvalidImageName", message)
                self._must_wait()
                self._event("Warning", "Failed", "Error: InvalidImageName")
                await self._node.retry(noticed)
            else:
                self._event("Normal", "Pulling", f'Pulling image "{reference}"')
                self._event("Warning", "Failed", f'Failed to pull image "{reference}": {message}')
                if not first:
                    self._wait_for("ImagePullBackOff", f'Back-off pulling image "{reference}": ErrImagePull: {message}')
                self._must_wait()
                self._event("Warning", "Failed", "Error: ErrImagePull")
                await self._node.retry(noticed)
                self._event("Normal", "BackOff", f'Back-off pulling image "{reference}"')
                self._wait_for("ErrImagePull", message)
                self._must_wait()
                self._event("Warning", "Failed", "Error: ImagePullBackOff")
                await self._node.retry(retry)
                retry = min(retry * 2, self._timings.pull_retry_cap)
            first = False
        if image.pull_seconds:
            self._event("Normal", "Pulling", f'Pulling image "{reference}"')
            await anyio.sleep(image.pull_seconds)
            await self._node.step()
            self._event("Normal", "Pulled", f'Successfully pulled image "{reference}"')
        else:
            self._pulled()
        if not self._pod.view.sandbox:
            self._pod.view.sandbox = True
            self._pod.tell()
        if image.behaviour == "pending":
            self._must_wait()
            await anyio.sleep_forever()
        return image

    def _pulled(self) -> None:
        image = self.view.image
        message = f'Container image "{image}" already present on machine and can be accessed by the pod'
        self._event("Normal", "Pulled", message)

    async def _configure(self, image: Image) -> dict[str, str]:
        """Return the environment, once nothing is wrong with the configuration."""
        first = True
        while True:
            try:
                self._refuse_root(image)
                return volumes.environment(self._node.store, self._pod.spec, self._spec, image.env, self._pod.volumes)
            except volumes.ConfigError as error:
                message = str(error)
            if not first:
                self._pulled()
                self._wait_for("CreateContainerConfigError", message)
            self._must_wait()
            self._event("Warning", "Failed", f"Error: {message}")
            await self._node.retry(self._timings.config_noticed if first else self._timings.pull_told)
            first = False

    def _refuse_root(self, image: Image) -> None:
        spec, metadata = self._pod.spec["spec"], self._pod.spec["metadata"]
        context = {**(spec.get("securityContext") or {}), **(self._spec.get("securityContext") or {})}
        if image.runs_as_root and context.get("runAsNonRoot") and "runAsUser" not in context:
            raise volumes.ConfigError(
                "container has runAsNonRoot and image will run as root "
                f'(pod: "{metadata["name"]}_{metadata["namespace"]}({metadata["uid"]})", container: {self.view.name})'
            )

    def _wait_for(self, reason: str, message: str) -> None:
        self._pod.view.address = True
        self.view.state = {"waiting": {"reason": reason, "message": message}}

    def _must_wait(self) -> None:
        self._pod.tell()
        self.under_way.set()

    # Its probes

    async def _probe(self, execute: probes.Execute) -> None:
        with self._probing:
            if "startupProbe" in self._spec:
                await self._ask("startup", execute)
            async with anyio.create_task_group() as tg:
                if self.view.started:
                    if self.view.kind == "sidecar":
                        self.settled.set()
                    for kind in ("readiness", "liveness"):
                        if f"{kind}Probe" in self._spec:
                            tg.start_soon(self._ask, kind, execute)

    async def _ask(self, kind: str, execute: probes.Execute) -> None:
        probe = self._spec[f"{kind}Probe"]

        def failed(printed: str) -> None:
            self._event("Warning", "Unhealthy", f"{kind.capitalize()} probe failed: {printed}")

        def decided(good: bool) -> bool:
            if kind == "readiness":
                changed, self.view.ready = self.view.ready != good, good
            else:
                changed, self.view.started = good and not self.view.started, self.view.started or good
            if changed:
                self._pod.tell()
            return kind == "readiness" or (kind == "liveness" and good)

        first = probe["periodSeconds"] if kind == "liveness" else 0
        if not await probes.ask(probe, execute, failed, decided, first=first) and self.process is not None:
            self._event("Normal", "Killing", f"Stopping container {self.view.name}")
            self.process.terminate()
            await anyio.sleep(max(self._pod.spec["spec"]["terminationGracePeriodSeconds"], MINIMUM_GRACE))
            await self._node.step()
            self.process.kill()

    async def _execute(
        self, env: dict[str, str], home: Path, command: Sequence[str], seconds: float
    ) -> tuple[bool, str]:
        await self._node.step()
        return await execute(command, env, home, seconds, self._node.reaper)

    def _event(self, kind: str, reason: str, message: str) -> None:
        self._pod.event(kind, reason, message, self.view.path)
