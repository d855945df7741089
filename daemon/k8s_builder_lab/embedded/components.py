"""The processes that make a cluster of an API server, each of which can be away for a while."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio.abc import TaskGroup

from k8s_builder_lab.embedded.node import Gate

KUBELET = "kubelet"


class Components:
    """`kube-controller-manager` and `kube-scheduler` are ended and started again, the `kubelet` is frozen and thawed.

    What is started again looks at everything that is there, as after a restart; it remembers nothing. A frozen kubelet
    goes on where it stood, its containers go on meanwhile.
    """

    def __init__(self, kubelet: Gate, **serve: list[Callable[..., Coroutine[Any, Any, None]]]) -> None:
        """Take the gate of the kubelet, and what to serve, by the component's name with `_` for `-`."""
        self._kubelet = kubelet
        self._serve = {name.replace("_", "-"): tasks for name, tasks in serve.items()}
        self._scopes: dict[str, anyio.CancelScope] = {}

    @property
    def up(self) -> dict[str, bool]:
        """Which of them are there."""
        return {**{name: name in self._scopes for name in self._serve}, KUBELET: self._kubelet.is_open}

    async def start(self, tg: TaskGroup) -> None:
        """Start all of them in `tg`; returns when they follow."""
        self._tg = tg
        for name in self._serve:
            await self._start(name)

    async def switch(self, wanted: dict[str, Any]) -> None:
        """Have each of those named there (true) or away (false).

        :raises ValueError: no such component, or neither true nor false
        """
        for name, up in wanted.items():
            if name not in self.up or not isinstance(up, bool):
                raise ValueError(f"{name}: {up}: known are {', '.join(self.up)}, each true or false")
        for name, up in wanted.items():
            if name == KUBELET:
                (self._kubelet.open if up else self._kubelet.close)()
            elif up and name not in self._scopes:
                await self._start(name)
            elif not up and name in self._scopes:
                self._scopes.pop(name).cancel()

    async def _start(self, name: str) -> None:
        self._scopes[name] = await self._tg.start(self._run, name)

    async def _run(self, name: str, *, task_status: anyio.abc.TaskStatus[anyio.CancelScope]) -> None:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tg:
                for serve in self._serve[name]:
                    await tg.start(serve)
                task_status.started(scope)
