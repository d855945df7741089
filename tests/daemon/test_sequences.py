"""Random sequences of what may happen to a chaincode, with the peer's stand-in: none of them livelocks."""

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

import anyio
import pytest

from k8s_builder_lab.demo.peer import LaunchError
from k8s_builder_lab.demo.stream import TransactionError
from tests.daemon.chaincodes import ended, eventually, forgotten, kill, no_faults
from tests.daemon.scene import Running, Scene
from tests.daemon.test_livelock import GRACES, Stage, open_stage

pytestmark = pytest.mark.anyio

ROLE = {"NODE_ROLE": "chaincode"}
STEPS = 8
SEEDS = [1, 3, 10]
STARTUP_TIMEOUT = 20.0
"""Seconds after which the peer gives a launch up. A stale chaincode that ends by itself in the moment of a launch drops
it, and nobody can know: then it takes that long."""


class Chance:
    """Does one thing after another to a stage, as the random numbers have it."""

    def __init__(self, stage: Stage, daemon: Running, seed: int) -> None:
        self.stage = stage
        self.scene = stage.scene
        self.daemon = daemon
        self.done: list[str] = []
        self._random = Random(seed)
        self._frozen: list[Running] = []

    async def step(self) -> None:
        actions: list[Callable[[], Awaitable[None]]] = [
            self.asks,
            self.crashes,
            self.loses_its_run,
            self.loses_its_process,
            self.loses_its_job,
            self.loses_its_pod,
            self.loses_daemon,
            self.loses_daemon_and_run,
            self.outlasts_the_peer,
            self.outlasts_the_peer_and_comes_up,
            self.is_frozen,
            self.has_its_deletion_refused,
        ]
        action = self._random.choice(actions)
        await action()
        self.done.append(action.__name__)

    async def settle(self) -> None:
        """Let everything behave again."""
        for run in self._frozen:
            with suppress(ProcessLookupError):
                run.send(signal.SIGCONT)
        await no_faults(self.scene)
        await self.stage.image()

    async def asks(self) -> None:
        await self.stage.image()
        await self._ask("put", "key", "value")

    async def crashes(self) -> None:
        await self.stage.image()
        await self._ask("exit", "3")

    async def _ask(self, *arguments: str) -> None:
        with suppress(LaunchError, TransactionError):
            await self.stage.invoke(*arguments)

    async def loses_its_run(self) -> None:
        if self.stage.builder.runs and not self.stage.run.ended.is_set():
            self.stage.run.send(signal.SIGKILL)
            await ended(self.stage.run)

    async def loses_its_process(self) -> None:
        for process in (await self.scene.state())["processes"]:
            with suppress(ProcessLookupError):
                os.kill(process["pid"] if isinstance(process, dict) else process, signal.SIGKILL)

    async def loses_its_job(self) -> None:
        await self._delete("jobs")

    async def loses_its_pod(self) -> None:
        await self._delete("pods")

    async def _delete(self, plural: str) -> None:
        for item in (await self.scene.cluster.list(plural))["items"]:
            with suppress(AssertionError, OSError):
                await self.scene.cluster.delete(plural, item["metadata"]["name"])

    async def loses_daemon(self) -> None:
        await kill(self.daemon, self._random.choice([signal.SIGKILL, signal.SIGTERM]))
        self.daemon = await self.scene.daemon(**GRACES)

    async def loses_daemon_and_run(self) -> None:
        await kill(self.daemon)
        await self.loses_its_run()
        self.daemon = await self.scene.daemon(**GRACES)

    async def outlasts_the_peer(self) -> None:
        """Be asked for while its image cannot be pulled, and be given up."""
        await self._given_up()

    async def outlasts_the_peer_and_comes_up(self) -> None:
        """The same, and then it comes up, registers, is refused and stays."""
        await self._given_up()
        await self.stage.image()
        with anyio.move_on_after(3):
            await eventually(lambda: len(self.stage.peer.streams) > 0)

    async def _given_up(self) -> None:
        await self.crashes()
        await self.stage.image(digests=["none"])
        before = len(self.stage.builder.runs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._ask, "get", "key")
            with anyio.move_on_after(5):
                await eventually(lambda: len(self.stage.builder.runs) > before)
                await eventually(
                    lambda: self.stage.run.ended.is_set() or self.stage.run.count("the image cannot be pulled") > 0
                )
            tasks.cancel_scope.cancel()
        self.stage.peer.registry.deregister(self.stage._package.chaincode_id)
        if self._random.random() < 0.5:
            await self.loses_its_run()

    async def is_frozen(self) -> None:
        if self.stage.builder.runs and not self.stage.run.ended.is_set():
            self.stage.run.send(signal.SIGSTOP)
            self._frozen.append(self.stage.run)

    async def has_its_deletion_refused(self) -> None:
        await self.scene.fault(verb="delete", resource="jobs", times=3, action={"do": "status", "code": 503})


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_sequence_livelocks(scene: Scene, seed: int, tls: bool) -> None:
    daemon = await scene.daemon(**GRACES)
    async with open_stage(scene, tls=tls, startup_timeout=STARTUP_TIMEOUT) as stage:
        chance = Chance(stage, daemon, seed)
        try:
            await stage.works()
            for _ in range(STEPS):
                await chance.step()
            await chance.settle()
            await stage.works()
            await eventually(lambda: all(run.ended.is_set() for run in stage.builder.runs[:-1]))
            await stage.works()
            await stage.one_is_left()
        except BaseException as error:
            error.add_note(f"after {chance.done}")
            raise
    await forgotten(scene, chance.daemon)
