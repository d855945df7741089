"""An API server with as much behind it as the daemon sees, over TLS: its containers are nothing but log and status.

    python -m benchmarks.apiserver DIRECTORY

The embedded cluster starts a process for each container, and a thousand of these would be measured instead of the
daemon. Here a Job has a running pod at once. What its container does follows from the name of its image:

- `idle` prints one line and waits;
- `backlog-N` has printed N lines;
- `flood` prints as fast as it is read;
- `live-R` prints R lines a second.

A followed log ends up to a second after its container, as a kubelet's does. `/control/` is for the benchmarks: what has
been asked for, and containers that are told to end. DIRECTORY gets a `kubeconfig`.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.kube.certificates import Authority

Object = dict[str, Any]

LINE = b"invoke 0123456789abcdef0123456789abcdef on channel mychannel took 12.345 ms, read 17 keys, wrote 4\n"
PIECE = 64 * 1024
BOOKMARKS = 60.0
"""Seconds between two bookmarks of a quiet watch, as of Kubernetes' own."""
LONGEST_FOLLOW = 1.0
"""Seconds by which a kubelet ends a followed log later than its container, at most."""


DISCOVERY: dict[str, Object] = {
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": []},
    "/api/v1": {
        "kind": "APIResourceList",
        "groupVersion": "v1",
        "resources": [
            {"name": "pods", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get", "list"]},
            {"name": "pods/log", "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]},
        ],
    },
}
"""What kubectl asks for first."""


def answering(document: Object) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return what answers with this."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response(document)

    return answer


def stamp(ns: int) -> str:
    """Return a time as Kubernetes writes it in a log."""
    seconds, rest = divmod(ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def now() -> str:
    """Return the time as Kubernetes writes it in an object."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class Container:
    """One container's log, and its end."""

    def __init__(self, image: str) -> None:
        self.started = time.time_ns()
        self.ended = asyncio.Event()
        self.ended_at = 0.0
        kind, _, number = image.rpartition("/")[2].partition("-")
        self.kind = kind
        self.rate = float(number or 0) if kind == "live" else 0.0
        count = int(number or 1) if kind == "backlog" else 1
        self.stored = b"".join(self.line(index) for index in range(count))
        self.count = count

    def line(self, index: int) -> bytes:
        """Return one line with its time, which is a microsecond after the last."""
        return stamp(self.started + index * 1000).encode() + b" " + LINE

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield what is printed from now on, until the container has ended."""
        if self.kind == "flood":
            count = PIECE // 128
            pieces = [b"".join(self.line(piece * count + index) for index in range(count)) for piece in range(64)]
            while not self.ended.is_set():  # what is made anew for each piece would be the limit
                for piece in pieces:
                    yield piece
                    await asyncio.sleep(0)
        elif self.kind == "live":
            due = time.perf_counter()
            while not self.ended.is_set():
                due += 0.01
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                count = max(1, round(self.rate / 100))
                self.started = time.time_ns() - self.count * 1000
                yield b"".join(self.line(self.count + index) for index in range(count))
                self.count += count
        else:
            await self.ended.wait()


class Server:
    """Jobs and their pods, the watches of both, and what was asked for."""

    def __init__(self) -> None:
        self.version = 1
        self.objects: dict[str, dict[str, Object]] = {"jobs": {}, "pods": {}}
        self.containers: dict[str, Container] = {}
        self.watches: dict[str, set[asyncio.Queue[bytes]]] = {"jobs": set(), "pods": set()}
        self.asked: Counter[str] = Counter()
        self.created: dict[str, float] = {}

    def app(self) -> web.Application:
        """Return what is served."""

        @web.middleware
        async def count(request: web.Request, handler: Any) -> web.StreamResponse:
            resource = request.match_info.get("resource", "")
            if resource:
                verb = "watch" if "watch" in request.query else request.method
                name = "/{name}" if "name" in request.match_info else ""
                log = "/log" if request.path.endswith("/log") else ""
                self.asked[f"{verb} {resource}{name}{log}"] += 1
            answer: web.StreamResponse = await handler(request)
            return answer

        app = web.Application(middlewares=[count])
        for prefix in ("/api/v1", "/apis/batch/v1"):
            collection = prefix + "/namespaces/default/{resource}"
            app.router.add_get(collection, self.list)
            app.router.add_post(collection, self.create)
            app.router.add_get(collection + "/{name}", self.get)
            app.router.add_delete(collection + "/{name}", self.delete)
        app.router.add_get("/api/v1/namespaces/default/{resource:pods}/{name}/log", self.log)
        for path, document in DISCOVERY.items():
            app.router.add_get(path, answering(document))
        app.router.add_get("/control/asked", self.tell_asked)
        app.router.add_get("/control/times", self.tell_times)
        app.router.add_post("/control/end/{name}", self.end)
        return app

    # The API

    async def list(self, request: web.Request) -> web.StreamResponse:
        """List, or watch from now on."""
        resource = request.match_info["resource"]
        if "watch" in request.query:
            return await self.watch(request, resource)
        items = list(self.objects.get(resource, {}).values())
        label = request.query.get("labelSelector", "")
        if label.startswith("job-name="):
            items = [item for item in items if item["metadata"]["labels"].get("job-name") == label[9:]]
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}, "items": items})

    async def watch(self, request: web.Request, resource: str) -> web.StreamResponse:
        """Send each change as it comes."""
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        since = int(request.query.get("resourceVersion") or self.version)
        for item in self.objects[resource].values():
            if int(item["metadata"]["resourceVersion"]) > since:
                queue.put_nowait(event("ADDED", item))
        self.watches[resource].add(queue)
        try:
            while True:
                try:
                    line = await asyncio.wait_for(queue.get(), BOOKMARKS)
                except TimeoutError:
                    line = event("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
                await response.write(line)
        finally:
            self.watches[resource].discard(queue)

    async def create(self, request: web.Request) -> web.Response:
        """Create a Job, whose pod runs at once, or a Secret."""
        resource = request.match_info["resource"]
        item: Object = await request.json()
        name = item["metadata"]["name"]
        if name in self.objects.get(resource, {}):
            return refusal(409, "AlreadyExists", name)
        self.created[f"{resource}/{name}"] = time.monotonic()
        item["metadata"] |= {"uid": f"{resource}-{name}", "creationTimestamp": now(), "namespace": "default"}
        if resource != "jobs":
            item["metadata"]["resourceVersion"] = str(self.version)
            return web.json_response(item, status=201)
        item["status"] = {}
        self.change("ADDED", resource, item)
        template = item["spec"]["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "namespace": "default",
                "name": f"{name}-x",
                "uid": f"pods-{name}",
                "creationTimestamp": now(),
                "labels": {**template["metadata"].get("labels", {}), "job-name": name},
                "annotations": template["metadata"].get("annotations", {}),
                "ownerReferences": [{"kind": "Job", "name": name, "uid": item["metadata"]["uid"]}],
            },
            "spec": {**template["spec"], "nodeName": "node", "terminationGracePeriodSeconds": 30},
            "status": {"phase": "Running", "containerStatuses": [status({"running": {"startedAt": now()}})]},
        }
        self.containers[f"{name}-x"] = Container(template["spec"]["containers"][0]["image"].partition("@")[0])
        self.change("ADDED", "pods", pod)
        return web.json_response(item, status=201)

    async def get(self, request: web.Request) -> web.Response:
        """Return one object."""
        resource, name = request.match_info["resource"], request.match_info["name"]
        item = self.objects.get(resource, {}).get(name)
        return refusal(404, "NotFound", name) if item is None else web.json_response(item)

    async def delete(self, request: web.Request) -> web.Response:
        """Delete a Job, and its pod with it."""
        resource, name = request.match_info["resource"], request.match_info["name"]
        if name not in self.objects.get(resource, {}):
            return refusal(404, "NotFound", name)
        self.created[f"deleted/{name}"] = time.monotonic()
        item = self.objects[resource][name]
        self.change("DELETED", resource, item)
        if (pod := self.objects["pods"].get(f"{name}-x")) is not None:
            self.terminate(pod, 143)
            self.change("DELETED", "pods", pod)
        return web.json_response(item)

    async def log(self, request: web.Request) -> web.StreamResponse:
        """Send a container's log, followed or not."""
        container = self.containers.get(request.match_info["name"])
        if container is None:
            return refusal(404, "NotFound", request.match_info["name"])
        response = web.StreamResponse()
        await response.prepare(request)
        stored = container.stored
        if (since := request.query.get("sinceTime")) is not None and container.kind in {"flood", "live"}:
            stored = stored if since <= stored[:19].decode() else b""
        with suppress(ConnectionError):  # nobody reads to the end what never ends
            for start in range(0, len(stored), PIECE):
                await response.write(stored[start : start + PIECE])
            if request.query.get("follow"):
                async for lines in container.follow():
                    await response.write(lines)
                await asyncio.sleep(random.uniform(0, LONGEST_FOLLOW))  # noqa: S311
            await response.write_eof()
        return response

    # For the benchmarks

    async def tell_asked(self, _request: web.Request) -> web.Response:
        """Tell how often what was asked for."""
        return web.json_response(self.asked)

    async def tell_times(self, _request: web.Request) -> web.Response:
        """Tell when each object was created, and each container ended, by this machine's monotonic clock."""
        ended = {f"ended/{name}": it.ended_at for name, it in self.containers.items() if it.ended_at}
        return web.json_response(self.created | ended)

    async def end(self, request: web.Request) -> web.Response:
        """End a container with an exit code of 0."""
        self.terminate(self.objects["pods"][request.match_info["name"]], 0)
        return web.json_response({})

    def terminate(self, pod: Object, code: int) -> None:
        """Have a pod's container end."""
        container = self.containers[pod["metadata"]["name"]]
        if container.ended.is_set():
            return
        ended = {"exitCode": code, "startedAt": now(), "finishedAt": now(), "reason": "Completed"}
        pod["status"]["containerStatuses"] = [status({"terminated": ended})]
        container.ended_at = time.monotonic()
        container.ended.set()
        self.change("MODIFIED", "pods", pod)

    def change(self, kind: str, resource: str, item: Object) -> None:
        """Take in a change, and tell those who watch."""
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        name = item["metadata"]["name"]
        if kind == "DELETED":
            self.objects[resource].pop(name, None)
        else:
            self.objects[resource][name] = item
        for queue in self.watches[resource]:
            queue.put_nowait(event(kind, item))


def status(state: Object) -> Object:
    """Return the status of the chaincode's container."""
    return {"name": "chaincode", "ready": True, "restartCount": 0, "image": "i", "imageID": "i", "state": state}


def event(kind: str, item: Object) -> bytes:
    """Return one line of a watch."""
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def refusal(code: int, reason: str, name: str) -> web.Response:
    """Return the API's answer to what it refuses."""
    body = {"kind": "Status", "code": code, "reason": reason, "message": f'"{name}": {reason}'}
    return web.json_response(body, status=code)


def kubeconfig(directory: Path, server: str, authority: Authority, token: str) -> None:
    """Write how a server is reached."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [
            {
                "name": "c",
                "cluster": {"server": server, "certificate-authority": str(authority.file)},
            }
        ],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}],
    }
    unfinished = directory / "kubeconfig.new"
    unfinished.write_text(json.dumps(document))
    unfinished.rename(directory / "kubeconfig")


async def main(directory: Path) -> None:
    """Serve until standard input ends."""
    authority = Authority(directory)
    runner = web.AppRunner(Server().app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server(), backlog=2048, shutdown_timeout=0.1)
    await site.start()
    kubeconfig(directory, f"https://127.0.0.1:{runner.addresses[0][1]}", authority, "t")
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
