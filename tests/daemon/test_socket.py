"""The socket against clients that are broken or hostile: each is told one line and closed, and disturbs nobody else."""

import json
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import anyio
import pytest
from anyio.abc import SocketStream

from tests.daemon.chaincodes import ended
from tests.daemon.scene import Running, Scene, eventually
from tests.embedded.cluster import PATIENCE

pytestmark = pytest.mark.anyio

TOKEN = b"00112233445566778899aabbccddeeff"
SIGN = ("W", b"")
TICKS = "n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.05; done"


def frame(kind: str, *fields: bytes) -> bytes:
    payload = b"\0".join(fields)
    return kind.encode() + len(payload).to_bytes(4, "big") + payload


def hello(stage: str = "run") -> bytes:
    return frame("H", b"1", stage.encode(), b"4242")


END = frame(".")
DETECT = hello("detect") + frame("D", b"metadata.json", b'{"type":"k8s","label":"a"}') + END


class Raw:
    """A connection to the daemon on which anything may be said."""

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    @classmethod
    @asynccontextmanager
    async def open(cls, scene: Scene) -> AsyncIterator[Self]:
        async with await anyio.connect_unix(scene.socket) as stream:
            yield cls(stream)

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def frame(self) -> tuple[str, bytes]:
        """Return the next frame that is no sign of life; EOFError where the daemon has closed the connection."""
        while (found := await self.any_frame()) == SIGN:
            pass
        return found

    async def any_frame(self) -> tuple[str, bytes]:
        """Return the next frame."""
        with anyio.fail_after(PATIENCE):
            while len(self._buffer) < 5 or len(self._buffer) < 5 + int.from_bytes(self._buffer[1:5], "big"):
                try:
                    self._buffer += await self.stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    assert self._buffer == b"", "closed within a frame"
                    raise EOFError from None
        end = 5 + int.from_bytes(self._buffer[1:5], "big")
        found, self._buffer = self._buffer[:end], self._buffer[end:]
        return chr(found[0]), found[5:]

    async def rest(self) -> list[tuple[str, bytes]]:
        """Return all frames up to the end of the connection."""
        frames = []
        try:
            while True:
                frames.append(await self.frame())
        except EOFError:
            return frames

    async def refused(self) -> str:
        """Return the line with which the call ends, once the connection is closed."""
        (kind, line), last = await self.rest()
        assert (kind, last) == ("W", ("X", b"1"))
        assert line.count(b"\n") == 1
        return line.decode()


async def bystander(scene: Scene) -> Running:
    """Start a chaincode that somebody else runs, and that nothing here may disturb."""
    run = await scene.call("run", await scene.package("bystander", script=TICKS))
    await run.line("tick 1")
    return run


async def undisturbed(run: Running) -> None:
    """Wait for what a bystander prints next, and see that it has missed nothing."""
    await run.line("tick ", times=run.count("tick ") + 3)
    ticks = [line for line in run.lines if b"tick" in line]
    assert ticks == [b"tick %d" % number for number in range(len(ticks))]
    assert run.process.returncode is None
    assert len(run.lines) == len(ticks) + 1


async def gauge(scene: Scene, daemon: Running, name: str) -> int:
    _, text = await scene.health(daemon, "/metrics")
    [value] = re.findall(rf"^k8s_builderd_{name} (\S+)$", text, re.MULTILINE)
    return int(float(value))


async def settled(scene: Scene, daemon: Running, connections: int) -> None:
    """Wait until the daemon has no more connections than these."""

    async def few() -> bool:
        return await gauge(scene, daemon, "connections") <= connections

    await eventually(few)


async def connected(scene: Scene, daemon: Running, connections: int) -> None:
    """Wait until the daemon has at least so many connections."""

    async def many() -> bool:
        return await gauge(scene, daemon, "connections") >= connections

    await eventually(many)


def descriptors(daemon: Running) -> int:
    """Count the daemon's file descriptors but for those of HTTP, which come and go with who asks."""
    found = 0
    for link in Path(f"/proc/{daemon.pid}/fd").iterdir():
        try:
            found += not link.readlink().name.startswith("socket:[") or not _is_tcp(link)
        except FileNotFoundError:
            continue
    return found


def _is_tcp(link: Path) -> bool:
    number = link.readlink().name.removeprefix("socket:[").removesuffix("]")
    return any(line.split()[9] == number for line in Path("/proc/net/tcp").read_text().splitlines()[1:])


# Breaches


BREACHES = {
    "a frame too long": (b"D" + (1 << 20).to_bytes(3, "big") + b"\xff", "longer than 1048576"),
    "the longest frame there could be": (hello() + b"D\xff\xff\xff\xff" + b"x" * 5000, "longer than 1048576"),
    "HTTP": (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", "longer than 1048576"),
    "TLS": (b"\x16\x03\x01\x00\xf1\x01\x00\x00", "longer than 1048576"),
    "zeros": (bytes(100_000), "must begin with a hello"),
    "no hello": (frame("T", TOKEN) + END, "must begin with a hello"),
    "another version": (frame("H", b"2", b"run", b"1"), "protocol version '2'"),
    "an unknown stage": (frame("H", b"1", b"invoke", b"1"), "no stage 'invoke'"),
    "a second hello": (hello() + hello(), "no frame of kind 'H'"),
    "an unknown kind": (hello() + frame("Z"), "no frame of kind 'Z'"),
    "a stop before the end": (hello() + frame("S"), "no frame of kind 'S'"),
    "no token": (hello() + END, "must send a token"),
    "a token that is none": (hello() + frame("T", b"secret"), "32 lower-case hexadecimal digits"),
    "a document of another name": (hello() + frame("D", b"/etc/passwd", b""), "run sends no document '/etc/passwd'"),
    "an environment entry too long": (hello() + frame("E", b"A", b"x" * 4096), "4096 bytes of an environment entry"),
    "too many entries": (hello() + frame("E", b"A", b"") * 17, "more than 16 environment entries"),
    "a document twice": (hello() + frame("D", b"image.json", b"{}") * 2, "'image.json' is sent twice"),
    "a document of another stage": (hello("detect") + frame("D", b"image.json", b""), "detect sends no document"),
    "paths of a run": (hello() + frame("P", b"f", b"0", b"META-INF/a"), "run sends no paths"),
    "too much of paths": (
        hello("build") + frame("P", b"f", b"0", b"x" * 4000) * 263,
        "more than 1048576 bytes of paths",
    ),
    "a reason too long": (hello() + frame("U", b"image.json", b"x" * 5000), "more than 4096 bytes of a reason"),
    "too many paths": (hello("build") + frame("P", b"f", b"0", b"META-INF/a") * 10_001, "more than 10000 paths"),
    "a path too long": (hello("build") + frame("P", b"f", b"0", b"x" * 5000), "more than 4096 bytes of a path"),
    "a cursor too long": (hello() + frame("C", b"x" * 600), "512 bytes of a cursor"),
}


async def test_each_breach_is_told_in_one_line_and_disturbs_nobody(scene: Scene, daemon: Running) -> None:
    run = await bystander(scene)
    before = descriptors(daemon)
    for name, (data, rule) in BREACHES.items():
        async with Raw.open(scene) as raw:
            await raw.send(data)
            line = await raw.refused()
        assert rule in line, name
        assert "k8s-builderd refused this call: " in line, name
        assert line.startswith(("builder [", "run [4242]: ", "build [4242]: ", "detect [4242]: ")), name
    await undisturbed(run)
    await settled(scene, daemon, 1)
    assert descriptors(daemon) <= before
    assert await scene.count("jobs") == 1


async def test_a_breach_with_more_behind_it_is_told_all_the_same(scene: Scene, daemon: Running) -> None:
    """The client is still sending when it is refused, and reads only then."""
    async with Raw.open(scene) as raw:
        with pytest.raises(anyio.BrokenResourceError):
            await raw.send(frame("Z") + bytes(8 << 20))
        assert "must begin with a hello" in await raw.refused()


async def test_what_comes_after_the_end_of_a_request_is_a_breach(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script=TICKS)
    async with Raw.open(scene) as raw:
        await raw.send(request(package.root))
        while b"Running chaincode" not in (await raw.frame())[1]:
            pass
        await raw.send(frame("E", b"A", b"b"))
        frames = [frame for frame in await raw.rest() if frame[0] != "L"]
    assert [kind for kind, _ in frames] == ["W", "X"]
    assert b"k8s-builderd refused this call" in frames[0][1]


async def test_a_cursor_that_no_daemon_has_sent_starts_nothing(scene: Scene, daemon: Running) -> None:
    """It may be a newer daemon's, so its `run` is told once, and comes again until that one is back."""
    package = await scene.package()
    cursors = (b"1", b"1 uid uid 0001-01-01T00:00:00Z 0123456789abcdef 1 0", b"\xff\xfe", b"1 uid\n")
    for number, cursor in enumerate(cursors):
        async with Raw.open(scene) as raw:
            await raw.send(request(package.root, token=b"%032x" % number, cursor=cursor))
            [(kind, line)] = await raw.rest()
            assert kind == "W"
            assert b"cannot continue this launch: this daemon is older than the one before. Go back to that v" in line
    assert await scene.count("jobs") == 0


def request(
    root: Path, *, peer_id: str = "peer0", token: bytes = TOKEN, cursor: bytes = b"", extra: bytes = b""
) -> bytes:
    """Return the request of a `run`."""
    return (
        hello()
        + frame("E", b"CORE_PEER_ID", peer_id.encode())
        + frame("D", b"image.json", (root / "output/image.json").read_bytes())
        + frame("D", b"chaincode.json", (root / "run/chaincode.json").read_bytes())
        + frame("T", token)
        + (frame("C", cursor) if cursor else b"")
        + extra
        + END
    )


async def test_stop_in_the_same_breath_as_the_request_is_heard(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    async with Raw.open(scene) as raw:
        await raw.send(request(package.root) + frame("S"))
        frames = await raw.rest()
    assert frames[-1] == ("X", b"0")
    await scene.none("jobs", "pods", "secrets")


async def test_a_request_cut_anywhere_is_understood(scene: Scene, daemon: Running) -> None:
    async with Raw.open(scene) as raw:
        for start in range(len(DETECT)):
            await raw.send(DETECT[start : start + 1])
        frames = await raw.rest()
    assert frames == [("W", b"detect [4242]: Detected k8s chaincode: a\n"), ("X", b"0")]


# Time


async def test_a_request_that_does_not_come_to_its_end_in_time_is_ended(scene: Scene) -> None:
    daemon = await scene.daemon(REQUEST_TIMEOUT="2s", pace=4)
    run = await bystander(scene)
    before = descriptors(daemon)
    for data in (b"", b"H", hello("build"), DETECT[:-1]):
        async with Raw.open(scene) as raw:
            if data:
                await raw.send(data)
            assert "the request was not complete within 2 s" in await raw.refused()
    async with Raw.open(scene) as raw:
        await raw.send(hello("run"))
        assert await raw.rest() == []  # its chaincode may be running: it is to come again
    await undisturbed(run)
    await settled(scene, daemon, 1)
    assert descriptors(daemon) <= before


async def test_a_request_that_trickles_in_has_no_more_time_than_others(scene: Scene) -> None:
    await scene.daemon(REQUEST_TIMEOUT="1s")
    async with Raw.open(scene) as raw, anyio.create_task_group() as tasks:
        tasks.start_soon(trickle, raw)
        assert "the request was not complete within 1 s" in await raw.refused()


async def trickle(raw: Raw) -> None:
    await raw.send(hello("build"))
    try:
        while True:
            for byte in frame("P", b"f", b"0", b"META-INF/" + b"x" * 200):
                await raw.send(bytes([byte]))
                await anyio.sleep(0.01)  # the attack itself, not a wait
    except anyio.BrokenResourceError:
        return


async def test_the_daemon_ends_at_once_while_requests_are_half_sent(scene: Scene, daemon: Running) -> None:
    async with Raw.open(scene) as one, Raw.open(scene) as other:
        await one.send(hello())
        async with Raw.open(scene) as third:
            await third.send(DETECT)
            assert (await third.rest())[-1] == ("X", b"0")
        assert await daemon.terminate() == 0
        assert await one.rest() == await other.rest() == []
    assert not scene.socket.exists()


async def test_a_daemon_that_has_nothing_to_say_gives_signs_of_life(scene: Scene) -> None:
    """The first at once, the others every few seconds: by them a client knows one that is frozen."""
    await scene.daemon(pace=5)
    async with Raw.open(scene) as raw:
        await raw.send(hello())
        assert await raw.any_frame() == SIGN
        assert await raw.any_frame() == SIGN
        await raw.send(request((await scene.package(script="echo hello")).root).removeprefix(hello()))
        assert (await raw.rest())[-1] == ("X", b"0")


# Numbers


async def test_more_connections_than_allowed_are_turned_away_until_one_closes(scene: Scene) -> None:
    daemon = await scene.daemon(MAX_CONNECTIONS="2")
    run = await bystander(scene)
    async with Raw.open(scene) as held:
        await held.send(hello())
        await connected(scene, daemon, 2)
        for _ in range(3):
            async with Raw.open(scene) as raw:
                await raw.send(hello("detect"))
                line = await raw.refused()
            assert "more than 2 connections (FABRIC_K8S_BUILDER_MAX_CONNECTIONS)" in line
        async with Raw.open(scene) as raw:
            await raw.send(hello("run") + frame("D", b"image.json", bytes(1 << 19)) + frame("T", TOKEN) + END)
            assert await raw.rest() == []  # its chaincode may be running: it is to come again
        code, lines = await scene.said("detect", await scene.package())
        assert code == 1
        assert ["more than 2 connections" in line for line in lines] == [True]
    await settled(scene, daemon, 1)
    assert await scene.said("detect", await scene.package("free")) == (0, ["Detected k8s chaincode: free"])
    await undisturbed(run)


async def test_a_flood_of_connections_that_come_and_go_leaves_nothing_behind(scene: Scene) -> None:
    daemon = await scene.daemon(MAX_CONNECTIONS="50")
    run = await bystander(scene)
    before = descriptors(daemon)
    async with anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(come_and_go, scene, number)
    await settled(scene, daemon, 1)
    await undisturbed(run)
    assert descriptors(daemon) <= before
    assert await scene.said("detect", await scene.package("after")) == (0, ["Detected k8s chaincode: after"])


async def come_and_go(scene: Scene, number: int) -> None:
    """Close at once, in the middle, after the request, or with a reset, without reading."""
    connection = socket.socket(socket.AF_UNIX)
    with connection:
        connection.setblocking(False)
        try:
            connection.connect(str(scene.socket))
            connection.send([b"", b"H", hello(), DETECT, frame("Z"), DETECT[:-2]][number % 6])
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await anyio.lowlevel.checkpoint()


FLOOD = """
import socket, sys
data = bytes.fromhex(sys.argv[2])
one = socket.socket(socket.AF_UNIX)
one.connect(sys.argv[1])
one.sendall(bytes.fromhex(sys.argv[3]))
try:
    while True:
        one.sendall(data)
except OSError:
    print("refused", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "repeated",
    [
        frame("E", b"A", b"b"),
        frame("D", b"image.json", bytes(30_000)),
        frame("P", b"f", b"0", b"META-INF/x"),
        frame("P", b"f", b"0", b"x" * 4096),
    ],
    ids=["entries", "documents", "paths", "long paths"],
)
async def test_a_client_that_sends_without_end_takes_nobodys_turn(scene: Scene, repeated: bytes) -> None:
    """Whoever sends faster than the daemon reads must not be all that it ever reads."""
    daemon = await scene.daemon(REQUEST_TIMEOUT="3s")
    run = await bystander(scene)
    data = repeated * max(1, 60_000 // len(repeated))
    floods = [
        await scene._start(
            [sys.executable, "-c", FLOOD, str(scene.socket), data.hex(), hello("build").hex()], {"PATH": ""}
        )
        for _ in range(2)
    ]
    await undisturbed(run)
    assert (await scene.health(daemon, "/livez"))[0] == 200
    assert await scene.said("detect", await scene.package("calm")) == (0, ["Detected k8s chaincode: calm"])
    for flood in floods:
        await flood.line("refused")


async def test_a_client_that_never_reads_keeps_nobody_else_waiting(scene: Scene, daemon: Running) -> None:
    run = await bystander(scene)
    package = await scene.package("deaf", script="yes 'a line that nobody reads'")
    async with Raw.open(scene) as raw:
        await raw.send(request(package.root))
        while b"nobody reads" not in (await raw.frame())[1]:
            pass
        await undisturbed(run)
        await raw.send(frame("S"))
        assert (await raw.rest())[-1] == ("X", b"0")
    await undisturbed(run)


def leave_free(daemon: Running, number: int) -> None:
    """Let the daemon have only so many more file descriptors than it has now."""
    most = len([*Path(f"/proc/{daemon.pid}/fd").iterdir()]) + number
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (most, most))


@asynccontextmanager
async def crowded(scene: Scene, daemon: Running) -> AsyncIterator[None]:
    """Have more connect than the daemon has file descriptors for, until it cannot accept them."""
    leave_free(daemon, 5)
    held = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    try:
        for connection in held:
            connection.connect(str(scene.socket))
        await daemon.line("accept_failed")
        yield
    finally:
        for connection in held:
            connection.close()


async def test_without_free_file_descriptors_the_daemon_waits_for_some(scene: Scene) -> None:
    daemon = await scene.daemon(REQUEST_TIMEOUT="4s", pace=4)
    run = await bystander(scene)
    async with crowded(scene, daemon):
        await undisturbed(run)
        await daemon.line("the request was not complete", times=8)
    code, lines = await scene.said("detect", await scene.package("after"))
    assert (code, lines[-1]) == (0, "Detected k8s chaincode: after")  # it may have waited for the daemon, and said so
    # One line a try at most, and tries with pauses: not as many as a processor can make.
    assert daemon.count("accept_failed") < 100
    await undisturbed(run)


async def test_while_nobody_can_connect_nobody_is_missed(scene: Scene) -> None:
    """Whoever knocks is not heard then, so no grace runs out."""
    daemon = await scene.daemon(REQUEST_TIMEOUT="5m", RECONNECT_GRACE="2s", pace=3)
    run = await bystander(scene)
    async with crowded(scene, daemon):
        run.send(signal.SIGKILL)
        await ended(run)
        # One each half a second: the grace is over by then.
        await daemon.line("accept_failed", times=daemon.count("accept_failed") + 8)
        assert daemon.count("job_unclaimed") == 0


# Who may come


async def test_the_socket_has_its_mode_from_the_start(scene: Scene, daemon: Running) -> None:
    assert stat.S_IMODE(scene.socket.stat().st_mode) == 0o660
    await daemon.terminate()
    await scene.daemon(SOCKET_MODE="0600")
    assert stat.S_IMODE(scene.socket.stat().st_mode) == 0o600


async def test_only_the_allowed_users_are_served(scene: Scene) -> None:
    daemon = await scene.daemon(ALLOWED_UIDS=f"{os.getuid()},4000000000")
    code, _ = await scene.said("detect", await scene.package())
    assert code == 0
    await daemon.terminate()
    await scene.daemon(ALLOWED_UIDS=str(os.getuid() + 1))
    code, [line] = await scene.said("detect", await scene.package())
    assert code == 1
    assert f"user id {os.getuid()} is not in FABRIC_K8S_BUILDER_ALLOWED_UIDS" in line
    async with Raw.open(scene) as raw:
        await raw.send(DETECT)
        assert "FABRIC_K8S_BUILDER_ALLOWED_UIDS" in await raw.refused()


async def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_goes_on(
    scene: Scene, daemon: Running
) -> None:
    run = await bystander(scene)
    second = await scene.daemon(ready=False)
    assert await second.wait() == 1
    assert b"Another k8s-builderd uses the socket" in second.lines[-1]
    assert b"FABRIC_K8S_BUILDER_SOCKET" in second.lines[-1]
    assert second.count("Traceback") == 0
    await undisturbed(run)
    assert await scene.said("detect", await scene.package("first")) == (0, ["Detected k8s chaincode: first"])


async def test_the_socket_of_a_killed_daemon_is_replaced(scene: Scene, daemon: Running) -> None:
    daemon.process.kill()
    await daemon.wait()
    assert scene.socket.is_socket()
    await scene.daemon()
    assert await scene.said("detect", await scene.package("second")) == (0, ["Detected k8s chaincode: second"])


@pytest.mark.parametrize("what", ["file", "directory", "fifo", "link"])
async def test_what_is_no_socket_is_not_removed(scene: Scene, what: str) -> None:
    target = scene.socket.with_name("target")
    target.write_text("precious")
    match what:
        case "file":
            scene.socket.write_text("precious")
        case "directory":
            scene.socket.mkdir()
        case "fifo":
            os.mkfifo(scene.socket)
        case _:
            scene.socket.symlink_to(target)
    before = scene.socket.lstat()
    daemon = await scene.daemon(ready=False)
    assert await daemon.wait() == 1
    assert f"must name a socket; {scene.socket} is not one".encode() in daemon.lines[-1]
    assert daemon.count("Traceback") == 0
    assert scene.socket.lstat().st_ino == before.st_ino
    assert target.read_text() == "precious"


async def test_a_directory_that_is_not_there_is_told(scene: Scene) -> None:
    daemon = await scene.daemon(ready=False, SOCKET=str(scene.directory / "none" / "b.sock"))
    assert await daemon.wait() == 1
    assert b"must name a socket in a writable directory" in daemon.lines[-1]
    assert daemon.count("Traceback") == 0


# Secrets

KEY = "MIIkeykeykeyKEYMATERIALkeykeykey"
CERTIFICATE = "MIIcertCERTMATERIALcert"


async def test_key_and_token_appear_nowhere(scene: Scene) -> None:
    daemon = await scene.daemon(DEBUG="true")
    package = await scene.package(script="echo hello")
    pem = {"client_key": f"-----BEGIN PRIVATE KEY-----\n{KEY}\n", "client_cert": CERTIFICATE, "root_cert": "root"}
    said: list[bytes] = []

    async def heard(data: bytes) -> list[tuple[str, bytes]]:
        async with Raw.open(scene) as raw:
            await raw.send(data)
            frames = await raw.rest()
        said.extend(payload for _, payload in frames)
        return frames

    package.connect(**pem)
    assert (await heard(request(package.root)))[-1] == ("X", b"0")
    whole = (package.root / "run/chaincode.json").read_bytes()
    broken = [
        whole[:-2],
        whole[:-20] + b"}",
        whole.replace(b'"mspid"', b'"nothing"'),
        whole.replace(b'"client_key": "', b'"client_key": 5, "x": "'),
        whole.replace(b'"client_cert": "', b'"client_cert": ["').replace(b'", "client_key', b'"], "client_key'),
        json.dumps(KEY).encode(),
        b"\xff" + whole,
    ]
    for document in broken:
        package.write("run/chaincode.json", document)
        frames = await heard(request(package.root, token=TOKEN[::-1]))
        assert [kind for kind, _ in frames] == ["W", "X"], document
    package.connect(**pem)
    await heard(request(package.root, extra=frame("T", TOKEN)))
    await heard(request(package.root, extra=frame("D", KEY.encode())))
    await scene.fault(verb="create", resource="secrets", action={"do": "status", "code": 422})
    assert (await heard(request(package.root, token=b"f" * 32)))[-1] == ("X", b"1")
    run = await scene.call("run", package, FABRIC_K8S_BUILDER_DEBUG="true")
    await run.wait()
    _, metrics = await scene.health(daemon, "/metrics")
    await daemon.terminate()
    for text in (b"\n".join(daemon.lines), b"\n".join(run.lines), b"\n".join(said), metrics.encode()):
        for secret in (KEY, CERTIFICATE, TOKEN.decode(), TOKEN[::-1].decode(), "f" * 32):
            assert secret.encode() not in text
    assert daemon.count("job_created") == 3
