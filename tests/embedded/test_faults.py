"""The switches: each misbehaves exactly as its row of the table in faults.py or control.py says."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import msgspec
import pytest

from k8s_builder_lab.embedded.objects import Object

from .cluster import PATIENCE, Cluster, Watch, embedded, ended, job, running, secret
from .conftest import OPTIONS

pytestmark = pytest.mark.anyio


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


async def test_a_restart_is_an_outage_a_compaction_and_403s_for_a_moment(cluster: Cluster) -> None:
    old = await version(cluster)
    await cluster.switch("POST", "restart", {"seconds": 0.1, "forbidden": 1})
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
    assert statuses[-2:] == [403, 200]
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
