"""How the programs can be called: from anywhere, by any interpreter, with any descriptors, with wrong arguments."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .standin import BIN, CLIENT, DEADLINE, Daemon, Peer, exits, words

EXPECTED = {
    "detect": "Expected CHAINCODE_SOURCE_DIR and CHAINCODE_METADATA_DIR arguments",
    "build": "Expected CHAINCODE_SOURCE_DIR, CHAINCODE_METADATA_DIR and BUILD_OUTPUT_DIR arguments",
    "release": "Expected BUILD_OUTPUT_DIR and RELEASE_OUTPUT_DIR arguments",
    "run": "Expected BUILD_OUTPUT_DIR and RUN_METADATA_DIR arguments",
}


@pytest.mark.parametrize("stage", EXPECTED)
@pytest.mark.parametrize("count", [1, 4])
def test_a_wrong_number_of_arguments_is_told_by_their_names(peer: Peer, stage: str, count: int) -> None:
    program = peer.call(stage, *["x"] * count)
    own = f"{stage} [{program.pid}]: {EXPECTED[stage]}\n"
    assert program.ends_saying(own.encode()) == 1


def test_the_four_programs_are_one_file() -> None:
    assert len({(BIN / stage).read_bytes() for stage in EXPECTED}) == 1
    assert all(os.access(BIN / stage, os.X_OK) for stage in EXPECTED)


def answered(peer: Peer, stage: str = "detect") -> bytes:
    """Call the stage, have the daemon answer it with 0, and return what it said on standard error."""
    program = peer.call(stage)
    connection = peer.daemon.accept()
    assert connection.request().one("H") == b"1\0%s\0%d" % (stage.encode(), program.pid)
    connection.send(exits(0))
    said = program.rest()
    assert program.ends() == 0
    return said


@pytest.mark.usefixtures("daemon")
def test_a_link_to_a_program_is_that_program(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "detect").symlink_to(BIN / "detect")
    (tmp_path / "again").mkdir()
    (tmp_path / "again/detect").symlink_to("../detect")
    (tmp_path / "bin").symlink_to(BIN)
    for directory in (tmp_path, tmp_path / "again", tmp_path / "bin"):
        peer.bin = directory
        assert answered(peer) == b""


@pytest.mark.usefixtures("daemon")
def test_a_copy_works_from_a_read_only_directory(peer: Peer, tmp_path: Path) -> None:
    shutil.copytree(CLIENT, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    for directory in (tmp_path / "copy/bin", tmp_path / "copy/k8s_builder_client", tmp_path / "copy"):
        directory.chmod(0o555)
    peer.bin = tmp_path / "copy/bin"
    assert answered(peer) == b""


@pytest.mark.usefixtures("daemon")
def test_an_interpreter_beside_bin_is_preferred_to_one_in_path(peer: Peer, interpreter: str, tmp_path: Path) -> None:
    shutil.copytree(CLIENT, tmp_path / "copy")
    (tmp_path / "copy/python/bin").mkdir(parents=True)
    beside = tmp_path / "copy/python/bin/python3"
    beside.write_text(f'#!/bin/sh\necho beside >&2\nexec {interpreter} "$@"\n')
    beside.chmod(0o755)
    del peer.environment["FABRIC_K8S_BUILDER_PYTHON"]
    peer.bin = tmp_path / "copy/bin"
    assert answered(peer) == b"beside\n"
    (tmp_path / "detect").symlink_to("copy/bin/detect")
    peer.bin = tmp_path
    assert answered(peer) == b"beside\n"


@pytest.mark.usefixtures("daemon")
def test_an_interpreter_is_found_in_path(peer: Peer, interpreter: str, tmp_path: Path) -> None:
    (tmp_path / "python3").write_text(f'#!/bin/sh\necho in PATH >&2\nexec {interpreter} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    del peer.environment["FABRIC_K8S_BUILDER_PYTHON"]
    peer.environment["PATH"] = f"/nowhere:{tmp_path}"
    assert answered(peer) == b"in PATH\n"


def test_no_interpreter_is_told_in_one_line(peer: Peer) -> None:
    del peer.environment["FABRIC_K8S_BUILDER_PYTHON"]
    program = peer.call("run", PATH="/nowhere")
    program.says(
        f"Found no Python (3.8 or later) that runs here: tried {peer.bin}/../python/bin/python3 and python3 in PATH."
    )
    assert program.ends_saying() == 1


BROKEN = {
    "for another C library": b'#!/bin/sh\necho "$0: libc.so.6: version GLIBC_9 not found" >&2\necho more >&2\nexit 1\n',
    "without its loader": b"#!/nowhere/ld-musl\n",
    "for another processor": b"\x7fELF\2\1\1" + bytes(9) + b"\2\0\xf3\0\xff\xff",
    "too old": b"#!/bin/sh\necho Python 3.7.16\n",
    "much too old": b"#!/bin/sh\necho Python 2.7.18 >&2\n",
    "no Python": b"#!/bin/sh\nexit 0\n",
}


def broken(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(BROKEN[kind])
    path.chmod(0o755)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("kind", BROKEN)
def test_where_an_interpreter_cannot_run_the_next_is_tried(
    peer: Peer, interpreter: str, tmp_path: Path, kind: str
) -> None:
    shutil.copytree(CLIENT, tmp_path / "copy")
    broken(tmp_path / "copy/python/bin/python3", kind)
    broken(tmp_path / "first/python3", kind)
    (tmp_path / "second").mkdir()
    (tmp_path / "second/python3").symlink_to(interpreter)
    del peer.environment["FABRIC_K8S_BUILDER_PYTHON"]
    peer.environment["PATH"] = f"{tmp_path}/first:{tmp_path}/second"
    peer.bin = tmp_path / "copy/bin"
    assert answered(peer) == b""


SHELLS = [shell for shell in (["dash"], ["bash", "--posix"], ["busybox", "sh"]) if shutil.which(shell[0])]


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
@pytest.mark.parametrize("kind", [*BROKEN, "not there", "a directory", "not executable", "not in PATH"])
def test_a_variable_that_names_no_interpreter_is_told_in_one_line(
    peer: Peer, tmp_path: Path, kind: str, shell: list[str]
) -> None:
    path = str(tmp_path / "there/python3")
    if kind in BROKEN:
        broken(Path(path), kind)
    elif kind == "a directory":
        Path(path).mkdir(parents=True)
    elif kind == "not executable":
        broken(Path(path), "no Python")
        Path(path).chmod(0o644)
    elif kind == "not in PATH":
        path = "python3"
    done = subprocess.run(
        [str(shutil.which(shell[0])), *shell[1:], BIN / "detect", *peer.arguments("detect")],
        env={"FABRIC_K8S_BUILDER_PYTHON": path, "PATH": "/nowhere"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    rule = "The FABRIC_K8S_BUILDER_PYTHON environment variable must name a Python (3.8 or later) that runs here: "
    why = re.fullmatch(rf"detect \[\d+\]: {re.escape(rule + path)}: (.+)\n", done.stderr.decode())
    assert why, done.stderr
    expected = {
        "for another C library": "libc.so.6: version GLIBC_9 not found",
        "too old": "Python 3.7.16",
        "not there": "not found",
        "not in PATH": "not found",
    }
    assert why[1] == expected.get(kind, why[1])
    assert str(BIN) not in why[1]


@pytest.mark.usefixtures("daemon")
def test_an_interpreter_may_be_given_the_file(peer: Peer, interpreter: str) -> None:
    process = subprocess.Popen(
        [interpreter, "-I", "-S", os.fspath(BIN / "release"), *peer.arguments("release")],
        env=peer.environment,
        stderr=subprocess.PIPE,
    )
    connection = peer.daemon.accept()
    assert connection.request().one("H") == b"1\0release\0%d" % process.pid
    connection.send(exits(3))
    assert process.communicate(timeout=DEADLINE)[1] == b""
    assert process.returncode == 3


def test_another_name_is_refused(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "start").symlink_to(BIN / "run")
    peer.bin = tmp_path
    program = peer.call("start", "x")
    program.says("This program must have one of these names: detect, build, release, run")
    assert program.ends_saying() == 1


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2), (0,)])
def test_a_closed_descriptor_is_not_mistaken_for_the_socket(
    peer: Peer, daemon: Daemon, closed: tuple[int, ...]
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    program = peer.call("run", before=close)
    connection = daemon.accept()
    request = connection.request()
    assert [frame.kind for frame in request] == ["H", "E", "D", "D", "T", "."]
    connection.send(words(b"words\n"), exits(0))
    connection.is_left()
    assert program.ends_saying(b"" if 2 in closed else b"words\n") == 0


def test_standard_error_may_be_a_file(peer: Peer, daemon: Daemon, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        descriptor = file.fileno()
        program = peer.call("run", before=lambda: os.dup2(descriptor, 2))
        connection = daemon.accept()
        connection.request()
        connection.send(words(b"x" * 10_000 + b"\n"), exits(0))
        assert program.ends() == 0
    assert (tmp_path / "log").read_bytes() == b"x" * 10_000 + b"\n"


def test_a_full_disk_under_standard_error_ends_no_chaincode(peer: Peer, daemon: Daemon) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    program = peer.call("run", before=lambda: os.dup2(full, 2))
    os.close(full)
    connection = daemon.accept()
    connection.request()
    connection.send(words(b"lost\n"), words(b"lost too\n"), exits(0))
    connection.is_left()
    assert program.ends() == 0


def test_a_connected_run_holds_six_descriptors(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    for _ in range(3):
        connection = daemon.accept()
        connection.request()
        opened = [str(link.readlink()).partition(":")[0] for link in Path(f"/proc/{program.pid}/fd").iterdir()]
        assert sorted(opened) == ["/dev/null", "/dev/null", "pipe", "pipe", "pipe", "socket"]
        connection.close()
    connection = daemon.accept()
    connection.request()
    connection.send(exits(0))
    assert program.ends_saying() == 0


def test_debug_lines_are_marked(peer: Peer) -> None:
    (peer.metadata / "metadata.json").write_bytes(b'{"type":"other"}')
    program = peer.call("detect", FABRIC_K8S_BUILDER_DEBUG="T")
    lines = program.rest().decode().splitlines()
    assert lines[0] == f"detect [{program.pid}] DEBUG: CHAINCODE_SOURCE_DIR: {peer.source}"
    assert all(line.startswith(f"detect [{program.pid}] DEBUG: ") for line in lines)
    assert program.ends() == 1


def test_only_modules_that_cost_little_are_imported(peer: Peer, interpreter: str) -> None:
    (peer.metadata / "metadata.json").write_bytes(b'{"type":"other"}')
    script = "\n".join(
        [
            "import sys, os",
            "before = set(sys.modules)",
            f"sys.path.insert(0, {os.fspath(CLIENT)!r})",
            "import k8s_builder_client.__main__, k8s_builder_client.session",
            "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('k8s_builder_client')))",
        ]
    )
    done = subprocess.run([interpreter, "-I", "-S", "-c", script], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"_socket", "select", "errno", "time", "_signal", "stat"}
