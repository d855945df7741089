"""What systemd and the daemon tell each other, over systemd's own sockets: a test plays systemd."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from k8s_builderd.errors import SettingsError
from k8s_builderd.systemd import ServiceManager
from tests.daemon.scene import Running, Scene, eventually
from tests.embedded.cluster import PATIENCE

ACTIVATED = """
import os, socket, sys
path, *command = sys.argv[1:]
listening = socket.socket(socket.AF_UNIX)
listening.bind(path)
listening.listen()
os.dup2(listening.fileno(), 3)
os.set_inheritable(3, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "k8s-builderd.socket"}
os.execv(command[0], command)
"""
"""Becomes a daemon that systemd has started for a socket."""


class Notifications:
    """The socket that NOTIFY_SOCKET names, and what has come."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.came: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(address.replace("@", "\0", 1))

    async def until(self, wanted: str) -> None:
        """Wait for a field."""
        with anyio.fail_after(PATIENCE):
            while wanted not in self.came:
                await anyio.wait_readable(self._socket)
                self.came += self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def notifications(request: pytest.FixtureRequest, scene: Scene) -> Iterator[Notifications]:
    path = f"{scene.socket.parent}/notify"
    found = Notifications(path if request.param == "path" else f"@{path}")
    yield found
    found.close()


async def daemon(scene: Scene, *command: str, **environment: str) -> Running:
    variables = {
        "PATH": os.environ["PATH"],
        "KUBECONFIG_PATH": str(scene.kubeconfig),
        "FABRIC_K8S_BUILDER_SOCKET": str(scene.socket),
        "FABRIC_K8S_BUILDER_HEALTH_ADDRESS": "127.0.0.1:0",
        "FABRIC_K8S_BUILDER_INSTANCE": "scene",
        **environment,
    }
    return await scene._start([*command, sys.executable, "-m", "k8s_builderd"], variables, daemon=True)


async def test_systemd_is_told_how_the_daemon_is(scene: Scene, notifications: Notifications) -> None:
    started = await daemon(scene, NOTIFY_SOCKET=notifications.address, WATCHDOG_USEC="300000")
    await notifications.until("READY=1")
    assert scene.socket.exists()
    await notifications.until("STATUS=ready; chaincodes running: 0")
    notifications.came.clear()
    await notifications.until("WATCHDOG=1")
    started.send(signal.SIGHUP)
    await notifications.until("RELOADING=1")
    assert [field for field in notifications.came if field.startswith("MONOTONIC_USEC=")]
    await notifications.until("READY=1")
    await scene.call("run", await scene.package())
    await notifications.until("STATUS=ready; chaincodes running: 1")
    started.send(signal.SIGTERM)
    await notifications.until("STOPPING=1")
    assert await started.wait() == 0


async def test_a_frozen_daemon_gives_no_sign_of_life(scene: Scene, notifications: Notifications) -> None:
    started = await daemon(scene, NOTIFY_SOCKET=notifications.address, WATCHDOG_USEC="100000")
    await notifications.until("WATCHDOG=1")
    started.send(signal.SIGSTOP)
    await eventually(lambda: Path(f"/proc/{started.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    notifications.came.clear()
    with anyio.move_on_after(0.5):  # what was sent before
        await notifications.until("never")
    notifications.came.clear()
    with anyio.move_on_after(0.5):
        await notifications.until("never")
    assert not notifications.came
    started.send(signal.SIGCONT)
    await notifications.until("WATCHDOG=1")


async def test_systemctl_shows_why_a_start_failed(scene: Scene, notifications: Notifications) -> None:
    started = await daemon(scene, NOTIFY_SOCKET=notifications.address, FABRIC_K8S_BUILDER_LOG_FORMAT="xml")
    rule = "The FABRIC_K8S_BUILDER_LOG_FORMAT environment variable must be one of json, console; it is 'xml'"
    await notifications.until(f"STATUS={rule}")
    assert await started.wait() == 1
    assert "READY=1" not in notifications.came


async def test_what_is_wrong_stands_in_the_status(scene: Scene, notifications: Notifications) -> None:
    await scene.fault(verb="list", resource="pods", times=None, action={"do": "status", "code": 503})
    started = await daemon(scene, NOTIFY_SOCKET=notifications.address, WATCHDOG_USEC="300000")
    await started.line("watch_interrupted")
    with anyio.fail_after(PATIENCE):
        while not [field for field in notifications.came if field.startswith("STATUS=pods: ")]:
            await notifications.until("WATCHDOG=1")
            notifications.came.remove("WATCHDOG=1")


async def test_a_daemon_serves_on_the_socket_that_systemd_has_made_and_leaves_it(scene: Scene) -> None:
    path = scene.socket.with_name("activated")
    started = await daemon(scene, sys.executable, "-c", ACTIVATED, str(path))
    assert f'"path": "{path}"'.encode() in await started.line("socket_open")
    code, lines = await scene.said("detect", await scene.package(), FABRIC_K8S_BUILDER_SOCKET=str(path))
    assert (code, lines) == (0, ["Detected k8s chaincode: basic_1.0"])
    assert not scene.socket.exists()
    environment = Path(f"/proc/{started.pid}/environ").read_text()  # noqa: ASYNC240 - no disk is read
    assert "LISTEN_PID=" in environment  # as it was started; what it has now is in the table below
    assert await started.terminate() == 0
    assert path.is_socket()


# What is read


def test_the_variables_are_read_once_and_no_child_sees_them() -> None:
    environ = {"NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1", "LISTEN_PID": "1", "LISTEN_FDS": "1", "PATH": "/bin"}
    assert ServiceManager.from_environment(environ).listening is None
    assert environ == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("family", "kind", "count", "words"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, "2", "systemd has handed over 2 sockets"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "0", "systemd has handed over 0 sockets"),
        (socket.AF_INET, socket.SOCK_STREAM, "1", "must be a Unix stream socket"),
        (socket.AF_UNIX, socket.SOCK_DGRAM, "1", "must be a Unix stream socket"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "1", "must be a Unix stream socket"),  # it does not listen
    ],
)
def test_what_is_no_socket_for_clients_is_refused(
    family: socket.AddressFamily, kind: socket.SocketKind, count: str, words: str
) -> None:
    kept = os.dup(3) if Path("/proc/self/fd/3").exists() else -1
    with socket.socket(family, kind) as handed:
        os.dup2(handed.fileno(), 3)
        try:
            with pytest.raises(SettingsError, match=words):
                ServiceManager.from_environment({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
        finally:
            if kept >= 0:
                os.dup2(kept, 3)
                os.close(kept)
