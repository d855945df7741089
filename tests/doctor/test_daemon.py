"""The socket, and the daemon behind it."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from k8s_builder.call import DaemonError, Refused
from k8s_builder.doctor import daemon
from k8s_builder.doctor.result import Result
from tests.doctor.results import told

ABOUT: dict[str, Any] = {
    "version": "0.1.0",
    "namespace": "fabric",
    "instance": "peer0",
    "checks": {"socket": None, "jobs": None},
}


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="kb-") as short, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{short}/b.sock")
        yield Path(short) / "b.sock"


def found(path: Path, about: dict[str, Any] | DaemonError = ABOUT, namespace: str | None = "fabric") -> list[Result]:
    def ask(asked: str) -> dict[str, Any]:
        assert asked == str(path)
        if isinstance(about, DaemonError):
            raise about
        return {"daemon": about, "chaincodes": []}

    return [*daemon.check(path, namespace, "0.1.0", ask)]


def test_a_daemon_that_is_ready_is_well(path: Path) -> None:
    assert [(each.check, each.status.value) for each in found(path)] == [
        ("socket", "ok"),
        ("daemon", "ok"),
        ("version", "ok"),
        ("ready", "ok"),
    ]


def test_a_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    results = found(tmp_path / "b.sock")
    [(status, seen, remedy)] = told(results, "socket")
    assert (status, seen) == ("failure", f"{tmp_path}/b.sock does not exist")
    assert remedy.startswith("Start k8s-builderd, or check FABRIC_K8S_BUILDER_SOCKET")
    assert told(results, "daemon") == [("skipped", "there is no socket to ask", "")]


def test_a_daemon_that_the_programs_start_need_not_be_there_yet(tmp_path: Path) -> None:
    results = [*daemon.check(tmp_path / "b.sock", None, "0.1.0", lambda _: {}, autostart=True)]
    assert [each.status.value for each in results] == ["skipped", "skipped"]
    assert results[0].seen.endswith("does not exist: the programs start the daemon with their next call")


def test_what_is_no_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.sock").touch()
    [(status, seen, remedy)] = told(found(tmp_path / "b.sock"), "socket")
    assert (status, seen.endswith("is not a socket")) == ("failure", True)
    assert remedy == "Correct FABRIC_K8S_BUILDER_SOCKET"
    assert told(found(tmp_path / "b.sock" / "x"), "socket")[0][:2] == (
        "failure",
        f"{tmp_path}/b.sock/x: Not a directory",
    )


def test_a_socket_that_may_not_be_written_to_is_told(path: Path) -> None:
    path.parent.chmod(0o755)
    path.chmod(0o444)
    with _nobody():
        [(status, seen, remedy)] = told(found(path), "socket")
    assert (status, "cannot be written to by uid " in seen) == ("failure", True)
    assert remedy.endswith("or set FABRIC_K8S_BUILDER_SOCKET_MODE")


def test_a_socket_in_a_directory_that_may_not_be_entered_is_told(path: Path) -> None:
    path.parent.chmod(0o600)
    with _nobody():
        [(status, seen, remedy)] = told(found(path), "socket")
    path.parent.chmod(0o700)
    assert (status, seen) == ("failure", f"{path}: Permission denied")
    assert remedy.startswith("Run this as the user")


@contextmanager
def _nobody() -> Iterator[None]:
    """Be a user whom modes stop."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize(
    ("error", "status", "remedy"),
    [
        (
            Refused("k8s-builderd refused this call: user id 7 is not in FABRIC_K8S_BUILDER_ALLOWED_UIDS"),
            "failure",
            "Add the uid to FABRIC_K8S_BUILDER_ALLOWED_UIDS",
        ),
        (Refused("k8s-builderd at x is older than this command and does not know"), "warning", "Use the k8s-builder"),
        (DaemonError("k8s-builderd at x did not answer within 5 s"), "failure", "See the daemon's log and its /livez"),
    ],
)
def test_a_daemon_that_does_not_serve_us_is_told(path: Path, error: DaemonError, status: str, remedy: str) -> None:
    results = found(path, error)
    [(came, seen, mend)] = told(results, "daemon")
    assert (came, seen, mend.startswith(remedy)) == (status, error.message, True)
    assert len(results) == 2


def test_another_version_is_told(path: Path) -> None:
    [(status, seen, remedy)] = told(found(path, {**ABOUT, "version": "0.0.9"}), "version")
    assert (status, seen, bool(remedy)) == ("warning", "the daemon is 0.0.9, this command is 0.1.0", True)


def test_a_check_of_the_daemons_own_that_fails_is_told(path: Path) -> None:
    checks = {"socket": None, "jobs": "cannot list jobs.batch: forbidden", "pods": "cannot list pods: forbidden"}
    results = told(found(path, {**ABOUT, "checks": checks}), "ready")
    assert [(status, seen) for status, seen, _ in results] == [
        ("failure", "the daemon's check 'jobs' fails: cannot list jobs.batch: forbidden"),
        ("failure", "the daemon's check 'pods' fails: cannot list pods: forbidden"),
    ]


def test_a_daemon_of_another_namespace_is_told(path: Path) -> None:
    [(status, seen, remedy)] = told(found(path, namespace="default"), "daemon-namespace")
    assert (status, seen) == ("warning", "the daemon works in namespace fabric, and this command looks at default")
    assert remedy.startswith("Set FABRIC_K8S_BUILDER_NAMESPACE")
    assert told(found(path, namespace=None), "daemon-namespace") == []
