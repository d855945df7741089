"""The lock beside the socket, where the daemon comes back as another user."""

import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from k8s_builderd.errors import SettingsError
from k8s_builderd.gateway.listener import _locked

NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket's path in a directory that every user may write to."""
    with tempfile.TemporaryDirectory(prefix="kb-") as short:
        Path(short).chmod(0o777)
        yield Path(short) / "b.sock"


def lock(path: Path) -> Path:
    return path.with_name("b.sock.lock")


@contextmanager
def as_another_user(path: Path) -> Iterator[None]:
    """Have what is there belong to another user; for a test that is not root's, to nobody who may open it."""
    if os.geteuid() != 0:
        lock(path).chmod(0)
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def left(path: Path, mode: int = 0o600) -> None:
    """Leave the lock of a daemon that has ended, as earlier versions made it."""
    os.close(os.open(lock(path), os.O_CREAT | os.O_RDWR, mode))


def test_a_lock_that_is_left_is_replaced(path: Path) -> None:
    left(path)
    with as_another_user(path), _locked(path, 0o660):
        assert lock(path).stat().st_uid == os.geteuid()
        with pytest.raises(SettingsError, match="is locked"), _locked(path, 0o660):
            pass


def test_a_socket_that_is_left_beside_it_changes_nothing(path: Path) -> None:
    left(path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    path.chmod(0o666)
    with as_another_user(path), _locked(path, 0o660):
        pass


def test_the_socket_of_a_daemon_that_lives_is_not_taken(path: Path) -> None:
    left(path)
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(os.fspath(path))
        living.listen()
        path.chmod(0o666)
        before = lock(path).stat()
        with (
            as_another_user(path),
            pytest.raises(SettingsError, match="Another k8s-builderd uses the socket in"),
            _locked(path, 0o660),
        ):
            pass
    assert lock(path).stat().st_ino == before.st_ino


@pytest.mark.skipif(os.geteuid() != 0, reason="one user is not kept from its own")
@pytest.mark.parametrize("how", ["sticky", "unknown"])
def test_a_lock_that_cannot_be_replaced_is_told_in_one_line(path: Path, how: str) -> None:
    """Because only its owner may remove it, or because nobody can tell whether somebody listens."""
    left(path)
    if how == "sticky":
        path.parent.chmod(0o1777)
    with socket.socket(socket.AF_UNIX) as other:
        if how == "unknown":
            other.bind(os.fspath(path))
            path.chmod(0o600)
        with (
            as_another_user(path),
            pytest.raises(SettingsError, match=re.escape(f"{lock(path)} belongs to user id 0, and")) as told,
            _locked(path, 0o660),
        ):
            pass
    assert f"this k8s-builderd runs as {NOBODY}" in str(told.value)
    assert lock(path).exists()


def test_whoever_may_use_the_socket_may_lock_it(path: Path) -> None:
    with _locked(path, 0o660):
        assert stat.S_IMODE(lock(path).stat().st_mode) == 0o660
    with as_another_user(path), _locked(path, 0o660):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="one user is not kept from its own")
def test_a_directory_that_may_not_be_written_is_told(path: Path) -> None:
    path.parent.chmod(0o755)
    with (
        as_another_user(path),
        pytest.raises(SettingsError, match="must name a socket in a writable directory"),
        _locked(path, 0o660),
    ):
        pass
