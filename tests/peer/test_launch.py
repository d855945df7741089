"""A launch as the peer sees it: one at a time for an id, until READY, the end of `run`, or the time-out."""

import signal

import anyio
import pytest

from k8s_builder_lab.demo.messages import Kind
from k8s_builder_lab.demo.peer import LaunchError, StopError, open_peer
from k8s_builder_lab.demo.stream import State

from .neighbours import HeldRuntime, Journal, raw_stream

pytestmark = pytest.mark.anyio
ID = "basic_1.0:abc"


async def test_a_launch_ends_when_its_chaincode_is_ready() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        run = await runtime.started()
        async with raw_stream(run.connection) as stream:
            await stream.becomes_ready(ID)
            handler = await peer.launch(ID)
            assert (handler.chaincode_id, handler.state) == (ID, State.READY)
            assert len(runtime.runs) == 1


async def test_two_requests_share_one_launch() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        tasks.start_soon(peer.launch, ID)
        run = await runtime.started()
        async with raw_stream(run.connection) as stream:
            await stream.becomes_ready(ID)
            await peer.launch(ID)
    assert len(runtime.runs) == 1


@pytest.mark.parametrize("code", [0, 1, -9])
async def test_an_exit_before_ready_fails_the_launch_at_once(code: int) -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(_end_first, runtime, code)
        with pytest.raises(LaunchError, match=f"container exited with {code}"):
            await peer.launch(ID)
        assert peer.registry.launching(ID)[1] is False, "the launch is forgotten"


async def test_an_exit_after_ready_is_ignored() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        run = await runtime.started()
        async with raw_stream(run.connection) as stream:
            await stream.becomes_ready(ID)
            await peer.launch(ID)
            run.end(1)
            await anyio.wait_all_tasks_blocked()
            assert (await peer.launch(ID)).state is State.READY
    assert len(runtime.runs) == 1


async def test_a_launch_that_times_out_is_forgotten_and_its_run_not_stopped() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime, startup_timeout=0.05) as peer:
        with pytest.raises(LaunchError, match="timeout expired while starting chaincode"):
            await peer.launch(ID)
        with pytest.raises(LaunchError, match="timeout expired"):
            await peer.launch(ID)
        assert [run.signals for run in runtime.runs] == [[], []]
    assert [run.signals for run in runtime.runs] == [[], [signal.SIGTERM]], "only the newest is ever told to stop"


async def test_the_end_of_the_stream_makes_the_next_request_launch_anew() -> None:
    runtime, log = HeldRuntime(), Journal()
    async with open_peer(runtime, log=log.write) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        async with raw_stream((await runtime.started()).connection) as stream:
            await stream.becomes_ready(ID)
        await log.has("deregister handler")
        tasks.start_soon(peer.launch, ID)
        async with raw_stream((await runtime.started(2)).connection) as stream:
            await stream.becomes_ready(ID)


async def test_stop_is_sigterm_and_after_a_while_sigkill() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime, startup_timeout=0.05, term_timeout=0.05) as peer:
        with pytest.raises(StopError, match="has not been started"):
            await peer.stop(ID)
        with pytest.raises(LaunchError):
            await peer.launch(ID)
        (run,) = runtime.runs
        run.ends_on = {signal.SIGKILL}
        await peer.stop(ID)
        assert run.signals == [signal.SIGTERM, signal.SIGKILL]


async def test_keepalives_go_to_every_stream_the_refused_ones_too() -> None:
    runtime = HeldRuntime()
    async with open_peer(runtime, keepalive=0.01) as peer, raw_stream(peer.connection(ID)) as stream:
        await stream.register(ID)
        assert (await stream.received()).kind == Kind.KEEPALIVE


async def _end_first(runtime: HeldRuntime, code: int) -> None:
    (await runtime.started()).end(code)
