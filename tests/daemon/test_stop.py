"""SIGTERM, and a peer that is gone, in each state of a run: it ends at once, and leaves nothing behind."""

import signal
from pathlib import Path

import pytest

from k8s_builder_lab.demo.processes import until_ended
from tests.daemon.scene import Running, Scene
from tests.embedded.cluster import running as runs

pytestmark = pytest.mark.anyio

CHATTY = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_while_the_chaincode_runs_stops_it(
    scene: Scene, daemon: Running, number: signal.Signals
) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    run.send(number)
    assert await run.wait() == 0
    assert b"Stopped: the Kubernetes API accepted the deletion of chaincode job" in run.lines[-1]
    await scene.none("jobs", "pods", "secrets")


async def test_a_chaincode_that_ignores_sigterm_is_gone_after_its_grace(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script="trap '' TERM; echo $$; while :; do sleep 0.05; done"))
    pid = int((await run.until(lambda lines: lines[-1].isdigit()))[-1])
    assert await run.terminate() == 0
    await scene.none("jobs", "pods", "secrets")
    await until_ended(pid)


async def test_sigterm_before_there_is_a_job_leaves_none(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="create", resource="jobs", action={"do": "hang"}, times=None)
    run = await scene.call("run", await scene.package())
    await scene.asked("create jobs")
    assert await run.terminate() == 0
    await scene.cluster.switch("DELETE", "faults")
    await scene.none("jobs", "secrets")


async def test_sigterm_while_the_pod_is_pending_stops_it(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {package.image_name: {"behaviour": "pending", "command": ["true"]}}}
    )
    run = await scene.call("run", package)
    await run.line("Running chaincode ID")
    assert await run.terminate() == 0
    await scene.none("jobs", "pods", "secrets")


FULL = "trap 'exit 0' TERM; while :; do echo 0123456789012345678901234567890123456789; done"


async def test_sigterm_with_the_pipe_full_stops_it(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=FULL), read=False)
    await run.full()
    run.send(signal.SIGTERM)
    assert await run.wait() == 0
    await scene.none("jobs", "pods", "secrets")


async def test_a_peer_that_is_gone_stops_it(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY), read=False)
    await scene.running_pod()
    run.close()
    assert await run.wait() == 0
    await scene.none("jobs", "pods", "secrets")


async def test_a_peer_that_is_gone_with_the_pipe_full_stops_it(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=FULL), read=False)
    await run.full()
    run.close()
    assert await run.wait() == 0
    await scene.none("jobs", "pods", "secrets")


async def test_the_chaincode_is_told_before_it_is_killed(scene: Scene, daemon: Running, tmp_path: Path) -> None:
    told = tmp_path / "told"
    script = f"trap 'echo told > {told}; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    run = await scene.call("run", await scene.package(script=script))
    await run.line("up")
    assert await run.terminate() == 0
    await scene.none("jobs", "pods")
    assert told.read_text() == "told\n"


async def test_the_daemon_ends_cleanly_and_deletes_nothing(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    daemon.send(signal.SIGTERM)
    assert await daemon.wait() == 0
    assert not scene.socket.exists()
    assert runs(await scene.only("pods"))
    assert run.process.returncode is None
