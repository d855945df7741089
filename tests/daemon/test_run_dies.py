"""`run` dies, stops or loses its reader: its chaincode is cleared away when nobody can be waiting for it any more."""

import signal
from typing import Any

import anyio
import pytest

from tests.daemon.chaincodes import (
    Ticking,
    assert_whole,
    chaincode_lines,
    ended,
    eventually,
    forgotten,
    kill,
    met,
    no_faults,
    nothing_left,
)
from tests.daemon.scene import Running, Scene

pytestmark = pytest.mark.anyio

NEVER = "1h"


async def test_a_run_that_is_killed_leaves_nothing_after_the_grace(scene: Scene) -> None:
    daemon = await scene.daemon(RECONNECT_GRACE="1s", ORPHAN_GRACE=NEVER)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    run.send(signal.SIGKILL)
    await ended(run)
    # It had its grace: the daemon says so before it deletes anything.
    unclaimed = await daemon.line("job_unclaimed")
    assert b"client gone" in unclaimed
    await nothing_left(scene)
    await forgotten(scene, daemon)


@pytest.mark.parametrize("moment", ["before its Job", "while its pod is pending"])
async def test_a_run_that_is_killed_during_its_launch_leaves_nothing(scene: Scene, moment: str) -> None:
    daemon = await scene.daemon(RECONNECT_GRACE="500ms", ORPHAN_GRACE=NEVER)
    ticking = await Ticking.make(scene)
    rule: dict[str, Any] = {"verb": "create", "action": {"do": "hang", "when": "after"}}
    if moment == "while its pod is pending":
        images = (await scene.cluster.switch("GET", "environment"))["extraImages"]
        await scene.cluster.switch(
            "PATCH", "environment", {"extraImages": {name: {"digests": ["none"]} for name in images}}
        )
    else:
        await scene.fault(**rule, resource="jobs")
    run = await scene.call("run", ticking.package)
    if moment == "while its pod is pending":
        await run.line("the image cannot be pulled")
    else:
        await met(scene)
    run.send(signal.SIGKILL)
    await ended(run)
    await daemon.line("job_deleted")
    await nothing_left(scene)
    await forgotten(scene, daemon)


async def test_both_are_killed_and_the_next_daemon_clears_away(scene: Scene) -> None:
    daemon = await scene.daemon(ORPHAN_GRACE="1s", RECONNECT_GRACE=NEVER)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await kill(daemon)
    run.send(signal.SIGKILL)
    await ended(run)
    daemon = await scene.daemon(ORPHAN_GRACE="1s", RECONNECT_GRACE=NEVER)
    unclaimed = await daemon.line("job_unclaimed")
    assert b"orphan" in unclaimed
    await nothing_left(scene)
    await forgotten(scene, daemon)


async def test_nobody_counts_as_an_orphan_before_the_daemon_is_synced(scene: Scene) -> None:
    """The grace begins when the watches have told what there is, however long that takes after the start."""
    daemon = await scene.daemon(ORPHAN_GRACE="1ms")
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await kill(daemon)
    run.send(signal.SIGKILL)
    await ended(run)
    await no_faults(scene)
    await scene.fault(verb="list", resource="pods", times=None, action={"do": "status", "code": 503})
    daemon = await scene.daemon(ORPHAN_GRACE="1ms")
    await daemon.line('"resource": "jobs.batch", "objects": 1')
    # Three refusals are a back-off of many graces.
    await met(scene, 3)
    assert daemon.count("job_unclaimed") == 0
    assert [await scene.count(plural) for plural in ("jobs", "secrets")] == [1, 1]
    await no_faults(scene)
    await daemon.line("job_unclaimed")
    await nothing_left(scene)


async def test_a_run_that_is_claimed_within_the_grace_stays(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking, other = await Ticking.make(scene, "claimed"), await Ticking.make(scene, "orphan")
    run, dead = [await scene.call("run", one.package) for one in (ticking, other)]
    await run.line("line 2")
    await dead.line("line 2")
    await kill(daemon)
    dead.send(signal.SIGKILL)
    await ended(dead)
    daemon = await scene.daemon(ORPHAN_GRACE="5s")
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    await daemon.line("job_unclaimed")
    job = await deleted_once(scene, daemon)
    assert "claimed" in job
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)


async def deleted_once(scene: Scene, daemon: Running) -> str:
    """Wait until one Job is left of two, and return its name."""
    await daemon.line("job_deleted")
    assert daemon.count("job_unclaimed") == 1
    return str((await scene.only("jobs"))["metadata"]["name"])


async def test_a_run_that_was_stopped_for_longer_than_the_grace_goes_on(scene: Scene) -> None:
    """Its connection is there all the time, so nobody is missing."""
    daemon = await scene.daemon(RECONNECT_GRACE="100ms", ORPHAN_GRACE="100ms")
    ticking = await Ticking.make(scene)
    other = await Ticking.make(scene, "other")
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    run.send(signal.SIGSTOP)
    heard = len(chaincode_lines(run))
    # Twenty lines of another chaincode are a second: many times the grace.
    neighbour = await scene.call("run", other.package)
    await neighbour.line("line 20")
    assert len(chaincode_lines(run)) <= heard + 1
    run.send(signal.SIGCONT)
    await run.line("line 20")
    assert daemon.count("job_unclaimed") == 0
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


async def test_a_run_that_was_stopped_while_the_daemon_was_replaced(scene: Scene) -> None:
    """It has not claimed its chaincode in time: it is told that it has gone, and launches nothing."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    run.send(signal.SIGSTOP)
    await kill(daemon)
    await scene.daemon(ORPHAN_GRACE="100ms")
    await nothing_left(scene)
    run.send(signal.SIGCONT)
    assert await run.wait() == 1
    assert b"is gone" in run.lines[-1] or b"is being deleted" in run.lines[-1]
    await nothing_left(scene)
    assert len(ticking.pids) == 1


@pytest.mark.parametrize("state", ["running", "pending"])
async def test_the_peer_is_gone_but_run_alive(scene: Scene, daemon: Running, state: str) -> None:
    """Nobody signals an orphaned `run`; that nobody reads its stderr tells it."""
    ticking = await Ticking.make(scene)
    if state == "pending":
        images = (await scene.cluster.switch("GET", "environment"))["extraImages"]
        await scene.cluster.switch(
            "PATCH", "environment", {"extraImages": {name: {"digests": ["none"]} for name in images}}
        )
    run = await scene.call("run", ticking.package, read=False)
    if state == "pending":
        await eventually(lambda: daemon.count("job_created") == 1)
    else:
        await ticking.started()
    run.close()
    assert await ended(run) == 0
    await nothing_left(scene)
    await forgotten(scene, daemon)


async def test_the_peer_is_gone_while_no_daemon_runs(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, read=False)
    await ticking.started()
    await kill(daemon)
    run.close()
    await ended(run)
    await scene.daemon(ORPHAN_GRACE="100ms", RECONNECT_GRACE="100ms")
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_a_run_that_is_killed_has_all_of_its_grace_and_no_more(scene: Scene) -> None:
    """A neighbour's log, which flows on, is the clock: a busy machine slows both."""
    daemon = await scene.daemon(RECONNECT_GRACE="2s", ORPHAN_GRACE=NEVER)
    ticking, clock = await Ticking.make(scene, "killed"), await Ticking.make(scene, "clock")
    run, neighbour = [await scene.call("run", one.package) for one in (ticking, clock)]
    await run.line("line 2")
    await neighbour.line("line 2")
    before, heard = anyio.current_time(), len(chaincode_lines(neighbour))
    run.send(signal.SIGKILL)
    await daemon.line("job_unclaimed")
    assert anyio.current_time() - before > 1.9
    assert [await scene.count(plural) for plural in ("jobs", "secrets")] >= [1, 1]
    for plural in ("jobs", "pods", "secrets"):
        for item in (await scene.cluster.list(plural))["items"]:
            if "killed" in item["metadata"]["name"]:
                await scene.cluster.gone(plural, item["metadata"]["name"])
    # Twenty lines a second: the grace, the pod's own of 2 s at most, and as much again.
    assert len(chaincode_lines(neighbour)) - heard < 180
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [1, 1, 1]
    await forgotten(scene, daemon, runs=1)
    assert await neighbour.terminate() == 0
    await nothing_left(scene)


async def test_the_orphans_grace_begins_with_the_next_daemon_and_is_kept(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await kill(daemon)
    run.send(signal.SIGKILL)
    await ended(run)
    before = anyio.current_time()
    daemon = await scene.daemon(ORPHAN_GRACE="2s")
    await daemon.line("watch_synced", 2)
    await daemon.line("job_unclaimed")
    assert anyio.current_time() - before > 1.9
    await nothing_left(scene)
    await forgotten(scene, daemon)


@pytest.mark.parametrize("lines", [10, 200_000])
async def test_a_chaincode_that_ended_while_its_run_was_frozen(scene: Scene, lines: int) -> None:
    """All of its log, its exit code and the last line wait for it, whether they fit into the socket or not."""
    daemon = await scene.daemon(RECONNECT_GRACE="100ms", ORPHAN_GRACE="100ms")
    go = scene.directory / "go"
    script = f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; seq {lines}; exit 3"
    run = await scene.call("run", await scene.package(script=script))
    await run.line("first")
    run.send(signal.SIGSTOP)
    go.touch()
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(job, lambda pod: pod["status"]["phase"] == "Failed")
    neighbour = await Ticking.make(scene, "clock")
    other = await scene.call("run", neighbour.package)
    await other.line("line 20")
    run.send(signal.SIGCONT)
    assert await run.wait() == 1
    assert chaincode_lines(run) == [b"first", *(b"%d" % number for number in range(1, lines + 1))]
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert run.count("the chaincode ended") == 1
    assert await other.terminate() == 0
    await forgotten(scene, daemon)


async def test_a_run_that_is_frozen_during_its_launch_comes_up_with_all_of_its_log(scene: Scene) -> None:
    await scene.daemon(RECONNECT_GRACE="100ms", NODE_ROLE="chaincode")
    ticking = await Ticking.make(scene, code=3)
    run = await scene.call("run", ticking.package)
    await run.line("the pod cannot be scheduled")
    run.send(signal.SIGSTOP)
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})
    await ticking.started()
    ticking.end()
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(job, lambda pod: pod["status"]["phase"] == "Failed")
    run.send(signal.SIGCONT)
    assert await run.wait() == 1
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 3")
    *ticks, last = chaincode_lines(run)
    assert last == b"last after %d" % len(ticks)
    await eventually(lambda: len(ticking.pids) == 1)
