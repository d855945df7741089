"""Asks the cluster what is there, over plain HTTP with the kubeconfig's token: an eye independent of the daemon."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from k8s_builder_lab.embedded.address import Address
from k8s_builderd.errors import BuilderError

KINDS = {"Job": "/apis/batch/v1", "Pod": "/api/v1", "Secret": "/api/v1"}
"""The kinds of object that a launch makes, and the API that has them."""


class ClusterError(BuilderError):
    """Raised when the API server answers with something else than what was asked for."""


class Cluster:
    """One namespace. Made by `open_cluster`."""

    def __init__(self, session: aiohttp.ClientSession, server: str, namespace: str) -> None:
        self.server = server
        self.namespace = namespace
        self._session = session

    async def names(self, kind: str) -> list[str]:
        """Return the names of all objects of a kind. Raises ClusterError, or aiohttp's ClientError."""
        return sorted((await self._list(kind))[0])

    async def until_gone(self, kind: str) -> None:
        """Wait until there is no object of this kind. Raises as `names` does."""
        while True:
            names, version = await self._list(kind)
            if not names:
                return
            await self._watch(kind, names, version)

    async def _list(self, kind: str) -> tuple[set[str], str]:
        async with self._session.get(self._path(kind)) as response:
            document = await _json(response)
        return {item["metadata"]["name"] for item in document["items"]}, document["metadata"]["resourceVersion"]

    async def _watch(self, kind: str, names: set[str], version: str) -> None:
        query = {"watch": "1", "resourceVersion": version}
        async with self._session.get(self._path(kind), params=query) as response:
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "DELETED":
                    names.discard(event["object"]["metadata"]["name"])
                if not names or event["type"] == "ERROR":
                    return

    def _path(self, kind: str) -> str:
        return f"{KINDS[kind]}/namespaces/{self.namespace}/{kind.lower()}s"


@asynccontextmanager
async def open_cluster(kubeconfig: Path) -> AsyncIterator[Cluster]:
    """Connect to the embedded cluster that has written `kubeconfig`. Raises OSError or ValueError where it cannot."""
    address = Address.read(kubeconfig)
    async with aiohttp.ClientSession(
        base_url=address.server,
        headers={"Authorization": f"Bearer {address.token}"},
        timeout=aiohttp.ClientTimeout(total=None, connect=10, sock_connect=10),
    ) as session:
        yield Cluster(session, address.server, address.namespace)


async def _json(response: aiohttp.ClientResponse) -> Any:
    if response.status != 200:
        raise ClusterError(f"GET {response.url.path} was answered with {response.status}: {await response.text()}")
    return await response.json()
