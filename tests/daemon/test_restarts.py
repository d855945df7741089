"""The daemon dies, at every moment, and another one comes: neither the chaincode nor `run` ends, no line is lost."""

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.chaincodes import Ticking, assert_whole, chaincode_lines, kill, met, no_faults, nothing_left
from tests.daemon.scene import Running, Scene
from tests.embedded.cluster import running

pytestmark = pytest.mark.anyio

SIGNALS = [signal.SIGKILL, signal.SIGTERM]
DEBUG: Any = {"FABRIC_K8S_BUILDER_DEBUG": "true"}

REQUESTS: dict[str, dict[str, Any]] = {
    "before the Job": {"verb": "create", "resource": "jobs", "action": {"do": "hang", "when": "before"}},
    "before the Job's answer": {"verb": "create", "resource": "jobs", "action": {"do": "hang", "when": "after"}},
    "between Job and Secret": {"verb": "create", "resource": "secrets", "action": {"do": "hang", "when": "before"}},
    "before the Secret's answer": {"verb": "create", "resource": "secrets", "action": {"do": "hang", "when": "after"}},
}


async def replaced(scene: Scene, run: Running, *, claimed: str, **settings: Any) -> Running:
    """Start the next daemon, so that the run comes back `before` or `after` it has seen what there is.

    Called while no daemon runs.
    """
    connected = run.count("Connected to")
    if claimed == "before":
        await scene.fault(verb="list", times=None, action={"do": "status", "code": 503})
        daemon = await scene.daemon(**settings)
        await run.line("Connected to", connected + 1)
        await no_faults(scene)
        await daemon.line("watch_synced", 2)
    else:
        run.send(signal.SIGSTOP)
        daemon = await scene.daemon(**settings)
        await daemon.line("watch_synced", 2)
        run.send(signal.SIGCONT)
        await run.line("Connected to", connected + 1)
    return daemon


async def assert_one_of_each(scene: Scene) -> None:
    job, pod, secret = [await scene.only(plural) for plural in ("jobs", "pods", "secrets")]
    assert secret["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


async def test_three_chaincodes_log_on_while_the_daemon_is_away_and_after(scene: Scene) -> None:
    daemon = await scene.daemon()
    tickings = [await Ticking.make(scene, f"cc{index}") for index in range(3)]
    runs = [await scene.call("run", ticking.package) for ticking in tickings]
    for run in runs:
        await run.line("line 5")
    await kill(daemon, signal.SIGTERM)
    for run in runs:
        await run.line("Running chaincode goes on; reconnecting")
    await scene.daemon()
    for run in runs:
        await run.line("Connected to k8s-builderd after")
    assert [await scene.count(plural) for plural in ("jobs", "pods", "secrets")] == [3, 3, 3]
    for ticking, run in zip(tickings, runs, strict=True):
        ticking.end()
        assert await run.wait() == 0
        assert_whole(run)
        assert run.lines[-1].endswith(b"the chaincode ended with exit code 0")
        assert len(ticking.pids) == 1
        assert run.count("Running chaincode ID") == 1
    assert [await scene.count(plural) for plural in ("jobs", "secrets")] == [3, 3]


@pytest.mark.parametrize(("moment", "number"), list(zip(REQUESTS, [*SIGNALS, *SIGNALS], strict=True)))
async def test_a_launch_whose_daemon_dies_is_finished_by_the_next(
    scene: Scene, moment: str, number: signal.Signals
) -> None:
    ticking = await Ticking.make(scene)
    await scene.fault(**REQUESTS[moment])
    daemon = await scene.daemon()
    run = await scene.call("run", ticking.package)
    await met(scene)
    await kill(daemon, number)
    await scene.daemon()
    await run.line("line 2")
    await assert_one_of_each(scene)
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    assert run.count("Running chaincode ID") == 1
    assert [await scene.count(plural) for plural in ("jobs", "secrets")] == [1, 1]


async def test_between_the_secret_and_the_first_event(scene: Scene) -> None:
    """No watch has told anything when the daemon dies; the run knows its Job by the cursor alone."""
    ticking = await Ticking.make(scene)
    await scene.fault(verb="watch", times=2, action={"do": "silent"})
    daemon = await scene.daemon()
    await met(scene, 2)
    run = await scene.call("run", ticking.package)
    await run.line("Running chaincode ID")
    await kill(daemon)
    assert not chaincode_lines(run)
    await scene.daemon()
    await run.line("line 2")
    await assert_one_of_each(scene)
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    assert run.count("Running chaincode ID") == 1


async def test_while_the_pod_is_pending(scene: Scene) -> None:
    ticking = await Ticking.make(scene)
    images = (await scene.cluster.switch("GET", "environment"))["extraImages"]
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {name: {"digests": ["none"]} for name in images}}
    )
    daemon = await scene.daemon()
    run = await scene.call("run", ticking.package)
    await run.line("the image cannot be pulled")
    await kill(daemon, signal.SIGTERM)
    await scene.daemon()
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    await run.line("line 2")
    await assert_one_of_each(scene)
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 0), (signal.SIGTERM, 3)])
async def test_during_the_final_drain_of_the_log(scene: Scene, number: signal.Signals, code: int) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene, code=code)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await scene.fault(verb="log", times=None, action={"do": "status", "code": 500})
    await scene.cluster.switch("POST", "drop")
    heard = len(chaincode_lines(run))
    await met(scene)
    ticking.end()
    job = await scene.only("jobs")
    await scene.cluster.pod_when(job["metadata"]["name"], lambda pod: not running(pod))
    await met(scene, 3)
    await kill(daemon, number)
    assert len(chaincode_lines(run)) < heard + 20
    await no_faults(scene)
    await scene.daemon()

    assert await run.wait() == min(code, 1)
    assert_whole(run)
    assert run.lines[-1].endswith(b"the chaincode ended with exit code %d" % code)
    assert len(ticking.pids) == 1


async def test_after_the_deletion_of_a_stopped_job_was_accepted(scene: Scene) -> None:
    """Whether the next daemon comes within the time that `run` may take to stop or not: nothing stays or comes back."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await scene.fault(verb="delete", resource="jobs", action={"do": "hang", "when": "after"})
    run.send(signal.SIGTERM)
    await met(scene)
    await kill(daemon)
    daemon = await scene.daemon(ORPHAN_GRACE="1s")
    code = await run.wait()
    assert code == 0 or run.count("Could not reach k8s-builderd") == 1
    await daemon.line("watch_synced", 2)
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_a_run_that_the_next_daemon_has_adopted_is_stopped_as_ever(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    await kill(daemon)
    await replaced(scene, run, claimed="before")
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    assert await run.terminate() == 0
    assert b"accepted the deletion" in run.lines[-1]
    await nothing_left(scene)


async def test_a_run_that_the_next_daemon_has_adopted_and_that_dies_is_cleared_away(scene: Scene) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    await kill(daemon)
    daemon = await replaced(scene, run, claimed="after")
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    await kill(daemon)
    daemon = await scene.daemon(RECONNECT_GRACE="500ms")
    await run.line("Connected to", 3)
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    run.send(signal.SIGKILL)
    await nothing_left(scene)


async def test_the_next_daemon_cannot_use_the_request(scene: Scene) -> None:
    """Its settings are others, by mistake: the chaincode goes on until they are put right."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_NAMESPACE="default")
    await run.line("line 2")
    await kill(daemon)
    daemon = await scene.daemon(NAMESPACE="other")
    await run.line("k8s-builderd cannot continue this launch: The FABRIC_K8S")
    await daemon.line("request_refused")
    assert not run.ended.is_set()
    await kill(daemon)
    await scene.daemon()
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 5))
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


async def test_the_next_daemon_would_give_other_names(scene: Scene) -> None:
    """The operator has changed the prefix of the names meanwhile: what runs keeps those that it has."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    job = (await scene.only("jobs"))["metadata"]["name"]
    await kill(daemon)
    await replaced(scene, run, claimed="after", OBJECT_NAME_PREFIX="other")
    await run.line("line 5")
    assert await run.terminate() == 0
    assert run.lines[-1].endswith(f"the Kubernetes API accepted the deletion of chaincode job default/{job}".encode())
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_a_stop_that_comes_while_no_daemon_runs_is_carried_out_by_the_next(scene: Scene) -> None:
    """The next daemon has not even seen the Job when it is told to stop it."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await kill(daemon)
    await scene.fault(verb="list", times=None, action={"do": "status", "code": 503})
    daemon = await scene.daemon(ORPHAN_GRACE="1s", RECONNECT_GRACE="1s")
    run.send(signal.SIGTERM)
    code = await run.wait()
    assert code == 0 or run.count("to stop the chaincode") == 1
    await no_faults(scene)
    await nothing_left(scene)
    assert len(ticking.pids) == 1


@pytest.mark.parametrize(("claimed", "code"), [("before", 0), ("after", 3)])
async def test_a_chaincode_that_ended_while_no_daemon_ran(scene: Scene, code: int, claimed: str) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene, code=code)
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    await kill(daemon)
    ticking.end()
    job = await scene.only("jobs")
    async with scene.cluster.watch("jobs") as watch:
        await watch.until(lambda event: finished(event["object"]))
    await replaced(scene, run, claimed=claimed)
    assert await run.wait() == min(code, 1)
    assert_whole(run)
    assert run.lines[-1].endswith(b"the chaincode ended with exit code %d" % code)
    assert len(ticking.pids) == 1
    assert (await scene.only("jobs"))["metadata"]["uid"] == job["metadata"]["uid"], "people can still look at it"


@pytest.mark.parametrize("claimed", ["before", "after"])
async def test_a_job_that_was_deleted_while_no_daemon_ran(scene: Scene, claimed: str) -> None:
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    await kill(daemon)
    job = await scene.only("jobs")
    await scene.cluster.delete("jobs", job["metadata"]["name"])
    await nothing_left(scene)
    await replaced(scene, run, claimed=claimed)
    assert await run.wait() == 1
    assert b"is gone" in run.lines[-1]
    assert b"while no daemon was watching" in run.lines[-1]
    lines = chaincode_lines(run)
    assert lines == [b"line %d" % number for number in range(len(lines))]
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_a_job_that_was_deleted_while_no_daemon_ran_and_whose_pod_is_still_ending(
    scene: Scene, tmp_path: Path
) -> None:
    """The pod has the rest of the log and the exit code."""
    template, goodbye = tmp_path / "template.json", tmp_path / "goodbye"
    template.write_text('{"spec": {"terminationGracePeriodSeconds": 30}}')
    daemon = await scene.daemon(POD_TEMPLATE=str(template))
    trap = f"echo told; while [ ! -e {shlex.quote(str(goodbye))} ]; do sleep 0.1; done; echo goodbye; exit 7"
    ticking = await Ticking.make(scene, prelude=f'trap "{trap}" TERM')
    run = await scene.call("run", ticking.package, **DEBUG)
    await run.line("line 2")
    await kill(daemon)
    job = await scene.only("jobs")
    await scene.cluster.delete("jobs", job["metadata"]["name"])
    await replaced(scene, run, claimed="before")
    await run.line("told")
    goodbye.touch()
    assert await run.wait() == 1
    assert chaincode_lines(run)[-2:] == [b"told", b"goodbye"]
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 7, because its job was deleted")
    assert len(ticking.pids) == 1
    await nothing_left(scene)


@pytest.mark.parametrize("code", [0, 3])
async def test_a_chaincode_whose_launch_was_never_told_ended_while_no_daemon_ran(scene: Scene, code: int) -> None:
    """Its `run` has no cursor: the Job is known by the token alone, and all of its log is still to come."""
    ticking = await Ticking.make(scene, code=code)
    await scene.fault(**REQUESTS["before the Secret's answer"])
    daemon = await scene.daemon()
    run = await scene.call("run", ticking.package)
    await met(scene)
    await ticking.started()
    await kill(daemon)
    ticking.end()
    async with scene.cluster.watch("jobs") as watch:
        await watch.until(lambda event: finished(event["object"]))
    await scene.daemon()
    assert await run.wait() == min(code, 1)
    assert_whole(run)
    assert run.lines[-1].endswith(b"the chaincode ended with exit code %d" % code)
    assert len(ticking.pids) == 1
    assert [await scene.count(plural) for plural in ("jobs", "secrets")] == [1, 1]


async def test_a_job_that_was_deleted_while_no_daemon_ran_before_its_pod_had_a_node(scene: Scene) -> None:
    """The `run` has its Job's uid and nothing more: it is told, and launches nothing."""
    ticking = await Ticking.make(scene)
    daemon = await scene.daemon(NODE_ROLE="chaincode")
    run = await scene.call("run", ticking.package)
    await run.line("the pod cannot be scheduled")
    await kill(daemon)
    await scene.cluster.delete("jobs", (await scene.only("jobs"))["metadata"]["name"])
    await nothing_left(scene)
    await scene.daemon(NODE_ROLE="chaincode")
    assert await run.wait() == 1
    assert b"is gone" in run.lines[-1]
    await nothing_left(scene)
    assert ticking.pids == []


async def test_a_pod_that_was_deleted_while_no_daemon_ran(scene: Scene) -> None:
    """The Job is there and has failed, the exit code and the log went with the pod."""
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await kill(daemon)
    await scene.cluster.delete("pods", (await scene.only("pods"))["metadata"]["name"])
    await scene.none("pods")
    await scene.daemon()
    assert await run.wait() == 1
    assert b"without a pod" not in run.lines[-1]
    assert b"pod was removed before its exit code" in run.lines[-1]
    lines = chaincode_lines(run)
    assert lines == [b"line %d" % number for number in range(len(lines))]
    assert len(ticking.pids) == 1


async def test_a_flood_that_ended_while_no_daemon_ran(scene: Scene) -> None:
    """Much of the log is still to come, and none of it is lost."""
    daemon = await scene.daemon()
    go, stop = scene.directory / "go", scene.directory / "done"
    script = f"echo first; while [ ! -e {go} ]; do sleep 0.02; done; seq 200000; touch {stop}; exit 3"
    run = await scene.call("run", await scene.package(script=script))
    await run.line("first")
    await kill(daemon)
    go.touch()
    async with scene.cluster.watch("jobs") as watch:
        await watch.until(lambda event: finished(event["object"]))
    await scene.daemon()
    assert await run.wait() == 1
    assert chaincode_lines(run) == [b"first", *(b"%d" % number for number in range(1, 200_001))]
    assert run.lines[-1].endswith(b"exit code 3")


def finished(job: dict[str, Any]) -> bool:
    return any(
        condition["type"] in {"Complete", "Failed"} and condition["status"] == "True"
        for condition in job["status"].get("conditions") or []
    )
