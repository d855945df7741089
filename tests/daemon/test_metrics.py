"""What /metrics counts is what has happened: launches, ends, logs, requests, calls that are turned away."""

import socket
from collections.abc import Callable

import pytest

from tests.daemon.chaincodes import Ticking, eventually, kill
from tests.daemon.scene import Running, Scene
from tests.exposition import Exposition

pytestmark = pytest.mark.anyio


async def metrics(scene: Scene, daemon: Running) -> Exposition:
    status, text = await scene.health(daemon, "/metrics")
    assert status == 200
    return Exposition(text)


async def becomes(scene: Scene, daemon: Running, holds: Callable[[Exposition], bool]) -> Exposition:
    """Ask until it holds, and return what was said then."""
    found: list[Exposition] = []

    async def look() -> bool:
        found.append(await metrics(scene, daemon))
        return holds(found[-1])

    await eventually(look)
    return found[-1]


async def test_a_launch_is_counted_and_timed_and_so_are_log_and_end(scene: Scene, daemon: Running) -> None:
    code, _ = await scene.said("run", await scene.package(script="echo one; echo two; exit 3"))
    assert code == 1
    found = await becomes(scene, daemon, lambda it: it["connections"] == 0)
    assert found.counted("launches_total") == {("", "started"): 1}
    assert found["launch_job_seconds_count"] == 1
    assert found["launch_running_seconds_count"] == 1
    assert 0 < found["launch_job_seconds_sum"] <= found["launch_running_seconds_sum"]
    assert (found["log_lines_total"], found["log_bytes_total"]) == (2, 8)
    assert found.counted("chaincode_ends_total") == {("ExitCode",): 1}
    assert found.value("calls_total", stage="run", code="1") == 1


async def test_running_chaincodes_are_a_gauge(scene: Scene, daemon: Running) -> None:
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    found = await metrics(scene, daemon)
    states = {state: found.value("chaincodes", state=state) for state in ("waiting", "creating", "pending", "running")}
    assert states == {"waiting": 0, "creating": 0, "pending": 0, "running": 1}
    assert found["connections"] == 1
    assert found["connections_limit"] >= 1
    ticking.end()
    await run.wait()
    await becomes(scene, daemon, lambda it: it.value("chaincodes", state="running") == 0)


async def test_a_daemon_that_takes_over_counts_no_launch_a_second_time(scene: Scene, daemon: Running) -> None:
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    await kill(daemon)
    daemon = await scene.daemon()
    await becomes(scene, daemon, lambda it: it["log_lines_total"] > 0)
    ticking.end()
    await run.wait()
    found = await becomes(scene, daemon, lambda it: it["connections"] == 0)
    assert found.counted("launches_total") == {}
    assert found["launch_running_seconds_count"] == 0
    assert found.counted("chaincode_ends_total") == {("Completed",): 1}


async def test_a_launch_that_fails_is_counted_with_its_category(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    package.image({"name": "localhost/missing", "digest": "sha256:" + "5e" * 32})
    assert (await scene.said("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT="1s"))[0] == 1
    found = await metrics(scene, daemon)
    assert found.counted("launches_total") == {("ImagePull", "failed"): 1}
    assert found["launch_job_seconds_count"] == 1
    assert found["launch_running_seconds_count"] == 0


async def test_a_launch_that_the_api_does_not_take_is_counted_with_its_category(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="create", resource="jobs", times=None, action={"do": "status", "code": 503})
    assert (await scene.said("run", await scene.package(), FABRIC_K8S_BUILDER_START_TIMEOUT="1s"))[0] == 1
    found = await metrics(scene, daemon)
    assert found.counted("launches_total") == {("ApiUnavailable", "failed"): 1}
    assert found.value("api_retries_total", verb="create", resource="jobs.batch") >= 1
    assert found.value("api_requests_total", verb="create", resource="jobs.batch", code="503") >= 2


async def test_a_launch_that_is_stopped_before_it_starts_is_counted(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    package.image({"name": "localhost/missing", "digest": "sha256:" + "5e" * 32})
    run = await scene.call("run", package)
    await run.line("the image cannot be pulled")
    assert await run.terminate() == 0
    found = await becomes(scene, daemon, lambda it: it["connections"] == 0)
    assert found.counted("launches_total") == {("", "stopped"): 1}
    assert found.counted("jobs_deleted_total") == {("stopped",): 1}


async def test_a_launch_whose_chaincode_is_launched_again_is_counted(scene: Scene, daemon: Running) -> None:
    """Another process of the peer, which does not go on with the Job of the first, takes its place."""
    package = await scene.package()
    package.image({"name": "localhost/missing", "digest": "sha256:" + "5e" * 32})
    first = await scene.call("run", package)
    await first.line("the image cannot be pulled")
    package.connect(root_cert="-----BEGIN CERTIFICATE-----\nanother\n")
    second = await scene.call("run", package)
    assert await first.wait() == 1
    found = await becomes(scene, daemon, lambda it: bool(it.counted("launches_total")))
    assert found.counted("launches_total") == {("", "yielded"): 1}
    await second.terminate()


async def test_requests_are_counted_by_verb_resource_and_code(scene: Scene, daemon: Running) -> None:
    await scene.said("run", await scene.package(script="echo hello"))
    found = await metrics(scene, daemon)
    for verb, resource, code in (
        ("list", "jobs.batch", "200"),
        ("watch", "jobs.batch", "200"),
        ("list", "pods", "200"),
        ("watch", "pods", "200"),
        ("create", "jobs.batch", "201"),
        ("create", "secrets", "201"),
        ("get", "pods/log", "200"),
    ):
        assert found.value("api_requests_total", verb=verb, resource=resource, code=code) >= 1, (verb, resource)
    assert found.value("api_request_seconds_count", verb="create", resource="secrets") == 1

    async def all_are_counted() -> bool:
        """Events are written beside."""
        counted = (await metrics(scene, daemon)).total("api_requests_total", verb="create")
        asked = (await scene.state())["requests"]
        return bool(counted == sum(number for what, number in asked.items() if what.startswith("create ")))

    await eventually(all_are_counted)


async def test_watches_that_begin_anew_are_counted_with_the_reason(scene: Scene, daemon: Running) -> None:
    await becomes(scene, daemon, lambda it: it["ready"] == 1)
    await scene.cluster.switch("POST", "outage", {"on": True})
    await becomes(scene, daemon, lambda it: it.total("api_requests_total", code="none") >= 1)
    await scene.cluster.switch("POST", "outage", {"on": False})
    found = await becomes(scene, daemon, lambda it: it["ready"] == 1)
    for resource in ("jobs.batch", "pods"):
        assert found.value("watch_restarts_total", resource=resource, reason="unreachable") >= 1


async def test_a_log_that_breaks_is_counted_with_the_reason(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="log", times=1, action={"do": "status", "code": 503})
    await scene.said("run", await scene.package(script="echo hello"))
    found = await metrics(scene, daemon)
    assert found.counted("log_interruptions_total") == {("unavailable",): 1}
    assert found["log_lines_total"] == 1


async def test_an_end_of_a_log_that_is_lost_is_counted(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="log", times=1, action={"do": "cut", "bytes": 40, "reset": True})
    await scene.fault(verb="log", times=None, action={"do": "status", "code": 404})
    run = await scene.call("run", await scene.package(script="echo hello; echo world; exit 3"))
    await run.line("The end of the chaincode's log is missing")
    assert await run.wait() == 1
    assert (await metrics(scene, daemon)).value("log_interruptions_total", reason="lost") == 1


async def test_calls_that_are_turned_away_are_counted_with_the_reason(scene: Scene) -> None:
    daemon = await scene.daemon(MAX_CONNECTIONS="1", REQUEST_TIMEOUT="1s")
    run = await scene.call("run", await scene.package(script="echo up; sleep 3600"))
    await run.line("up")
    assert (await scene.said("detect", await scene.package()))[0] == 1
    found = await becomes(scene, daemon, lambda it: it.value("calls_rejected_total", reason="connections") == 1)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b""):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(scene.socket))
            connection.sendall(data)
            found = await becomes(
                scene,
                daemon,
                lambda it: it.value("calls_rejected_total", reason="protocol" if data else "timeout") == 1,  # noqa: B023
            )
    await run.terminate()
    assert found.value("calls_rejected_total", reason="uid") == 0


async def test_a_user_who_may_not_call_is_counted(scene: Scene) -> None:
    daemon = await scene.daemon(ALLOWED_UIDS="4711")
    assert (await scene.said("detect", await scene.package()))[0] == 1
    found = await metrics(scene, daemon)
    assert found.counted("calls_rejected_total") == {("uid",): 1}


async def test_the_answer_does_not_grow_with_the_number_of_chaincodes(scene: Scene, daemon: Running) -> None:
    """After the first one has ended, every series is there: others add none."""

    async def series() -> set[str]:
        """All but those of requests: a kind of request that is made now and then may come to be made meanwhile."""
        text = (await becomes(scene, daemon, lambda it: it["connections"] == it["runs"] == 0)).text
        assert "other" not in text
        lines = {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        return {line for line in lines if not line.startswith("k8s_builderd_api_request")}

    await scene.said("run", await scene.package("first_1.0", script="echo hello"))
    before = await series()
    for number in range(3):
        await scene.said("run", await scene.package(f"other{number}_1.0", script="echo hello"))
    assert await series() == before
