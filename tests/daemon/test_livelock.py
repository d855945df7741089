"""The peer's stand-in with a real chaincode on the real shim: whatever happens, requests succeed again after a while.

The stand-in keeps the peer's own rules: a duplicate REGISTER is refused and its stream stays open, and the end of any
stream that sent REGISTER for an id drops whoever holds that id, the launch that is under way included.
"""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from k8s_builder_lab.demo.builder import PeerConnection
from k8s_builder_lab.demo.peer import LaunchError, Peer, open_peer
from k8s_builder_lab.demo.stream import TransactionError
from tests.daemon.chaincodes import ended, eventually, forgotten, kill, met, no_faults
from tests.daemon.scene import Package, Running, Scene
from tests.embedded.cluster import PATIENCE, running

pytestmark = pytest.mark.anyio

ATTEMPTS = 6
"""Requests after which it counts as a livelock; each ends by what happens, not by a time-out."""

GRACES: Any = {"RECONNECT_GRACE": "500ms", "ORPHAN_GRACE": "1s"}


class Started:
    """A `run` as the peer holds it."""

    def __init__(self, run: Running) -> None:
        self.run = run

    async def wait(self) -> int:
        await self.run.ended.wait()
        return await self.run.process.wait()

    def signal(self, number: signal.Signals) -> None:
        if self.run.process.returncode is None:
            self.run.send(number)


class Builder:
    """Calls `run` for the peer's launches, each with a chaincode.json of its own."""

    def __init__(self, scene: Scene, package: Package) -> None:
        self.runs: list[Running] = []
        self._scene = scene
        self._package = package

    async def start(self, chaincode_id: str, connection: PeerConnection) -> Started:
        launch = self._package.root / f"run{len(self.runs)}"
        launch.mkdir(mode=0o700)
        (launch / "chaincode.json").write_bytes(connection.document(chaincode_id))
        run = await self._scene.execute("run", str(self._package.root / "output"), str(launch))
        self.runs.append(run)
        return Started(run)


class Stage:
    """A peer, its builder, and what is asked of them."""

    def __init__(self, scene: Scene, peer: Peer, builder: Builder, package: Package, image: str) -> None:
        self.scene = scene
        self.peer = peer
        self.builder = builder
        self._package = package
        self._image = image

    @property
    def run(self) -> Running:
        """The newest `run`."""
        return self.builder.runs[-1]

    async def invoke(self, *arguments: str) -> bytes:
        return await self.peer.invoke(self._package.chaincode_id, [*arguments])

    async def works(self) -> int:
        """Ask until a transaction succeeds, and return how many requests that took."""
        failures: list[Exception] = []
        while len(failures) < ATTEMPTS:
            try:
                await self.invoke("put", "key", str(len(failures)))
                assert await self.invoke("get", "key") == str(len(failures)).encode()
            except (LaunchError, TransactionError) as error:
                failures.append(error)
            else:
                return len(failures) + 1
        raise AssertionError(f"a livelock: {failures}")

    async def gives_up(self, held_up: str = "the image cannot be pulled") -> None:
        """Ask once while the pod is pending, and have the peer forget the launch as after its startuptimeout."""
        before = len(self.builder.runs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.invoke, "get", "key")
            await eventually(lambda: len(self.builder.runs) > before)
            await self.run.line(held_up)
            tasks.cancel_scope.cancel()
        self.peer.registry.deregister(self._package.chaincode_id)
        assert not self.run.ended.is_set()

    async def is_refused(self) -> None:
        """Have the chaincode come up when the peer has given it up: it registers, is refused, and hangs."""
        await self.image(digests=["none"])
        await self.gives_up()
        await self.image()
        await self.scene.cluster.pod_when((await self.scene.only("jobs"))["metadata"]["name"], running)
        await self.run.line("registers as")
        await eventually(lambda: len(self.peer.streams) == 1)

    async def image(self, **fields: object) -> None:
        """Change the image: nothing makes it the chaincode, `digests` keep it from being pulled."""
        command = [sys.executable, "-m", "k8s_builder_lab.demo.chaincode"]
        image = {"command": command, **fields}
        await self.scene.cluster.switch("PATCH", "environment", {"extraImages": {self._image: image}})

    async def one_is_left(self) -> None:
        """Wait until the only process left is the one that works, and assert that one `run` attends it."""

        async def one() -> bool:
            return len((await self.scene.cluster.switch("GET", "state"))["processes"]) == 1

        await eventually(one)
        for run in self.builder.runs[:-1]:
            await ended(run)
        assert not self.run.ended.is_set()


async def no_process_left(scene: Scene) -> None:
    """Wait until no chaincode runs; Jobs that have finished by themselves stay for people to look at."""

    async def none() -> bool:
        return not (await scene.cluster.switch("GET", "state"))["processes"]

    await eventually(none)


@asynccontextmanager
async def open_stage(scene: Scene, *, tls: bool = True, startup_timeout: float = 10 * PATIENCE) -> AsyncIterator[Stage]:
    package = await scene.package()
    builder = Builder(scene, package)
    async with open_peer(builder, tls=tls, startup_timeout=startup_timeout) as peer:
        stage = Stage(scene, peer, builder, package, "localhost/chaincode1")
        await stage.image()
        yield stage
        await peer.shutdown()
    await no_process_left(scene)


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
async def test_a_chaincode_that_crashes_is_started_by_the_very_next_request(scene: Scene, tls: bool) -> None:
    """The peer launches at once, before the node has told of the end: that is waited for, and nobody is replaced."""
    daemon = await scene.daemon(**GRACES)
    async with open_stage(scene, tls=tls) as stage:
        assert await stage.works() == 1
        for _ in range(3):
            crashed = stage.run
            with pytest.raises(TransactionError):
                await stage.invoke("exit", "3")
            assert await stage.works() == 1
            assert await crashed.wait() == 1
            assert crashed.lines[-1].endswith(b"the chaincode ended with exit code 3")
        await stage.one_is_left()
    await forgotten(scene, daemon)


async def test_a_launch_that_outlasts_the_peers_patience(scene: Scene) -> None:
    """The peer has given up, its `run` and the pending pod live on; both are replaced."""
    await scene.daemon(**GRACES)
    async with open_stage(scene) as stage:
        await stage.image(digests=["none"])
        await stage.gives_up()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stage.works)
            await eventually(lambda: len(stage.builder.runs) == 2)
            # Else the old pod may come up first, serve the request, and be replaced after it.
            await stage.run.line("Waiting for an earlier launch of this chaincode to end")
            await stage.image()
        await stage.one_is_left()


async def test_a_start_that_takes_longer_than_the_peer_ever_waits(scene: Scene) -> None:
    """Each launch goes on where the one before it was, and the one during which the chaincode comes up has it."""
    await scene.daemon(NODE_ROLE="chaincode", **GRACES)
    async with open_stage(scene, tls=False) as stage:
        for _ in range(3):
            await stage.gives_up("the pod cannot be scheduled")
        assert [run.count("Reusing job") for run in stage.builder.runs] == [0, 1, 1]

        async def node_comes() -> None:
            await eventually(lambda: len(stage.builder.runs) == 4)
            await stage.run.line("Reusing job")
            await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(node_comes)
            assert await stage.works() == 1
        await stage.one_is_left()
        assert await scene.count("jobs") == 1


async def test_a_stale_chaincode_that_was_refused_and_hangs(scene: Scene) -> None:
    """It came up after the peer had given up: refused, its stream is open, and its end will wipe another launch."""
    await scene.daemon(**GRACES)
    async with open_stage(scene) as stage:
        await stage.is_refused()
        await stage.works()
        await stage.one_is_left()


async def test_a_stale_chaincode_whose_grace_ends_while_the_next_launch_waits(scene: Scene) -> None:
    """The end of its stream drops the launch, which must not be mistaken for one that came after a crash."""
    daemon = await scene.daemon(RECONNECT_GRACE="1s", ORPHAN_GRACE="1s")
    async with open_stage(scene) as stage:
        await stage.is_refused()
        stage.run.send(signal.SIGKILL)
        await ended(stage.run)
        # The peer's own time-out is ten times that: where a launch runs into it, it was dropped and nobody knew.
        with anyio.fail_after(PATIENCE):
            assert await stage.works() <= 2
        assert daemon.count("job_unclaimed") == 1
        await stage.one_is_left()


async def test_a_stale_chaincode_whose_deletion_is_accepted_while_the_next_launch_waits(scene: Scene) -> None:
    """Its deletion was decided before, but only carried out now."""
    daemon = await scene.daemon(RECONNECT_GRACE="100ms", ORPHAN_GRACE="1s")
    async with open_stage(scene, tls=False) as stage:
        await stage.is_refused()
        await scene.fault(verb="delete", resource="jobs", times=None, action={"do": "status", "code": 503})
        stage.run.send(signal.SIGKILL)
        await ended(stage.run)
        await met(scene)
        before = len(stage.builder.runs)
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:

                async def again() -> None:
                    await eventually(lambda: len(stage.builder.runs) > before)
                    await met(scene, 3)
                    await no_faults(scene)

                tasks.start_soon(again)
                assert await stage.works() <= 2
        assert daemon.count("job_unclaimed") == 1
        await stage.one_is_left()


async def test_a_stale_orphan_that_the_next_daemon_clears_away_while_the_next_launch_waits(scene: Scene) -> None:
    """Daemon and `run` died; the orphan's grace is over while the next launch waits."""
    daemon = await scene.daemon()
    async with open_stage(scene) as stage:
        await stage.is_refused()
        await kill(daemon)
        stage.run.send(signal.SIGKILL)
        await ended(stage.run)
        daemon = await scene.daemon(ORPHAN_GRACE="1s")
        await daemon.line("watch_synced", 2)
        with anyio.fail_after(PATIENCE):
            assert await stage.works() <= 2
        await stage.one_is_left()


async def test_a_stale_chaincode_whose_deletion_takes_its_time(scene: Scene) -> None:
    """The API refuses deletions for a while, so the stale one registers in the launch that replaces it."""
    await scene.daemon(**GRACES)
    async with open_stage(scene) as stage:
        await stage.image(digests=["none"])
        await stage.gives_up()
        await scene.fault(verb="delete", resource="jobs", times=3, action={"do": "status", "code": 503})
        await stage.image()
        await stage.works()
        await no_faults(scene)
        # What worked may have been the stale one's last moment: what counts is that it works again.
        await eventually(lambda: all(run.ended.is_set() for run in stage.builder.runs[:-1]))
        await stage.works()
        await stage.one_is_left()


async def test_the_peer_that_dies_with_its_runs_and_comes_back(scene: Scene) -> None:
    """Two peers one after the other, at two addresses; nothing of the first stays."""
    daemon = await scene.daemon(**GRACES)
    package = await scene.package()
    for _ in range(2):
        builder = Builder(scene, package)
        async with open_peer(builder) as peer:
            stage = Stage(scene, peer, builder, package, "localhost/chaincode1")
            await stage.image()
            await stage.works()
            for run in builder.runs:
                run.send(signal.SIGKILL)
                await ended(run)
        for directory in package.root.glob("run?*"):
            (directory / "chaincode.json").unlink()
            directory.rmdir()
    await no_process_left(scene)
    await forgotten(scene, daemon)
