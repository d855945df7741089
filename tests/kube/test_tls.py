"""The event loop's own TLS: what comes and goes is whole, ends are told apart, and nothing is left open."""

import asyncio
import ctypes
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from k8s_builderd.kube import tls
from tests.embedded.cluster import PATIENCE
from tests.kube.certificates import Authority

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Seen(asyncio.Protocol):
    """What a protocol is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.eof = False
        self.lost: list[Exception | None] = []
        self.paused: list[bool] = []
        self.changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> None:
        self.eof = True
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)
        self.changed.set()

    def pause_writing(self) -> None:
        self.paused.append(True)
        self.changed.set()

    def resume_writing(self) -> None:
        self.paused.append(False)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def connected(directory: Path, handler: Handler, **options: Any) -> AsyncIterator[tuple[tls.Transport, Seen]]:
    """Connect to a server that serves one connection with the handler."""
    authority = Authority(directory)
    served: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await handler(reader, writer)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    context = options.pop("server", None) or authority.server()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    protocol: Any = None
    try:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, tls.Loop)
        plain = socket.socket()
        plain.setblocking(False)
        await loop.sock_connect(plain, server.sockets[0].getsockname())
        trusted = ssl.create_default_context(cafile=str(authority.file))
        trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as in credentials.py
        trusted.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # as there
        if version := options.pop("version", None):
            trusted.maximum_version = version
        transport, protocol = await loop.create_connection(
            Seen, ssl=trusted, sock=plain, server_hostname="127.0.0.1", **options
        )
        assert isinstance(transport, tls.Transport)
        yield transport, protocol
    finally:
        if protocol is not None:
            transport.abort()
            await protocol.until(lambda: bool(protocol.lost))
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await server.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 16 * 1024, 16 * 1024 + 1, tls.READ, 3_000_000])
async def test_what_is_sent_comes_back_whole(tmp_path: Path, size: int, version: ssl.TLSVersion) -> None:
    sent = bytes(range(256)) * (size // 256 + 1)
    async with connected(tmp_path, echo, version=version) as (transport, seen):
        transport.write(sent[:size])
        await seen.until(lambda: len(seen.data) == size)
        assert seen.data == sent[:size]
        assert (seen.lost, seen.eof) == ([], False)
        assert transport.get_write_buffer_size() == 0
        assert seen.paused == ([True, False] if seen.paused else [])


async def test_nothing_comes_while_reading_is_paused_and_all_of_it_after(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def two_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"first")
        await go_on.wait()
        writer.write(b"x" * 40_000)  # more than one record: some of it waits in OpenSSL
        await reader.read()

    async with connected(tmp_path, two_pieces) as (transport, seen):
        await seen.until(lambda: seen.data == b"first")
        transport.pause_reading()
        assert not transport.is_reading()
        go_on.set()
        before = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < before + 0.2:
            await asyncio.sleep(0.02)
            assert seen.data == b"first"
        transport.resume_reading()
        await seen.until(lambda: len(seen.data) == 40_005)


async def test_who_pauses_in_the_middle_gets_the_rest_later(tmp_path: Path) -> None:
    async def much(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"y" * 1_000_000)
        await reader.read()

    async with connected(tmp_path, much) as (transport, seen):
        for _ in range(1_000_000 // tls.READ + 1):
            before = len(seen.data)
            await seen.until(lambda: len(seen.data) > before)  # noqa: B023
            transport.pause_reading()
            await asyncio.sleep(0)
            transport.resume_reading()
            if len(seen.data) == 1_000_000:
                break
        await seen.until(lambda: len(seen.data) == 1_000_000)


async def test_a_farewell_is_a_clean_end(tmp_path: Path) -> None:
    async def says(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"last words")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with connected(tmp_path, says) as (transport, seen):
        await seen.until(lambda: bool(seen.lost))
        assert (bytes(seen.data), seen.eof, seen.lost) == (b"last words", True, [None])
        assert transport.is_closing()


async def test_a_connection_that_breaks_is_an_error(tmp_path: Path) -> None:
    """Else whoever can cut the connection could cut an answer without being noticed."""

    async def breaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half")
        await writer.drain()
        writer.transport.abort()

    async with connected(tmp_path, breaks) as (_, seen):
        await seen.until(lambda: bool(seen.lost))
        assert (bytes(seen.data), seen.eof) == (b"half", False)
        assert isinstance(seen.lost[0], OSError)


async def test_what_waits_is_sent_before_a_close(tmp_path: Path) -> None:
    got: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        got.set_result(len(await reader.readexactly(2_000_000)))

    async with connected(tmp_path, reads) as (transport, seen):
        await seen.until(lambda: seen.data == b"ready")
        transport.write(b"z" * 2_000_000)
        transport.close()
        transport.write(b"too late")
        async with asyncio.timeout(PATIENCE):
            assert await got == 2_000_000
        await seen.until(lambda: bool(seen.lost))
        assert seen.lost == [None]


async def test_an_abort_drops_what_waits(tmp_path: Path) -> None:
    async def reads_nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with connected(tmp_path, reads_nothing) as (transport, seen):
        transport.write(b"z" * 20_000_000)
        assert transport.get_write_buffer_size() > 0
        assert seen.paused == [True]
        transport.abort()
        await seen.until(lambda: bool(seen.lost))
        assert seen.lost == [None]
        assert transport.get_write_buffer_size() == 0
        assert transport.get_extra_info("socket").fileno() == -1


async def test_what_is_known_of_a_connection(tmp_path: Path) -> None:
    async with connected(tmp_path, echo) as (transport, seen):
        assert transport.get_extra_info("peername")[0] == transport.get_extra_info("sockname")[0] == "127.0.0.1"
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLSocket)
        assert isinstance(transport.get_extra_info("sslcontext"), ssl.SSLContext)
        assert transport.get_extra_info("cipher")
        assert transport.get_extra_info("peercert")["subject"]
        assert transport.get_extra_info("compression", "none known") == "none known"
        assert transport.get_protocol() is seen
        assert not transport.can_write_eof()
        other = Seen()
        transport.set_protocol(other)
        transport.write(b"for the other")
        await other.until(lambda: other.data == b"for the other")
        transport.set_protocol(seen)


async def test_a_server_that_is_not_who_it_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        async with connected(tmp_path, echo, server=other.server()):
            pass


async def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        socket.create_connection(silent.getsockname()) as plain,
    ):
        plain.setblocking(False)
        with pytest.raises(TimeoutError):
            await asyncio.get_running_loop().create_connection(
                Seen,
                ssl=ssl.create_default_context(),
                sock=plain,
                server_hostname="127.0.0.1",
                ssl_handshake_timeout=0.05,
            )


async def test_other_connections_are_asyncios_own() -> None:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.transport.abort()
        ended.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        transport, _ = await asyncio.get_running_loop().create_connection(Seen, *server.sockets[0].getsockname())
        assert not isinstance(transport, tls.Transport)
        transport.close()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await asyncio.sleep(0)


class Broken(Seen):
    """A protocol with a mistake."""

    def data_received(self, data: bytes) -> None:
        raise ValueError("a mistake")


async def test_a_mistake_in_the_protocol_ends_the_connection(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with connected(tmp_path, echo) as (transport, seen):
        broken = Broken()
        transport.set_protocol(broken)
        transport.write(b"hello")
        await broken.until(lambda: bool(broken.lost))
        seen.lost.append(None)  # which the other one was told
    assert "a mistake" in [str(context["exception"]) for context in reported]


async def test_a_server_that_reads_nothing_holds_up_no_close_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "FAREWELL_TIMEOUT", 0.1)

    async def deaf(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(PATIENCE)

    async with connected(tmp_path, deaf) as (transport, seen):
        transport.write(bytes(32 << 20))
        transport.close()
        assert transport.get_write_buffer_size()
        await seen.until(lambda: bool(seen.lost))


# Sessions


@asynccontextmanager
async def serving(authority: Authority, *, tickets: bool = True) -> AsyncIterator[Any]:
    """Serve an echo, and hand out where. Without tickets no session can be resumed."""
    context = authority.server("localhost", "127.0.0.1")
    if not tickets:
        context.num_tickets = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            await echo(reader, writer)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as it:
        yield it.sockets[0].getsockname()


async def resumed(address: Any, context: ssl.SSLContext, host: str = "127.0.0.1") -> bool:
    """Connect, see that it works, and say whether an earlier session was resumed."""
    plain = socket.socket()
    plain.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(plain, address)
    transport, seen = await loop.create_connection(Seen, ssl=context, sock=plain, server_hostname=host)
    transport.write(b"x")
    await seen.until(lambda: seen.data == b"x")
    answer: bool = transport.get_extra_info("ssl_object").session_reused
    transport.abort()
    await seen.until(lambda: bool(seen.lost))
    return answer


def client(authority: Authority, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.maximum_version = version
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_session_is_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    authority = Authority(tmp_path)
    context = client(authority, version)
    async with serving(authority) as address:
        assert [await resumed(address, context) for _ in range(3)] == [False, True, True]


async def test_a_session_is_resumed_with_no_other_login_and_for_no_other_host(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = client(authority)
    async with serving(authority) as address:
        assert not await resumed(address, context)
        assert not await resumed(address, client(authority))
        assert not await resumed(address, context)
        assert not await resumed(address, context, "localhost")
        assert await resumed(address, context, "localhost")


async def test_a_server_that_knows_no_session_of_an_earlier_one_gets_a_new_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    context = client(authority)
    async with serving(authority) as earlier, serving(authority) as later:
        assert not await resumed(earlier, context)
        assert [await resumed(later, context) for _ in range(2)] == [False, True]


GROWTH = """
import asyncio, ctypes, json, ssl, sys
from k8s_builderd.kube import tls
from tests.kube.test_tls import resumed

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2
address, authority, times = json.loads(sys.argv[1])

async def main():
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    await connect(10, context)
    before = mallinfo2().uordblks
    await connect(times, context)
    print(mallinfo2().uordblks - before)

async def connect(times, context):
    for _ in range(times):
        await resumed(tuple(address), context)

with asyncio.Runner(loop_factory=tls.Loop) as runner:
    runner.run(main())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or later counts memory in use")
@pytest.mark.parametrize("tickets", [True, False], ids=["resumed", "never resumed"])
async def test_a_connection_leaves_no_memory_in_use(tmp_path: Path, tickets: bool) -> None:
    """OpenSSL's memory is none of Python's: neither its garbage collector nor tracemalloc knows of it."""
    authority, times = Authority(tmp_path), 40
    async with serving(authority, tickets=tickets) as address:
        argument = json.dumps([address, str(authority.file), times])
        done = await anyio.run_process([sys.executable, "-c", GROWTH, argument], cwd=ROOT, stderr=sys.stderr)
    assert int(done.stdout) < times * 1000
