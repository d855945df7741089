"""Which daemon a command in the peer's container asks."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from k8s_builder.started import daemons, find_socket

OWN, OTHER = os.geteuid(), os.geteuid() + 1


@contextmanager
def process(*arguments: str) -> Iterator[None]:
    """Run a process with these arguments, until the context is left."""
    command = ["/bin/sh", "-c", "echo; read line", "k8s-builderd", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        started.stdout.readline()
        yield


def test_a_daemon_is_known_by_its_process(tmp_path: Path) -> None:
    socket, gone = tmp_path / "builder.sock", tmp_path / "gone.sock"
    socket.touch()
    with process("--start-file", f"{socket}.start"), process("--start-file", f"{gone}.start"), process("--start-file"):
        found = daemons()
    assert found[str(socket)] == OWN
    assert str(gone) not in found
    assert str(socket) not in daemons()


@pytest.mark.parametrize(
    ("running", "found"),
    [
        ({"/a": OWN}, "/a"),
        ({"/a": OTHER}, "/a"),
        ({"/a": OTHER, "/b": OWN}, "/b"),
        ({}, None),
        ({"/a": OWN, "/b": OWN}, None),
        ({"/a": OTHER, "/b": OTHER}, None),
    ],
)
def test_ones_own_comes_before_another_users_and_in_doubt_it_is_where_the_programs_look(
    running: dict[str, int], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FABRIC_K8S_BUILDER_SOCKET", "/where/the/programs/look")
    assert find_socket(str(tmp_path), running) == (found or "/where/the/programs/look")


def test_that_the_programs_could_use_no_socket_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FABRIC_K8S_BUILDER_SOCKET", "/long" * 30)
    with pytest.raises(SystemExit, match=r"Error: The FABRIC_K8S_BUILDER_SOCKET .* maximum of 107 bytes"):
        find_socket(str(tmp_path), {})
