"""`kubectl describe` tells what becomes of a launch, by Events on Job and peer. Nothing waits for them."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from k8s_builder_lab.embedded.objects import Object
from tests.daemon.chaincodes import Ticking, assert_whole, eventually
from tests.daemon.scene import HASH, Running, Scene
from tests.daemon.test_owner import NAME, owned_daemon, peer_pod
from tests.embedded.cluster import running

pytestmark = pytest.mark.anyio

NO_RIGHT = {"without": ["create events.events.k8s.io", "patch events.events.k8s.io"]}


async def told(scene: Scene, **fields: str) -> list[tuple[str, str, str]]:
    """Return type, reason and note of the daemon's own Events about an object, in the order of their times."""
    selector = ",".join(f"involvedObject.{field}={value}" for field, value in fields.items())
    items = (await scene.cluster.list("events", fieldSelector=selector))["items"]
    ours = [item for item in items if item["reportingComponent"] == "k8s-builderd"]
    return [
        (each["type"], each["reason"], each["message"]) for each in sorted(ours, key=lambda it: str(it["eventTime"]))
    ]


def tells(scene: Scene, *reasons: str, **fields: str) -> Callable[[], Awaitable[bool]]:
    async def enough() -> bool:
        return [reason for _, reason, _ in await told(scene, **fields)] == [*reasons]

    return enough


async def test_a_launch_and_its_stop_are_told_on_the_job_and_the_launch_on_the_peers_pod(scene: Scene) -> None:
    peer = await peer_pod(scene)
    await owned_daemon(scene, peer["metadata"]["uid"])
    package = await scene.package()
    run = await scene.call("run", package)
    await run.line("Running chaincode")
    job = await scene.only("jobs")
    name = job["metadata"]["name"]
    pod = await scene.cluster.pod_when(name, running)
    await eventually(tells(scene, "Launched", "Running", uid=job["metadata"]["uid"]))
    assert await run.terminate() == 0
    await eventually(tells(scene, "Launched", "Running", "Stopped", name=name))
    image = package.image_name
    [first, second, third] = await told(scene, name=name)
    assert first[2].startswith(
        f"Launched chaincode {package.chaincode_id} of peer peer0.org1.example.com with image {image}"
    )
    assert second[2] == f"The chaincode runs in pod {pod['metadata']['name']} on node {pod['spec']['nodeName']}"
    assert third == ("Normal", "Stopped", "The job is deleted: it was told to stop")
    words = f"Launched chaincode {package.chaincode_id} with kubernetes job {name}"
    assert await told(scene, name=NAME, kind="Pod") == [("Normal", "Launched", words)]
    [event] = [
        each
        for each in (await scene.cluster.list("events", fieldSelector=f"involvedObject.name={NAME}"))["items"]
        if each["reportingComponent"] == "k8s-builderd"
    ]
    assert event["involvedObject"]["uid"] == peer["metadata"]["uid"]
    assert (event["related"]["kind"], event["related"]["uid"]) == ("Job", job["metadata"]["uid"])
    assert event["reportingInstance"] == NAME
    requests = (await scene.state())["requests"]
    assert (requests["create events.events.k8s.io"], requests.get("patch events.events.k8s.io", 0)) == (4, 0)


async def test_a_failed_launch_and_a_crash_are_told_with_their_category(scene: Scene) -> None:
    peer = await peer_pod(scene)
    await owned_daemon(scene, peer["metadata"]["uid"])
    settings = {"FABRIC_K8S_BUILDER_NODE_ROLE": "none", "FABRIC_K8S_BUILDER_START_TIMEOUT": "1s"}
    code, _ = await scene.said("run", await scene.package("unschedulable"), **settings)
    assert code == 1
    await eventually(tells(scene, "Launched", "Unschedulable", name=NAME))
    failed = (await told(scene, name=NAME))[1]
    assert failed[0] == "Warning"
    assert failed[2].startswith(f"Chaincode unschedulable:{HASH}: error waiting for chaincode job default/")
    code, _ = await scene.said("run", await scene.package("crashes", script="exit 3"))
    assert code == 1
    await eventually(tells(scene, "Launched", "Unschedulable", "Launched", "ExitCode", name=NAME))
    assert (await told(scene, name=NAME))[3] == (
        "Warning",
        "ExitCode",
        f"Chaincode crashes:{HASH}: the chaincode ended with exit code 3",
    )
    job = next(it for it in (await scene.cluster.list("jobs"))["items"])
    await eventually(tells(scene, "Launched", "Running", "ExitCode", name=job["metadata"]["name"]))


async def test_a_chaincode_that_crashes_again_and_again_is_one_series_on_the_peers_pod(scene: Scene) -> None:
    peer = await peer_pod(scene)
    await owned_daemon(scene, peer["metadata"]["uid"])
    package = await scene.package(script="exit 3")
    for _ in range(3):
        assert (await scene.said("run", package))[0] == 1

    async def counted() -> bool:
        items = (await scene.cluster.list("events", fieldSelector=f"involvedObject.name={NAME}"))["items"]
        ours = {item["reason"]: item.get("series") for item in items if item["reportingComponent"] == "k8s-builderd"}
        return ours.keys() == {"Launched", "ExitCode"} and all(series is not None for series in ours.values())

    await eventually(counted)


async def test_a_launch_that_is_replaced_says_so(scene: Scene) -> None:
    await scene.daemon(pace=3)
    ticking = await Ticking.make(scene)
    old = await scene.call("run", ticking.package)
    await old.line("line 2")
    job = await scene.only("jobs")
    await scene.call("run", ticking.package)
    assert await old.wait() == 1
    await eventually(tells(scene, "Launched", "Running", "Replaced", uid=job["metadata"]["uid"]))


async def test_a_run_that_is_killed_is_told_as_gone(scene: Scene) -> None:
    await scene.daemon(RECONNECT_GRACE="100ms")
    run = await scene.call("run", await scene.package())
    await scene.running_pod()
    job = await scene.only("jobs")
    await eventually(tells(scene, "Launched", "Running", uid=job["metadata"]["uid"]))  # the daemon has seen it, too
    run.process.kill()
    await eventually(tells(scene, "Launched", "Running", "ClientGone", uid=job["metadata"]["uid"]))
    assert (await told(scene, uid=job["metadata"]["uid"]))[-1][0] == "Warning"


async def test_without_the_right_everything_works_and_it_is_told_once(scene: Scene) -> None:
    await scene.cluster.switch("POST", "rights", NO_RIGHT)
    daemon = await scene.daemon()
    for label in ("first", "second"):
        code, said = await scene.said("run", await scene.package(label, script="echo hello"))
        assert (code, said[1]) == (0, "hello")
    await daemon.line("events_refused")
    await scene.said("run", await scene.package("third", script="exit 0"))
    assert daemon.count("events_refused") == 1
    assert (await scene.state())["requests"]["create events.events.k8s.io"] == 1
    assert (await scene.health(daemon, "/readyz"))[0] == 200
    assert daemon.count("access_lost") == 0


@pytest.mark.parametrize("action", [{"do": "hang"}, {"do": "status", "code": 500}, {"do": "reset"}], ids=str)
async def test_events_that_cannot_be_written_hold_up_neither_launch_nor_log_nor_stop(
    scene: Scene, action: dict[str, Any]
) -> None:
    await scene.fault(verb="create", resource="events", times=None, action=action)
    daemon = await scene.daemon()
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 5")
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    stopped = await scene.call("run", await scene.package("stopped"))
    await scene.asked("create jobs", 2)
    assert await stopped.terminate() == 0
    assert (await scene.health(daemon, "/readyz"))[0] == 200
    assert await daemon.terminate() == 0


async def test_they_can_be_switched_off(scene: Scene) -> None:
    await scene.daemon(EVENTS="false")
    assert (await scene.said("run", await scene.package(script="echo hello")))[0] == 0
    assert not [each for each in (await scene.state())["requests"] if each.endswith("events.k8s.io")]


@pytest.mark.parametrize(
    ("reason", "note"),
    [("Evicted", "The node was low on resource"), ("Preempted", "by a pod"), ("NodeNotReady", "Node is not ready")],
)
async def test_what_the_daemon_itself_has_said_of_a_job_is_no_word_of_the_cluster(
    scene: Scene, daemon: Running, reason: str, note: str
) -> None:
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    about = await scene.only("jobs")
    event: Object = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "ours", "namespace": "default"},
        "eventTime": "2026-11-26T05:00:00.000000Z",
        "reportingController": "k8s-builderd",
        "reportingInstance": "peer0",
        "action": "Ending",
        "reason": reason,
        "regarding": {"kind": "Job", "namespace": "default", **{k: about["metadata"][k] for k in ("name", "uid")}},
        "note": note,
        "type": "Warning",
    }
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert (await scene.cluster.request("POST", path, event)).status == 201
    ticking.end()
    assert await run.wait() == 0
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 0")


async def test_what_another_component_says_of_a_job_is(scene: Scene, daemon: Running) -> None:
    """The same Event, from the scheduler: so the test above would fail if the daemon believed itself."""
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    about = await scene.only("jobs")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "theirs"},
        "involvedObject": {"kind": "Job", "namespace": "default", **{k: about["metadata"][k] for k in ("name", "uid")}},
        "reason": "Preempted",
        "message": "by a pod",
        "type": "Warning",
        "reportingComponent": "default-scheduler",
    }
    await scene.cluster.create(event)
    ticking.end()
    assert await run.wait() == 1
    assert run.lines[-1].endswith(b"because its pod was preempted (Preempted): by a pod")
