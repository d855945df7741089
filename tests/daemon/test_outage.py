"""The API server is away, or starts anew: nothing restarts, nothing is lost, and `/readyz` says so."""

from typing import Any

import pytest

from tests.daemon.chaincodes import (
    Ticking,
    assert_whole,
    chaincode_lines,
    eventually,
    forgotten,
    no_faults,
    nothing_left,
)
from tests.daemon.scene import Running, Scene
from tests.embedded.cluster import ended, running

pytestmark = pytest.mark.anyio


async def outage(scene: Scene, *, on: bool) -> None:
    await scene.cluster.switch("POST", "outage", {"on": on})


async def is_ready(scene: Scene, daemon: Running) -> bool:
    return (await scene.health(daemon, "/readyz"))[0] == 200


async def until_ready(scene: Scene, daemon: Running) -> None:
    await eventually(lambda: is_ready(scene, daemon))


async def test_it_is_away_when_the_daemon_starts(scene: Scene) -> None:
    await outage(scene, on=True)
    daemon = await scene.daemon(pace=5)
    await daemon.line("watch_interrupted", 2)
    assert await scene.health(daemon, "/livez") == (200, "ok\n")
    status, report = await scene.health(daemon, "/readyz")
    assert status == 503
    assert "[-]jobs failed: cannot list jobs.batch: the Kubernetes API does not answer" in report
    assert "[-]pods failed: cannot list pods: the Kubernetes API does not answer" in report
    assert "[+]socket ok" in report
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    # The client waits, and is told for what.
    assert b"cannot list jobs.batch" in await run.line("Waiting for the Kubernetes API")
    # What needs no API works.
    assert (await scene.said("detect", ticking.package))[0] == 0
    await outage(scene, on=False)
    await run.line("line 2")
    await until_ready(scene, daemon)
    assert await run.terminate() == 0
    await nothing_left(scene)


async def test_a_stop_while_it_has_never_been_there(scene: Scene) -> None:
    """There may be a Job that an earlier daemon has made: it is deleted when the API is back, if it is there."""
    await outage(scene, on=True)
    daemon = await scene.daemon(pace=5)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)

    async def known() -> bool:
        return "k8s_builderd_runs 1.0" in (await scene.health(daemon, "/metrics"))[1]

    await eventually(known)
    code = await run.terminate()
    assert code == 0 or b"The daemon keeps trying" in run.lines[-1]
    await outage(scene, on=False)
    await daemon.line("watch_synced", 2)
    await nothing_left(scene)
    assert ticking.pids == []


async def test_it_is_away_in_the_middle(scene: Scene) -> None:
    """Three chaincodes: one goes on, one ends and one is killed meanwhile; each is told when it is back."""
    daemon = await scene.daemon()
    stays, ends, fails = [
        await Ticking.make(scene, name, code=3 * (name == "fails")) for name in ("stays", "ends", "fails")
    ]
    runs = [await scene.call("run", ticking.package) for ticking in (stays, ends, fails)]
    for run in runs:
        await run.line("line 2")
    jobs = {job["metadata"]["name"] for job in (await scene.cluster.list("jobs"))["items"]}
    await outage(scene, on=True)
    await daemon.line("watch_interrupted", 2)
    assert (await scene.health(daemon, "/livez"))[0] == 200
    status, report = await scene.health(daemon, "/readyz")
    assert status == 503
    assert "the Kubernetes API does not answer" in report
    heard = len(chaincode_lines(runs[0]))
    ends.end()
    fails.end()

    async def two_have_ended() -> bool:
        return len((await scene.cluster.switch("GET", "state"))["processes"]) == 1

    await eventually(two_have_ended)
    assert not any(run.ended.is_set() for run in runs)
    await outage(scene, on=False)
    assert [await run.wait() for run in runs[1:]] == [0, 1]
    for run, code in ((runs[1], 0), (runs[2], 3)):
        assert_whole(run)
        assert run.lines[-1].endswith(b"the chaincode ended with exit code %d" % code)
    await runs[0].line(b"line %d" % (heard + 20))
    await until_ready(scene, daemon)
    stays.end()
    assert await runs[0].wait() == 0
    assert_whole(runs[0])
    assert [len(ticking.pids) for ticking in (stays, ends, fails)] == [1, 1, 1]
    assert {job["metadata"]["name"] for job in (await scene.cluster.list("jobs"))["items"]} == jobs


async def test_a_job_that_is_deleted_while_nobody_watches(scene: Scene) -> None:
    """The new list does not have it any more, and no event ever told."""
    daemon = await scene.daemon(pace=5)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await scene.fault(verb="watch", times=None, action={"do": "status", "code": 503})
    await scene.cluster.switch("POST", "drop")
    await daemon.line("watch_interrupted", 2)
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.delete("jobs", job)

    async def gone() -> bool:
        return await scene.count("pods") == 0

    await eventually(gone)
    await scene.cluster.switch("POST", "compact")
    await no_faults(scene)
    assert await run.wait() == 1
    assert b"deleted" in run.lines[-1]
    lines = chaincode_lines(run)
    assert lines == [b"line %d" % number for number in range(len(lines))]
    await nothing_left(scene)
    await forgotten(scene, daemon)


@pytest.mark.parametrize("forbidden", [0, 1.5])
async def test_it_is_restarted(scene: Scene, forbidden: float) -> None:
    """Every resourceVersion is too old at once, and for a moment it knows nobody's rights."""
    daemon = await scene.daemon(pace=2)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    heard = len(chaincode_lines(run))
    await scene.cluster.switch("POST", "restart", {"seconds": 0.2, "forbidden": forbidden})
    await daemon.line("watch_interrupted", 2)
    await run.line(b"line %d" % (heard + 10))
    await until_ready(scene, daemon)
    # The watches see again what happens.
    other = await Ticking.make(scene, "other")
    second = await scene.call("run", other.package)
    await second.line("line 2")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert await second.terminate() == 0
    assert len(ticking.pids) == 1
    assert await scene.count("jobs") == 1


async def test_it_is_restarted_while_a_launch_is_under_way(scene: Scene) -> None:
    daemon = await scene.daemon(REQUEST_TIMEOUT="4s", pace=4)
    ticking = await Ticking.make(scene)
    await scene.fault(verb="create", resource="secrets", action={"do": "hang", "when": "before"})
    run = await scene.call("run", ticking.package)
    await daemon.line("job_created")
    await scene.cluster.switch("POST", "restart", {"seconds": 0.2, "forbidden": 1})
    await run.line("line 2")
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


async def test_it_is_restarted_again_and_again(scene: Scene) -> None:
    """A chaincode that logs on through all of it loses nothing, and the daemon keeps nothing of the past."""
    daemon = await scene.daemon(pace=5)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
    for _ in range(3):
        await scene.cluster.switch("POST", "restart", {"seconds": 0.05, "forbidden": 0})
        await eventually(lambda: streams(scene))
        await run.line(b"line %d" % (len(chaincode_lines(run)) + 1))
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    await until_ready(scene, daemon)


async def streams(scene: Scene) -> bool:
    """Tell whether both watches and the log are open."""
    state: dict[str, Any] = await scene.cluster.switch("GET", "state")
    return bool(state["streams"]["watch"] >= 2 and state["streams"]["log"] >= 1)


async def test_a_watch_that_goes_silent_is_replaced(scene: Scene) -> None:
    """Nothing comes and nothing breaks, as when a node between us loses power: the end is seen all the same."""
    await scene.fault(verb="watch", times=2, action={"do": "silent"})
    daemon = await scene.daemon(WATCH_SILENCE="1s")
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("Running chaincode ID")
    await daemon.line("has been silent for", 2)
    await run.line("line 2")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(job, lambda pod: ended(pod) and not running(pod))
