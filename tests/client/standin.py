"""Stand-ins for both neighbours of the programs: the peer that calls them and the daemon that answers.

The frames are encoded here once more, independently of the client; tests/wire binds both to the golden ones.
"""

import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from tests import measured

CLIENT = Path(__file__).parents[2] / "client"
BIN = CLIENT / "bin"
DEADLINE = 60.0
"""Seconds after which a test gives up on an event; nothing measures by it."""


class Frame(NamedTuple):
    kind: str
    payload: bytes

    def encoded(self) -> bytes:
        return struct.pack(">cI", self.kind.encode(), len(self.payload)) + self.payload


def words(text: bytes) -> bytes:
    return Frame("W", text).encoded()


def log(cursor: bytes, lines: bytes = b"") -> bytes:
    return Frame("L", struct.pack(">H", len(cursor)) + cursor + lines).encoded()


def copy(source: bytes, destination: bytes) -> bytes:
    return Frame("Y", source + b"\0" + destination).encoded()


def exits(code: int) -> bytes:
    return Frame("X", str(code).encode()).encoded()


class Request(list[Frame]):
    """The frames of one request, the end included."""

    def of(self, kind: str) -> list[bytes]:
        return [frame.payload for frame in self if frame.kind == kind]

    def one(self, kind: str) -> bytes:
        [payload] = self.of(kind)
        return payload


class Connection:
    """The daemon's end of one connection."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE)

    def frame(self) -> Frame:
        kind, length = struct.unpack(">cI", self._exactly(5))
        return Frame(kind.decode(), self._exactly(length))

    def request(self) -> Request:
        request = Request()
        while not request or request[-1].kind != ".":
            request.append(self.frame())
        return request

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def sends_until_held_back(self, frame: bytes) -> int:
        """Send whole frames for as long as they are taken, and return how many bytes that were."""
        self.socket.setblocking(False)
        sent = 0
        while select.select([], [self.socket], [], 1.0)[1]:
            # Within what a socket that polls as writable takes in one piece.
            sent += self.socket.send(frame)
            assert sent % len(frame) == 0
        self.socket.settimeout(DEADLINE)
        return sent

    def is_left_at_last(self) -> None:
        """Wait until the client has closed its end, whatever it says before."""
        while self.socket.recv(1 << 16):
            pass

    def is_told_to_stop(self) -> None:
        assert self.frame() == ("S", b"")

    def is_left(self) -> None:
        """Wait until the client has closed its end, and see that it said nothing more."""
        assert self.socket.recv(1) == b""

    def close(self) -> None:
        self.socket.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            assert piece, f"the client left after {data!r}"
            data += piece
        return data


class Daemon:
    """Listens where the programs look for k8s-builderd; may be closed and opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener: socket.socket | None = None
        self._connections: list[Connection] = []

    def open(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(DEADLINE)
        self._listener.bind(os.fspath(self.path))
        self._listener.listen()
        return self

    @property
    def listener(self) -> socket.socket:
        assert self._listener is not None
        return self._listener

    def accept(self) -> Connection:
        connection = Connection(self.listener.accept()[0])
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink()

    def end(self) -> None:
        self.close()
        for connection in self._connections:
            connection.close()


class Program:
    """One of the four programs, called as the peer calls them: standard error is a pipe, the rest is /dev/null."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._seen = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> int:
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def line(self) -> bytes:
        """The next line on standard error."""
        while b"\n" not in self._seen:
            piece = self._piece()
            assert piece, f"standard error ended after {self._seen!r}"
            self._seen += piece
        line, _, self._seen = self._seen.partition(b"\n")
        return line

    def says(self, text: str) -> None:
        """Expect the next line to be the program's own and to begin with `text`."""
        line = self.line().decode()
        own = f"{Path(os.fsdecode(self.name)).name} [{self.pid}]: {text}"
        assert line.startswith(own), f"{line!r} does not begin {own!r}"

    def rest(self) -> bytes:
        """All that comes until the program closes standard error."""
        while piece := self._piece():
            self._seen += piece
        rest, self._seen = self._seen, b""
        return rest

    def rest_while(self, action: Callable[[], None]) -> bytes:
        """The same, while `action`, which may have to wait for it, goes on."""
        thread = threading.Thread(target=action)
        thread.start()
        rest = self.rest()
        thread.join(DEADLINE)
        return rest

    def ends(self) -> int:
        """Wait for the exit code."""
        return self.process.wait(DEADLINE)

    def ends_saying(self, text: bytes = b"") -> int:
        """Expect exactly `text` up to the end, and return the exit code."""
        assert self.rest() == text
        return self.ends()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def fills(self) -> None:
        """Wait until the pipe, shrunk to one page before, is full. Nothing is read."""
        readable, _, _ = select.select([self.stderr], [], [], DEADLINE)
        assert readable
        assert struct.unpack("i", fcntl.ioctl(self.stderr, 0x541B, bytes(4)))[0] == 4096  # FIONREAD

    def stops_reading(self) -> None:
        """The peer's end of standard error is closed."""
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def name(self) -> str:
        assert isinstance(self.process.args, list)
        return str(self.process.args[0])

    def _piece(self) -> bytes:
        readable, _, _ = select.select([self.stderr], [], [], DEADLINE)
        assert readable, f"nothing more came after {self._seen!r}"
        return os.read(self.stderr, 1 << 16)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


class Peer:
    """Makes the directories that the peer hands over and calls the programs with its emptied environment."""

    def __init__(self, directory: Path, interpreter: str) -> None:
        self.bin = BIN
        self.directory = directory
        self.daemon = Daemon(directory / "s")
        self.environment = {
            "FABRIC_K8S_BUILDER_SOCKET": os.fspath(self.daemon.path),
            "FABRIC_K8S_BUILDER_PYTHON": measured.python(interpreter),
        }
        self.source = self._made("source")
        self.metadata = self._made("metadata")
        self.output = self._made("output")
        self.release = self._made("release")
        self.run_metadata = self._made("run")
        (self.metadata / "metadata.json").write_bytes(b'{"type":"k8s","label":"basic_1.0"}')
        (self.source / "image.json").write_bytes(b'{"name":"n"}')
        (self.output / "image.json").write_bytes(b'{"name":"o"}')
        (self.run_metadata / "chaincode.json").write_bytes(b'{"chaincode_id":"a:b"}')
        self._programs: list[Program] = []

    def _made(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir(mode=0o700)
        return path

    def arguments(self, stage: str) -> list[str]:
        return [
            os.fspath(path)
            for path in {
                "detect": [self.source, self.metadata],
                "build": [self.source, self.metadata, self.output],
                "release": [self.output, self.release],
                "run": [self.output, self.run_metadata],
            }[stage]
        ]

    def call(self, stage: str, *arguments: str, before: Callable[[], object] | None = None, **more: str) -> Program:
        """Call a program with the stage's own arguments, or with others, and `more` environment."""
        process = subprocess.Popen(
            [os.fspath(self.bin / stage), *(arguments or self.arguments(stage))],
            env=self.environment | more | measured.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=before,
            bufsize=0,
        )
        program = Program(process)
        self._programs.append(program)
        return program

    def hurry(self, **seconds: float) -> None:
        """Call a copy of the programs whose constants of these names are others."""
        self.bin = hurried(self.directory / "client", **seconds)

    def call_with_small_pipe(self, stage: str) -> Program:
        """Call with a standard error that is full as soon as one page waits in it."""
        program = self.call(stage)
        fcntl.fcntl(program.stderr, fcntl.F_SETPIPE_SZ, 4096)
        return program

    def end(self) -> None:
        self.daemon.end()
        for program in self._programs:
            program.__exit__(None, None, None)


def hurried(directory: Path, **seconds: float) -> Path:
    """Copy the programs to a directory, with other constants of these names, and return where they are."""
    shutil.copytree(CLIENT, directory, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("reconnect", "session"):
        file = directory / "k8s_builder_client" / f"{module}.py"
        lines = file.read_text().splitlines(keepends=True)
        for index, line in enumerate(lines):
            if (name := line.partition(" = ")[0]) in seconds:
                lines[index] = f"{name} = {seconds.pop(name)}\n"
        file.write_text("".join(lines))
    assert not seconds
    return directory / "bin"


@contextmanager
def peer_in_a_short_directory(interpreter: str) -> Iterator[Peer]:
    """A peer whose directory is short enough for the path of a socket."""
    directory = tempfile.mkdtemp(prefix="k8sb")
    peer = Peer(Path(directory), interpreter)
    try:
        yield peer
    finally:
        peer.end()
        shutil.rmtree(directory)


class Elapsed:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start
