"""A daemon that is frozen (SIGSTOP): the kernel connects for it, and nothing answers."""

import signal
from pathlib import Path

import anyio
import pytest

from tests.client.standin import hurried
from tests.daemon.scene import Package, Scene

pytestmark = pytest.mark.anyio


async def test_calls_are_told_and_end_and_chaincode_goes_on(scene: Scene, tmp_path: Path) -> None:
    daemon = await scene.daemon(pace=10)  # its signs of life come every half second
    package = await scene.package("running", script="n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.1; done")
    scene.bin, usual = hurried(tmp_path / "client", SILENCE=2.0), scene.bin
    run = await scene.call("run", package)
    await run.line("tick 1")
    scene.bin = usual
    daemon.send(signal.SIGSTOP)

    async def is_told(program: str, package: Package) -> None:
        code, lines = await scene.said(program, package, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="3s")
        assert code == 1
        assert [line.partition(f" at {scene.socket}")[0] for line in lines] == [
            "Waiting for k8s-builderd",
            "Could not reach k8s-builderd",
        ]
        assert all("the daemon does not answer" in line for line in lines)

    async with anyio.create_task_group() as tasks:
        for program in ("detect", "build", "release", "run"):
            tasks.start_soon(is_told, program, await scene.package())
    await run.line(f"Lost k8s-builderd at {scene.socket} (the daemon does not answer). Running chaincode goes on")
    daemon.send(signal.SIGCONT)
    await run.line("Connected to k8s-builderd after")
    await run.line("tick ", times=run.count("tick ") + 3)
    ticks = [line for line in run.lines if line.startswith(b"tick")]
    assert ticks == [b"tick %d" % number for number in range(len(ticks))]


async def test_a_launch_that_waits_for_the_api_is_not_given_up(scene: Scene) -> None:
    """The daemon has nothing to say for long, but gives signs of life."""
    await scene.fault(verb="list", resource="jobs", action={"do": "hang"})
    await scene.daemon(REQUEST_TIMEOUT="20s", pace=10)
    run = await scene.call("run", await scene.package(script="echo hello"), FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    await run.line("Waiting for the Kubernetes API")
    await scene.cluster.switch("DELETE", "faults")
    await run.line("hello")
    assert await run.wait() == 0
    assert run.count("does not answer") == run.count("Connected to") == 0
