"""What several tasks say on one connection arrives frame after frame, however slowly its client reads."""

import socket

import anyio
import pytest

from k8s_builder_client import wire
from k8s_builderd.gateway import protocol
from k8s_builderd.gateway.connection import Connection

pytestmark = pytest.mark.anyio


async def test_two_tasks_that_find_the_client_busy_take_turns() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection = Connection(ours)
        frames = wire.Frames()
        found: list[tuple[bytes, bytes]] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.log, "1 job", b"x" * 300_000 + b"\n")
            tasks.start_soon(connection.say, "said meanwhile")
            await anyio.wait_all_tasks_blocked()  # both wait for the client
            while len(found) < 2:
                await anyio.wait_readable(theirs)
                frames.feed(theirs.recv(1 << 16))
                while (frame := frames.next()) is not None:
                    found.append(frame)
        assert found == [
            (b"L", b"\0\x051 job" + b"x" * 300_000 + b"\n"),
            (b"W", b"builder [0]: said meanwhile\n"),
        ]


async def test_a_frame_that_was_cancelled_half_way_comes_whole_before_the_next() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        connection = Connection(ours)
        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as first:
                    first.start_soon(connection.log, "1 job", b"y" * 2_000_000)
                    await anyio.wait_all_tasks_blocked()
                    scope.cancel()
            tasks.start_soon(connection.exit, 0)
            data = b""
            while b"X\0\0\0\x010" not in data[-6:]:
                await anyio.wait_readable(theirs)
                data += theirs.recv(1 << 16)
        assert data == protocol.log("1 job", b"y" * 2_000_000) + protocol.exit_with(0)


async def test_an_answer_for_people_may_be_longer_than_a_frame() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    answer = b"0123456789\n" * 200_000
    with ours, theirs:
        for end in (ours, theirs):
            end.setblocking(False)
        frames, found = wire.Frames(), b""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Connection(ours).show, answer)
            while len(found) < len(answer):
                await anyio.wait_readable(theirs)
                frames.feed(theirs.recv(1 << 16))
                while (frame := frames.next()) is not None:
                    cursor, lines = wire.log(frame[1])
                    assert (frame[0], cursor) == (b"L", b"")
                    found += lines
        assert found == answer
