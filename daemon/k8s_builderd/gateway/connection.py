"""One client's connection: its request in, words and log lines out. Never touches Kubernetes."""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import anyio
from msgspec import Struct

from k8s_builderd.errors import ClientGone, ProtocolError
from k8s_builderd.gateway import protocol
from k8s_builderd.gateway.protocol import Frames, Kind, Request, RequestReader

SIGN_INTERVAL = 5.0
"""Seconds after which a daemon that has nothing to say gives a sign of life."""

_RECEIVE = 64 * 1024
_SHOWN = 256 * 1024
_NOTHING = memoryview(b"")
_CREDENTIALS = struct.Struct("3i")


class Credentials(Struct, frozen=True):
    """Who connected, by the kernel's word; pid is 0 where it lives in a PID namespace that we cannot see."""

    pid: int
    uid: int
    gid: int


class Connection:
    """Speaks the protocol with one client. Where several tasks write, one frame goes after the other.

    A frame whose sending is cancelled half-way stays here and is sent to its end before the next, so that what
    follows it (the exit, after a stop) is still understood.
    """

    def __init__(self, accepted: socket.socket) -> None:
        """Take a socket that does not block; who accepted it closes it."""
        self.debug = False
        """Whether debug lines are wanted."""
        self.stage = "builder"
        self.pid = 0
        self._socket = accepted
        self._frames = Frames()
        self._reader = RequestReader()
        self._received: Iterator[tuple[int, bytes]] = iter(())
        self._unsent = _NOTHING
        self._sending = anyio.Lock()
        self._sent_at = anyio.current_time()

    @property
    def credentials(self) -> Credentials:
        """Who is at the other end."""
        packed = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return Credentials(*_CREDENTIALS.unpack(packed))

    async def read_hello(self) -> None:
        """Learn who is calling: the stage and the client's pid. How long that may take is the caller's.

        :raises ProtocolError: if the client breaks a rule or a bound.
        :raises ClientGone: if it closes the connection.
        """
        self._reader.add(*await self._frame())
        self.stage, self.pid = self._reader.stage, self._reader.pid

    async def read_request(self) -> Request:
        """Read the rest of the request, with the same exceptions."""
        while True:
            request = self._reader.add(*await self._frame())
            if request is not None:
                self._reader = RequestReader()  # what it has read is the caller's alone
                return request

    async def read_claim(self) -> Request:
        """Read the rest of the request of a `run` for its token and cursor; nothing else of it is kept in memory."""
        self._frames.drop_documents()
        self._reader.claim_only = True
        return await self.read_request()

    async def stop_asked(self) -> None:
        """Wait until the client asks for a stop.

        :raises ClientGone: if it closes the connection.
        :raises ProtocolError: if it says something else.
        """
        _check_stop(await self._frame())

    def listen(self, heard: Callable[[ClientGone | ProtocolError | None], None]) -> None:
        """Have the client's next word told, once, until `stop_listening`. No task waits for it.

        :param heard: is told None for a stop, otherwise what `stop_asked` raises; at once, where the word is there.
        """

        def hear() -> None:
            try:
                if (frame := next(self._received, None)) is None and self._receive():
                    frame = next(self._received, None)
                if frame is None:
                    return
                _check_stop(frame)
            except (ClientGone, ProtocolError) as error:
                self.stop_listening()
                heard(error.with_traceback(None))
            else:
                self.stop_listening()
                heard(None)

        asyncio.get_running_loop().add_reader(self._socket, hear)
        hear()

    def stop_listening(self) -> None:
        """Leave what the client says where it is."""
        asyncio.get_running_loop().remove_reader(self._socket)

    async def say(self, text: str) -> None:
        """Tell one line of the builder's own.

        :raises ClientGone: if nobody is there, as for all that is sent.
        """
        await self._send(protocol.words(self.stage, self.pid, text))

    async def say_debug(self, text: str) -> None:
        """Tell one line, if debug lines are wanted."""
        if self.debug:
            await self._send(protocol.words(self.stage, self.pid, text, debug=True))

    async def log(self, cursor: str, lines: bytes = b"") -> None:
        """Pass on lines of the chaincode with the cursor after them; waits while the client takes none."""
        await self._send(protocol.log(cursor, lines))

    async def show(self, data: bytes) -> None:
        """Pass on an answer for people, in as many frames as it takes."""
        for start in range(0, len(data), _SHOWN):
            await self._send(protocol.log("", data[start : start + _SHOWN]))

    async def copy(self, source: str, destination: str) -> None:
        """Have the client copy a file."""
        await self._send(protocol.copy(source, destination))

    async def exit(self, code: int) -> None:
        """Send the last frame."""
        await self._send(protocol.exit_with(code))

    def give_sign(self) -> None:
        """Tell the client that this daemon is alive, unless something is on its way. Never waits, never raises."""
        self._give_sign(anyio.current_time())

    def give_sign_if_due(self, now: float) -> None:
        """Do so where the client has heard nothing for a while. It must have said hello."""
        if now >= self._sent_at + SIGN_INTERVAL:
            self._give_sign(now)

    def _give_sign(self, now: float) -> None:
        if self._unsent:
            return  # the client takes nothing, or is just being told something
        with suppress(OSError):
            sent = self._socket.send(protocol.SIGN_OF_LIFE)
            if sent < len(protocol.SIGN_OF_LIFE):
                self._unsent = memoryview(protocol.SIGN_OF_LIFE)[sent:]
            self._sent_at = now

    async def _frame(self) -> tuple[int, bytes]:
        while True:
            for frame in self._received:
                return frame
            await anyio.lowlevel.checkpoint()  # one that sends without end takes nobody's turn
            if not self._receive():
                await anyio.wait_readable(self._socket)

    def _receive(self) -> bool:
        """Take in what has come; return whether anything has."""
        try:
            data = self._socket.recv(_RECEIVE)
        except BlockingIOError:
            return False
        except OSError:
            raise ClientGone from None
        if not data:
            raise ClientGone
        self._received = self._frames.feed(data)
        return True

    async def _send(self, data: bytes) -> None:
        async with self._sending:  # a launch and what is told beside it write by turns
            await self._send_whole(data)

    async def _send_whole(self, data: bytes) -> None:
        await self._flush()
        self._unsent = memoryview(data)
        await self._flush()
        await anyio.lowlevel.checkpoint()

    async def _flush(self) -> None:
        # No checkpoint at its end: between two flushes no sign of life may come in.
        # Not anyio's SocketStream: its send, cancelled half-way, does not tell how much it has sent.
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError:
                raise ClientGone from None
            else:
                self._unsent = self._unsent[sent:] if sent < len(self._unsent) else _NOTHING
                self._sent_at = anyio.current_time()


def _check_stop(frame: tuple[int, bytes]) -> None:
    kind, _ = frame
    if kind != Kind.STOP:
        raise ProtocolError("after the end of a request only a stop may come")
