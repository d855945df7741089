"""The demo's chaincode against the stand-in for the peer, without any cluster: a process, gRPC, mutual TLS."""

import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from k8s_builder_lab.demo.builder import PeerConnection
from k8s_builder_lab.demo.peer import LaunchError, Peer, open_peer
from k8s_builder_lab.demo.stream import TransactionError
from tests.peer.neighbours import DEADLINE, LocalRuntime

pytestmark = pytest.mark.anyio
ID = "basic_1.0:abc"


@asynccontextmanager
async def peer_with_chaincode(directory: Path, *, tls: bool = True) -> AsyncIterator[tuple[Peer, LocalRuntime]]:
    async with anyio.create_task_group() as tasks:
        runtime = LocalRuntime(tasks, directory)
        with anyio.fail_after(DEADLINE):
            async with open_peer(runtime, tls=tls) as peer:
                yield peer, runtime


@pytest.mark.parametrize("tls", [True, False])
async def test_it_registers_and_serves_transactions(tmp_path: Path, *, tls: bool) -> None:
    async with peer_with_chaincode(tmp_path, tls=tls) as (peer, runtime):
        assert await peer.invoke(ID, ["put", "color", "green"]) == b""
        assert await peer.query(ID, ["get", "color"]) == b"green"
        assert await peer.query(ID, ["put", "color", "red"]) == b"", "a query is not committed"
        assert await peer.query(ID, ["range", "", ""]) == b"color=green"
        await peer.invoke(ID, ["delete", "color"])
        assert await peer.query(ID, ["get", "color"]) == b""
        texts = [line.partition(": ")[2] for line in runtime.journal.lines if line.startswith("transaction ")]
        assert texts[:2] == ["put color green", "get color"]
    assert len(runtime.sessions) == 1


async def test_many_transactions_at_once_and_a_query_of_several_batches(tmp_path: Path) -> None:
    async with peer_with_chaincode(tmp_path) as (peer, _):
        await peer.launch(ID)
        async with anyio.create_task_group() as tasks:
            for number in range(205):
                tasks.start_soon(peer.invoke, ID, ["put", f"{number:03}", str(number)])
        results = await peer.query(ID, ["range", "003", "203"])
        assert results.decode().split("\n") == [f"{number:03}={number}" for number in range(3, 203)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fail", "because"], "chaincode response 500, because"),
        (["get"], "there is no function get with 0 arguments"),
        (["nothing"], "there is no function nothing with 0 arguments"),
    ],
)
async def test_a_transaction_that_fails_is_told_why(tmp_path: Path, arguments: list[str], reason: str) -> None:
    async with peer_with_chaincode(tmp_path) as (peer, _):
        with pytest.raises(TransactionError, match=reason):
            await peer.invoke(ID, arguments)


async def test_it_dies_in_a_transaction_and_the_next_request_launches_it_anew(tmp_path: Path) -> None:
    async with peer_with_chaincode(tmp_path) as (peer, runtime):
        await peer.invoke(ID, ["put", "a", "1"])
        with pytest.raises(TransactionError, match="chaincode stream terminated"):
            await peer.invoke(ID, ["exit", "3"])
        assert await runtime.sessions[0].wait() == 3
        assert await peer.query(ID, ["get", "a"]) == b"1"
    assert len(runtime.sessions) == 2


async def test_sigterm_ends_it_with_0_and_a_goodbye(tmp_path: Path) -> None:
    async with peer_with_chaincode(tmp_path) as (peer, runtime):
        await peer.launch(ID)
        await peer.stop(ID)
        assert await runtime.sessions[0].wait() == 0
        assert runtime.journal.lines[-1] == "SIGTERM: goodbye"


async def test_sigterm_before_it_has_registered_ends_it_too(tmp_path: Path) -> None:
    async with peer_with_chaincode(tmp_path) as (peer, runtime), anyio.create_task_group() as tasks:
        tasks.start_soon(_terminate_early, runtime)
        with pytest.raises(LaunchError, match="container exited with 0"):
            await peer.launch(ID)


async def test_it_ends_with_1_when_the_peer_goes(tmp_path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        runtime = LocalRuntime(tasks, tmp_path)
        # A peer that does not take the time to stop anything.
        async with open_peer(runtime, term_timeout=0) as peer:
            await peer.launch(ID)
        (session,) = runtime.sessions
        with anyio.fail_after(DEADLINE):
            code = await session.wait()
        # It may have got the SIGTERM first.
        assert (code, runtime.journal.lines[-1]) in {
            (0, "SIGTERM: goodbye"),
            (1, "the peer closed the stream"),
        } or runtime.journal.lines[-1].startswith("the stream to the peer broke")


@pytest.mark.parametrize("missing", ["CORE_PEER_ADDRESS", "CORE_TLS_CLIENT_KEY_FILE"])
async def test_a_missing_setting_is_named(tmp_path: Path, missing: str) -> None:
    async with anyio.create_task_group() as tasks:
        connection = PeerConnection("127.0.0.1:1", "Org1MSP", "certificate", "key", "root")
        environment = LocalRuntime(tasks, tmp_path).environment(ID, connection)
        del environment[missing]
        result = await anyio.run_process(
            [sys.executable, "-m", "k8s_builder_lab.demo.chaincode"], env=environment, check=False
        )
        assert result.returncode == 2
        assert missing in result.stdout.decode()
        assert result.stderr == b""


async def _terminate_early(runtime: LocalRuntime) -> None:
    await runtime.journal.has("chaincode starts")
    runtime.sessions[0].signal(signal.SIGTERM)
