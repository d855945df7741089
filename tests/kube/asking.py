"""One who asks an API server: with whatever credentials, and for whatever the daemon asks for."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from k8s_builderd.kube.api import Api
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import EVENTS, JOBS, PODS, SECRETS
from tests.kube.rogue import Rogue


@asynccontextmanager
async def opened(server: Rogue, path: Path, patience: float = 10.0, **user: Any) -> AsyncIterator[Api]:
    """Open the API that a server is, for a user with these fields of a kubeconfig."""
    async with Api.open(str(server.kubeconfig(path, **user)), "ns", patience=patience) as api:
        yield api


async def opens(stream: Any) -> None:
    """Read an answer to its end."""
    async with stream as chunks:
        async for _ in chunks:
            pass


REQUESTS: dict[str, Callable[[Api], Awaitable[Any]]] = {
    "list jobs.batch": lambda api: api.list(JOBS, ObjectOnly),
    "get pods": lambda api: api.get(PODS, ObjectOnly, "p"),
    "create secrets": lambda api: api.create(SECRETS, ObjectOnly, {"metadata": {"name": "s"}}),
    "delete jobs.batch": lambda api: api.delete(JOBS, "j", "uid"),
    "list events": lambda api: api.list(EVENTS, ObjectOnly, fieldSelector="involvedObject.uid=u"),
    "watch pods": lambda api: opens(api.watch(PODS, {})),
    "get pods/log": lambda api: opens(api.log("p", {})),
}
"""A request of each kind, by what it is called in an error."""
