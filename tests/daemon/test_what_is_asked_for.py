"""How many requests a chaincode's life costs the API server, as docs/benchmarks.md lists them."""

from collections import Counter

import pytest

from k8s_builderd.runs.turns import AT_ONCE
from tests.daemon.scene import Running, Scene, eventually

pytestmark = pytest.mark.anyio

OF_A_LAUNCH = {
    f"{verb} {plural}" for verb in ("create", "get", "delete", "log") for plural in ("jobs", "pods", "secrets")
}
"""The rest is the daemon's own: its watches, and whether it has its rights."""
WAITS = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"


async def requests(scene: Scene) -> Counter[str]:
    """Return how often what was asked for, but for what the test itself asks for."""
    asked: dict[str, int] = (await scene.state())["requests"]
    return Counter({what: count for what, count in asked.items() if what in OF_A_LAUNCH})


async def test_a_launch_is_three_requests_and_a_stop_is_one(scene: Scene, daemon: Running) -> None:
    before = await requests(scene)
    run = await scene.call("run", await scene.package(script=WAITS))
    await run.line("up")
    running = await requests(scene)
    assert running - before == {"create jobs": 1, "create secrets": 1, "log pods": 1}
    assert await run.terminate() == 0
    assert await requests(scene) - running == {"delete jobs": 1}
    await scene.none("jobs", "pods", "secrets")


async def test_an_end_is_the_rest_of_the_log_and_its_proof(scene: Scene, daemon: Running) -> None:
    before = await requests(scene)
    run = await scene.call("run", await scene.package(script="echo up"))
    assert await run.wait() == 0
    ended = await requests(scene)
    asked = ended - before
    # The stream itself, a look beside it where it has not ended before, the rest where there is one, and the proof.
    assert 3 <= asked.pop("log pods") <= 5
    assert asked == {"create jobs": 1, "create secrets": 1}


async def test_launches_that_get_no_answer_hold_up_no_other(scene: Scene, daemon: Running) -> None:
    before = await requests(scene)
    await scene.fault(verb="create", resource="jobs", times=AT_ONCE, action={"do": "hang"})
    for number in range(AT_ONCE):
        await scene.call("run", await scene.package(f"hangs{number}"))

    async def hang() -> bool:
        return (await requests(scene) - before)["create jobs"] == AT_ONCE

    await eventually(hang)
    run = await scene.call("run", await scene.package("other", script=WAITS))
    await run.line("up")
    assert await run.terminate() == 0
