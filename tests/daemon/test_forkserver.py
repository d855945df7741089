"""A daemon that the suite's fork server has made is a process like one that was started."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from tests.daemon.scene import Running, Scene
from tests.daemon.test_socket import Raw

pytestmark = pytest.mark.anyio


def descriptors(daemon: Running) -> dict[str, str]:
    """Return what a daemon has open, by number."""
    return {it.name: str(it.readlink()) for it in Path(f"/proc/{daemon.pid}/fd").iterdir()}


async def test_it_has_descriptors_of_its_own(scene: Scene) -> None:
    daemon = await scene.daemon()
    other = await scene.daemon(SOCKET=str(scene.directory / "other.sock"), INSTANCE="other")
    first, second = descriptors(daemon), descriptors(other)
    assert second["0"] == second["1"] == "/dev/null"
    assert second["2"].startswith("pipe:")
    # None of the first one's, and none of the server's.
    assert [it for it in second.values() if it.startswith("pipe:")] == [second["2"]]
    assert not {it for it in first.values() if it.startswith(("pipe:", "socket:"))} & {*second.values()}


async def note_end(daemon: Running, codes: list[int]) -> None:
    codes.append(await daemon.process.wait())


async def test_its_end_is_told_to_all_who_wait(scene: Scene) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -9)):
        daemon = await scene.daemon()
        codes: list[int] = []
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(note_end, daemon, codes)
            daemon.send(number)
        assert codes == [code, code]
        assert daemon.process.returncode == code


async def test_a_mistake_ends_it_as_it_ends_one_that_was_started(scene: Scene) -> None:
    forked = await scene.daemon(ready=False, SOCKET_MODE="rw")
    started = await anyio.run_process(
        [sys.executable, "-m", "k8s_builderd"],
        env={"PATH": os.environ["PATH"], "FABRIC_K8S_BUILDER_SOCKET_MODE": "rw"},
        check=False,
    )
    assert await forked.wait() == started.returncode == 1
    assert forked.lines == started.stderr.splitlines()


async def test_its_time_can_run_faster(scene: Scene) -> None:
    """What it would wait an hour for comes within the time that a test waits for anything."""
    daemon = await scene.daemon(REQUEST_TIMEOUT="1h", pace=5000)
    async with Raw.open(scene):
        await daemon.line("the request was not complete within 3600 s")
