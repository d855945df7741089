"""The switches: each misbehaves exactly as its row of the table in faults.py or control.py says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast

import aiohttp
import anyio
import msgspec
import pytest

from k8s_builder_lab.embedded.objects import Object

from .cluster import PATIENCE, Cluster, Watch, container_state, embedded, ended, job, running, secret
from .conftest import OPTIONS

pytestmark = pytest.mark.anyio

REVIEWS = "/apis/authorization.k8s.io/v1"


async def fault(cluster: Cluster, action: Any = None, **rule: Any) -> None:
    await cluster.switch("POST", "faults", {"action": action, **rule})


async def version(cluster: Cluster) -> str:
    return str((await cluster.list("secrets"))["metadata"]["resourceVersion"])


async def names(watch: Watch, count: int) -> list[str]:
    return [(await watch.next())["object"]["metadata"]["name"] for _ in range(count)]


@pytest.mark.parametrize(("code", "reason"), [(500, "InternalError"), (503, "ServiceUnavailable"), (409, "Conflict")])
async def test_a_status_instead_of_the_work(cluster: Cluster, code: int, reason: str) -> None:
    await fault(cluster, {"do": "status", "code": code, "reason": reason}, verb="create", resource="jobs", times=2)
    for _ in range(2):
        answer = await cluster.request("POST", cluster.path("jobs"), job("j1"))
        assert (answer.status, answer.body["reason"], answer.body["code"]) == (code, reason, code)
    assert (await cluster.switch("GET", "faults"))[0]["met"] == 2
    assert (await cluster.request("POST", cluster.path("jobs"), job("j1"))).status == 201


REQUESTS = {
    "list": ("GET", "", {}),
    "watch": ("GET", "", {"watch": "true"}),
    "get": ("GET", "j1", {}),
    "create": ("POST", "", {}),
    "delete": ("DELETE", "j1", {"propagationPolicy": "Background"}),
}


async def ask(cluster: Cluster, verb: str) -> int:
    """Return the status of a request about Jobs; of a watch, once it is open."""
    method, name, query = REQUESTS[verb]
    if verb == "watch":
        async with cluster.open(cluster.path("jobs"), **query) as response:
            return response.status
    body = job("j2") if verb == "create" else None
    return (await cluster.request(method, cluster.path("jobs", name), body, params=query)).status


@pytest.mark.parametrize("verb", REQUESTS)
@pytest.mark.parametrize(("code", "reason"), [(401, "Unauthorized"), (403, "Forbidden"), (503, "ServiceUnavailable")])
async def test_each_verb_is_refused_so_many_times_and_then_served(
    cluster: Cluster, verb: str, code: int, reason: str
) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    await fault(cluster, {"do": "status", "code": code}, verb=verb, resource="jobs", times=3)
    assert [await ask(cluster, verb) for _ in range(3)] == [code] * 3
    assert await ask(cluster, verb) == {"create": 201}.get(verb, 200)
    await fault(cluster, {"do": "status", "code": code}, verb="get")
    answer = await cluster.request("GET", cluster.path("secrets", "s1"))
    assert (answer.status, answer.body["reason"]) == (code, reason)


async def is_silent(read: Callable[[], Awaitable[Any]], seconds: float = 0.2) -> bool:
    """Whether nothing comes for a while."""
    with anyio.move_on_after(seconds):
        await read()
        return False
    return True


@pytest.mark.parametrize("verb", [*REQUESTS, "log"])
async def test_each_verb_can_be_left_without_an_answer(cluster: Cluster, verb: str) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    await fault(cluster, {"do": "hang"}, verb=verb, times=None)

    async def request() -> None:
        if verb == "log":
            async with cluster.open(cluster.path("pods", name, "log"), follow="true"):
                pass
        else:
            await ask(cluster, verb)

    assert await is_silent(request)
    assert (await cluster.switch("GET", "faults"))[0]["met"] == 1
    await cluster.switch("DELETE", "faults")
    await request()


async def test_a_429_says_when_to_come_back(cluster: Cluster) -> None:
    await fault(cluster, {"do": "status", "code": 429, "retryAfter": 1}, verb="get")
    answer = await cluster.request("GET", cluster.path("jobs", "j1"))
    assert (answer.status, answer.headers["Retry-After"]) == (429, "1")


async def test_a_403_has_the_words_of_rbac(cluster: Cluster) -> None:
    await fault(cluster, {"do": "status", "code": 403}, verb="create", resource="jobs")
    answer = await cluster.request("POST", cluster.path("jobs"), job("j1"))
    assert (answer.status, answer.body["reason"]) == (403, "Forbidden")
    assert answer.body["message"].endswith(
        'cannot create resource "jobs" in API group "batch" in the namespace "default"'
    )


async def test_a_rule_picks_verb_resource_and_name_lets_some_pass_and_is_forgotten(cluster: Cluster) -> None:
    await fault(cluster, {"do": "status", "code": 500}, verb="get", resource="secrets", name="a", after=1, times=None)
    for name in ("a1", "b1"):
        await cluster.create(secret(name))
    seen = [(await cluster.request("GET", cluster.path("secrets", name))).status for name in ("a1", "b1", "a1", "a1")]
    assert seen == [200, 200, 500, 500]
    assert await cluster.switch("DELETE", "faults") == []
    assert (await cluster.request("GET", cluster.path("secrets", "a1"))).status == 200


async def test_a_bad_rule_is_refused_with_a_reason(cluster: Cluster) -> None:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {cluster.token}"}) as session,
        session.post(f"{cluster.control}/embedded/faults", json={"action": {"do": "nonsense"}}) as response,
    ):
        assert response.status == 400
        assert "nonsense" in await response.text()


async def test_the_switches_want_the_token(cluster: Cluster) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{cluster.control}/embedded/state") as response:
        assert response.status == 401


@pytest.mark.parametrize(("when", "there"), [("before", 404), ("after", 200)])
async def test_a_reset_before_or_after_the_work(cluster: Cluster, when: str, there: int) -> None:
    await fault(cluster, {"do": "reset", "when": when}, verb="create")
    with pytest.raises(aiohttp.ClientOSError):
        await cluster.request("POST", cluster.path("jobs"), job("j1"))
    assert (await cluster.request("GET", cluster.path("jobs", "j1"))).status == there


@pytest.mark.parametrize(("when", "there"), [("before", 404), ("after", 200)])
async def test_no_answer_before_or_after_the_work(cluster: Cluster, when: str, there: int) -> None:
    await fault(cluster, {"do": "hang", "when": when}, verb="create", resource="jobs")
    async with anyio.create_task_group() as tg:
        tg.start_soon(cluster.request, "POST", cluster.path("jobs"), job("j1"))
        with anyio.fail_after(PATIENCE):
            while not (await cluster.switch("GET", "faults"))[0]["met"]:
                pass
        assert (await cluster.request("GET", cluster.path("jobs", "j1"))).status == there
        tg.cancel_scope.cancel()


async def test_a_delay_comes_before_the_work_and_before_another_fault(cluster: Cluster) -> None:
    await fault(cluster, None, verb="get", delay=0.3)
    await fault(cluster, {"do": "status", "code": 503}, verb="get")
    began = anyio.current_time()
    assert (await cluster.request("GET", cluster.path("jobs", "j1"))).status == 503
    assert anyio.current_time() - began >= 0.3


@pytest.mark.parametrize("count", [0, 2])
async def test_a_watch_ends_cleanly_after_so_many_events(cluster: Cluster, count: int) -> None:
    await fault(cluster, {"do": "close", "events": count}, verb="watch")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        for i in range(3):
            await cluster.create(secret(f"s{i}"))
        assert await names(watch, count) == [f"s{i}" for i in range(count)]
        assert await watch.ends() == b""


async def test_every_watch_can_end_after_its_first_event(cluster: Cluster) -> None:
    await fault(cluster, {"do": "close", "events": 1}, verb="watch", times=None)
    await cluster.create(secret("s0"))
    for _ in range(3):
        async with cluster.watch("secrets") as watch:
            assert await names(watch, 1) == ["s0"]
            assert await watch.ends() == b""


@pytest.mark.parametrize(("action", "code", "reason"), [("expire", 410, "Expired"), ("error", 500, "InternalError")])
async def test_an_error_in_the_stream(cluster: Cluster, action: str, code: int, reason: str) -> None:
    await fault(cluster, {"do": action, "events": 1}, verb="watch", resource="secrets")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        await cluster.create(secret("s1"))
        assert await names(watch, 1) == ["s1"]
        error = await watch.next()
        assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", code, reason)
        assert await watch.ends() == b""


async def test_a_410_as_the_status(cluster: Cluster) -> None:
    await fault(cluster, {"do": "gone"}, verb="watch")
    query = {"watch": "true", "resourceVersion": await version(cluster)}
    answer = await cluster.request("GET", cluster.path("secrets"), params=query)
    assert (answer.status, answer.body["reason"]) == (410, "Expired")


@pytest.fixture
async def chatty(anyio_backend: str) -> AsyncIterator[Cluster]:
    """A cluster whose quiet watches tell bookmarks all the time."""
    async with embedded(msgspec.structs.replace(OPTIONS, bookmark_interval=0.05)) as cluster:
        yield cluster


async def test_bookmarks_come_to_those_who_want_them_and_tell_the_newest_version(chatty: Cluster) -> None:
    begin = await version(chatty)
    async with (
        chatty.watch("secrets", resourceVersion=begin, timeoutSeconds="1") as without,
        chatty.watch("jobs", resourceVersion=begin, allowWatchBookmarks="true") as watch,
    ):
        created = await chatty.create(secret("s1"))
        newest = created["metadata"]["resourceVersion"]
        bookmark = (await watch.until(lambda event: event["object"]["metadata"]["resourceVersion"] == newest))[-1]
        assert bookmark["type"] == "BOOKMARK"
        assert (bookmark["object"]["kind"], bookmark["object"]["apiVersion"]) == ("Job", "batch/v1")
        assert b"BOOKMARK" not in await without.ends()


async def test_a_silent_watch_tells_not_even_bookmarks(chatty: Cluster) -> None:
    await fault(chatty, {"do": "silent", "events": 1}, verb="watch", resource="secrets")
    query = {"resourceVersion": await version(chatty), "allowWatchBookmarks": "true"}
    async with chatty.watch("secrets", **query) as watch, chatty.watch("jobs", **query) as other:
        await chatty.create(secret("s1"))
        assert await names(watch, 1) == ["s1"]
        await chatty.create(secret("s2"))
        for _ in range(5):
            await other.next()
        with anyio.move_on_after(0.2) as scope:
            await watch.next()
        assert scope.cancelled_caught


async def test_half_a_line_and_then_the_end(cluster: Cluster) -> None:
    await fault(cluster, {"do": "half", "events": 1}, verb="watch")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        for i in range(2):
            await cluster.create(secret(f"s{i}"))
        assert await names(watch, 1) == ["s0"]
        rest = await watch.ends()
        assert rest.startswith(b'{"type":"ADDED"')
        assert not rest.endswith(b"\n")


async def test_every_event_twice(cluster: Cluster) -> None:
    await fault(cluster, {"do": "duplicate"}, verb="watch")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        for i in range(2):
            await cluster.create(secret(f"s{i}"))
        assert await names(watch, 4) == ["s0", "s0", "s1", "s1"]


async def test_a_watch_can_repeat_what_is_older_than_it_was_asked_for(cluster: Cluster) -> None:
    for i in range(3):
        await cluster.create(secret(f"s{i}"))
    await fault(cluster, {"do": "replay", "events": 2}, verb="watch")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        await cluster.create(secret("new"))
        assert await names(watch, 3) == ["s1", "s2", "new"]


async def test_an_event_of_a_mebibyte(cluster: Cluster) -> None:
    await fault(cluster, {"do": "padding"}, verb="watch")
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        await cluster.create(secret("s1"))
        event: Object = await watch.next()
        assert len(msgspec.json.encode(event)) > 1024 * 1024
    assert "annotations" not in (await cluster.get("secrets", "s1"))["metadata"]


async def test_a_log_is_cut_after_so_many_bytes(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sh", "-c", "seq 100; sleep 3600"))
    pod = await cluster.pod_when("j1", running)
    path = cluster.path("pods", pod["metadata"]["name"], "log")
    await fault(cluster, {"do": "cut", "bytes": 5}, verb="log")
    async with cluster.open(path, follow="true") as log:
        assert await log.content.read() == b"1\n2\n3"
    await fault(cluster, {"do": "cut", "bytes": 5, "reset": True}, verb="log")
    async with cluster.open(path, follow="true") as log:
        with pytest.raises(aiohttp.ClientError):
            await log.content.read()


async def until_ended(cluster: Cluster, tmp_path: Path) -> str:
    """Return the pod of a Job that prints two lines and ends once `tmp_path` holds `go`."""
    await cluster.create(job("j1", "sh", "-c", f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo two"))
    return str((await cluster.pod_when("j1", running))["metadata"]["name"])


async def finished(cluster: Cluster) -> None:
    """Wait until the Job has finished: by then each log of its pod has ended."""
    async with cluster.watch("jobs", fieldSelector="metadata.name=j1") as watch:
        await watch.until(lambda event: event["object"]["status"].get("completionTime"))


async def test_a_log_can_open_and_stay_silent_also_after_the_end(cluster: Cluster, tmp_path: Path) -> None:
    name = await until_ended(cluster, tmp_path)
    await fault(cluster, {"do": "silent"}, verb="log")
    await fault(cluster, {"do": "silent", "bytes": 4}, verb="log")
    path = cluster.path("pods", name, "log")
    async with cluster.open(path, follow="true") as nothing, cluster.open(path, follow="true") as first:
        assert (nothing.status, first.status) == (200, 200)
        assert await first.content.readline() == b"one\n"
        (tmp_path / "go").touch()
        await finished(cluster)
        assert await cluster.log(name) == b"one\ntwo\n"
        assert await is_silent(nothing.content.read)
        assert await is_silent(first.content.read)


async def test_a_log_can_be_told_whole_and_stay_open_after_the_end(cluster: Cluster, tmp_path: Path) -> None:
    name = await until_ended(cluster, tmp_path)
    await fault(cluster, {"do": "linger"}, verb="log")
    async with cluster.open(cluster.path("pods", name, "log"), follow="true") as log:
        (tmp_path / "go").touch()
        assert [await log.content.readline() for _ in range(2)] == [b"one\n", b"two\n"]
        await finished(cluster)
        assert await is_silent(log.content.read)


async def switch(cluster: Cluster, component: str, up: bool) -> None:
    assert (await cluster.switch("PATCH", "components", {component: up}))[component] is up


async def test_without_a_controller_manager_jobs_get_no_pods_until_it_is_back(cluster: Cluster) -> None:
    await switch(cluster, "kube-controller-manager", up=False)
    await cluster.create(job("j1", "true"))
    async with cluster.watch("pods") as watch:
        assert await is_silent(watch.next)
    assert (await cluster.get("jobs", "j1"))["status"] == {}
    await switch(cluster, "kube-controller-manager", up=True)
    await finished(cluster)


async def test_without_a_controller_manager_nothing_is_collected_and_nothing_counted(
    cluster: Cluster, tmp_path: Path
) -> None:
    name = await until_ended(cluster, tmp_path)
    owner = await cluster.create(job("j2", "sleep", "3600"))
    await cluster.create(secret("s2", owner=owner))
    other = (await cluster.pod_when("j2", running))["metadata"]["name"]
    await switch(cluster, "kube-controller-manager", up=False)
    (tmp_path / "go").touch()
    await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert (await cluster.delete("jobs", "j2")).body["status"] == "Success"
    assert (await cluster.delete("pods", name)).body["metadata"]["deletionGracePeriodSeconds"] == 0
    async with cluster.watch("pods", resourceVersion=await version(cluster)) as watch:
        assert await is_silent(watch.next)
    for plural, kept in (("pods", other), ("secrets", "s2"), ("pods", name)):
        await cluster.get(plural, kept)
    assert "conditions" not in (await cluster.get("jobs", "j1"))["status"]
    assert len((await cluster.switch("GET", "state"))["processes"]) == 1
    await switch(cluster, "kube-controller-manager", up=True)
    await finished(cluster)
    for plural, gone in (("pods", other), ("secrets", "s2"), ("pods", name)):
        await cluster.gone(plural, gone)


async def test_without_a_controller_manager_a_deletion_that_needs_it_only_begins(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    await cluster.pod_when("j1", running)
    await switch(cluster, "kube-controller-manager", up=False)
    answer = await cluster.request("DELETE", cluster.path("jobs", "j1"), {"propagationPolicy": "Foreground"})
    assert answer.body["metadata"]["finalizers"] == ["foregroundDeletion"]
    async with cluster.watch("jobs", resourceVersion=answer.body["metadata"]["resourceVersion"]) as watch:
        assert await is_silent(watch.next)
    assert len((await cluster.switch("GET", "state"))["processes"]) == 1
    await switch(cluster, "kube-controller-manager", up=True)
    await cluster.gone("jobs", "j1")
    state = await cluster.switch("GET", "state")
    assert (state["objects"]["pods"], state["processes"]) == (0, []), "dependants first"


async def test_a_controller_manager_that_comes_back_knows_what_is_left_to_do(cluster: Cluster, tmp_path: Path) -> None:
    name = await until_ended(cluster, tmp_path)
    await switch(cluster, "kube-controller-manager", up=False)
    await cluster.delete("pods", name)
    await cluster.pod_when("j1", lambda pod: pod["metadata"].get("deletionGracePeriodSeconds") == 0)
    for up in (True, False, True):
        await switch(cluster, "kube-controller-manager", up=up)
    async with cluster.watch("jobs", fieldSelector="metadata.name=j1") as watch:
        await watch.until(lambda event: len(event["object"]["status"].get("conditions") or []) == 2)
    assert (await cluster.list("pods"))["items"] == [], "no second pod, and the first is not kept"


async def test_an_orphaned_pod_runs_on_with_its_secret_and_without_an_owner(cluster: Cluster) -> None:
    owner = await cluster.create(job("j1", "sleep", "3600"))
    await cluster.create(secret("s1", owner=owner))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    assert (await cluster.request("DELETE", cluster.path("jobs", "j1"), {"propagationPolicy": "Orphan"})).status == 200
    await cluster.gone("jobs", "j1")
    pod = (await cluster.pod_when("j1", lambda pod: not pod["metadata"].get("finalizers")))["metadata"]
    assert (pod["name"], pod["ownerReferences"]) == (name, [])
    assert (await cluster.get("secrets", "s1"))["metadata"]["ownerReferences"] == []
    assert len((await cluster.switch("GET", "state"))["processes"]) == 1
    await cluster.delete("pods", name)
    await cluster.gone("pods", name)


async def test_without_a_scheduler_a_pod_waits_without_a_word(cluster: Cluster) -> None:
    await switch(cluster, "kube-scheduler", up=False)
    await cluster.create(job("j1", "true"))
    pod = await cluster.pod_of("j1")
    async with cluster.watch("pods", resourceVersion=pod["metadata"]["resourceVersion"]) as watch:
        assert await is_silent(watch.next)
        assert (pod["status"]["phase"], "conditions" in pod["status"], "nodeName" in pod["spec"]) == (
            "Pending",
            False,
            False,
        )
        await switch(cluster, "kube-scheduler", up=True)
        assert (await watch.next())["object"]["status"]["conditions"][0]["type"] == "PodScheduled"
    await cluster.pod_when("j1", ended)


async def test_a_frozen_kubelet_tells_nothing_and_its_containers_go_on(cluster: Cluster, tmp_path: Path) -> None:
    name = await until_ended(cluster, tmp_path)
    path = cluster.path("pods", name, "log")
    async with (
        cluster.open(path, follow="true") as log,
        cluster.watch("pods", resourceVersion=await version(cluster)) as watch,
    ):
        assert await log.content.readline() == b"one\n"
        await switch(cluster, "kubelet", up=False)
        (tmp_path / "go").touch()
        with anyio.fail_after(PATIENCE):
            while (await cluster.switch("GET", "state"))["processes"]:
                pass
        assert await is_silent(watch.next)
        assert await is_silent(log.content.readline)
        assert await is_silent(partial(cluster.log, name))
        await switch(cluster, "kubelet", up=True)
        assert await log.content.read() == b"two\n"
        await watch.until(lambda event: event["object"]["status"]["phase"] == "Succeeded")


async def test_a_lost_nodes_process_goes_on_when_its_pod_is_gone(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sh", "-c", "echo up; exec sleep 3600"))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    (pid,) = (await cluster.switch("GET", "state"))["processes"]
    async with cluster.open(cluster.path("pods", name, "log"), follow="true") as log:
        assert await log.content.readline() == b"up\n"
        await switch(cluster, "kubelet", up=False)
        await cluster.request("DELETE", cluster.path("pods", name), {"gracePeriodSeconds": 0})
        await cluster.gone("pods", name)
        assert await is_silent(log.content.read)
        assert (await cluster.switch("GET", "state"))["processes"] == [pid]
        await switch(cluster, "kubelet", up=True)
        assert await log.content.read() == b""
    with anyio.fail_after(PATIENCE):
        while (await cluster.switch("GET", "state"))["processes"]:
            pass


async def test_a_component_that_there_is_not_is_refused(cluster: Cluster) -> None:
    everything = {"kube-controller-manager": True, "kube-scheduler": True, "kubelet": True}
    assert await cluster.switch("GET", "components") == everything
    for wrong in ({"kube-proxy": False}, {"kubelet": "frozen"}):
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {cluster.token}"}) as session,
            session.patch(f"{cluster.control}/embedded/components", json=wrong) as response,
        ):
            assert response.status == 400
    assert await cluster.switch("GET", "components") == everything


@pytest.mark.parametrize("ahead", [3600, -3600])
async def test_a_nodes_clock_is_in_all_that_its_kubelet_writes_and_in_nothing_else(
    cluster: Cluster, ahead: float
) -> None:
    await cluster.switch("PATCH", "environment", {"nodeClock": ahead})
    await cluster.create(job("j1", "sh", "-c", "echo hello; exec sleep 3600"))
    await cluster.pod_when("j1", running)
    now = datetime.now(UTC)
    name = (await cluster.pod_of("j1"))["metadata"]["name"]
    path = cluster.path("pods", name, "log")
    async with cluster.open(path, follow="true", timestamps="true") as log:
        stamp, _, text = (await log.content.readline()).decode().partition(" ")
    assert text == "hello\n"
    assert await cluster.log(name, sinceSeconds="3000") == b"hello\n", "an age is by the node's clock as well"
    await cluster.delete("pods", name)
    pod = await cluster.pod_when("j1", lambda pod: ended(pod) and "deletionTimestamp" in pod["metadata"])
    events = (await cluster.list("events", fieldSelector=f"involvedObject.name={name}"))["items"]
    terminated = container_state(pod)["terminated"]
    conditions = {each["type"]: each["lastTransitionTime"] for each in pod["status"]["conditions"]}
    node = [
        stamp,
        pod["status"]["startTime"],
        terminated["startedAt"],
        terminated["finishedAt"],
        conditions["Ready"],
        *(each["lastTimestamp"] for each in events if each["source"].get("component") == "kubelet"),
    ]
    server = [
        pod["metadata"]["creationTimestamp"],
        pod["metadata"]["deletionTimestamp"],
        (await cluster.get("jobs", "j1"))["status"]["startTime"],
        *(each["eventTime"] for each in events if each["reportingComponent"] == "default-scheduler"),
        *(each["metadata"]["creationTimestamp"] for each in events),
    ]
    off = [[(datetime.fromisoformat(each) - now).total_seconds() for each in times] for times in (node, server)]
    assert all(abs(each - ahead) < 600 for each in off[0]), node
    assert all(abs(each) < 600 for each in off[1]), server
    assert len(node) > 7


async def test_an_outage_drops_streams_and_refuses_connections_while_pods_live_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.create(job("j1", "sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo end"))
    pod = await cluster.pod_when("j1", running)
    processes = (await cluster.switch("GET", "state"))["processes"]
    async with cluster.watch("pods", resourceVersion=await version(cluster)) as watch:
        await cluster.switch("POST", "outage", {"on": True})
        with pytest.raises(aiohttp.ClientError):
            await watch.next()
    with pytest.raises(aiohttp.ClientConnectorError):
        await cluster.request("GET", "/livez")
    state = await cluster.switch("GET", "state")
    assert (state["processes"], state["connections"], state["streams"]) == (processes, 0, {"watch": 0, "log": 0})
    (tmp_path / "go").touch()
    await cluster.switch("POST", "outage", {"on": False})
    await cluster.pod_when("j1", ended)
    assert await cluster.log(pod["metadata"]["name"]) == b"end\n"


async def test_an_outage_can_end_by_itself(cluster: Cluster) -> None:
    await cluster.switch("POST", "outage", {"seconds": 0.2})
    with pytest.raises(aiohttp.ClientConnectorError):
        await cluster.request("GET", "/livez")
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                assert (await cluster.request("GET", "/livez")).status == 200
            except aiohttp.ClientConnectorError:
                continue
            break


async def test_after_a_compaction_what_was_known_is_too_old(cluster: Cluster) -> None:
    old = await version(cluster)
    await cluster.switch("POST", "compact")
    answer = await cluster.request("GET", cluster.path("jobs"), params={"watch": "true", "resourceVersion": old})
    assert (answer.status, answer.body["object"]["code"]) == (200, 410)
    query = {"resourceVersion": old, "resourceVersionMatch": "Exact"}
    assert (await cluster.request("GET", cluster.path("jobs"), params=query)).status == 410
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        await cluster.create(secret("s1"))
        assert await names(watch, 1) == ["s1"]


@pytest.mark.parametrize(
    ("refusals", "seen"), [({"forbidden": 1}, [403]), ({"unauthorized": 1, "forbidden": 1}, [401, 403])]
)
async def test_a_restart_is_an_outage_a_compaction_and_refusals_for_a_moment(
    cluster: Cluster, refusals: dict[str, float], seen: list[int]
) -> None:
    old = await version(cluster)
    await cluster.switch("POST", "restart", {"seconds": 0.1, **refusals})
    statuses: list[int] = []
    with anyio.fail_after(PATIENCE):
        while statuses[-1:] != [200]:
            try:
                answer = await cluster.request(
                    "GET", cluster.path("jobs"), params={"watch": "true", "resourceVersion": old}
                )
            except aiohttp.ClientConnectorError:
                answer = None
            status = 0 if answer is None else answer.status
            if statuses[-1:] != [status]:
                statuses.append(status)
    assert [status for status in statuses if status] == [*seen, 200]
    assert answer is not None
    assert answer.body["object"]["code"] == 410


async def test_the_token_can_change(cluster: Cluster) -> None:
    await cluster.switch("POST", "tokens", {"tokens": ["new"]})
    assert (await cluster.request("GET", cluster.path("jobs"))).status == 401
    answer = await cluster.request("GET", cluster.path("jobs"), headers={"Authorization": "Bearer new"})
    assert answer.status == 200


async def test_the_state_counts_what_there_is(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    pod = await cluster.pod_when("j1", running)
    async with cluster.open(cluster.path("pods", pod["metadata"]["name"], "log"), follow="true"):
        state = await cluster.switch("GET", "state")
        assert state["streams"]["log"] == 1
    assert (state["objects"]["jobs"], state["objects"]["pods"], len(state["processes"])) == (1, 1, 1)
    assert state["requests"]["create jobs"] == 1
    assert state["connections"] >= 1


@pytest.mark.parametrize("how", ["token", "right"])
async def test_what_is_taken_away_leaves_open_watches_open(cluster: Cluster, how: str) -> None:
    async with cluster.watch("secrets", resourceVersion=await version(cluster)) as watch:
        if how == "token":
            await cluster.switch("POST", "tokens", {"tokens": ["other"]})
        else:
            await cluster.switch("POST", "rights", {"without": ["list secrets", "watch secrets"]})
        status = 401 if how == "token" else 403
        assert (await cluster.request("GET", cluster.path("secrets"))).status == status
        headers = {"Authorization": "Bearer other"} if how == "token" else {}
        answer = await cluster.request("POST", cluster.path("secrets"), secret("s1"), headers=headers)
        assert answer.status == 201
        assert await names(watch, 1) == ["s1"]


async def test_a_right_that_is_missing_is_refused_in_the_words_of_rbac(cluster: Cluster) -> None:
    await cluster.switch("POST", "rights", {"without": ["get pods/log", "create jobs.batch", "get namespaces"]})
    where = f'in the namespace "{cluster.namespace}"'
    for method, path, body, message in (
        (
            "GET",
            cluster.path("pods", "p1", "log"),
            None,
            f'pods "p1" is forbidden: User "embedded" cannot get resource "pods/log" in API group "" {where}',
        ),
        (
            "POST",
            cluster.path("jobs"),
            job("j1"),
            f'jobs.batch is forbidden: User "embedded" cannot create resource "jobs" in API group "batch" {where}',
        ),
        (
            "GET",
            f"/api/v1/namespaces/{cluster.namespace}",
            None,
            f'namespaces "{cluster.namespace}" is forbidden: User "embedded" cannot get resource "namespaces" in API'
            f' group "" {where}',
        ),
    ):
        answer = await cluster.request(method, path, body)
        assert (answer.status, answer.body["message"]) == (403, message)
    await cluster.switch("POST", "rights", {})
    await cluster.create(job("j1"))


async def test_what_is_missing_is_missing_in_the_reviews(cluster: Cluster) -> None:
    async def allowed(verb: str, group: str, resource: str, sub: str = "") -> bool:
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": sub}
        answer = await cluster.request(
            "POST", f"{REVIEWS}/selfsubjectaccessreviews", {"spec": {"resourceAttributes": attributes}}
        )
        assert answer.status == 201
        return bool(answer.body["status"]["allowed"])

    async def rules() -> Object:
        answer = await cluster.request("POST", f"{REVIEWS}/selfsubjectrulesreviews", {"spec": {"namespace": "default"}})
        return cast("Object", answer.body["status"])

    assert (await rules())["resourceRules"] == [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    await cluster.switch("POST", "rights", {"without": ["create jobs.batch", "* pods/log"]})
    assert not await allowed("create", "batch", "jobs")
    assert not await allowed("get", "", "pods", "log")
    assert await allowed("get", "", "pods")
    assert await allowed("list", "batch", "jobs")
    told = {(rule["apiGroups"][0], rule["resources"][0]): rule["verbs"] for rule in (await rules())["resourceRules"]}
    assert "create" not in told["batch", "jobs"]
    assert ("", "pods/log") not in told
    assert "create" in told["", "pods"]
    await cluster.switch("POST", "rights", {"incomplete": True})
    assert await rules() == {
        "resourceRules": [],
        "nonResourceRules": [],
        "incomplete": True,
        "evaluationError": "webhook authorizer does not support user rule resolution",
    }
    await cluster.switch("POST", "rights", {"without": ["create selfsubjectrulesreviews.authorization.k8s.io"]})
    refused = await cluster.request("POST", f"{REVIEWS}/selfsubjectrulesreviews", {"spec": {}})
    assert refused.status == 403
    assert refused.body["message"].endswith('in API group "authorization.k8s.io" at the cluster scope')


async def test_a_namespace_that_is_deleted_goes_with_all_that_is_in_it_and_leaves_watches_open(
    cluster: Cluster,
) -> None:
    owner = await cluster.create(job("j1", "sleep", "3600"))
    await cluster.create(secret("s1", owner=owner))
    await cluster.pod_when("j1", running)
    path = f"/api/v1/namespaces/{cluster.namespace}"
    async with (
        cluster.watch("jobs", resourceVersion=await version(cluster)) as jobs,
        cluster.watch("secrets", resourceVersion=await version(cluster)) as secrets,
    ):
        assert (await cluster.request("DELETE", path)).body["status"]["phase"] == "Terminating"
        await jobs.until(lambda event: event["type"] == "DELETED")
        with anyio.fail_after(PATIENCE):
            while (await cluster.request("GET", path)).status != 404:
                pass
        state = await cluster.switch("GET", "state")
        assert (state["objects"], state["processes"]) == (dict.fromkeys(("jobs", "pods", "secrets", "events"), 0), [])
        assert (await cluster.list("jobs"))["items"] == [], "a list is empty, not refused"
        assert (await cluster.request("POST", cluster.path("secrets"), secret("s2"))).status == 404
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": cluster.namespace}}
        assert (await cluster.request("POST", "/api/v1/namespaces", namespace)).status == 201
        assert (await cluster.request("POST", "/api/v1/namespaces", namespace)).status == 409
        await cluster.create(secret("s3"))
        await secrets.until(lambda event: event["object"]["metadata"]["name"] == "s3")
