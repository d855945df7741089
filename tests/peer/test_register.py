"""Who may REGISTER, and what the end of a stream does to others: the peer's rules that a builder has to live with."""

import anyio
import pytest

from k8s_builder_lab.demo.builder import PeerConnection
from k8s_builder_lab.demo.certificates import CertificateAuthority
from k8s_builder_lab.demo.messages import Kind
from k8s_builder_lab.demo.peer import open_peer

from .neighbours import HeldRuntime, Journal, raw_stream

pytestmark = pytest.mark.anyio
ID = "basic_1.0:abc"


async def test_an_id_that_is_not_being_launched_is_refused_and_its_stream_stays_open() -> None:
    log = Journal()
    async with open_peer(HeldRuntime(), log=log.write) as peer, raw_stream(peer.connection(ID)) as stream:
        await stream.register(ID)
        assert "peer will not accept external chaincode connection" in await log.has("failed to start")
        assert len(peer.streams) == 1
        # It is still listened to: a second try is refused again.
        await stream.register(ID)
        await log.has("failed to start", times=2)


async def test_a_refused_stream_can_register_once_the_launch_is_under_way() -> None:
    runtime, log = HeldRuntime(), Journal()
    async with open_peer(runtime, log=log.write) as peer, raw_stream(peer.connection(ID)) as stream:
        await stream.register(ID)
        await log.has("failed to start")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.launch, ID)
            await runtime.started()
            await stream.becomes_ready(ID)


async def test_a_second_register_of_an_id_is_refused_and_the_first_goes_on() -> None:
    runtime, log = HeldRuntime(), Journal()
    async with open_peer(runtime, log=log.write) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        connection = (await runtime.started()).connection
        async with raw_stream(connection) as first, raw_stream(connection) as second:
            await first.becomes_ready(ID)
            await second.register(ID)
            assert "duplicate chaincodeID" in await log.has("failed to start")
            tasks.start_soon(peer.query, ID, ["get", "a"])
            transaction = await first.received()
            assert transaction.kind == Kind.TRANSACTION
            await first.send(Kind.COMPLETED, b"\x08\xc8\x01", transaction.txid, transaction.channel_id)


async def test_the_end_of_a_refused_stream_drops_the_one_that_is_ready() -> None:
    runtime, log = HeldRuntime(), Journal()
    async with open_peer(runtime, log=log.write) as peer, anyio.create_task_group() as tasks:
        tasks.start_soon(peer.launch, ID)
        connection = (await runtime.started()).connection
        async with raw_stream(connection) as ready:
            await ready.becomes_ready(ID)
            async with raw_stream(connection) as refused:
                await refused.register(ID)
                await log.has("failed to start")
            await log.has("deregister handler")
            assert peer.registry.handler(ID) is None
            assert len(peer.streams) == 1, "the dropped one is not told, its stream stays open"


async def test_the_end_of_a_stale_stream_wipes_the_launch_that_is_under_way() -> None:
    runtime, log = HeldRuntime(), Journal()
    async with open_peer(runtime, log=log.write) as peer, anyio.create_task_group() as tasks:
        async with raw_stream(peer.connection(ID)) as stale:
            await stale.register(ID)
            await log.has("failed to start")
            tasks.start_soon(peer.launch, ID)
            fresh = (await runtime.started()).connection
        await log.has("deregister handler")
        async with raw_stream(fresh) as refused:
            await refused.register(ID)
            assert "will not accept" in await log.has("failed to start", times=2)
        # The launch hangs until its time-out; meanwhile a request starts another one.
        await log.has("deregister handler", times=2)
        tasks.start_soon(peer.launch, ID)
        async with raw_stream((await runtime.started(2)).connection) as stream:
            await stream.becomes_ready(ID)
            tasks.cancel_scope.cancel()


async def test_anything_but_register_ends_the_stream() -> None:
    async with open_peer(HeldRuntime(), tls=False) as peer, raw_stream(peer.connection(ID)) as stream:
        await stream.send(Kind.GET_STATE)
        assert "cannot handle message (GET_STATE) while in created state" in await stream.refusal()
    async with open_peer(HeldRuntime()) as peer, raw_stream(peer.connection(ID)) as stream:
        await stream.send(Kind.KEEPALIVE)
        assert "First message needs to be a register" in await stream.refusal()


async def test_a_certificate_is_good_for_its_own_chaincode_only() -> None:
    async with open_peer(HeldRuntime()) as peer, raw_stream(peer.connection("other:abc")) as stream:
        await stream.register(ID)
        assert "belongs to a different chaincode" in await stream.refusal()
        assert not peer.streams


async def test_no_certificate_or_one_of_another_authority_does_not_get_a_connection() -> None:
    pair = CertificateAuthority().client_pair()
    async with open_peer(HeldRuntime()) as peer:
        known = peer.connection(ID)
        for certificate, key in (("", ""), (pair.certificate.decode(), pair.key.decode())):
            connection = PeerConnection(peer.address, peer.mspid, certificate, key, known.root_cert)
            async with raw_stream(connection) as stream:
                assert (await stream.refusal()).startswith("UNAVAILABLE")


async def test_a_chaincode_that_trusts_another_authority_does_not_connect() -> None:
    async with open_peer(HeldRuntime()) as peer:
        known = peer.connection(ID)
        other = CertificateAuthority().certificate.decode()
        connection = PeerConnection(peer.address, peer.mspid, known.client_cert, known.client_key, other)
        async with raw_stream(connection) as stream:
            assert (await stream.refusal()).startswith("UNAVAILABLE")
