"""A client that knocks keeps its claim: being turned away for now ends no chaincode."""

import os

import anyio
import pytest

from tests.daemon.scene import Scene
from tests.daemon.test_socket import DETECT, END, SIGN, TICKS, TOKEN, Raw, frame, hello, request, settled

pytestmark = pytest.mark.anyio


GRACE = 1.5
"""Seconds for which the daemon leaves a Job that nobody claims; the knocks come far closer together."""


@pytest.mark.parametrize("reused", [False, True])
async def test_a_run_that_is_turned_away_keeps_its_job(scene: Scene, reused: bool) -> None:
    """Its token tells which it is, or its cursor, where it goes on with the Job of an earlier launch."""
    daemon = await scene.daemon()
    package = await scene.package(script=TICKS)
    async with Raw.open(scene) as raw:
        await raw.send(request(package.root))
        kind, payload = await raw.frame()
        assert kind == "L"
        cursor = payload[2:]
        while b"tick 1" not in (await raw.frame())[1]:
            pass
        await daemon.terminate()
    token = TOKEN
    if reused:
        token, cursor = b"f" * 32, b"2 %s 1 %s" % (TOKEN, cursor.removeprefix(b"1 "))
    again = request(package.root, token=token, cursor=cursor)
    daemon = await scene.daemon(
        MAX_CONNECTIONS="1", ORPHAN_GRACE=f"{GRACE}s", RECONNECT_GRACE="100ms", REQUEST_TIMEOUT="60s"
    )
    async with Raw.open(scene) as held:
        await held.send(hello())
        assert await held.any_frame() == SIGN
        until = anyio.current_time() + 2 * GRACE
        while anyio.current_time() < until:
            async with Raw.open(scene) as raw:
                await raw.send(again)
                assert await raw.rest() == []
    assert daemon.count("job_unclaimed") == 0
    await settled(scene, daemon, 0)
    async with Raw.open(scene) as raw:
        await raw.send(again)
        while b"tick " not in (await raw.frame())[1]:
            pass
    assert daemon.count("job_deleted") == 0


async def test_a_run_that_does_not_knock_loses_it(scene: Scene) -> None:
    daemon = await scene.daemon()
    async with Raw.open(scene) as raw:
        await raw.send(request((await scene.package(script=TICKS)).root))
        while b"tick 1" not in (await raw.frame())[1]:
            pass
        await daemon.terminate()
    daemon = await scene.daemon(MAX_CONNECTIONS="1", ORPHAN_GRACE=f"{GRACE}s", REQUEST_TIMEOUT="60s")
    async with Raw.open(scene) as held:
        await held.send(hello())
        assert await held.any_frame() == SIGN
        async with Raw.open(scene) as other:
            await other.send(hello() + frame("T", b"e" * 32) + END)  # another one's knock
            assert await other.rest() == []
        await daemon.line("job_unclaimed")
    await scene.none("jobs")


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


async def test_a_setting_that_locks_its_user_out_ends_no_chaincode(scene: Scene) -> None:
    """The operator has forgotten a user: the chaincode goes on, and its `run` says what is wrong, until he is added."""
    daemon = await scene.daemon()
    run = await scene.call("run", await scene.package(script=TICKS))
    await run.line("tick 1")
    await daemon.terminate()
    daemon = await scene.daemon(ALLOWED_UIDS="4294967294", ORPHAN_GRACE=f"{GRACE}s", RECONNECT_GRACE="100ms")
    await run.line(f"k8s-builderd cannot continue this launch: user id {os.getuid()} is not in FABRIC_K8S_BUILDER_ALL")
    await daemon.line("client_turned_away", 5)  # later and later: the grace of an orphan is over by now
    assert daemon.count("job_unclaimed") == 0
    await daemon.terminate()
    await scene.daemon()
    await run.line("Connected to k8s-builderd")
    assert await run.terminate() == 0
    assert run.count("cannot continue") == 1
