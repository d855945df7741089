"""The same chaincode is launched again: nothing new starts before the earlier container has ended.

What is right is decided by the peer's rules (Fabric's core/chaincode/handler_registry.go, Deregister): where the
stale chaincode was connected to the very peer process that launches, its end drops that launch too, so both `run`s end
with 1, and the next launch succeeds.
"""

import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.chaincodes import (
    Ticking,
    assert_whole,
    chaincode_lines,
    ended,
    forgotten,
    kill,
    met,
    no_faults,
    nothing_left,
)
from tests.daemon.scene import Package, Running, Scene
from tests.embedded.cluster import container_state, running

pytestmark = pytest.mark.anyio

TLS = pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
AGAIN = b"the peer has launched this chaincode again"
DROPPED = b"the peer cancelled this launch because the previous chaincode disconnected"


def connect(package: Package, *, tls: bool, peer: str = "root") -> None:
    """Write chaincode.json; `peer` tells one process of the peer from the next, where it runs with TLS."""
    if tls:
        package.connect(root_cert=f"-----BEGIN CERTIFICATE-----\n{peer}\n")
    else:
        package.connect(client_cert="", client_key="", root_cert="")


class Overlaps:
    """A chaincode that finds out whether another of its kind runs while it does."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "alive"
        self.overlapped = directory / "overlapped"

    def prelude(self, *, deaf: bool = False) -> str:
        """Return what its shell does first; `deaf` makes the first of them ignore SIGTERM until its grace is over."""
        file, overlapped, first = (
            shlex.quote(str(path)) for path in (self._file, self.overlapped, self._file.with_name("first"))
        )
        # A killed process leaves its pid behind: what counts is whether that process is still there.
        return (
            f"[ -e {file} ] && kill -0 $(cat {file}) 2>/dev/null && touch {overlapped}\n"
            f"echo $$ > {file}\n"
            f"trap 'exit 0' TERM\n" + (f"[ -e {first} ] || {{ trap '' TERM; touch {first}; }}\n" if deaf else "")
        )


async def live_pods(scene: Scene) -> list[Any]:
    return [pod for pod in (await scene.cluster.list("pods"))["items"] if "terminated" not in container_state(pod)]


async def assert_only_runs(scene: Scene, run: Running, ticking: Ticking, overlaps: Overlaps) -> None:
    """Assert that this run alone has a chaincode, and stop it."""
    await run.line("line 1")
    assert len(await live_pods(scene)) == 1
    assert not overlaps.overlapped.exists()
    assert len(ticking.pids) == len(set(ticking.pids))
    assert await run.terminate() == 0
    await scene.none("jobs", "pods", "secrets")


@TLS
async def test_the_old_one_runs_and_its_run_is_connected(scene: Scene, tls: bool) -> None:
    await scene.daemon(pace=3)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    connect(ticking.package, tls=tls)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    new = await scene.call("run", ticking.package)
    assert await old.wait() == 1
    assert AGAIN in old.lines[-1]
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    assert chaincode_lines(new) == []
    await nothing_left(scene)
    third = await scene.call("run", ticking.package)
    await assert_only_runs(scene, third, ticking, overlaps)
    assert len(ticking.pids) == 2


async def test_the_old_one_runs_for_a_peer_process_that_is_no_more(scene: Scene, daemon: Running) -> None:
    """The peer has restarted, its old `run` is still there: the new peer knows nothing of the old stream."""
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    connect(ticking.package, tls=True, peer="first")
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    connect(ticking.package, tls=True, peer="second")
    new = await scene.call("run", ticking.package)
    assert await old.wait() == 1
    await assert_only_runs(scene, new, ticking, overlaps)


async def test_the_old_one_runs_and_its_run_is_dead(scene: Scene) -> None:
    """The peer still uses the old chaincode; when that is made to end, the peer drops the launch that asked."""
    await scene.daemon(pace=3)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    old.send(signal.SIGKILL)
    await ended(old)
    new = await scene.call("run", ticking.package)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    third = await scene.call("run", ticking.package)
    await assert_only_runs(scene, third, ticking, overlaps)


@pytest.mark.parametrize(("tls", "old_run"), [(True, "connected"), (False, "dead")], ids=["tls", "plain"])
async def test_the_old_one_is_pending(scene: Scene, tls: bool, old_run: str) -> None:
    """It was never connected to the peer, so its end drops nobody."""
    await scene.daemon(pace=3)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    connect(ticking.package, tls=tls)
    images = (await scene.cluster.switch("GET", "environment"))["extraImages"]
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {name: {"digests": ["none"]} for name in images}}
    )
    old = await scene.call("run", ticking.package)
    await old.line("the image cannot be pulled")
    if old_run == "dead":
        old.send(signal.SIGKILL)
        await ended(old)
    new = await scene.call("run", ticking.package)
    if old_run == "connected":
        assert await old.wait() == 1
        assert AGAIN in old.lines[-1]
    await new.line("the image cannot be pulled")
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    await assert_only_runs(scene, new, ticking, overlaps)
    assert len(ticking.pids) == 1


async def test_the_old_one_was_pending_and_comes_up_while_it_is_replaced(scene: Scene) -> None:
    """It may have registered in the last moment, so the launch that asked is as good as dropped."""
    await scene.daemon(pace=3)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    images = (await scene.cluster.switch("GET", "environment"))["extraImages"]
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {name: {"digests": ["none"]} for name in images}}
    )
    old = await scene.call("run", ticking.package)
    await old.line("the image cannot be pulled")
    await scene.fault(verb="delete", resource="jobs", times=None, action={"do": "status", "code": 503})
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch")
    await met(scene)
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    await scene.cluster.pod_when((await scene.only("jobs"))["metadata"]["name"], running)
    await no_faults(scene)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    await nothing_left(scene)
    third = await scene.call("run", ticking.package)
    await assert_only_runs(scene, third, ticking, overlaps)


async def test_the_old_one_has_finished(scene: Scene) -> None:
    """A finished Job is left to people."""
    await scene.daemon(pace=3)
    ticking = await Ticking.make(scene, code=3)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    ticking.end()
    assert await old.wait() == 1
    new = await scene.call("run", ticking.package)
    assert await new.wait() == 1
    assert_whole(new)
    assert new.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert new.count("earlier launch") == 0
    assert await scene.count("jobs") == 2


async def test_the_old_one_has_finished_and_its_run_still_reads_the_log(scene: Scene) -> None:
    """It has nothing to lose any more: it says why its chaincode ended, and the Job is left to people."""
    daemon = await scene.daemon(pace=5)
    ticking = await Ticking.make(scene, code=3)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    await scene.fault(verb="log", times=None, action={"do": "status", "code": 500})
    await scene.cluster.switch("POST", "drop")
    await daemon.line("watch_synced", 4)
    ticking.end()
    job = (await scene.only("jobs"))["metadata"]["name"]
    await scene.cluster.pod_when(job, lambda pod: not running(pod))
    new = await scene.call("run", ticking.package)
    await new.line("Running chaincode ID")
    await no_faults(scene)
    assert await old.wait() == 1
    assert_whole(old)
    assert old.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert await new.wait() == 1
    assert_whole(new)
    assert await scene.count("jobs") == 2


async def patient_daemon(scene: Scene) -> Running:
    """Start a daemon whose pods may ignore SIGTERM for longer than any test takes to look at them."""
    template = scene.directory / "template.json"
    template.write_text('{"spec": {"terminationGracePeriodSeconds": 600}}')
    return await scene.daemon(POD_TEMPLATE=str(template))


async def test_the_old_one_is_being_deleted(scene: Scene) -> None:
    """It ignores SIGTERM, so its container outlives the deletion of its Job."""
    await patient_daemon(scene)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    assert await old.terminate() == 0
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch of this chaincode to end")
    os.kill(ticking.pids[0], signal.SIGKILL)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    new = await scene.call("run", ticking.package)
    await new.line("line 1")
    assert len(await live_pods(scene)) == 1
    assert not overlaps.overlapped.exists()
    assert len(ticking.pids) == 2


async def test_the_old_job_has_gone_while_its_pod_lives(scene: Scene) -> None:
    """No daemon was there when the Job went: this one knows the pod alone."""
    daemon = await patient_daemon(scene)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    old.send(signal.SIGKILL)
    await ended(old)
    await kill(daemon)
    await scene.cluster.delete("jobs", (await scene.only("jobs"))["metadata"]["name"])
    await scene.daemon()
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch of this chaincode to end")
    os.kill(ticking.pids[0], signal.SIGKILL)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    new = await scene.call("run", ticking.package)
    await new.line("line 1")
    assert len(await live_pods(scene)) == 1
    assert not overlaps.overlapped.exists()
    assert len(ticking.pids) == 2


@pytest.mark.parametrize(("tls", "meanwhile"), [(True, "the old one ends"), (False, "the old one goes on")])
async def test_the_daemon_dies_while_a_launch_waits_for_the_old_one(scene: Scene, tls: bool, meanwhile: str) -> None:
    """The peer drops the launch when the old one ends, whether a daemon sees that or not: `run` keeps the word."""
    daemon = await patient_daemon(scene)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    connect(ticking.package, tls=tls)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    new = await scene.call("run", ticking.package)
    assert await old.wait() == 1
    await new.line("Waiting for an earlier launch of this chaincode to end")
    await scene.asked("delete jobs")
    await kill(daemon)
    if meanwhile == "the old one ends":
        os.kill(ticking.pids[0], signal.SIGKILL)
        await scene.none("pods")
    await scene.daemon()
    if meanwhile == "the old one goes on":
        await new.line("Waiting for an earlier launch of this chaincode to end", 2)
        os.kill(ticking.pids[0], signal.SIGKILL)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    await nothing_left(scene)
    third = await scene.call("run", ticking.package)
    await assert_only_runs(scene, third, ticking, overlaps)
    assert len(ticking.pids) == 2


async def test_a_dropped_launch_that_comes_back_late_ends_nobody(scene: Scene) -> None:
    """It has nothing to win any more, and what runs by now is a later launch's."""
    daemon = await patient_daemon(scene)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    dropped = await scene.call("run", ticking.package)
    await dropped.line("Waiting for an earlier launch of this chaincode to end")
    await scene.asked("delete jobs")
    dropped.send(signal.SIGSTOP)
    await kill(daemon)
    os.kill(ticking.pids[0], signal.SIGKILL)
    await scene.none("pods")
    await scene.daemon()
    new = await scene.call("run", ticking.package)
    await new.line("line 2")
    dropped.send(signal.SIGCONT)
    assert await dropped.wait() == 1
    assert DROPPED in dropped.lines[-1]
    await new.line(f"line {len(chaincode_lines(new)) + 5}")
    ticking.end()
    assert await new.wait() == 0
    assert_whole(new)


async def test_the_old_one_has_a_name_of_another_prefix(scene: Scene) -> None:
    """The operator has changed the prefix: it is the same peer's same chaincode all the same."""
    daemon = await scene.daemon()
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    await kill(daemon)
    await scene.daemon(OBJECT_NAME_PREFIX="other")
    await old.line("line 5")
    connect(ticking.package, tls=True, peer="second")
    new = await scene.call("run", ticking.package)
    assert await old.wait() == 1
    await assert_only_runs(scene, new, ticking, overlaps)


async def test_the_old_ones_pod_is_an_orphan_that_nobody_deletes(scene: Scene) -> None:
    """Such as a Job deleted with --cascade=orphan leaves: it is for people to say what becomes of it."""
    daemon = await scene.daemon(START_TIMEOUT="8s", pace=4)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    pod = await scene.only("pods")
    assert await old.terminate() == 0
    await nothing_left(scene)
    copied = {name: pod["metadata"][name] for name in ("labels", "annotations")}
    spec = {**pod["spec"], "volumes": [], "nodeName": None}
    spec["containers"][0]["volumeMounts"] = []
    orphan = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orphan", **copied}, "spec": spec}
    await scene.cluster.create(orphan)
    await ticking.started(2)
    new = await scene.call("run", ticking.package)
    assert await new.wait() == 1
    hint = b"pod orphan is not being deleted: delete it, or check that kube-controller-manager is running"
    assert new.lines[-1].endswith(hint)
    assert await scene.count("jobs") == 0
    await scene.cluster.delete("pods", "orphan")
    await scene.none("pods")
    another = await scene.call("run", ticking.package)
    await assert_only_runs(scene, another, ticking, overlaps)
    await forgotten(scene, daemon)


async def test_a_stop_while_waiting_for_the_old_one(scene: Scene, daemon: Running) -> None:
    """The wait gives way to it, and nothing is launched."""
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    connect(ticking.package, tls=True, peer="second")
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch")
    assert await new.terminate() == 0
    await nothing_left(scene)
    assert len(ticking.pids) == 1


async def test_without_tls_the_old_one_runs_and_its_run_is_dead(scene: Scene, daemon: Running) -> None:
    """Nothing tells its peer from the one that asks; that `run` is dead says that the peer has died, too."""
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    connect(ticking.package, tls=False)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    old.send(signal.SIGKILL)
    await ended(old)
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch of this chaincode to end")
    await assert_only_runs(scene, new, ticking, overlaps)
    assert len(ticking.pids) == 2


async def test_the_old_job_was_deleted_by_somebody_and_its_run_is_connected(scene: Scene) -> None:
    """Its pod lives on, and its `run` reads that one's last words: both are as live as before."""
    daemon = await patient_daemon(scene)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude(deaf=True))
    connect(ticking.package, tls=False)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    await scene.cluster.delete("jobs", (await scene.only("jobs"))["metadata"]["name"])
    await scene.none("jobs")
    new = await scene.call("run", ticking.package)
    await new.line("Waiting for an earlier launch of this chaincode to end")
    assert await old.wait() == 1
    assert AGAIN in old.lines[-1]
    assert len(ticking.pids) == 1
    os.kill(ticking.pids[0], signal.SIGKILL)
    assert await new.wait() == 1
    assert DROPPED in new.lines[-1]
    new = await scene.call("run", ticking.package)
    await new.line("line 1")
    assert len(await live_pods(scene)) == 1
    assert not overlaps.overlapped.exists()
    assert len(ticking.pids) == 2
    assert await scene.count("jobs") == 1
    os.kill(ticking.pids[1], signal.SIGKILL)
    assert await new.wait() == 1
    await forgotten(scene, daemon)


async def test_ten_launches_in_a_row_without_waiting_for_any(scene: Scene) -> None:
    """Each comes as soon as the one before it has ended or begun to run, whatever became of it."""
    daemon = await scene.daemon(pace=3)
    overlaps = Overlaps(scene.directory)
    ticking = await Ticking.make(scene, prelude=overlaps.prelude())
    runs = []
    for _ in range(10):
        run = await scene.call("run", ticking.package)
        await run.until(lambda lines: bool(lines))
        runs.append(run)
    *others, last = runs
    assert [await run.wait() for run in others] == [1] * 9
    # One that comes just before an earlier container has ended is dropped with it: then the next one is right.
    for _ in range(2):
        await last.until(lambda lines: b"line 1" in lines or b"Error running chaincode" in lines[-1])
        if last.count("line 1") == 0:
            assert await last.wait() == 1
            last = await scene.call("run", ticking.package)
    await assert_only_runs(scene, last, ticking, overlaps)
    await nothing_left(scene)
    await forgotten(scene, daemon)


@TLS
async def test_a_run_that_comes_late_replaces_nobody(scene: Scene, tls: bool) -> None:
    """It was started before the one that works, and has only now found the daemon: the peer waits for it no more."""
    ticking = await Ticking.make(scene)
    connect(ticking.package, tls=tls)
    late = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="5m")
    await late.line("Waiting for k8s-builderd")
    late.send(signal.SIGSTOP)
    await scene.daemon()
    newer = await scene.call("run", ticking.package)
    await newer.line("line 0")
    late.send(signal.SIGCONT)
    assert await late.wait() == 1
    assert AGAIN in late.lines[-1]
    await newer.line(f"line {len(chaincode_lines(newer)) + 1}")
    assert await newer.terminate() == 0
    await nothing_left(scene)
