"""A launch goes on with the Job of an earlier one whose pod is still on its way.

The peer has given that one up after its chaincode.startuptimeout and asks anew. To begin anew as well would never bring
a start to its end that takes longer than the peer waits: a big image, a node that is still to come.
"""

import signal
from typing import Any

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
from tests.daemon.scene import PEER_ID, Running, Scene
from tests.daemon.test_replace import AGAIN, Overlaps, assert_only_runs, connect
from tests.daemon.test_socket import Raw, request
from tests.embedded.cluster import running

pytestmark = pytest.mark.anyio

HELD_UP = "the pod cannot be scheduled"
GOES_ON = "Reusing job"
ROLE: Any = {"NODE_ROLE": "chaincode"}


async def add_node(scene: Scene, role: str = "chaincode") -> None:
    """Give the chaincodes of this role a node, without which their pods wait."""
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": role}})


@pytest.mark.parametrize(("tls", "old_run"), [(True, "connected"), (False, "dead")], ids=["tls", "plain"])
async def test_the_new_launch_has_the_old_ones_job(scene: Scene, tls: bool, old_run: str) -> None:
    daemon = await scene.daemon(**ROLE)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    connect(ticking.package, tls=tls)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    job = await scene.only("jobs")
    if old_run == "dead":
        old.send(signal.SIGKILL)
        await ended(old)
    new = await scene.call("run", ticking.package)
    if old_run == "connected":
        assert await old.wait() == 1
        assert AGAIN in old.lines[-1]
    await new.line(GOES_ON)
    await new.line(HELD_UP)  # it is told again: the peer's log has another launch now
    await add_node(scene)
    await new.line("line 1")
    assert (await scene.only("jobs"))["metadata"]["uid"] == job["metadata"]["uid"]
    await assert_only_runs(scene, new, ticking, overlaps)
    assert len(ticking.pids) == 1
    await forgotten(scene, daemon)


async def test_a_job_whose_pod_the_api_does_not_tell_of_is_replaced(scene: Scene) -> None:
    await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    connect(ticking.package, tls=True)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    await scene.fault(verb="get", resource="pods", times=1, action={"do": "status", "code": 503})
    new = await scene.call("run", ticking.package)
    assert await old.wait() == 1
    await add_node(scene)
    await new.line("line 1")
    assert not new.count(GOES_ON)


async def test_it_goes_on_over_any_number_of_launches(scene: Scene) -> None:
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    runs = []
    for _ in range(4):
        runs.append(await scene.call("run", ticking.package))
        await runs[-1].line(HELD_UP)
    assert [run.count(GOES_ON) for run in runs] == [0, 1, 1, 1]
    await add_node(scene)
    await runs[-1].line("line 2")
    assert [await run.wait() for run in runs[:-1]] == [1, 1, 1]
    assert await scene.count("jobs") == 1
    ticking.end()
    assert await runs[-1].wait() == 0
    assert_whole(runs[-1])
    assert len(ticking.pids) == 1
    await forgotten(scene, daemon)


async def test_the_next_daemon_knows_whose_job_it_is_now(scene: Scene) -> None:
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene, code=3)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await new.line(HELD_UP)
    await kill(daemon)
    daemon = await scene.daemon(**ROLE)
    await add_node(scene)
    await new.line("line 5")
    ticking.end()
    assert await new.wait() == 1
    assert_whole(new)
    assert new.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert len(ticking.pids) == 1
    await forgotten(scene, daemon)


async def test_whose_job_it_goes_on_with_is_the_first_that_a_run_gets(scene: Scene) -> None:
    """Cut off without that, it would come back as a launch of its own, and replace the one that it goes on with."""
    await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    job = (await scene.only("jobs"))["metadata"]
    async with Raw.open(scene) as raw:
        await raw.send(request(ticking.package.root, peer_id=PEER_ID, token=b"5" * 32))
        kind, payload = await raw.frame()
    assert kind == "L"
    assert payload[2:].split()[0] == b"2"
    assert payload[2:].split()[3] == job["uid"].encode()


async def test_the_next_daemon_finds_it_ended(scene: Scene) -> None:
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene, code=3)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await new.line(HELD_UP)
    await add_node(scene)
    await new.line("line 2")
    await kill(daemon)
    ticking.end()
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(job, lambda pod: pod["status"]["phase"] == "Failed")
    await scene.daemon(**ROLE)
    assert await new.wait() == 1
    assert_whole(new)
    assert new.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert len(ticking.pids) == 1


@pytest.mark.parametrize("daemons", ["the same", "the next"])
async def test_the_old_run_does_not_get_it_back(scene: Scene, daemons: str) -> None:
    """It slept while it was told that it is over, or that word was lost with the daemon."""
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    old.send(signal.SIGSTOP)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await new.line(HELD_UP)
    await add_node(scene)
    await new.line("line 2")
    if daemons == "the next":
        await kill(daemon)
        await scene.daemon(**ROLE)
        await new.line("line 5")
    old.send(signal.SIGCONT)
    assert await old.wait() == 1
    assert AGAIN in old.lines[-1]
    assert chaincode_lines(old) == []
    ticking.end()
    assert await new.wait() == 0
    assert_whole(new)


async def test_a_stop_of_the_new_one_takes_all_away(scene: Scene) -> None:
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await new.line(HELD_UP)
    assert await new.terminate() == 0
    await nothing_left(scene)
    assert await old.wait() == 1
    await forgotten(scene, daemon)


async def test_the_death_of_the_new_one_starts_its_grace(scene: Scene) -> None:
    daemon = await scene.daemon(RECONNECT_GRACE="500ms", **ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await new.line(HELD_UP)
    assert await old.wait() == 1
    new.send(signal.SIGKILL)
    await nothing_left(scene)
    await forgotten(scene, daemon)


async def test_an_older_heir_does_not_get_it_back(scene: Scene) -> None:
    daemon = await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    runs = []
    for _ in range(3):
        runs.append(await scene.call("run", ticking.package))
        await runs[-1].line(HELD_UP)
        if len(runs) == 2:
            runs[1].send(signal.SIGSTOP)
    await add_node(scene)
    await runs[2].line("line 2")
    await kill(daemon)
    await scene.daemon(**ROLE)
    await runs[2].line("line 5")
    runs[1].send(signal.SIGCONT)
    assert await runs[1].wait() == 1
    assert AGAIN in runs[1].lines[-1]
    ticking.end()
    assert await runs[2].wait() == 0
    assert_whole(runs[2])


async def has_secret(scene: Scene) -> bool:
    return await scene.count("secrets") == 1


async def test_the_secret_that_is_there_is_not_asked_for_again(scene: Scene) -> None:
    """Such as where a quota is used up by now: it is looked at before the name is."""
    await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    await eventually(lambda: has_secret(scene))
    await scene.fault(verb="create", resource="secrets", times=None, action={"do": "status", "code": 403})
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    await add_node(scene)
    await new.line("line 2")
    ticking.end()
    assert await new.wait() == 0
    assert_whole(new)
    assert len(ticking.pids) == 1


async def test_a_secret_whose_volume_is_mounted_is_there(scene: Scene) -> None:
    """It was made, but its answer got lost, and so do all others: the container runs all the same."""
    await scene.daemon(**ROLE, REQUEST_TIMEOUT="500ms")
    ticking = await Ticking.make(scene)
    await scene.fault(verb="create", resource="secrets", action={"do": "hang", "when": "after"})
    await scene.fault(verb="create", resource="secrets", times=None, action={"do": "hang"})
    run = await scene.call("run", ticking.package)
    await met(scene, 2)
    await add_node(scene)
    await run.line("line 2")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)


async def test_the_next_daemon_knows_an_heir_that_has_not_come_further(scene: Scene) -> None:
    """What it was told first is whose Job it has."""
    daemon = await scene.daemon(**ROLE, REQUEST_TIMEOUT="500ms")
    ticking = await Ticking.make(scene)
    await scene.fault(verb="create", resource="secrets", times=None, action={"do": "hang", "when": "after"})
    old = await scene.call("run", ticking.package)
    await met(scene)
    new = await scene.call("run", ticking.package)
    await new.line(GOES_ON)
    assert await old.wait() == 1
    await met(scene, 2)
    await add_node(scene)
    await ticking.started()
    await kill(daemon)
    await no_faults(scene)
    await scene.daemon(**ROLE)
    await new.line("line 20")
    ticking.end()
    assert await new.wait() == 0
    assert_whole(new)
    assert len(ticking.pids) == 1


# Where it begins anew


async def test_a_job_that_is_gone_is_not_reused(scene: Scene) -> None:
    """The watches have fallen silent, so nobody has told that: the launch looks before it relies on it."""
    await scene.daemon(WATCH_SILENCE="60s", **ROLE)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    await scene.fault(verb="watch", times=None, action={"do": "silent"})
    await scene.cluster.switch("POST", "drop")
    await met(scene, 2)
    await no_faults(scene)
    await scene.cluster.delete("jobs", (await scene.only("jobs"))["metadata"]["name"])
    await scene.none("jobs", "pods")
    await add_node(scene)
    new = await scene.call("run", ticking.package)
    await new.line("Running chaincode ID")
    assert new.count(GOES_ON) == 0
    await scene.cluster.pod_when((await scene.only("jobs"))["metadata"]["name"], running)
    await ticking.started()


async def test_another_peer_process_has_other_certificates(scene: Scene) -> None:
    await scene.daemon(**ROLE)
    ticking = await Ticking.make(scene)
    connect(ticking.package, tls=True, peer="first")
    old = await scene.call("run", ticking.package)
    await old.line(HELD_UP)
    job = await scene.only("jobs")
    connect(ticking.package, tls=True, peer="second")
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch of this chaincode to end")
    assert await old.wait() == 1
    await add_node(scene)
    await new.line("line 1")
    assert (await scene.only("jobs"))["metadata"]["uid"] != job["metadata"]["uid"]
    assert new.count(GOES_ON) == 0


async def test_what_was_put_right_meanwhile_counts(scene: Scene) -> None:
    """The operator has corrected the peer's variable for which the pod waits: its Job is of no use."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_NODE_ROLE="chaincoed")
    await old.line(HELD_UP)
    await add_node(scene)
    new = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_NODE_ROLE="chaincode")
    await new.line("line 1")
    assert await old.wait() == 1
    assert new.count(GOES_ON) == 0


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_what_stands_in_the_cluster_reuses_nothing(scene: Scene, tls: bool) -> None:
    """Who may list Jobs reads the hash of a token; a `run` reuses a Job only with the token itself."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    connect(ticking.package, tls=tls)
    run: Running = await scene.call("run", ticking.package)
    await run.line("line 2")
    job = (await scene.only("jobs"))["metadata"]
    token = job["annotations"]["fabric-builder-k8s-run"]
    unknown = (
        "W",
        b"this daemon is older than the one before. Go back to that version. Running chaincode goes on; retrying",
    )
    for cursor, end in ((f"2 {token} 1 {job['uid']}", unknown), (f"2 {token[:32]} 1 {job['uid']}", ("X", b"1"))):
        async with Raw.open(scene) as raw:
            await raw.send(request(ticking.package.root, peer_id=PEER_ID, token=b"5" * 32, cursor=cursor.encode()))
            said = await raw.rest()
        kind, payload = said[-1]
        assert kind == end[0]
        assert end[1] in payload
        assert b"line" not in b"".join(payload for kind, payload in said if kind == "L")
    await run.line("line 9")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
