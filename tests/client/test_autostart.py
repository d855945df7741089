"""What is decided about a daemon that the programs start: where its socket is, when it is started, what is read back.

The starting itself is tested with a daemon, in tests/daemon/test_autostart.py.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from k8s_builder_client import autostart, place
from k8s_builder_client.call import Call, CallError
from tests.embedded.cluster import PATIENCE

UID = os.geteuid()


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 1.0), (2, 2.0), (3, 4.0), (5, 16.0), (6, 30.0), (10**6, 30.0)])
def test_the_pauses_grow_to_a_bound(attempts: int, seconds: float) -> None:
    assert autostart.pause(attempts) == seconds


def test_failures_in_a_row_never_count_as_one_that_lasted() -> None:
    assert autostart.LONGEST_PAUSE < autostart.LASTED


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", (0.0, 0, "")),
        (b"12.500000 3\n", (12.5, 3, "")),
        (b"12.500000 3\nThe setting\nis wrong\n", (12.5, 3, "The setting is wrong")),
        (b"12.500000 3\n\xff\x1b[31m\n", (12.5, 3, "\ufffd\x1b[31m")),  # Stderr takes the escape out
        (b"12.5", (0.0, 0, "")),
        (b"somebody's notes\n", (0.0, 0, "")),
    ],
)
def test_the_start_file_is_read_back(content: bytes, found: tuple[float, int, str], tmp_path: Path) -> None:
    (tmp_path / "start").write_bytes(content)
    descriptor = os.open(tmp_path / "start", os.O_RDONLY)
    try:
        assert autostart._read(descriptor)[1:] == found
    finally:
        os.close(descriptor)


def test_a_process_is_named_by_pid_and_start_time() -> None:
    pid, start = autostart._identity(os.getpid()).split(b"/")
    assert int(pid) == os.getpid()
    assert int(start) > 0
    assert autostart._identity(0) == b""


# Where the socket is


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A TMPDIR whose path is short enough for a socket."""
    short = Path(f"/tmp/kb-{os.getpid()}")
    short.mkdir()
    yield short
    shutil.rmtree(short)


def socket_path(temporary: Path, run: Path) -> bytes:
    return place.socket_path({b"TMPDIR": os.fsencode(temporary)}, os.fsencode(run))


def test_the_socket_is_below_run_where_that_can_be_written(temporary: Path, tmp_path: Path) -> None:
    """The same before the daemon's directory is there and after."""
    run = tmp_path / "k8s-builder"
    before = socket_path(temporary, run)
    run.mkdir()
    assert before == socket_path(temporary, run) == os.fsencode(run / "builder.sock")
    assert not list(temporary.iterdir())


def test_the_socket_is_below_tmpdir_where_run_is_not_there(temporary: Path, tmp_path: Path) -> None:
    found = socket_path(temporary, tmp_path / "nowhere" / "k8s-builder")
    directory = temporary / f"k8s-builder-{UID}"
    assert found == os.fsencode(directory / "builder.sock")
    assert directory.stat().st_mode & 0o777 == 0o700
    assert found == socket_path(temporary, tmp_path / "nowhere" / "k8s-builder")


@pytest.mark.parametrize("tmpdir", [b"", b"relative", b"/tmp/" + b"long" * 30])
def test_a_tmpdir_that_cannot_hold_a_socket_is_not_used(tmpdir: bytes, tmp_path: Path) -> None:
    found = place.socket_path({b"TMPDIR": tmpdir}, os.fsencode(tmp_path / "nowhere" / "run"))
    assert found == b"/tmp/k8s-builder-%d/builder.sock" % UID


def test_a_directory_that_others_can_write_to_is_refused(temporary: Path, tmp_path: Path) -> None:
    directory = temporary / f"k8s-builder-{UID}"
    directory.mkdir()
    directory.chmod(0o770)
    with pytest.raises(CallError, match=f"must be a directory that belongs to uid {UID} and that no other user"):
        socket_path(temporary, tmp_path / "nowhere" / "run")


def test_a_link_in_its_place_is_refused(temporary: Path, tmp_path: Path) -> None:
    (temporary / f"k8s-builder-{UID}").symlink_to(tmp_path)
    with pytest.raises(CallError, match="must be a directory that belongs to uid"):
        socket_path(temporary, tmp_path / "nowhere" / "run")


@pytest.mark.skipif(UID != 0, reason="needs root, to make another user's directory")
def test_another_users_directory_is_refused(temporary: Path, tmp_path: Path) -> None:
    directory = temporary / f"k8s-builder-{UID}"
    directory.mkdir(mode=0o700)
    os.chown(directory, 7051, 7051)
    with pytest.raises(CallError, match="must be a directory that belongs to uid"):
        socket_path(temporary, tmp_path / "nowhere" / "run")


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path, temporary: Path) -> None:
    (temporary / "file").touch()
    with pytest.raises(CallError, match=r"cannot be made: .*: Not a directory\. Set FABRIC_K8S_BUILDER_SOCKET"):
        socket_path(temporary / "file", tmp_path / "nowhere" / "run")


# Whether one is started


@pytest.mark.parametrize(
    ("setting", "installed", "started"),
    [
        (None, False, False),
        (None, True, True),
        (b"", True, True),
        (b"false", True, False),
        (b"F", True, False),
        (b"true", False, True),
        (b"1", True, True),
    ],
)
def test_a_daemon_is_started_where_one_is_installed_beside(
    setting: bytes | None, installed: bool, started: bool, tmp_path: Path
) -> None:
    if installed:
        (tmp_path / "k8s-builderd").touch(0o755)
    environment = {} if setting is None else {b"FABRIC_K8S_BUILDER_AUTOSTART": setting}
    call = Call("run", [b"a", b"b"], environment, os.fsencode(tmp_path))
    assert call.daemon == (os.fsencode(tmp_path / "k8s-builderd") if started else None)


def test_where_none_is_installed_the_socket_is_where_it_always_was(tmp_path: Path) -> None:
    assert Call("run", [b"a", b"b"], {}, os.fsencode(tmp_path)).socket_path == b"/run/k8s-builder/builder.sock"
    (tmp_path / "k8s-builderd").touch(0o755)
    call = Call("run", [b"a", b"b"], {b"FABRIC_K8S_BUILDER_SOCKET": b"/s"}, os.fsencode(tmp_path))
    assert call.socket_path == b"/s"


@pytest.mark.parametrize("read", [False, True], ids=["unread", "read"])
def test_a_log_that_is_a_pipe_keeps_nobody(tmp_path: Path, read: bool) -> None:
    """To open a pipe waits for a reader, and while a program waits, it holds the lock of all."""
    os.mkfifo(tmp_path / "log")
    script = (
        "import os, sys; from k8s_builder_client.autostart import Autostart\n"
        "folder = os.fsencode(sys.argv[1])\n"
        "log = Autostart(b'/none', folder + b'/socket', folder + b'/log', {})._open_log()\n"
        "print(os.get_blocking(log))"
    )
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK) if read else -1
    try:
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    finally:
        if read:
            os.close(reader)
    if read:
        assert done.stdout == "True\n", done.stderr
    else:
        assert "OSError: [Errno 6] No such device or address" in done.stderr


# The peer's process


def test_that_it_cannot_be_looked_at_does_not_say_that_the_peer_has_ended() -> None:
    """A daemon without a file descriptor left would end with its peer's chaincode attended."""
    script = (
        "import os, resource; from k8s_builder_client import autostart\n"
        "from k8s_builderd.autostart import PeerProcess\n"
        "peer = PeerProcess(autostart._identity(os.getppid()).decode())\n"
        "other = PeerProcess(f'{peer.pid}/1')\n"
        "before = peer.is_alive, other.is_alive\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "print(*before, peer.is_alive)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True False True\n"
