"""Several tasks tell one client things, over a real socket: each frame comes whole, whoever waits for whom."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing

import anyio
import pytest

from k8s_builderd.errors import ClientGone, ProtocolError
from k8s_builderd.gateway import protocol
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Frames
from tests.embedded.cluster import PATIENCE

pytestmark = pytest.mark.anyio

PIECE = 1000
"""Bytes that the client takes at once."""
LINES = b"y" * 30_000


@pytest.fixture
def pair(anyio_backend: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        for end in (ours, theirs):
            end.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield ours, theirs


async def read(client: socket.socket, count: int) -> list[bytes]:
    """Return so many frames, read piece by piece."""
    frames: list[bytes] = []
    cutter = Frames()
    while len(frames) < count:
        await anyio.wait_readable(client)
        frames += [protocol.frame(protocol.Kind(kind), rest) for kind, rest in cutter.feed(client.recv(PIECE))]
    return frames


async def test_two_tasks_tell_a_client_that_reads_slowly(pair: tuple[socket.socket, socket.socket]) -> None:
    """A launch passes on a log, and what is found out beside it is told at the same time."""
    connection = Connection(pair[0])

    async def log() -> None:
        for number in range(10):
            await connection.log(str(number), LINES)

    async def say() -> None:
        for number in range(10):
            await connection.say(f"word {number}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(log)
        await anyio.wait_all_tasks_blocked()  # the client takes nothing
        tasks.start_soon(say)
        await anyio.wait_all_tasks_blocked()
        frames = await read(pair[1], 20)
    logged = [protocol.log(str(number), LINES) for number in range(10)]
    said = [protocol.words("builder", 0, f"word {number}") for number in range(10)]
    assert [it for it in frames if it in logged] == logged
    assert [it for it in frames if it in said] == said
    assert len(frames) == 20


async def test_a_word_after_a_frame_that_was_cut_short(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whoever was sending is cancelled half-way while another waits: the rest of the frame comes first."""
    connection = Connection(pair[0])
    async with anyio.create_task_group() as others:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.log, "0", LINES)
            await anyio.wait_all_tasks_blocked()
            others.start_soon(connection.say, "left behind")
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        others.start_soon(connection.exit, 0)
        frames = await read(pair[1], 3)
    assert frames == [
        protocol.log("0", LINES),
        protocol.words("builder", 0, "left behind"),
        protocol.exit_with(0),
    ]


async def test_no_sign_of_life_comes_into_a_frame(pair: tuple[socket.socket, socket.socket]) -> None:
    connection = Connection(pair[0])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.log, "0", LINES)
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(connection.say, "a word")
        await anyio.wait_all_tasks_blocked()
        connection.give_sign()
        frames = await read(pair[1], 2)
    connection.give_sign()
    frames += await read(pair[1], 1)
    assert frames == [protocol.log("0", LINES), protocol.words("builder", 0, "a word"), protocol.SIGN_OF_LIFE]


# What the client says while others write


def stopped(_connection: Connection, client: socket.socket) -> None:
    client.send(protocol.frame(protocol.Kind.STOP, b""))


def closed(_connection: Connection, client: socket.socket) -> None:
    client.close()


def broke_a_rule(_connection: Connection, client: socket.socket) -> None:
    client.send(protocol.frame(protocol.Kind.PATH, b"x"))


def sent_too_long_a_frame(_connection: Connection, client: socket.socket) -> None:
    client.send(b"S" + (protocol.MAX_PAYLOAD + 1).to_bytes(4, "big"))


WORDS = [(stopped, None), (closed, ClientGone), (broke_a_rule, ProtocolError), (sent_too_long_a_frame, ProtocolError)]


@pytest.mark.parametrize("before", [True, False], ids=["it has come", "it comes"])
@pytest.mark.parametrize(("says", "told"), WORDS)
async def test_the_clients_word_is_told_once(
    pair: tuple[socket.socket, socket.socket],
    says: Callable[[Connection, socket.socket], None],
    told: type[Exception] | None,
    before: bool,
) -> None:
    ours, client = pair
    connection, heard = Connection(ours), anyio.Event()
    words: list[Exception | None] = []

    def hear(word: Exception | None) -> None:
        words.append(word)
        heard.set()

    if before:
        says(connection, client)
    connection.listen(hear)
    assert heard.is_set() == before
    if not before:
        says(connection, client)
        with anyio.fail_after(PATIENCE):
            await heard.wait()
    await anyio.wait_all_tasks_blocked()
    assert [type(word) if word is not None else None for word in words] == [told]
    connection.stop_listening()


async def test_a_word_that_comes_in_pieces_is_told_when_it_is_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    connection, heard = Connection(ours), anyio.Event()
    connection.listen(lambda _: heard.set())
    frame = protocol.frame(protocol.Kind.STOP, b"")
    client.send(frame[:3])
    await anyio.wait_all_tasks_blocked()
    assert not heard.is_set()
    client.send(frame[3:])
    with anyio.fail_after(PATIENCE):
        await heard.wait()
    connection.stop_listening()


async def test_what_comes_after_the_listening_is_left_where_it_is(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, client = pair
    connection = Connection(ours)
    words: list[Exception | None] = []
    connection.listen(words.append)
    connection.stop_listening()
    client.send(protocol.frame(protocol.Kind.STOP, b""))
    with anyio.fail_after(PATIENCE):
        await connection.stop_asked()
    assert words == []
