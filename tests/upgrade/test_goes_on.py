"""A `run` that began under the daemon of 16a85a5 goes on under today's: its log is neither cut nor doubled.

The old daemon is played here: it makes the Job and the Secret that were recorded, and passes on the beginning of the
log with the cursors that it used. Then it is gone, and a daemon of today takes its place.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream

from tests.daemon.chaincodes import Ticking, assert_whole, forgotten, nothing_left
from tests.daemon.scene import BIN, Running, Scene
from tests.embedded.cluster import PATIENCE, eventually, running
from tests.upgrade.golden import OLD_BIN, SCENARIOS, encoded, field, of_another_run, position
from tests.upgrade.record import LONG, frames

pytestmark = pytest.mark.anyio

CLIENTS = pytest.mark.parametrize("client", [OLD_BIN, BIN], ids=["old", "new"])


class OldDaemon:
    """The daemon of 16a85a5, for one `run`."""

    def __init__(self, scene: Scene, stream: SocketStream, request: list[tuple[str, bytes]]) -> None:
        self.scene = scene
        self.token = dict(request)["T"].decode()
        self.uid = ""
        self._stream = stream

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, scene: Scene, package: Any, **environment: str
    ) -> AsyncIterator[tuple["OldDaemon", Running]]:
        """Call a `run` and be the daemon that it reaches, until the context is left."""
        async with await anyio.create_unix_listener(scene.socket) as listener:
            variables: dict[str, Any] = environment
            run = await scene.call("run", package, **variables)
            with anyio.fail_after(PATIENCE):
                stream = await listener.accept()
            async with stream:
                data = b""
                while not data or frames(data)[-1] != (".", b""):
                    data += await stream.receive()
                yield cls(scene, stream, frames(data)), run
        scene.socket.unlink()

    async def launch(self, scenario: str, token: str) -> str:
        """Make what was recorded, and return the name of the pod, whose container runs."""
        job, secret = of_another_run(scenario, token)
        made = await self.scene.cluster.create(job)
        self.uid = made["metadata"]["uid"]
        secret["metadata"]["ownerReferences"][0]["uid"] = self.uid
        await self.scene.cluster.create(secret)
        name: str = (await self.scene.cluster.pod_when(job["metadata"]["name"], running))["metadata"]["name"]
        return name

    async def log(self, pod: str, lines: int) -> bytes:
        """Return the log with its timestamps, as soon as it has so many lines."""
        log = b""

        async def long() -> bool:
            nonlocal log
            log = await self.scene.cluster.log(pod, timestamps="true")
            return log.count(b"\n") >= lines

        await eventually(long)
        return log

    async def say(self, *frame: str) -> None:
        await self._stream.send(encoded(list(frame)))


async def pod_uid(scene: Scene) -> str:
    uid: str = (await scene.only("pods"))["metadata"]["uid"]
    return uid


@CLIENTS
@pytest.mark.parametrize("passed_on", [0, 1, 4])
async def test_its_log_goes_on(scene: Scene, client: Any, passed_on: int) -> None:
    scene.bin = client
    ticking = await Ticking.make(scene, code=3)
    async with OldDaemon.serving(scene, ticking.package) as (old, run):
        pod = await old.launch("stopped", old.token)
        log = await old.log(pod, passed_on)
        await old.say("L", f"1 {old.uid}", "")
        await old.say("W", f"run [{run.pid}]: Running chaincode ID\n")
        await run.line("Running chaincode ID")
        for count in range(1, passed_on + 1):
            text = log.splitlines()[count - 1].split(b" ", 1)[1].decode()
            await old.say("L", f"1 {old.uid} {await pod_uid(scene)} {position(log, count)}", text + "\n")
        if passed_on:
            await run.line(f"line {passed_on - 1}")
    daemon = await scene.daemon()
    await run.line(f"line {passed_on + 3}")
    ticking.end()
    assert await run.wait() == 1
    assert_whole(run)
    assert run.lines[-1].endswith(b"the chaincode ended with exit code 3")
    assert run.count("Running chaincode ID") == 1
    assert len(ticking.pids) == 1
    await forgotten(scene, daemon)


@CLIENTS
async def test_a_line_that_is_longer_than_a_piece_goes_on_within(scene: Scene, client: Any) -> None:
    scene.bin = client
    package = await scene.package(script=f"{LONG}echo there; sleep 3600")
    async with OldDaemon.serving(scene, package) as (old, run):
        log = await old.log(await old.launch("stopped", old.token), 1)
        piece = "x" * 32768 + " [piece 1 of a longer line]\n"
        await old.say("L", f"1 {old.uid} {await pod_uid(scene)} {position(log, 1, pieces=1)}", piece)
        await run.line("[piece 1")
    await scene.daemon()
    await run.line("there")
    told = [line for line in run.lines if not line.startswith(b"run [")]
    assert told == [piece.encode().rstrip(), b"x" * 232 + b" [piece 2, the last of this line]", b"there"]


@CLIENTS
async def test_a_stop_ends_its_job(scene: Scene, client: Any) -> None:
    scene.bin = client
    ticking = await Ticking.make(scene)
    async with OldDaemon.serving(scene, ticking.package) as (old, run):
        await old.launch("stopped", old.token)
        await old.say("L", f"1 {old.uid}", "")
    await scene.daemon()
    await run.line("line 1")
    assert await run.terminate() == 0
    await nothing_left(scene)


@CLIENTS
async def test_one_that_goes_on_with_an_earlier_launchs_job_keeps_it(scene: Scene, client: Any) -> None:
    """The Job is that of a token which its cursor names; its own has none."""
    scene.bin = client
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})
    ticking = await Ticking.make(scene)
    earlier = field(SCENARIOS["inherited"]["conversations"][0], "T")
    async with OldDaemon.serving(scene, ticking.package, FABRIC_K8S_BUILDER_NODE_ROLE="chaincode") as (old, run):
        assert old.token != earlier
        log = await old.log(await old.launch("inherited", earlier), 2)
        cursor = f"2 {earlier} 1 {old.uid} {await pod_uid(scene)} {position(log, 1)}"
        await old.say("L", f"2 {earlier} 1 {old.uid}", "")
        await old.say("L", cursor, "line 0\n")
        await run.line("line 0")
    daemon = await scene.daemon()
    await run.line("line 3")
    assert await scene.count("jobs") == 1
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1
    await forgotten(scene, daemon)


@CLIENTS
async def test_a_launch_that_was_dropped_ends_and_makes_no_job(scene: Scene, client: Any) -> None:
    scene.bin = client
    async with OldDaemon.serving(scene, await scene.package()) as (old, run):
        await old.say("L", "dropped", "")
        await old.say("W", "run [1]: word\n")
        await run.line("word")
    await scene.daemon()
    assert await run.wait() == 1
    assert b"Error running chaincode: " in run.lines[-1]
    assert await scene.count("jobs") == 0


async def test_a_job_that_nobody_claims_is_removed_with_its_secret(scene: Scene) -> None:
    await scene.package(script="sleep 3600")
    job, secret = of_another_run("stopped", "0" * 32)
    uid = (await scene.cluster.create(job))["metadata"]["uid"]
    secret["metadata"]["ownerReferences"][0]["uid"] = uid
    await scene.cluster.create(secret)
    await scene.daemon(ORPHAN_GRACE="100ms")
    await nothing_left(scene)
