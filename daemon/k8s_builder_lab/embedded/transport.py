"""What is done to connections rather than said over them. aiohttp's own transports, nothing of Kubernetes."""

import socket
import struct

import anyio
from aiohttp import web


def reset(request: web.BaseRequest) -> None:
    """Reset the connection of `request`: the client reads ECONNRESET, now."""
    transport = request.transport
    if transport is None:
        return
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def cut(request: web.BaseRequest) -> None:
    """Close the connection of `request` in the middle of what it was saying."""
    if request.transport is not None:
        request.transport.close()


def bind(port: int) -> socket.socket:
    """Return a socket that listens on `port` of the loopback (0: any free one).

    :raises OSError: the port is taken
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """A port on the loopback that can be closed, with all its connections, and opened again."""

    def __init__(self, app: web.Application, port: int = 0) -> None:
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
        self._site: web.SockSite | None = None
        self.port = port

    async def open(self) -> None:
        """Listen (again, on the same port).

        :raises OSError: the port is taken
        """
        if self._runner.server is None:
            await self._runner.setup()
        if self._site is None:
            sock = bind(self.port)
            self.port = sock.getsockname()[1]
            self._site = web.SockSite(self._runner, sock)
            await self._site.start()

    async def refuse(self) -> None:
        """Refuse new connections and drop the open ones."""
        if self._site is not None:
            site, self._site = self._site, None
            await site.stop()
        self.drop()

    def drop(self) -> None:
        """Drop the open connections."""
        for connection in self._connections():
            if connection.transport is not None:
                connection.transport.abort()

    def _connections(self) -> list[web.RequestHandler]:
        server = self._runner.server
        return [] if server is None else [*server.connections]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections())

    async def aclose(self) -> None:
        """Close the port and every connection, for good."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await self.refuse()
            await self._runner.cleanup()
