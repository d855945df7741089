"""The HTTP endpoints say what is so: in good days, in an outage of the API, and to those who ask for nonsense."""

import json
import re

import aiohttp
import anyio
import pytest
from anyio.abc import SocketAttribute

from tests.daemon.chaincodes import forgotten
from tests.daemon.scene import Running, Scene, eventually

pytestmark = pytest.mark.anyio


async def becomes(scene: Scene, daemon: Running, path: str, status: int) -> str:
    """Ask until the answer has this status, and return its text."""
    text = ""

    async def is_so() -> bool:
        nonlocal text
        found, text = await scene.health(daemon, path)
        return found == status

    await eventually(is_so)
    return text


async def says(scene: Scene, daemon: Running, part: str) -> str:
    """Ask until the daemon is not ready and says this, and return its text."""
    text = ""

    async def is_so() -> bool:
        nonlocal text
        status, text = await scene.health(daemon, "/readyz")
        return status == 503 and part in text

    await eventually(is_so)
    return text


async def metric(scene: Scene, daemon: Running, name: str) -> float:
    _, text = await scene.health(daemon, "/metrics")
    found = re.findall(rf"^k8s_builderd_{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[0]) if found else 0.0


async def test_a_daemon_that_is_well_says_so(scene: Scene, daemon: Running) -> None:
    assert await scene.health(daemon, "/livez") == (200, "ok\n")
    text = await becomes(scene, daemon, "/readyz", 200)
    assert text == "[+]socket ok\n[+]jobs ok\n[+]pods ok\n[+]owner ok\n[+]access ok\n[+]template ok\nok\n"
    assert await scene.health(daemon, "/healthz") == (200, text)
    assert await metric(scene, daemon, "ready") == 1


async def test_an_outage_of_the_api_is_not_ready_and_alive_and_told_why(scene: Scene, daemon: Running) -> None:
    await becomes(scene, daemon, "/readyz", 200)
    await scene.cluster.switch("POST", "outage", {"on": True})
    text = await becomes(scene, daemon, "/readyz", 503)
    assert "not ready" in text
    assert "the Kubernetes API does not answer" in text
    assert "[+]socket ok" in text
    assert await scene.health(daemon, "/livez") == (200, "ok\n")
    assert await metric(scene, daemon, "ready") == 0
    await scene.cluster.switch("POST", "outage", {"on": False})
    await becomes(scene, daemon, "/readyz", 200)
    assert await metric(scene, daemon, "ready") == 1


async def test_a_daemon_that_starts_in_an_outage_listens_and_says_why_it_is_not_ready(scene: Scene) -> None:
    await scene.cluster.switch("POST", "outage", {"on": True})
    daemon = await scene.daemon()
    assert await scene.health(daemon, "/livez") == (200, "ok\n")
    await says(scene, daemon, "does not answer")
    # What needs no cluster works without one.
    assert await scene.said("detect", await scene.package()) == (0, ["Detected k8s chaincode: basic_1.0"])
    await scene.cluster.switch("POST", "outage", {"on": False})
    await becomes(scene, daemon, "/readyz", 200)
    assert await daemon.terminate() == 0


async def test_rights_that_are_missing_are_told_with_verb_and_resource(scene: Scene) -> None:
    await scene.fault(resource="pods", verb="list", times=None, action={"do": "status", "code": 403})
    daemon = await scene.daemon()
    text = await says(scene, daemon, "Check the Role of the daemon's service account")
    assert "[-]pods failed: cannot list pods" in text
    assert len(text.splitlines()) == 7


async def test_a_pod_that_is_not_the_daemons_own_is_not_ready(scene: Scene) -> None:
    daemon = await scene.daemon(POD_NAME="peer0-0", POD_UID="wrong")
    await daemon.line("own_pod_wrong")
    text = await becomes(scene, daemon, "/readyz", 503)
    assert "[-]owner failed: FABRIC_K8S_BUILDER_POD_NAME=peer0-0 and FABRIC_K8S_BUILDER_POD_UID=wrong" in text


async def test_calls_and_deletions_are_counted(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script="echo hello")
    await scene.said("detect", package)
    assert (await scene.said("run", package))[0] == 0
    stopped = await scene.call("run", await scene.package("stopped"))
    await stopped.line("Running chaincode")
    await forgotten(scene, daemon, runs=1)  # the first one, at once after its end was told
    await stopped.terminate()
    assert await metric(scene, daemon, 'calls_total{code="0",stage="detect"}') == 1
    assert await metric(scene, daemon, 'calls_total{code="0",stage="run"}') == 2
    assert await metric(scene, daemon, 'jobs_deleted_total{reason="stopped"}') == 1
    await forgotten(scene, daemon)

    async def left() -> bool:
        return await metric(scene, daemon, "connections") == 0

    await eventually(left)
    assert await metric(scene, daemon, "log_bytes_total") == len("hello\n")


async def test_launches_are_counted_by_the_category_of_what_ended_them(scene: Scene, daemon: Running) -> None:
    await scene.said("run", await scene.package(script="exit 3"))
    settings = {"FABRIC_K8S_BUILDER_NODE_ROLE": "none", "FABRIC_K8S_BUILDER_START_TIMEOUT": "1s"}
    assert (await scene.said("run", await scene.package("unschedulable"), **settings))[0] == 1
    assert await metric(scene, daemon, 'chaincode_ends_total{category="ExitCode"}') == 1
    assert await metric(scene, daemon, 'launches_total{category="Unschedulable",outcome="failed"}') == 1


async def test_metrics_are_what_prometheus_reads_and_name_no_chaincode(scene: Scene, daemon: Running) -> None:
    await scene.said("run", await scene.package("secretive", script="echo hello"))
    line = json.loads(await daemon.line("health_open"))
    async with aiohttp.ClientSession() as session, session.get(f"http://{line['address']}/metrics") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/plain"
        text = await answer.text()
    for line in text.splitlines():
        name = r"(k8s_builderd|process)_\w+"  # those of the process are named as by all of Prometheus' clients
        assert re.fullmatch(rf"# (HELP|TYPE) {name} .+|{name}(\{{[^}}]*\}})? [0-9.e+-]+", line)
    assert "secretive" not in text
    assert "peer0" not in text


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/", 404), ("POST", "/livez", 405), ("GET", "/x", 404)])
async def test_nothing_else_is_served(scene: Scene, daemon: Running, method: str, path: str, status: int) -> None:
    line = json.loads(await daemon.line("health_open"))
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://{line['address']}{path}") as answer,
    ):
        assert answer.status == status


async def test_garbage_on_the_port_disturbs_nobody(scene: Scene, daemon: Running) -> None:
    host, _, port = json.loads(await daemon.line("health_open"))["address"].rpartition(":")
    for data in (b"\x16\x03\x01\x02\x00\x01", b"GET " + b"/" * 100_000, b"\0" * 10_000, b"GET / HTTP/9.9\r\n\r\n", b""):
        async with await anyio.connect_tcp(host, int(port)) as stream:
            try:
                await stream.send(data)
            except anyio.BrokenResourceError:
                continue
    assert await scene.health(daemon, "/livez") == (200, "ok\n")
    assert daemon.count("Traceback") == 0
    assert await daemon.terminate() == 0


async def test_a_port_that_is_taken_is_told_and_ends_the_daemon(scene: Scene) -> None:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as taken:
        port = taken.extra(SocketAttribute.local_port)
        daemon = await scene.daemon(ready=False, HEALTH_ADDRESS=f"127.0.0.1:{port}")
        assert await daemon.wait() == 1
    assert (
        b"FABRIC_K8S_BUILDER_HEALTH_ADDRESS environment variable must be an address that can be listened"
        in (daemon.lines[-1])
    )
    assert daemon.count("Traceback") == 0
    assert not scene.socket.exists()
