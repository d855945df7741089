"""The daemon's pod owns what it makes: when the peer's pod goes, Jobs and Secrets go, and the chaincode with them."""

import signal
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from k8s_builderd.fabric.plan import Owner
from k8s_builderd.kube.api import Api
from k8s_builderd.owner import OwnPod
from k8s_builderd.settings import Settings
from tests.daemon.chaincodes import Ticking, eventually, no_faults
from tests.daemon.scene import Running, Scene
from tests.daemon.test_health import becomes
from tests.embedded.cluster import PATIENCE, running

pytestmark = pytest.mark.anyio

NAME = "peer0-0"


async def peer_pod(scene: Scene) -> Any:
    """Make a pod as the peer's StatefulSet does, and wait until it runs."""
    image = "localhost/peer"
    command = {"command": ["sleep", "3600"]}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": {image: command}})
    await scene.cluster.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": NAME},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "peer", "image": f"{image}@sha256:{'0' * 64}"}],
            },
        }
    )
    async with scene.cluster.watch("pods", fieldSelector=f"metadata.name={NAME}") as watch:
        return (await watch.until(lambda event: running(event["object"])))[-1]["object"]


async def owned_daemon(scene: Scene, uid: str, *, name: str = NAME) -> Running:
    return await scene.daemon(POD_NAME=name, POD_UID=uid)


async def test_what_the_pod_owns_goes_with_it(scene: Scene) -> None:
    pod = await peer_pod(scene)
    daemon = await owned_daemon(scene, pod["metadata"]["uid"])
    tickings = [await Ticking.make(scene, f"cc{index}") for index in range(2)]
    runs = [await scene.call("run", ticking.package) for ticking in tickings]
    for run in runs:
        await run.line("line 2")
    for job in (await scene.cluster.list("jobs"))["items"]:
        [owner] = job["metadata"]["ownerReferences"]
        expected = {"apiVersion": "v1", "kind": "Pod", "name": NAME, "uid": pod["metadata"]["uid"]}
        # Never blockOwnerDeletion: it would hold up the peer's pod, and needs a right of its own.
        assert owner == expected
    assert (await scene.health(daemon, "/readyz"))[0] == 200
    await scene.cluster.delete("pods", NAME)
    assert [await run.wait() for run in runs] == [1, 1]
    assert all(b"its job was deleted" in run.lines[-1] for run in runs)
    await scene.none("jobs", "pods", "secrets")
    assert [len(ticking.pids) for ticking in tickings] == [1, 1]


@pytest.mark.parametrize("wrong", ["uid", "name"])
async def test_a_wrong_pod_is_noticed_and_owns_nothing(scene: Scene, wrong: str) -> None:
    """The cluster would delete the Jobs at birth: so they get no owner, and the chaincode runs."""
    uid = (await peer_pod(scene))["metadata"]["uid"]
    if wrong == "uid":
        daemon = await owned_daemon(scene, "00000000-0000-0000-0000-000000000000")
    else:
        daemon = await owned_daemon(scene, uid, name="peer0-1")
    line = await daemon.line("own_pod_wrong")
    assert b"FABRIC_K8S_BUILDER_POD_UID" in line
    status, report = await scene.health(daemon, "/readyz")
    assert status == 503
    assert "[-]owner failed: FABRIC_K8S_BUILDER_POD_NAME=" in report
    assert (uid if wrong == "uid" else "there is no such pod") in report
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    assert "ownerReferences" not in (await scene.only("jobs"))["metadata"]
    assert await run.terminate() == 0


async def test_chaincode_in_another_namespace_than_the_peers_has_no_owner_and_that_is_no_fault(scene: Scene) -> None:
    """Owner references do not cross namespaces. The Go builder is used like this, and its documentation says how."""
    daemon = await scene.daemon(POD_NAME=NAME, POD_UID="uid", POD_NAMESPACE="peers", RECONNECT_GRACE="1s")
    line = await daemon.line("own_pod_elsewhere")
    assert b"this daemon's pod is in namespace peers, chaincode in default: owner references do not cross" in line
    assert b"1 s after its `run` is gone, or 60 s after the next start of a daemon with the instance name scene" in line
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    assert "ownerReferences" not in (await scene.only("jobs"))["metadata"]
    assert (await scene.health(daemon, "/readyz"))[0] == 200
    assert "get pods" not in (await scene.state())["requests"]  # the Role there is not asked for that
    assert daemon.count("own_pod") == 1
    run.send(signal.SIGKILL)
    await scene.none("jobs", "pods", "secrets")


async def test_a_launch_waits_until_it_is_known_whose_it_is(scene: Scene) -> None:
    pod = await peer_pod(scene)
    await scene.fault(verb="get", resource="pods", name=NAME, times=None, action={"do": "status", "code": 503})
    daemon = await owned_daemon(scene, pod["metadata"]["uid"])
    await daemon.line("own_pod_unknown")
    await daemon.line("watch_synced", 2)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await scene.asked("get pods", 3)
    assert await scene.count("jobs") == 0
    await no_faults(scene)
    await run.line("line 2")
    [owner] = (await scene.only("jobs"))["metadata"]["ownerReferences"]
    assert owner["uid"] == pod["metadata"]["uid"]
    assert await run.terminate() == 0


async def test_an_api_server_that_forbids_for_a_moment_costs_no_owner(scene: Scene) -> None:
    """One that has just started answers 403; what it says then is not what it means."""
    pod = await peer_pod(scene)
    await scene.fault(verb="get", resource="pods", name=NAME, times=2, action={"do": "status", "code": 403})
    daemon = await owned_daemon(scene, pod["metadata"]["uid"])
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    [owner] = (await scene.only("jobs"))["metadata"]["ownerReferences"]
    assert owner["uid"] == pod["metadata"]["uid"]

    async def ready() -> bool:
        return (await scene.health(daemon, "/readyz"))[0] == 200

    await eventually(ready)
    assert await run.terminate() == 0


# A pod that the service account's token names


def bound(uid: str, *, namespace: str = "default") -> Settings:
    return Settings(
        environment={},
        kubeconfig="",
        namespace="default",
        instance="scene",
        pod_name=NAME,
        pod_uid=uid,
        pod_from_token=True,
        pod_namespace=namespace,
    )


async def confirmed(scene: Scene, settings: Settings) -> tuple[list[Owner | None], str | None, Any]:
    """Return what launches, /readyz and the log are told."""
    own_pod = OwnPod()
    told: list[Owner | None] = []
    with capture_logs() as log, anyio.fail_after(PATIENCE):
        async with Api.open(str(scene.kubeconfig), "default") as api:
            await own_pod.confirm(api, settings, told.append)
    return told, own_pod.error, [line for line in log if line["log_level"] != "debug"]


async def test_the_pod_of_the_token_owns_the_jobs(scene: Scene) -> None:
    uid = (await peer_pod(scene))["metadata"]["uid"]
    assert await confirmed(scene, bound(uid)) == ([Owner(NAME, uid)], None, [])


@pytest.mark.parametrize("there", [False, True])
async def test_a_pod_of_the_token_that_is_no_more_owns_nothing_and_that_is_no_fault(scene: Scene, there: bool) -> None:
    """A StatefulSet's next pod has the same name: what it owned would be deleted with it."""
    has = "there is no such pod"
    if there:
        has = f"that pod's uid is '{(await peer_pod(scene))['metadata']['uid']}'"
    told, error, [line] = await confirmed(scene, bound("of-the-token"))
    assert (told, error) == ([None], None)
    assert (line["event"], line["log_level"]) == ("own_pod_unknown", "info")
    assert line["reason"] == (
        f"the service account's token names pod {NAME} with uid of-the-token in namespace default: {has}; jobs have no"
        " owner"
    )


async def test_a_pod_of_the_token_in_another_namespace_owns_nothing(scene: Scene) -> None:
    uid = (await peer_pod(scene))["metadata"]["uid"]
    told, error, [line] = await confirmed(scene, bound(uid, namespace="peers"))
    assert (told, error, line["event"], line["log_level"]) == ([None], None, "own_pod_elsewhere", "info")


async def test_launches_go_on_without_an_owner_where_the_pod_may_not_be_read(scene: Scene) -> None:
    """Where the Role is mended, later ones have it."""
    uid = (await peer_pod(scene))["metadata"]["uid"]
    await scene.fault(verb="get", resource="pods", name=NAME, times=None, action={"do": "status", "code": 403})
    daemon = await scene.daemon(POD_NAME=NAME, POD_UID=uid, pace=10)
    run = await scene.call("run", (await Ticking.make(scene)).package)
    await run.line("line 2")
    assert "ownerReferences" not in (await scene.only("jobs"))["metadata"]
    assert "[-]owner failed: the daemon's own pod cannot be looked up: cannot get pods" in (
        await becomes(scene, daemon, "/readyz", 503)
    )
    assert await run.terminate() == 0
    await scene.none("jobs", "secrets")
    await no_faults(scene)
    await becomes(scene, daemon, "/readyz", 200)
    await (await scene.call("run", (await Ticking.make(scene, "later")).package)).line("line 2")
    [owner] = (await scene.only("jobs"))["metadata"]["ownerReferences"]
    assert owner["uid"] == uid


@pytest.mark.parametrize("same", [True, False])
async def test_a_daemon_deletes_what_its_pod_owns_and_nobody_claims(scene: Scene, same: bool) -> None:
    """The next pod of that name, on the same host, deletes none of it: its owner is another one."""
    uid = (await peer_pod(scene))["metadata"]["uid"]
    first = await owned_daemon(scene, uid)
    run = await scene.call("run", (await Ticking.make(scene)).package)
    await run.line("line 2")
    for process in (run, first):
        process.send(signal.SIGKILL)
        await process.wait()
    again = await scene.daemon(POD_NAME=NAME, POD_UID=uid if same else "another", ORPHAN_GRACE="10ms")
    if same:
        assert b"orphan" in await again.line("job_unclaimed")
        await scene.none("jobs", "secrets")
    else:
        await again.line("job_of_another_daemon")
        assert (await scene.only("jobs"))["metadata"]["ownerReferences"][0]["uid"] == uid
