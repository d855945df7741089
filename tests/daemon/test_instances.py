"""Tokens that change, several peers at one daemon, several daemons in one namespace, and two on one socket."""

import json
import signal
import tempfile
from pathlib import Path

import pytest

from tests.daemon.chaincodes import Ticking, assert_whole, chaincode_lines, ended, eventually, kill, nothing_left
from tests.daemon.scene import Scene

pytestmark = pytest.mark.anyio


def use_token_file(scene: Scene) -> Path:
    """Have the kubeconfig take its token from a file, as a service account's does."""
    file = scene.directory / "token"
    document = json.loads(scene.kubeconfig.read_text())
    user = document["users"][0]["user"]
    file.write_text(user.pop("token"))
    user["tokenFile"] = str(file)
    scene.kubeconfig.write_text(json.dumps(document))
    return file


async def test_the_service_accounts_token_changes(scene: Scene) -> None:
    """The kubelet writes a new one into the file; the old one is refused from then on."""
    file = use_token_file(scene)
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    for number in range(2):
        file.write_text(f"renewed-{number}")
        # The test goes on with the token that it has.
        await scene.cluster.switch("POST", "tokens", {"tokens": [f"renewed-{number}", scene.cluster.token]})
        await scene.cluster.switch("POST", "drop")
        await run.line(b"line %d" % (len(chaincode_lines(run)) + 5))
        other = await Ticking.make(scene, f"other{number}")
        second = await scene.call("run", other.package)
        await second.line("line 2")
        assert await second.terminate() == 0
    await eventually(lambda: ready(scene, daemon))
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


async def test_the_token_is_refused_before_the_file_has_the_new_one(scene: Scene) -> None:
    """Nothing ends in the meantime, and the state is told."""
    file = use_token_file(scene)
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    await scene.cluster.switch("POST", "tokens", {"tokens": ["renewed", scene.cluster.token + "-other"]})
    await scene.cluster.switch("POST", "drop")
    await daemon.line("watch_interrupted", 2)
    status, report = await scene.health(daemon, "/readyz")
    assert status == 503
    assert "cannot " in report
    file.write_text("renewed")
    await eventually(lambda: ready(scene, daemon))
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 5))
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)


async def ready(scene: Scene, daemon: object) -> bool:
    return (await scene.health(daemon, "/readyz"))[0] == 200  # type: ignore[arg-type]


async def test_two_peers_of_one_daemon_launch_the_same_chaincode(scene: Scene) -> None:
    """They are told apart by CORE_PEER_ID: neither replaces the other's."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    one, two = [await scene.call("run", ticking.package, CORE_PEER_ID=f"peer{n}.org1.example.com") for n in range(2)]
    await one.line("line 2")
    await two.line("line 2")
    jobs = (await scene.cluster.list("jobs"))["items"]
    assert len({job["metadata"]["labels"]["fabric-builder-k8s-object"] for job in jobs}) == 2
    assert await one.terminate() == 0
    await two.line(b"line %d" % (len(chaincode_lines(two)) + 5))
    ticking.end()
    assert await two.wait() == 0
    assert_whole(two)
    assert len(ticking.pids) == 2


async def test_two_daemons_in_one_namespace_leave_each_others_jobs_alone(scene: Scene) -> None:
    """Not even an orphan of the other one is touched: it is somebody else's to claim."""
    first_socket = scene.socket
    first = await scene.daemon(INSTANCE="first", ORPHAN_GRACE="100ms", RECONNECT_GRACE="1h")
    ticking = await Ticking.make(scene)
    with tempfile.TemporaryDirectory(prefix="kb-") as directory:
        second_socket = Path(directory) / "b.sock"
        run = await scene.call("run", ticking.package)
        await run.line("line 2")
        run.send(signal.SIGKILL)
        await ended(run)
        first.send(signal.SIGKILL)
        await first.wait()
        # The Job has nobody now, and the other daemon is the only one there, for many of its graces.
        second = await scene.daemon(
            INSTANCE="second", ORPHAN_GRACE="1ms", RECONNECT_GRACE="1ms", SOCKET=str(second_socket)
        )
        await second.line("watch_synced", 2)
        # The same chaincode of the same peer, even.
        again = await scene.call("run", ticking.package, FABRIC_K8S_BUILDER_SOCKET=str(second_socket))
        await again.line("line 5")
        assert again.count("earlier launch") == 0
        assert await scene.count("jobs") == 2
        assert await again.terminate() == 0
        assert second.count("job_unclaimed") == 0
        job = await scene.only("jobs")
        assert job["metadata"]["labels"]["app.kubernetes.io/instance"] == "first"
        scene.socket = first_socket
        await scene.daemon(INSTANCE="first", ORPHAN_GRACE="100ms")
        await nothing_left(scene)


async def test_a_second_daemon_on_one_socket_is_refused(scene: Scene) -> None:
    """And the first does not notice."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    second = await scene.daemon(ready=False)
    assert await second.wait() == 1
    assert "Another k8s-builderd uses the socket" in second.lines[-1].decode()
    assert str(scene.socket) in second.lines[-1].decode()
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    assert (await scene.said("detect", ticking.package))[0] == 0
    assert await run.terminate() == 0


async def test_a_second_daemon_of_one_instance_on_one_host_is_refused(scene: Scene) -> None:
    """Without a name of its own each has the host's, and would take the other's Jobs for orphans."""
    daemon = await scene.daemon(INSTANCE="")
    with tempfile.TemporaryDirectory(prefix="kb-") as directory:
        socket = str(Path(directory) / "b.sock")
        second = await scene.daemon(ready=False, INSTANCE="", SOCKET=socket)
        assert await second.wait() == 1
        assert b"Give this one another name: set the FABRIC_K8S_BUILDER_INSTANCE" in second.lines[-1]
        third = await scene.daemon(INSTANCE="another", SOCKET=socket)
        assert await third.terminate() == 0
        daemon.send(signal.SIGKILL)
        await daemon.wait()
        await scene.daemon(INSTANCE="", SOCKET=socket)


async def test_a_second_daemon_that_calls_the_api_server_otherwise_is_refused(scene: Scene) -> None:
    """Also by another name it is the same cluster; the chaincode of the first goes on."""
    await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    scene.kubeconfig.write_text(scene.kubeconfig.read_text().replace("127.0.0.1", "localhost"))
    with tempfile.TemporaryDirectory(prefix="kb-") as directory:
        second = await scene.daemon(ready=False, SOCKET=str(Path(directory) / "b.sock"), ORPHAN_GRACE="1ms")
        assert await second.wait() == 1
        assert b"Another k8s-builderd on this host uses the instance name scene" in second.lines[-1]
    await run.line(b"line %d" % (len(chaincode_lines(run)) + 2))
    assert await run.terminate() == 0


async def test_a_job_of_another_host_or_pod_is_no_orphan(scene: Scene) -> None:
    """A copied values file gives two daemons one instance: what one of them owns, the other leaves alone."""
    first = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    job = await scene.only("jobs")
    run.send(signal.SIGKILL)
    await ended(run)
    await kill(first)
    await scene.cluster.delete("jobs", job["metadata"]["name"])
    await scene.none("jobs", "pods")
    meta = {name: job["metadata"][name] for name in ("labels", "annotations", "name")}
    for annotations in (meta["annotations"], job["spec"]["template"]["metadata"]["annotations"]):
        annotations["fabric-builder-k8s-host"] = "another"
    template = {
        "metadata": job["spec"]["template"]["metadata"],
        "spec": {**job["spec"]["template"]["spec"], "volumes": []},
    }
    template["spec"]["containers"][0]["volumeMounts"] = []
    spec = {"template": template, "backoffLimit": 0}
    await scene.cluster.create({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec})
    second = await scene.daemon(ORPHAN_GRACE="1ms")
    await second.line("job_of_another_daemon")
    mine = await Ticking.make(scene, "mine")
    other = await scene.call("run", mine.package)
    await other.line("line 2")
    assert await other.terminate() == 0
    assert second.count("job_unclaimed") == 0
    assert await scene.count("jobs") == 1


async def test_a_socket_that_a_dead_daemon_has_left_is_taken_over(scene: Scene) -> None:
    daemon = await scene.daemon()
    daemon.send(signal.SIGKILL)
    await daemon.wait()
    assert scene.socket.is_socket()
    await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 0")
