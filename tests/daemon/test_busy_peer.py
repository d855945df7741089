"""A peer that is asked all the time, at the pace of a real cluster, launches again at once whatever it has dropped.

When a launch ends that was dropped, the peer drops the id once more, whoever holds it by then (Fabric's
core/chaincode/runtime_launcher.go, Launch): each launch could wipe the next one for ever.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from k8s_builder_lab.demo.peer import LaunchError
from k8s_builder_lab.demo.stream import TransactionError
from tests.daemon.chaincodes import eventually
from tests.daemon.scene import Scene, open_scene
from tests.daemon.test_livelock import GRACES, Stage, open_stage
from tests.embedded.cluster import PATIENCE

pytestmark = pytest.mark.anyio

ENOUGH = 15
"""Transactions in a row after which all is well."""

LAUNCHES = 40
"""More of them are a livelock: without the rule there were 60 to 600, and no end. With it a slow machine has more of
them than a quick one: 18 have been seen.
"""

PEERS: dict[str, str] = {**GRACES, "PEER_PATIENCE": "5s"}


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path, pace=1.0) as scene:
        yield scene


async def asked_all_the_time(stage: Stage, *, every: float) -> None:
    """Have requests come, however those before them fare, until enough have succeeded in a row."""
    row = 0
    well = anyio.Event()

    async def ask(number: int) -> None:
        nonlocal row
        try:
            await stage.invoke("put", f"key{number}", "value")
        except (LaunchError, TransactionError):
            row = 0
        else:
            row += 1
            if row >= ENOUGH:
                well.set()

    async def arrive() -> None:
        number = 0
        while True:
            tasks.start_soon(ask, number)
            number += 1
            await anyio.sleep(every)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(arrive)
            await well.wait()
            tasks.cancel_scope.cancel()


async def node(scene: Scene, *, there: bool) -> None:
    """Have a node for chaincode, or none."""
    labels = {"fabric-builder-k8s-role": "chaincode"} if there else {}
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": labels})


async def is_refused(stage: Stage) -> None:
    """Have the chaincode come up when the peer has given it up: it registers, is refused, and hangs.

    What it waits for is a node: at this pace an image is tried again after 10 s.
    """
    await stage.gives_up("the pod cannot be scheduled")
    await node(stage.scene, there=True)
    await stage.run.line("registers as")
    await eventually(lambda: len(stage.peer.streams) == 1)


@pytest.mark.parametrize(("tls", "every"), [(True, 0.15), (False, 0.02)], ids=["tls", "plain"])
async def test_a_stale_chaincode_that_was_refused(scene: Scene, tls: bool, every: float) -> None:
    await scene.daemon(NODE_ROLE="chaincode", **PEERS)  # type: ignore[arg-type]
    async with open_stage(scene, tls=tls) as stage:
        await is_refused(stage)
        await asked_all_the_time(stage, every=every)
        assert len(stage.builder.runs) < LAUNCHES
        await stage.one_is_left()


async def test_a_stale_chaincode_that_was_refused_and_a_node_that_is_still_to_come(scene: Scene) -> None:
    """The next pod takes its time as well; the launches meanwhile are few, and the last one has it."""
    await scene.daemon(NODE_ROLE="chaincode", **PEERS)  # type: ignore[arg-type]
    async with open_stage(scene) as stage:
        await is_refused(stage)
        await node(scene, there=False)

        async def node_comes() -> None:
            await eventually(lambda: stage.run.count("the pod cannot be scheduled") > 0)
            await node(scene, there=True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node_comes)
            await asked_all_the_time(stage, every=0.15)
        assert len(stage.builder.runs) < LAUNCHES
        await stage.one_is_left()
