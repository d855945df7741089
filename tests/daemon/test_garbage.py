"""What has ended is freed at once: nothing of it is left for the garbage collector, which stops everything to look."""

import ast
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.daemon.chaincodes import Ticking, ended, forgotten
from tests.daemon.scene import Running, Scene

pytestmark = pytest.mark.anyio

COUNTING = """
import collections, gc, signal, sys
from k8s_builderd import __main__, memory
def count(*_):
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    kinds = collections.Counter(type(it).__qualname__ for it in gc.garbage)
    print(f"garbage: {dict(kinds)}", file=sys.stderr, flush=True)
    gc.garbage.clear()
    gc.set_debug(0)
    gc.collect()
gc.disable()
memory.INTERVAL = 1e9
signal.signal(signal.SIGUSR1, count)
sys.exit(__main__.main())
"""
"""A daemon that never collects garbage, and tells the kinds of it when it is asked."""

TRANSPORT = {"_SelectorSocketTransport", "TransportSocket", "socket", "dict", "method", "tuple"}
"""asyncio's own transport, without TLS, holds itself. The health port has one for each request, as has a test's API."""


async def is_stopped(scene: Scene, label: str) -> None:
    ticking = await Ticking.make(scene, label)
    run = await scene.call("run", ticking.package)
    await run.line("line 1")
    assert await run.terminate() == 0


async def ends(scene: Scene, label: str) -> None:
    package = await scene.package(label, script="echo line; exit 3")
    assert await (await scene.call("run", package)).wait() == 1


async def loses_its_client(scene: Scene, label: str) -> None:
    ticking = await Ticking.make(scene, label)
    run = await scene.call("run", ticking.package)
    await run.line("line 1")
    run.send(signal.SIGKILL)
    await ended(run)


async def is_launched_again(scene: Scene, label: str) -> None:
    ticking = await Ticking.make(scene, label)
    first = await scene.call("run", ticking.package)
    await first.line("line 1")
    second = await scene.call("run", ticking.package)
    await first.wait()
    await second.wait()


async def its_log_breaks(scene: Scene, label: str) -> None:
    ticking = await Ticking.make(scene, label)
    await scene.fault(verb="log", times=1, action={"do": "cut", "bytes": 40, "reset": True})
    run = await scene.call("run", ticking.package)
    await run.line("line 3")
    assert await run.terminate() == 0


async def is_not_answered(scene: Scene, label: str) -> None:
    ticking = await Ticking.make(scene, label)
    await scene.fault(verb="create", resource="jobs", times=1, action={"do": "hang", "when": "before"})
    run = await scene.call("run", ticking.package)
    await run.line("line 1")
    assert await run.terminate() == 0


async def never_starts(scene: Scene, label: str) -> None:
    package = await scene.package(label)
    images = {package.image_name: {"digests": ["none"]}}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    run = await scene.call("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT="200ms")
    assert await run.wait() == 1


@pytest.mark.parametrize(
    "life", [is_stopped, ends, loses_its_client, is_launched_again, its_log_breaks, is_not_answered, never_starts]
)
async def test_a_launch_that_has_ended_leaves_no_garbage(
    scene: Scene, tmp_path: Path, life: Callable[[Scene, str], Awaitable[None]]
) -> None:
    program = tmp_path / "counting.py"
    program.write_text(COUNTING)
    daemon = await scene.daemon(
        program=[sys.executable, str(program)], RECONNECT_GRACE="100ms", REQUEST_TIMEOUT="500ms"
    )
    await life(scene, "first")
    await forgotten(scene, daemon)
    await garbage(daemon, 1)  # with that of the start
    await life(scene, "next")
    await forgotten(scene, daemon)
    assert await garbage(daemon, 2) == {}


async def garbage(daemon: Running, time: int) -> dict[str, int]:
    """Ask for the `time`-th time; return how many objects of which kind were garbage since the last look."""
    daemon.send(signal.SIGUSR1)
    _, _, kinds = (await daemon.line("garbage: ", time)).decode().partition(": ")
    return {kind: count for kind, count in ast.literal_eval(kinds).items() if kind not in TRANSPORT}
