"""The command against daemons that are older, silent, gone or none at all: each is one sentence and exit code 1."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from k8s_builder import call
from k8s_builder.call import PATIENCE, Call, DaemonError, Refused, calling
from k8s_builder_client import wire

REQUEST_END = wire.frame(wire.END)
ABOUT = (
    b'{"format":1,"version":"0.1.0","namespace":"fabric","instance":"i","started":"2026-11-26T00:00:00Z",'
    b'"now":"2026-11-26T00:01:00Z","checks":{},"connections":1}\n'
)
LAUNCH = (
    b'{"label":"basic_1.0","package_id":"basic_1.0:6f98","state":"running","since":"2026-11-26T00:00:00Z",'
    b'"peer_id":"peer0","job":"hlfcc-x","pod":"hlfcc-x-y","node":"n","client_pid":7,"log_lines":1,"log_bytes":2,'
    b'"log_interruptions":0,"last_problem":null,"deletion":null,"unclaimed":null}\n'
)


def log(lines: bytes) -> bytes:
    return wire.frame(wire.LOG, b"\0\0" + lines)


def words(line: str) -> bytes:
    return wire.frame(wire.WORDS, line.encode() + b"\n")


def end(code: int) -> bytes:
    return wire.frame(wire.EXIT, b"%d" % code)


class Standin:
    """What listens on a socket in the place of a daemon; keeps what it was asked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.asked = b""


@contextmanager
def standin(serve: Callable[[socket.socket, Standin], None]) -> Iterator[Standin]:
    """Listen on a socket, and serve each connection once its request is whole."""
    with tempfile.TemporaryDirectory(prefix="kb-") as short, socket.socket(socket.AF_UNIX) as listening:
        path = f"{short}/b.sock"
        listening.bind(path)
        listening.listen()
        found = Standin(path)

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    request = b""
                    while not request.endswith(REQUEST_END) and (data := connection.recv(1 << 16)):
                        request += data
                    found.asked = request
                    with suppress(ConnectionError):  # who hangs up need not be told
                        serve(connection, found)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield found
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def says(*frames: bytes) -> Callable[[socket.socket, Standin], None]:
    return lambda connection, _: connection.sendall(b"".join(frames))


def answer(path: str, stage: str = "status", patience: float = PATIENCE) -> list[tuple[bytes, bytes]]:
    with calling(path, stage, patience=patience) as made:
        return list(made.answer())


def failure(path: str, patience: float = PATIENCE) -> str:
    with pytest.raises(DaemonError) as error:
        answer(path, patience=patience)
    assert "\n" not in error.value.message
    return error.value.message


def test_the_request_is_a_hello_its_arguments_and_the_end() -> None:
    with standin(says(end(0))) as daemon:
        with calling(daemon.path, "logs", chaincode="basic_1.0", since="", follow="1") as made:
            assert list(made.answer()) == []
        pid = str(os.getpid()).encode()
        assert daemon.asked == b"".join(
            [
                wire.frame(wire.HELLO, b"1", b"logs", pid),
                wire.frame(wire.ARGUMENT, b"chaincode", b"basic_1.0"),
                wire.frame(wire.ARGUMENT, b"follow", b"1"),
                REQUEST_END,
            ]
        )


def test_lines_come_as_they_are_and_words_without_what_is_in_front() -> None:
    said = [wire.frame(wire.WORDS), log(b"a\n"), words("logs [7]: Waiting: [x]: y"), log(b"b"), words("logs [7]: done")]
    with standin(says(*said, end(0))) as daemon:
        assert answer(daemon.path) == [
            (b"L", b"a\n"),
            (b"W", b"Waiting: [x]: y"),
            (b"L", b"b"),
            (b"W", b"done"),
        ]


def test_an_older_daemon_is_told_in_a_sentence() -> None:
    line = "builder [0]: The k8s-builderd daemon ends this call: there is no stage 'status'"
    with standin(says(words(line), end(1))) as daemon:
        assert failure(daemon.path) == (
            f"k8s-builderd at {daemon.path} is older than this command and does not know 'status': upgrade it, or use"
            " kubectl"
        )


def test_the_daemons_reason_is_the_error() -> None:
    said = words("status [7]: k8s-builderd refused this call: why")
    with standin(says(said, end(1))) as daemon, pytest.raises(Refused, match=r"^k8s-builderd refused .*: why$"):
        answer(daemon.path)
    with standin(says(end(1))) as daemon:
        assert failure(daemon.path) == f"k8s-builderd at {daemon.path} gave no reason: see its log"


@pytest.mark.parametrize(
    "frames",
    [b"HTTP/1.1 400 Bad Request\r\n", wire.frame(wire.LOG, b"\xff\xff"), wire.frame(wire.EXIT, b"999"), b"W\xff\0\0\0"],
)
def test_what_is_no_daemon_is_told(frames: bytes) -> None:
    with standin(says(frames)) as daemon:
        assert failure(daemon.path).startswith(
            f"{daemon.path} is not the socket of a k8s-builderd that this command knows: it sent "
        )


def test_a_daemon_that_hangs_up_is_told() -> None:
    with standin(says(log(b"half"))) as daemon:
        assert failure(daemon.path) == f"k8s-builderd at {daemon.path} closed the connection: see its log"


def test_a_frozen_daemon_is_not_waited_for_without_end() -> None:
    with standin(lambda connection, _: _until_closed(connection)) as daemon:
        assert failure(daemon.path, patience=0.2).startswith(
            f"k8s-builderd at {daemon.path} did not answer within 0.2 s. See its log"
        )


def _until_closed(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def test_a_socket_that_nobody_listens_on_or_may_write_to_is_told(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="kb-") as short, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{short}/b.sock")
        assert failure(f"{short}/b.sock") == (
            f"cannot reach k8s-builderd at {short}/b.sock: Connection refused. Check that the daemon is running,"
            " and FABRIC_K8S_BUILDER_SOCKET"
        )
    assert failure("/" + "x" * 200).startswith("cannot reach k8s-builderd at /xxx")
    refused = PermissionError(13, "Permission denied")
    assert str(call._away("/s", refused)).endswith("Permission denied. Run this as the daemon's user or group")


# On a terminal


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = os.openpty()
        self.shown = b""
        command = [sys.executable, "-m", "k8s_builder", *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)

    def until(self, text: bytes) -> bytes:
        """Wait until the terminal shows a text; return all that it has shown."""
        end = time.monotonic() + 60
        while text not in self.shown:
            ready, _, _ = select.select([self.ours], [], [], max(0, end - time.monotonic()))
            assert ready, self.shown
            try:
                data = os.read(self.ours, 1 << 16)
            except OSError:  # its other end is closed
                data = b""
            assert data, self.shown
            self.shown += data
        return self.shown

    def wait(self) -> int:
        try:
            while os.read(self.ours, 1 << 16):
                pass
        except OSError:
            pass
        os.close(self.ours)
        return self.process.wait(60)


def test_watch_redraws_in_place_and_leaves_the_terminal_as_it_was() -> None:
    counts = iter(range(10**6))

    def serve(connection: socket.socket, _: Standin) -> None:
        number = next(counts)
        now = ABOUT.replace(b"00:01:00Z", b"00:01:%02dZ" % (number % 60))
        connection.sendall(log(now) + log(LAUNCH.replace(b'"log_lines":1', b'"log_lines":%d' % (number * 7))) + end(0))

    with standin(serve) as daemon:
        terminal = Terminal("status", "--watch", "--interval", "0.1", "--socket", daemon.path)
        shown = terminal.until(b"up 62s")
        terminal.process.send_signal(signal.SIGINT)
        terminal.until(b"\x1b[?1049l")
        assert terminal.wait() == 0
    assert shown.startswith(b"\x1b[?1049h")
    first, second, *_ = shown.split(b"\x1b[H")[1:]
    assert first.count(b"\x1b[K") == second.count(b"\x1b[K") == 4
    assert len(re.sub(rb"\x1b\[\S", b"", second).split(b"\r\n")[2]) <= 80


def test_watch_goes_on_where_the_daemon_comes_back() -> None:
    answers = iter([log(ABOUT) + end(0), words("status [1]: it restarts") + end(1)])

    def serve(connection: socket.socket, _: Standin) -> None:
        connection.sendall(next(answers, log(ABOUT) + log(LAUNCH) + end(0)))

    with standin(serve) as daemon:
        terminal = Terminal("status", "--watch", "--interval", "0.1", "--socket", daemon.path)
        terminal.until(b"No chaincode.")
        terminal.until(b"Error: it restarts")
        terminal.until(b"basic_1.0")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.wait() == 0


@pytest.mark.parametrize("yes", [True, False])
def test_a_stop_shows_what_it_is_and_asks(yes: bool) -> None:
    heard = b""

    def serve(connection: socket.socket, _: Standin) -> None:
        nonlocal heard
        connection.sendall(log(LAUNCH))
        heard = connection.recv(1 << 16)
        connection.sendall(
            words("stop [1]: Stopped: the Kubernetes API accepted the deletion of chaincode job fabric/hlfcc-x")
            + end(0)
        )

    with standin(serve) as daemon:
        terminal = Terminal("stop", "basic_1.0", "--socket", daemon.path)
        question = terminal.until(b"[y/N]: ")
        assert b"Stop basic_1.0:6f98 of peer0, running for " in question
        assert b"pod hlfcc-x-y; its run has pid 7?" in question
        os.write(terminal.ours, b"y\n" if yes else b"n\n")
        if yes:
            terminal.until(b"accepted the deletion")
        assert terminal.wait() == (0 if yes else 1)
    assert heard == (wire.frame(wire.STOP) if yes else b"")


# How it starts


def test_it_loads_nothing_that_takes_long() -> None:
    """`python -c pass` and click, and no more: asyncio, the daemon and rich take longer than the answer."""
    code = (
        "import sys\n"
        "from k8s_builder.main import main\n"
        "sys.argv = ['k8s-builder', 'status', '--socket', '/nonexistent/b.sock']\n"
        "try:\n    main()\n"
        "except SystemExit as ended:\n    assert ended.code == 1\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"rich", "anyio", "asyncio", "aiohttp", "msgspec", "structlog", "kubernetes_asyncio"} & {
        *done.stdout.split()
    }
    assert "k8s_builderd" not in done.stdout.split()


def test_the_answer_of_a_call_needs_no_second_connection() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(log(b"x\n") + end(0))
        assert list(Call(ours, "/s", "status").answer()) == [(b"L", b"x\n")]
