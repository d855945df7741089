"""The API errs on each call of a launch and of a stop: one Job and one Secret exist afterwards, never two or none."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.daemon.chaincodes import (
    Ticking,
    assert_whole,
    chaincode_lines,
    forgotten,
    met,
    no_faults,
    nothing_left,
)
from tests.daemon.scene import Scene

pytestmark = pytest.mark.anyio

FAST = 10
"""The pace of a daemon that is to lose its patience: 5 s for what is forbidden."""

SOON: Any = {"REQUEST_TIMEOUT": "5s", "pace": 5}
"""For a daemon whose request hangs, or is to be sent again later."""

# What each kind of answer means is tested in tests/kube/test_api.py, what becomes of a run then in tests/simulation.
ERRORS: dict[str, dict[str, Any]] = {
    "reset after": {"action": {"do": "reset", "when": "after"}},
    "no answer, but done": {"action": {"do": "hang", "when": "after"}},
    "conflict": {"times": 2, "action": {"do": "status", "code": 409, "reason": "Conflict"}},
    "too many requests": {"action": {"do": "status", "code": 429, "reason": "TooManyRequests", "retryAfter": 1}},
    "unavailable": {"times": 2, "action": {"do": "status", "code": 503, "reason": "ServiceUnavailable"}},
    "unauthorized for a moment": {"times": 3, "action": {"do": "status", "code": 401}},
}
LAUNCH = [{"verb": "create", "resource": "jobs"}, {"verb": "create", "resource": "secrets"}]


@pytest.mark.parametrize("error", ERRORS)
async def test_one_job_and_one_secret_whatever_the_api_says(scene: Scene, error: str) -> None:
    await scene.daemon(**SOON)
    ticking = await Ticking.make(scene)
    for call in LAUNCH:
        await scene.fault(**call, **ERRORS[error])
    if "status" in str(ERRORS[error]) and error != "conflict":
        await scene.fault(verb="log", **ERRORS[error])
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    assert all(rule["met"] for rule in await scene.cluster.switch("GET", "faults"))
    job, secret = await scene.only("jobs"), await scene.only("secrets")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert secret["metadata"]["name"] == job["metadata"]["name"]
    assert run.count("Running chaincode ID") == 1
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]


@pytest.mark.parametrize("error", ERRORS)
async def test_a_stop_is_carried_out_whatever_the_api_says(scene: Scene, error: str) -> None:
    """Late, if need be: then `run` says so, and The daemon keeps trying."""
    daemon = await scene.daemon(**SOON)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    await scene.fault(verb="delete", resource="jobs", **ERRORS[error])
    code = await run.terminate()
    assert code == 0 or b"The daemon keeps trying" in run.lines[-1]
    await met(scene)
    await nothing_left(scene)
    await forgotten(scene, daemon)
    assert len(ticking.pids) == 1


@pytest.mark.parametrize("call", [*LAUNCH, {"verb": "delete", "resource": "jobs"}], ids=["Job", "Secret", "deletion"])
async def test_connections_are_refused_for_a_while(scene: Scene, call: dict[str, str]) -> None:
    """The connection breaks in the middle of the call, and no other comes about until the API is back."""
    daemon = await scene.daemon(pace=3)
    ticking = await Ticking.make(scene)
    await scene.fault(**call, action={"do": "hang", "when": "before"})
    run = await scene.call("run", ticking.package)
    if call["verb"] == "delete":
        await run.line("line 0")
        run.process.terminate()
    await met(scene)
    await scene.cluster.switch("POST", "outage", {"on": True})
    await daemon.line("job_not_deleted" if call["verb"] == "delete" else "api_retry", 3)
    await scene.cluster.switch("POST", "outage", {"on": False})
    if call["verb"] == "delete":
        code = await run.wait()
        assert code == 0 or b"The daemon keeps trying" in run.lines[-1]
    else:
        await run.line("line 2")
        assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]
        assert await run.terminate() == 0
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_retry_after_is_kept(scene: Scene) -> None:
    """The API says when to come back, and is not asked before that."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    action = {"do": "status", "code": 429, "reason": "TooManyRequests", "retryAfter": 1}
    await scene.fault(verb="create", resource="jobs", action=action)
    run = await scene.call("run", ticking.package)
    await met(scene)
    before = anyio.current_time()
    await run.line("Running chaincode ID")
    assert anyio.current_time() - before > 0.9
    assert run.count("Retrying: ") == 1


# Which rights are lacking for good, and what is said of each, is tested in tests/simulation.
async def test_a_launch_that_is_forbidden_for_good_says_what_is_lacking(scene: Scene) -> None:
    daemon = await scene.daemon(pace=FAST)
    ticking = await Ticking.make(scene)
    await scene.fault(verb="create", resource="secrets", times=None, action={"do": "status", "code": 403})
    run = await scene.call("run", ticking.package)
    assert await run.wait() == 1
    assert b"cannot create secrets" in run.lines[-1]
    assert b"Check the Role of the daemon's service account" in run.lines[-1]
    assert run.count("has not answered") == 0  # it has, each time
    await nothing_left(scene)
    await forgotten(scene, daemon)
    assert ticking.pids == []


async def test_a_stop_that_is_forbidden_for_good_says_what_is_lacking(scene: Scene) -> None:
    daemon = await scene.daemon(pace=FAST)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    await scene.fault(verb="delete", resource="jobs", times=None, action={"do": "status", "code": 403})
    assert await run.terminate() == 1
    assert b"cannot delete jobs.batch" in run.lines[-1]
    await no_faults(scene)
    await nothing_left(scene)
    await forgotten(scene, daemon)


async def test_a_list_that_is_forbidden_for_good_says_what_is_lacking(scene: Scene) -> None:
    await scene.fault(verb="list", resource="jobs", times=None, action={"do": "status", "code": 403})
    daemon = await scene.daemon(pace=FAST)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_START_TIMEOUT="3s")
    assert await run.wait() == 1
    lacking = "cannot list jobs.batch"
    assert lacking.encode() in run.lines[-1]
    status, report = await scene.health(daemon, "/readyz")
    assert status == 503
    assert lacking in report
    assert await scene.count("secrets") == 0


async def test_a_log_that_is_forbidden_for_good_says_what_is_lacking_and_ends_nothing(scene: Scene) -> None:
    await scene.daemon(pace=FAST)
    await scene.fault(verb="log", times=None, action={"do": "status", "code": 403})
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("cannot get pods/log")
    await ticking.started()
    assert chaincode_lines(run) == []
    # The right is given, and all of the log comes; at the latest when the chaincode ends.
    await no_faults(scene)
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)


HELD_UP: Any = {"NODE_ROLE": "chaincode"}
"""What holds a launch up until `node_comes`; an image that cannot be pulled would be tried again ever more seldom."""


async def node_comes(scene: Scene) -> None:
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})


async def test_a_launch_whose_pod_may_not_be_seen_is_not_given_up(scene: Scene) -> None:
    """Its time is over, but nobody can say that its container has not started; and here it has."""
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "other"}})
    daemon = await scene.daemon(NODE_ROLE="chaincode", START_TIMEOUT="10s", RECONNECT_GRACE="10s", pace=FAST)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("Waiting for chaincode to start: the pod cannot be scheduled")
    for verb in ("get", "list", "watch"):
        await scene.fault(verb=verb, resource="pods", times=None, action={"do": "status", "code": 403})
    await scene.cluster.switch("POST", "drop")
    await daemon.line('"resource": "pods", "reason"')
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})
    await run.line("k8s-builderd cannot continue this launch: error waiting for chaincode job")
    await no_faults(scene)
    await run.line("line 2")
    assert daemon.count("job_deleted") == 0
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


async def test_events_that_are_forbidden_for_good_hold_up_no_launch(scene: Scene) -> None:
    await scene.daemon(**HELD_UP, pace=FAST)
    await scene.fault(verb="list", resource="events", times=None, action={"do": "status", "code": 403})
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("the pod cannot be scheduled")
    await met(scene, 2)
    await node_comes(scene)
    await run.line("line 2")
    assert await run.terminate() == 0
    await nothing_left(scene)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("resource", ["jobs", "secrets"])
async def test_a_stop_while_a_creation_is_not_answered(scene: Scene, resource: str, when: str) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    await scene.fault(verb="create", resource=resource, action={"do": "hang", "when": when})
    run = await scene.call("run", ticking.package)
    await met(scene)
    assert await run.terminate() == 0
    await nothing_left(scene)
    assert daemon.count("launch_crashed") == 0


# What a launch and a stop ask besides

READS: dict[str, dict[str, Any]] = {
    "no answer": {"action": {"do": "hang", "when": "before"}},
    "forbidden for a moment": {"times": 2, "action": {"do": "status", "code": 403}},
}
GET = {"verb": "get", "resource": "jobs"}


@pytest.mark.parametrize("error", READS)
async def test_a_job_that_was_created_unheard_is_found_whatever_the_api_says_then(scene: Scene, error: str) -> None:
    """The creation was carried out and not answered; the second one is refused, and whose the Job is has to be seen."""
    await scene.daemon(**SOON)
    ticking = await Ticking.make(scene)
    for call in LAUNCH:
        await scene.fault(**call, action={"do": "reset", "when": "after"})
    await scene.fault(**GET, **READS[error])
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    assert all(rule["met"] for rule in await scene.cluster.switch("GET", "faults"))
    job, secret = await scene.only("jobs"), await scene.only("secrets")
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert run.count("Running chaincode ID") == 1
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]


async def test_a_stop_asks_for_nothing_but_the_deletion(scene: Scene) -> None:
    """Whose Job it is, and its uid, are known: nothing that the API says to another question holds a stop up."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    before = (await scene.state())["requests"]
    assert await run.terminate() == 0
    await nothing_left(scene)
    await forgotten(scene, daemon)
    after = (await scene.state())["requests"]
    asked = {verb: after.get(f"{verb} jobs", 0) - before.get(f"{verb} jobs", 0) for verb in ("get", "delete", "create")}
    assert asked == {"get": 0, "delete": 1, "create": 0}
    assert len(ticking.pids) == 1


@pytest.mark.parametrize("error", READS)
async def test_events_that_cannot_be_had_hold_up_no_launch(scene: Scene, error: str) -> None:
    await scene.daemon(**SOON, **HELD_UP)
    ticking = await Ticking.make(scene)
    await scene.fault(verb="list", resource="events", **READS[error])
    run = await scene.call("run", ticking.package)
    await run.line("the pod cannot be scheduled")
    await met(scene)
    await node_comes(scene)
    await run.line("line 2")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]


class Holding:
    """A proxy before the API that can hold back a request until long after its sender has gone."""

    def __init__(self, host: str, port: int) -> None:
        self.held = anyio.Event()
        self.release = anyio.Event()
        self.pattern: re.Pattern[bytes] | None = None
        self._upstream = (host, port)

    async def serve(self, client: SocketStream) -> None:
        async with client, await anyio.connect_tcp(*self._upstream) as server, anyio.create_task_group() as tasks:
            tasks.start_soon(self._pump, server, client, tasks.cancel_scope)
            pattern, first = self.pattern, b""
            while True:
                try:
                    data = await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    break
                if pattern is None:
                    pattern = self.pattern
                if pattern is not None and not self.held.is_set() and pattern.match(data):
                    first, self.pattern = data, None
                    break
                await server.send(data)
            if first:
                await self._hold(client, server, first)
            tasks.cancel_scope.cancel()

    async def _hold(self, client: SocketStream, server: SocketStream, request: bytes) -> None:
        """Take all of the request, and send it on when told, whether its sender is still there or not."""
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        while len(body) < int(length[1]):
            data = await client.receive()
            request, body = request + data, body + data
        self.held.set()
        await self.release.wait()
        await server.send(request)
        # Its answer is nobody's: what matters is that it was carried out.
        await anyio.sleep_forever()

    async def _pump(self, source: SocketStream, target: SocketStream, scope: anyio.CancelScope) -> None:
        try:
            while True:
                await target.send(await source.receive())
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if not self.held.is_set():
                scope.cancel()


@asynccontextmanager
async def holding(scene: Scene) -> AsyncIterator[Holding]:
    """Put the proxy between the daemons of this scene and the API."""
    document = json.loads(scene.kubeconfig.read_text())
    cluster = document["clusters"][0]["cluster"]
    host, _, port = cluster["server"].removeprefix("http://").rpartition(":")
    proxy = Holding(host, int(port))
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, proxy.serve)
        cluster["server"] = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        scene.kubeconfig.write_text(json.dumps(document))
        yield proxy
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("ends", ["stopped", "replaced"])
async def test_a_job_that_is_created_after_its_run_has_ended_is_deleted_at_once(scene: Scene, ends: str) -> None:
    """A request that was cut off can be carried out late: the deletion met nothing then, and the Job comes after it."""
    async with holding(scene) as proxy:
        daemon = await scene.daemon()
        ticking = await Ticking.make(scene)
        proxy.pattern = re.compile(rb"POST /apis/batch/v1/")
        run = await scene.call("run", ticking.package)
        await proxy.held.wait()
        if ends == "stopped":
            assert await run.terminate() == 0
        else:
            ticking.package.connect(root_cert="another")
            second = await scene.call("run", ticking.package)
            assert await run.wait() == 1
        async with scene.cluster.watch("jobs") as watch:
            proxy.release.set()
            late = (await watch.until(lambda event: event["type"] == "ADDED"))[-1]["object"]["metadata"]["name"]
            with anyio.fail_after(10):
                await watch.until(
                    lambda event: event["type"] == "DELETED" and event["object"]["metadata"]["name"] == late
                )
        if ends == "replaced":
            await second.line("line 2")
            assert [await scene.count(plural) for plural in ("jobs", "secrets")] == [1, 1]
            assert await second.terminate() == 0
        await nothing_left(scene)
        await forgotten(scene, daemon)
