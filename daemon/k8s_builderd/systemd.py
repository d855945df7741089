"""What systemd and the daemon tell each other: sd_notify(3), sd_watchdog_enabled(3) and sd_listen_fds(3).

Without systemd nothing here does anything.
"""

import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Self

import anyio
import structlog
from anyio.abc import TaskStatus

from k8s_builderd.errors import SettingsError

FIRST_SOCKET = 3
"""The descriptor of the first socket that systemd hands over."""
STATUS_INTERVAL = 5.0
"""Seconds between two looks at what `systemctl status` shows, or a third of the watchdog's time, if that is less."""

_log = structlog.get_logger("k8s_builderd.systemd")


class ServiceManager:
    """The service manager that has started this daemon, if one has."""

    def __init__(
        self, address: str = "", watchdog: float | None = None, listening: socket.socket | None = None
    ) -> None:
        """Take what `from_environment` finds.

        :param address: of the socket for notifications; `@` stands for an abstract one's NUL.
        :param watchdog: seconds without a sign of life after which the daemon is killed.
        """
        self.listening = listening
        """The socket for clients, if the service manager has made it."""
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._watchdog = watchdog
        self._status = ""

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] | None = None) -> Self:
        """Read what systemd has set, and remove it, so that no child takes it for its own.

        :raises SettingsError: if what is handed over is not one Unix stream socket that listens.
        """
        environ = os.environ if environ is None else environ  # noqa: TID251 - a protocol, not settings
        names = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
        found = {name: environ.pop(name, "") for name in names}
        watchdog, listening = None, None
        if found["WATCHDOG_USEC"] and found["WATCHDOG_PID"] in {"", str(os.getpid())}:
            watchdog = int(found["WATCHDOG_USEC"]) / 1e6
        if found["LISTEN_PID"] == str(os.getpid()):
            listening = _handed_over(int(found["LISTEN_FDS"] or 0))
        return cls(found["NOTIFY_SOCKET"], watchdog, listening)

    def notify(self, **fields: object) -> None:
        """Tell the service manager. If it does not listen, nobody is told."""
        if not self._address:
            return
        message = "\n".join(f"{name}={str(value).replace(chr(10), ' ')}" for name, value in fields.items())
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.setblocking(False)
            sending.sendto(message.encode(), self._address)

    async def keep_informed(self, status: Callable[[], str]) -> None:
        """Send the watchdog's signs of life, and the status when it changes, until cancelled."""
        interval = min(STATUS_INTERVAL, (self._watchdog or STATUS_INTERVAL) / 3)
        while self._address:
            if self._watchdog:
                self.notify(WATCHDOG=1)
            if (now := status()) != self._status:
                self.notify(STATUS=now)
                self._status = now
            await anyio.sleep(interval)

    async def reload_on_signal(self, reload: Callable[[], Awaitable[object]], *, task_status: TaskStatus[None]) -> None:
        """Have `reload` done at each SIGHUP, and tell the service manager when it begins and ends."""
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                self.notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
                await reload()
                _log.info("reloaded")
                self.notify(READY=1)


def _handed_over(count: int) -> socket.socket:
    if count != 1:
        raise SettingsError(
            f"systemd has handed over {count} sockets, and k8s-builderd takes one: see its .socket unit"
        )
    os.set_inheritable(FIRST_SOCKET, False)
    listening = socket.socket(fileno=FIRST_SOCKET)
    if (
        listening.family != socket.AF_UNIX
        or listening.type != socket.SOCK_STREAM
        or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        or not listening.getsockname().startswith("/")
    ):
        listening.close()
        raise SettingsError(
            "The socket that systemd has handed over must be a Unix stream socket with a path (ListenStream=/...)"
        )
    listening.setblocking(False)
    return listening
