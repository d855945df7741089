"""Silent connections to the HTTP endpoints are cut, because aiohttp waits for ever; the rest is in tests/daemon."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from structlog.testing import capture_logs

from k8s_builderd import health
from k8s_builderd.metrics import Metrics
from tests.embedded.cluster import PATIENCE, eventually

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[int]:
    """Serve the endpoints, and tell on which port."""
    async with anyio.create_task_group() as tasks:
        with capture_logs() as logged:
            await tasks.start(partial(health.serve, ("127.0.0.1", 0), {}, {}, Metrics(), **options))
        yield int(logged[-1]["address"].rpartition(":")[2])
        tasks.cancel_scope.cancel()


async def cut(stream: SocketStream) -> None:
    """Wait until the other end has closed a connection."""
    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
        await stream.receive()


async def lives(port: int) -> bool:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(b"GET /livez HTTP/1.0\r\n\r\n")
        return b"200 OK" in await stream.receive()


async def test_a_silent_connection_is_cut_when_it_is_old() -> None:
    async with serving(connection_age=0.5) as port, await anyio.connect_tcp("127.0.0.1", port) as silent:
        with anyio.fail_after(PATIENCE):
            await cut(silent)
        assert await lives(port)


async def test_of_too_many_connections_some_are_cut_long_before_that() -> None:
    many, ended = health.MOST_CONNECTIONS + 16, 0

    async def count(stream: SocketStream) -> None:
        nonlocal ended
        await cut(stream)
        ended += 1

    async with serving(connection_age=10 * PATIENCE) as port, AsyncExitStack() as held:
        silent = [await held.enter_async_context(await anyio.connect_tcp("127.0.0.1", port)) for _ in range(many)]
        async with anyio.create_task_group() as tasks:
            for stream in silent:
                tasks.start_soon(count, stream)
            await eventually(lambda: ended >= 16)
            assert await lives(port)
            assert ended <= 17  # that of `lives` may have been one too many
            tasks.cancel_scope.cancel()
