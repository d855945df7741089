"""An event loop whose TLS connections are OpenSSL's own sockets.

asyncio's TLS goes through two memory buffers, and zeroes another of 256 KiB for each connection: at a thousand followed
logs that is most of the daemon's memory, and copying is a quarter of its CPU. Here the bytes go from the socket into
one buffer that all connections share. Only what `asyncio` and `ssl` document is used.

A connection resumes the session of an earlier one. Each followed log is a connection, and half of a handshake's CPU is
saved, the API server's as well.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast

from k8s_builderd.backoff import Allowance

READ = 64 * 1024
"""Bytes that one connection may read before another's turn."""

HIGH_WATER, LOW_WATER = 64 * 1024, 16 * 1024
"""Bytes waiting to be sent, from which on the protocol is paused, and down to which it goes on."""

SESSIONS, SESSION_EVERY = 10, 3600.0
"""Sessions that may be taken at once, and the seconds in which another one may. Each costs 5 KB that are never freed:
so much does SSLSocket.session leak each time it is read (seen with CPython 3.11, 3.12 and 3.13).
"""

HANDSHAKE_TIMEOUT, FAREWELL_TIMEOUT = 60.0, 30.0
"""Seconds for a handshake, and to send what waits when a connection is closed, as asyncio has them."""


class Resumable(NamedTuple):
    """A session, and what it was made with: no other context and no other host may resume it."""

    context: ssl.SSLContext
    host: str | None
    session: ssl.SSLSession


class Loop(asyncio.SelectorEventLoop):
    """Makes connections with TLS over a given, connected socket by itself; all else is asyncio's own."""

    def __init__(self) -> None:
        super().__init__()
        self._shared = memoryview(bytearray(READ))
        self._newest: Resumable | None = None
        self._sessions = Allowance(SESSIONS, SESSION_EVERY, self.time())

    async def create_connection(  # type: ignore[override] # asyncio has an overload for each use
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], host: Any = None, port: Any = None, **options: Any
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """Connect, as asyncio does it."""
        context, connected = options.get("ssl"), options.get("sock")
        if not isinstance(context, ssl.SSLContext) or connected is None:
            made: Any = await super().create_connection(protocol_factory, host, port, **options)
            return cast("tuple[asyncio.Transport, asyncio.BaseProtocol]", made)
        host = options.get("server_hostname")
        newest = self._newest
        session = newest.session if newest is not None and newest[:2] == (context, host) else None

        def remember(wrapped: ssl.SSLSocket) -> None:
            is_first = self._newest is newest  # of those that were connecting together
            if is_first and self._sessions.take(self.time()) and (session := wrapped.session) is not None:
                self._newest = Resumable(context, host, session)

        try:
            async with asyncio.timeout(options.get("ssl_handshake_timeout") or HANDSHAKE_TIMEOUT):
                wrapped = await _handshake(self, context, connected, host, session)
        except OSError:
            self._newest = None  # whatever it was, the next one shall not fail of it
            raise
        protocol = protocol_factory()
        made = Transport(
            *(self, wrapped, context, cast("asyncio.Protocol", protocol), self._shared),
            None if wrapped.session_reused else remember,
        )
        return made, protocol


async def _handshake(
    loop: asyncio.AbstractEventLoop,
    context: ssl.SSLContext,
    connected: socket.socket,
    host: str | None,
    session: ssl.SSLSession | None,
) -> ssl.SSLSocket:
    """Speak TLS over a connected socket, which is closed if that fails.

    :param session: is resumed if the other side agrees.
    :raises ssl.SSLError: if the other side does not, or is not who it should be.
    :raises OSError: if the connection breaks.
    """
    try:
        wrapped = context.wrap_socket(
            connected,
            server_hostname=host or None,
            session=session,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        connected.close()
        raise
    try:
        while True:
            try:
                wrapped.do_handshake()
                return wrapped
            except ssl.SSLWantReadError:
                await _ready(loop.add_reader, loop.remove_reader, wrapped)
            except ssl.SSLWantWriteError:
                await _ready(loop.add_writer, loop.remove_writer, wrapped)
    except BaseException:
        wrapped.close()
        raise


async def _ready(add: Callable[..., Any], remove: Callable[..., Any], wrapped: ssl.SSLSocket) -> None:
    ready = asyncio.Event()
    add(wrapped, ready.set)
    try:
        await ready.wait()
    finally:
        remove(wrapped)


class Transport(asyncio.Transport):
    """One connection, after its handshake."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wrapped: ssl.SSLSocket,
        context: ssl.SSLContext,
        protocol: asyncio.Protocol,
        shared: memoryview,
        remember: Callable[[ssl.SSLSocket], None] | None,
    ) -> None:
        """Begin to read.

        :param shared: what is read into; nothing of it is kept.
        :param remember: is told of the socket when it has a session that is worth to be resumed.
        """
        super().__init__()
        self._loop = loop
        self._socket = wrapped
        self._number = wrapped.fileno()  # a selector that does not know a socket describes it in the error
        self._context = context
        self._protocol: asyncio.BaseProtocol = protocol
        self._shared = shared
        self._remember = remember
        self._unsent = bytearray()
        self._paused = False
        self._protocol_paused = False
        self._closing = False
        self._lost = False
        self._read_wants_to_write = False
        self._write_wants_to_read = False
        protocol.connection_made(self)
        self._loop.call_soon(self._look)

    # What asyncio.Transport promises

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection, by asyncio's names."""
        if name in {"socket", "ssl_object"}:
            return self._socket
        if name == "sslcontext":
            return self._context
        with suppress(OSError, AttributeError):
            match name:
                case "peername":
                    return self._socket.getpeername()
                case "sockname":
                    return self._socket.getsockname()
                case "peercert":
                    return self._socket.getpeercert()
                case "cipher":
                    return self._socket.cipher()
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Have another protocol take what comes."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Say whether the connection is closed, or about to be."""
        return self._closing

    def is_reading(self) -> bool:
        """Say whether data is taken."""
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        """Take no data until `resume_reading`."""
        self._paused = True
        self._watch()

    def resume_reading(self) -> None:
        """Take data again; what OpenSSL holds already makes no socket readable."""
        if self._paused and not self._closing:
            self._paused = False
            self._loop.call_soon(self._look)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, now or as soon as it can be."""
        if self._closing or not data:
            return
        was_empty = not self._unsent
        self._unsent += data
        if was_empty:
            self._write()
        if len(self._unsent) > HIGH_WATER and not self._protocol_paused:
            self._protocol_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        """Say no: TLS knows no half of a connection."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent."""
        return len(self._unsent)

    def close(self) -> None:
        """Send what waits, say farewell, and close, without a wait for the other side's farewell."""
        if not self._closing:
            self._closing = True
            self._watch()
            if self._unsent:
                self._loop.call_later(FAREWELL_TIMEOUT, self.abort)
            else:
                self._loop.call_soon(self._lose, None)

    def abort(self) -> None:
        """Close at once."""
        if not self._lost:
            self._closing = True
            self._unsent.clear()
            self._watch()
            self._loop.call_soon(self._lose, None)

    # Reading and writing

    def _look(self) -> None:
        if not self._lost:
            self._watch()
            self._read()

    def _watch(self) -> None:
        """Have the loop tell of what is waited for."""
        if self._lost:
            return
        if self.is_reading() or self._write_wants_to_read:
            self._loop.add_reader(self._number, self._readable)
        else:
            self._loop.remove_reader(self._number)
        if (self._unsent and not self._write_wants_to_read) or self._read_wants_to_write:
            self._loop.add_writer(self._number, self._writable)
        else:
            self._loop.remove_writer(self._number)

    def _readable(self) -> None:
        if self._write_wants_to_read:
            self._write_wants_to_read = False
            self._write()
        self._read()

    def _writable(self) -> None:
        if self._read_wants_to_write:
            self._read_wants_to_write = False
            self._watch()
            self._read()
        self._write()

    def _read(self) -> None:
        if not self.is_reading():
            return
        size, failure, more = 0, None, False
        try:
            while size < READ:
                count = self._socket.recv_into(self._shared[size:])
                if not count:
                    raise ssl.SSLZeroReturnError
                size += count
            more = True  # what OpenSSL holds makes no socket readable
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            self._read_wants_to_write = True
            self._watch()
        except OSError as error:
            failure = error
        protocol = cast("asyncio.Protocol", self._protocol)
        if size:
            if self._remember is not None:  # from TLS 1.3 on, it comes after the handshake, with the first data
                self._remember(self._socket)
                self._remember = None
            try:
                protocol.data_received(bytes(self._shared[:size]))
            except BaseException:
                self.abort()  # or nobody would read on, nor be told
                raise
        if failure is not None and not self._closing:
            if isinstance(failure, ssl.SSLZeroReturnError):  # the other side's farewell: a clean end
                protocol.eof_received()
                failure = None
            self._fail(failure)
        elif more and self.is_reading():
            self._loop.call_soon(self._read)

    def _write(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except ssl.SSLWantWriteError:
            pass
        except ssl.SSLWantReadError:
            self._write_wants_to_read = True
        except OSError as error:
            self._fail(error)
            return
        self._watch()
        if self._protocol_paused and len(self._unsent) <= LOW_WATER:
            self._protocol_paused = False
            self._protocol.resume_writing()
        if self._closing and not self._unsent:
            self._loop.call_soon(self._lose, None)

    def _fail(self, error: OSError | None) -> None:
        self._closing = True
        self._unsent.clear()
        self._watch()
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: OSError | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._loop.remove_reader(self._number)
        self._loop.remove_writer(self._number)
        try:
            self._protocol.connection_lost(error)
        finally:
            if error is None:
                with suppress(OSError, ValueError):
                    self._socket.recv_into(self._shared)  # a close with something unread takes back what was sent
                with suppress(OSError, ValueError):
                    self._socket.unwrap()  # sends our farewell, and does not get the other's
            self._socket.close()

    def __del__(self) -> None:
        if not self._lost:
            self._socket.close()
