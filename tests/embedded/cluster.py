"""A client with few words for the tests: it talks to an embedded cluster or to a real API server alike."""

import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio

from k8s_builder_lab.embedded.address import Address
from k8s_builder_lab.embedded.objects import BY_KIND, RESOURCES, Object
from k8s_builder_lab.embedded.server import Options, serve

PATIENCE = float(os.environ.get("TEST_PATIENCE", "60"))
"""Seconds after which what a test waits for is taken not to come."""

IMAGE = "localhost/busybox"
DIGEST = "sha256:" + "3d47eb0b" * 8
OTHER_DIGEST = "sha256:" + "0" * 64

_PATHS = {resource.plural: f"{resource.path}/namespaces/{{}}/{resource.plural}" for resource in RESOURCES}


class Answer:
    """An answer that has been read whole."""

    def __init__(self, response: aiohttp.ClientResponse, data: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.data = data

    @property
    def body(self) -> Any:
        return json.loads(self.data)


class Watch:
    """An open watch, read event by event."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> Object:
        """Return the next event; EOFError at a clean end."""
        with anyio.fail_after(PATIENCE):
            line = await self.response.content.readuntil(b"\n")
        if not line:
            raise EOFError
        event: Object = json.loads(line)
        return event

    async def until(self, wanted: Callable[[Object], Any]) -> list[Object]:
        """Return the events up to and including the first that is wanted."""
        events: list[Object] = []
        while not events or not wanted(events[-1]):
            events.append(await self.next())
        return events

    async def ends(self) -> bytes:
        """Return what is left, once the stream has ended cleanly."""
        with anyio.fail_after(PATIENCE):
            return await self.response.content.read()


class Cluster:
    """One namespace of an API server."""

    def __init__(
        self, server: str, token: str, namespace: str, *, control: str = "", tls: ssl.SSLContext | bool = True
    ) -> None:
        self.server = server
        self.token = token
        self.namespace = namespace
        self.control = control
        self.tls = tls
        self.scratch = ""

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self.token}"},
            connector=aiohttp.TCPConnector(limit=0, ssl=self.tls),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=4 * 1024 * 1024,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def path(self, plural: str, name: str = "", sub: str = "", namespace: str = "") -> str:
        parts = [_PATHS[plural].format(namespace or self.namespace), name, sub]
        return "/".join(part for part in parts if part)

    async def request(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send a request to the API; `path` may hold a query."""
        if body is not None:
            options.setdefault("headers", {}).setdefault("Content-Type", "application/json")
            options["data"] = json.dumps(body)
        with anyio.fail_after(PATIENCE):
            async with self._session.request(method, self.server + path, **options) as response:
                return Answer(response, await response.read())

    async def switch(self, method: str, path: str, body: Any = None) -> Any:
        """Use a switch of the embedded cluster."""
        with anyio.fail_after(PATIENCE):
            async with self._session.request(method, f"{self.control}/embedded/{path}", json=body) as response:
                data = await response.read()
                assert response.status == 200, data
                return json.loads(data)

    async def create(self, obj: Object, **options: Any) -> Object:
        plural = BY_KIND[obj["apiVersion"], obj["kind"]].plural
        answer = await self.request("POST", self.path(plural), obj, **options)
        assert answer.status == 201, answer.data
        created: Object = answer.body
        return created

    async def get(self, plural: str, name: str) -> Object:
        answer = await self.request("GET", self.path(plural, name))
        assert answer.status == 200, answer.data
        found: Object = answer.body
        return found

    async def delete(self, plural: str, name: str, **options: Any) -> Answer:
        return await self.request(
            "DELETE", self.path(plural, name), params={"propagationPolicy": "Background"}, **options
        )

    async def list(self, plural: str, **query: str) -> Object:
        answer = await self.request("GET", self.path(plural), params=query)
        assert answer.status == 200, answer.data
        found: Object = answer.body
        return found

    async def patch(self, plural: str, name: str, patch: Object, sub: str = "") -> Answer:
        headers = {"Content-Type": "application/merge-patch+json"}
        return await self.request("PATCH", self.path(plural, name, sub), patch, headers=headers)

    @asynccontextmanager
    async def watch(self, plural: str, **query: str) -> AsyncIterator[Watch]:
        async with self.open(self.path(plural), watch="true", **query) as response:
            assert response.status == 200, await response.read()
            yield Watch(response)

    @asynccontextmanager
    async def open(self, path: str, **query: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open an answer that is read piece by piece."""
        async with self._session.get(self.server + path, params=query) as response:
            try:
                yield response
            finally:
                if response.connection is not None and response.connection.transport is not None:
                    response.connection.transport.abort()  # no TLS farewell that nobody waits for

    async def log(self, pod: str, **query: str) -> bytes:
        answer = await self.request("GET", self.path("pods", pod, "log"), params=query)
        assert answer.status == 200, answer.data
        return answer.data

    async def pod_of(self, job: str) -> Object:
        """Return the Job's pod, once there is one."""
        async with self.watch("pods", labelSelector=f"job-name={job}") as watch:
            pod: Object = (await watch.next())["object"]
            return pod

    async def pod_when(self, job: str, wanted: Callable[[Object], Any]) -> Object:
        """Return the Job's pod, once it is as wanted."""
        async with self.watch("pods", labelSelector=f"job-name={job}") as watch:
            pod: Object = (await watch.until(lambda event: wanted(event["object"])))[-1]["object"]
            return pod

    async def gone(self, plural: str, name: str) -> None:
        """Wait until there is no such object."""
        async with self.watch(plural, fieldSelector=f"metadata.name={name}") as watch:
            answer = await self.request("GET", self.path(plural, name))
            if answer.status != 404:
                await watch.until(lambda event: event["type"] == "DELETED")


@asynccontextmanager
async def embedded(options: Options) -> AsyncIterator[Cluster]:
    """Run an embedded cluster in this process."""
    async with anyio.create_task_group() as tg:
        address: Address = await tg.start(serve, options)
        async with Cluster(address.server, address.token, address.namespace, control=address.control) as cluster:
            yield cluster
        tg.cancel_scope.cancel()


async def eventually(holds: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that tells nobody when it comes to; it is looked at again and again."""
    with anyio.fail_after(PATIENCE):
        while True:
            held = holds()
            if held if isinstance(held, bool) else await held:
                return
            await anyio.sleep(0.01)


def container_state(pod: Object) -> Object:
    """Return the state of the pod's only container, empty before there is one."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    state: Object = statuses[0].get("state", {})
    return state


def running(pod: Object) -> bool:
    return "running" in container_state(pod)


def ended(pod: Object) -> bool:
    return "terminated" in container_state(pod)


def job(name: str, *command: str, labels: dict[str, str] | None = None, **pod: Any) -> Object:
    """Return a Job like the daemon's; `pod` are further fields of its pod's spec."""
    labels = {"app": name} if labels is None else labels
    container = {
        "name": "chaincode",
        "image": f"{IMAGE}@{DIGEST}",
        **({"command": [*command]} if command else {}),
        **pod.pop("container", {}),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": 300,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 2,
                    "containers": [container],
                    **pod,
                },
            },
        },
    }


def certs(secret: str) -> Object:
    """Return the volume of a pod, and its container's mount, as the daemon's Jobs have them."""
    return {
        "volumes": [{"name": "certs", "secret": {"secretName": secret}}],
        "container": {"volumeMounts": [{"name": "certs", "mountPath": "/etc/hyperledger/fabric", "readOnly": True}]},
    }


def secret(name: str, data: dict[str, str] | None = None, *, owner: Object | None = None) -> Object:
    """Return an immutable Secret like the daemon's."""
    owners = [] if owner is None else [owner_reference(owner)]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, **({"ownerReferences": owners} if owners else {})},
        "type": "Opaque",
        "immutable": True,
        "stringData": data or {"peer.crt": "PEM"},
    }


def owner_reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
