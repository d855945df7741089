"""A node for a real API server, as far as a launch sees one: what Job controller, scheduler and kubelet tell of pods.

Its containers are nothing but one line of log. So programs and daemon are measured while chaincode runs, and not a
container runtime.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientSession, TCPConnector, web

from benchmarks.apiserver import LINE, now, status
from tests.embedded.realserver import TOKEN, RealServer
from tests.kube.certificates import Authority

Object = dict[str, Any]

NAME = "node"
PODS = "/api/v1/namespaces/default/pods"
PATCH = "application/merge-patch+json"


class Node:
    """What there is of it in the API."""

    def __init__(self, session: ClientSession, server: RealServer) -> None:
        self._session = session
        self._server = server
        self._known: set[str] = set()

    async def ask(self, method: str, path: str, body: Object | None = None) -> Object:
        """Ask the API server as somebody who may do everything."""
        headers = {"Authorization": f"Bearer {TOKEN}"} | ({"Content-Type": PATCH} if method == "PATCH" else {})
        async with self._session.request(method, self._server.server + path, json=body, headers=headers) as answer:
            found: Object = await answer.json()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {found.get('message')}")
            return found

    async def register(self, port: int) -> None:
        """Have the API server ask this port for logs."""
        where = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NAME}, "status": where}
        await self.ask("POST", "/api/v1/nodes", node)

    async def run_all(self) -> None:
        """Give each Job that has none a pod that runs."""
        jobs = (await self.ask("GET", "/apis/batch/v1/namespaces/default/jobs"))["items"]
        await asyncio.gather(*(self._run(job) for job in jobs if job["metadata"]["uid"] not in self._known))

    async def _run(self, job: Object) -> None:
        meta, template = job["metadata"], job["spec"]["template"]
        self._known.add(meta["uid"])
        name = f"{meta['name']}-x"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**template["metadata"], "name": name, "ownerReferences": [owner]},
            "spec": {**template["spec"], "nodeName": NAME},
        }
        await self.ask("POST", PODS, pod)
        running = {"phase": "Running", "containerStatuses": [status({"running": {"startedAt": now()}})]}
        await self.ask("PATCH", f"{PODS}/{name}/status", {"status": running})
        active = {"active": 1, "ready": 1, "startTime": now()}
        path = f"/apis/batch/v1/namespaces/default/jobs/{meta['name']}/status"
        await self.ask("PATCH", path, {"status": active})

    async def collect(self) -> None:
        """Remove the pods of Jobs that are gone, as the garbage collector does."""
        jobs = (await self.ask("GET", "/apis/batch/v1/namespaces/default/jobs"))["items"]
        pods = (await self.ask("GET", PODS))["items"]
        there = {job["metadata"]["uid"] for job in jobs}
        names = [it["metadata"]["name"] for it in pods if it["metadata"]["ownerReferences"][0]["uid"] not in there]
        await asyncio.gather(*(self.ask("DELETE", f"{PODS}/{name}?gracePeriodSeconds=0") for name in names))


@asynccontextmanager
async def open_node(server: RealServer, authority: Authority) -> AsyncIterator[Node]:
    """Register a node that serves its pods' logs, until the context is left."""

    async def log(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        with suppress(ConnectionError):  # it may be left before it begins
            await response.prepare(request)
            await response.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z ".encode() + LINE)
            if request.query.get("follow"):
                await asyncio.Event().wait()
        return response

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", log)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server()).start()
        context = ssl.create_default_context(cafile=str(authority.file))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        async with ClientSession(connector=TCPConnector(ssl=context)) as session:
            node = Node(session, server)
            await node.register(runner.addresses[0][1])
            yield node
    finally:
        await runner.cleanup()
