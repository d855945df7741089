"""The embedded cluster as a process: kubeconfig, signals, its parent's end; and nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from k8s_builder_lab.embedded.address import Address

from .cluster import DIGEST, PATIENCE, job

IMAGES = {"localhost/busybox": {"command": ["sleep", "3600"]}}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def command(folder: Path, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the command with a temporary directory of its own."""
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "k8s_builder_lab.embedded", "--kubeconfig", str(folder / "kubeconfig"), *options],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ready(process: "subprocess.Popen[bytes]", folder: Path) -> Address:
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert line.startswith("API server at http://127.0.0.1:"), line
    return Address.read(folder / "kubeconfig")


def call(address: Address, path: str, body: object = None, token: str = "") -> object:
    request = urllib.request.Request(
        path, None if body is None else json.dumps(body).encode(), {"Authorization": f"Bearer {token or address.token}"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return json.load(response)


def running_pods(address: Address) -> list[int]:
    state = call(address, f"{address.control}/embedded/state")
    assert isinstance(state, dict)
    return [int(pid) for pid in state["processes"]]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def start_pod(address: Address, *command: str) -> int:
    call(address, f"{address.server}/apis/batch/v1/namespaces/{address.namespace}/jobs", job("j1", *command))
    until(lambda: running_pods(address))
    return running_pods(address)[0]


@pytest.fixture
def images(tmp_path: Path) -> str:
    path = tmp_path / "images.json"
    path.write_text(json.dumps(IMAGES))
    return str(path)


def test_the_kubeconfig_is_private_and_tells_what_answers(tmp_path: Path, images: str) -> None:
    with command(tmp_path, "--images", images, "--namespace", "one", "--namespace", "two") as process:
        address = ready(process, tmp_path)
        assert stat.S_IMODE((tmp_path / "kubeconfig").stat().st_mode) == 0o600
        assert address.namespace == "one"
        for namespace in ("one", "two"):
            call(address, f"{address.server}/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": "s1"}})
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            call(address, f"{address.server}/api/v1/namespaces/one/secrets", token="wrong")
        refused.value.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_pods_with_0(tmp_path: Path, images: str, number: signal.Signals) -> None:
    with command(tmp_path, "--images", images) as process:
        address = ready(process, tmp_path)
        pid = start_pod(address, "sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert not alive(pid)
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert [*(tmp_path / "tmp").iterdir()] == []


def test_it_ends_with_its_parent(tmp_path: Path, images: str) -> None:
    with command(tmp_path, "--images", images, "--with-parent") as process:
        pid = start_pod(ready(process, tmp_path))
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        assert process.wait(PATIENCE) == 0
        assert not alive(pid)


def test_its_pods_end_even_if_it_is_killed(tmp_path: Path, images: str) -> None:
    with command(tmp_path, "--images", images) as process:
        pid = start_pod(ready(process, tmp_path))
        process.kill()
        process.wait(PATIENCE)
        until(lambda: not alive(pid))
        until(lambda: [*(tmp_path / "tmp").iterdir()] == [])


def test_the_file_of_images_is_read_anew(tmp_path: Path, images: str) -> None:
    with command(tmp_path, "--images", images) as process:
        address = ready(process, tmp_path)
        Path(images).write_text(json.dumps({**IMAGES, "localhost/new": {"command": ["sleep", "3600"]}}))
        new = job("j1", container={"image": f"localhost/new@{DIGEST}"})
        call(address, f"{address.server}/apis/batch/v1/namespaces/default/jobs", new)
        until(lambda: running_pods(address))


@pytest.mark.parametrize("text", ["{", '{"x": {"comand": []}}', "[]"])
def test_a_bad_file_of_images_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    images = tmp_path / "images.json"
    images.write_text(text)
    with command(tmp_path, "--images", str(images)) as process:
        _, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert error.startswith(f"Error: {images}: ".encode())
        assert error.count(b"\n") == 1
        assert not (tmp_path / "kubeconfig").exists()


def test_a_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with command(tmp_path) as process:
        port = ready(process, tmp_path).server.rpartition(":")[2]
        other = tmp_path / "other"
        other.mkdir()
        with command(other, "--port", port) as second:
            _, error = second.communicate(timeout=PATIENCE)
            assert second.returncode == 1
            assert b"in use" in error
            assert error.count(b"\n") == 1
