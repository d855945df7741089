"""The only node: a life for each pod, and what is asked about its logs and processes."""

import anyio
from anyio.abc import TaskGroup, TaskStatus

from k8s_builder_lab.embedded.logs import ContainerLog
from k8s_builder_lab.embedded.node import Node
from k8s_builder_lab.embedded.objects import PODS, Object
from k8s_builder_lab.embedded.pod import Pod
from k8s_builder_lab.embedded.status import ApiError, bad_request, not_found
from k8s_builder_lab.embedded.store import Change


class Kubelet:
    """Runs every pod that has a node; cancelled, it ends their processes and returns when they are gone."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._pods: dict[str, Pod] = {}

    async def serve(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the store until cancelled."""
        with self._node.store.subscribe() as changes:
            async with anyio.create_task_group() as tg:
                task_status.started()
                async for change in changes:
                    if change.resource is PODS and change.object["spec"].get("nodeName"):
                        await self._node.step()
                        self._notice(change, tg)

    def _notice(self, change: Change, tg: TaskGroup) -> None:
        metadata = change.object["metadata"]
        pod = self._pods.get(metadata["uid"])
        if pod is None:
            if change.type != "DELETED" and self._node.store.find_by_uid(PODS, metadata["uid"]) is not None:
                pod = self._pods[metadata["uid"]] = Pod(self._node, change.object)
                tg.start_soon(self._live, metadata["uid"], pod)
        elif change.type == "DELETED":
            pod.delete(0)
            if pod.ended:
                self._forget(metadata["uid"])
        elif "deletionTimestamp" in metadata:
            pod.delete(metadata["deletionGracePeriodSeconds"])

    async def _live(self, uid: str, pod: Pod) -> None:
        try:
            await pod.run()
        finally:
            if self._node.store.find_by_uid(PODS, uid) is None:
                self._forget(uid)

    def _forget(self, uid: str) -> None:
        pod = self._pods.pop(uid, None)
        if pod is not None:
            pod.discard()

    @property
    def processes(self) -> list[int]:
        """The process ids of all containers that live."""
        containers = [container for pod in self._pods.values() for container in pod.containers.values()]
        return [container.process.pid for container in containers if container.process is not None]

    def pod(self, pod: Object) -> Pod:
        """Return the life of this pod.

        :raises ApiError: 404, it is not on the node
        """
        found = self._pods.get(pod["metadata"]["uid"])
        if found is None:
            raise not_found(PODS, pod["metadata"]["name"])
        return found

    async def log(self, pod: Object, container: str) -> ContainerLog | None:
        """Return the log of a pod's container (`container` may be empty if there is but one).

        None if the pod has no node yet. While the kubelet is frozen there is no answer.

        :raises ApiError: 400, no such container, or it has not started
        """
        name = pod["metadata"]["name"]
        names = [each["name"] for each in pod["spec"]["containers"]]
        init = [each["name"] for each in pod["spec"].get("initContainers") or []]
        if not container:
            if len(names) > 1:
                every = " ".join(init + names)
                raise bad_request(f"a container name must be specified for pod {name}, choose one of: [{every}]")
            container = names[0]
        if container not in names + init:
            raise bad_request(f"container {container} is not valid for pod {name}")
        if not pod["spec"].get("nodeName"):
            return None
        await self._node.step()
        found = self.pod(pod).containers[container]
        if "waiting" in found.view.state or found.log is None:
            raise _waiting(container, name, found.view.state.get("waiting", {}).get("reason", "ContainerCreating"))
        return found.log


def _waiting(container: str, pod: str, reason: str) -> ApiError:
    if reason in {"ErrImagePull", "ImagePullBackOff"}:
        return bad_request(
            f'container "{container}" in pod "{pod}" is waiting to start: '
            + ("trying and failing to pull image" if reason == "ImagePullBackOff" else "image can't be pulled")
        )
    return bad_request(f'container "{container}" in pod "{pod}" is waiting to start: {reason}')
