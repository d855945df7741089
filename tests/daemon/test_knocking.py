"""A client that knocks keeps its claim: being turned away for now ends no chaincode."""

import pytest

from tests.daemon.scene import Scene
from tests.daemon.test_socket import DETECT, END, SIGN, TICKS, TOKEN, Raw, frame, hello, request

pytestmark = pytest.mark.anyio


async def test_a_run_that_is_turned_away_keeps_its_job(scene: Scene) -> None:
    daemon = await scene.daemon()
    runs = [await scene.call("run", await scene.package(f"p{number}", script=TICKS)) for number in range(2)]
    for run in runs:
        await run.line("tick 1")
    await daemon.terminate()
    daemon = await scene.daemon(MAX_CONNECTIONS="1", ORPHAN_GRACE="500ms", RECONNECT_GRACE="500ms")
    # The pauses between two attempts double from 50 ms, so that these take several times the grace.
    await daemon.line("client_turned_away", times=7)
    assert daemon.count("job_unclaimed") == 0
    served = next(run for run in runs if run.count(b"tick") == max(run.count(b"tick") for run in runs))
    waiting = next(run for run in runs if run is not served)
    assert await served.terminate() == 0
    await waiting.line("tick ", times=waiting.count("tick ") + 3)
    ticks = [line for line in waiting.lines if line.startswith(b"tick")]
    assert ticks == [b"tick %d" % number for number in range(len(ticks))]
    assert daemon.count("job_unclaimed") == 0


async def test_what_is_read_of_a_run_that_is_turned_away_is_its_claim_alone(scene: Scene) -> None:
    """However long and broken its documents are, it is told nothing and comes again."""
    await scene.daemon(MAX_CONNECTIONS="1")
    documents = frame("D", b"image.json", bytes(1 << 19)) + frame("D", b"chaincode.json", bytes(1 << 19)) * 3
    async with Raw.open(scene) as held:
        await held.send(hello())
        assert await held.any_frame() == SIGN
        for tail in (frame("T", TOKEN) + END, frame("T", b"none") + END, frame("C", b"none") + frame("T", TOKEN) + END):
            async with Raw.open(scene) as raw:
                await raw.send(hello() + documents + tail)
                assert await raw.rest() == []
        async with Raw.open(scene) as raw:
            await raw.send(DETECT)
            assert "FABRIC_K8S_BUILDER_MAX_CONNECTIONS" in await raw.refused()


async def test_a_run_of_a_user_who_may_not_connect_keeps_no_claim(scene: Scene) -> None:
    await scene.daemon(ALLOWED_UIDS="4294967294", MAX_CONNECTIONS="1")
    async with Raw.open(scene) as raw:
        await raw.send(request((await scene.package()).root))
        assert "FABRIC_K8S_BUILDER_ALLOWED_UIDS" in await raw.refused()
