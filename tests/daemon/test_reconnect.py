"""Without a daemon each program says where it looked and what to do; with one that comes late it goes on."""

import pytest

from tests.daemon.scene import Scene

pytestmark = pytest.mark.anyio


async def test_a_missing_daemon_is_told_with_its_socket_and_a_remedy(scene: Scene) -> None:
    code, lines = await scene.said("detect", await scene.package(), FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="100ms")
    assert code == 1
    assert str(scene.socket) in lines[-1]
    assert "Check that the daemon is running" in lines[-1]


@pytest.mark.parametrize("program", ["build", "run"])
async def test_a_program_goes_on_when_the_daemon_comes(scene: Scene, program: str) -> None:
    package = await scene.package(script="echo hello")
    if program == "build":
        (package.root / "output/image.json").unlink()
    running = await scene.call(program, package, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="5m")
    await running.line(f"Waiting for k8s-builderd at {scene.socket}")
    await scene.daemon()
    assert await running.wait() == 0
    if program == "run":
        await running.line("hello")


async def test_a_stop_while_no_daemon_has_been_there_starts_nothing(scene: Scene) -> None:
    running = await scene.call("run", await scene.package(), FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="5m")
    await running.line("Waiting for k8s-builderd")
    assert await running.terminate() == 0
    assert b"before anything was started" in running.lines[-1]
