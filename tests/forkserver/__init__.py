"""Starts daemons without the 0.4 s of CPU that their imports take, each time anew.

`__main__.py` is a process that has imported what a daemon imports. It forks for each start, and the fork becomes
`python -m k8s_builderd` with the environment and the standard error that it is given: a process with a pid of its own,
which is signalled, measured and killed like any other. The suite starts some three hundred. A daemon with arguments is
started plainly.
"""

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import anyio

ROOT = Path(__file__).parents[2]


class Forked:
    """A process that was forked; it has the methods of anyio's."""

    def __init__(self, pid: int, descriptor: int, status: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._status = status
        self._code: int | None = None

    @property
    def returncode(self) -> int | None:
        """The exit code, or less than 0 for the signal that has ended it; None while it runs."""
        if self._code is None:
            try:
                data = os.read(self._status, 4)
            except BlockingIOError:
                return None
            if not data:
                raise ChildProcessError("the server that has forked this process is gone")
            (self._code,) = struct.unpack("i", data)
        return self._code

    def send_signal(self, number: int) -> None:
        """Send a signal, which is lost where the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        while (code := self.returncode) is None:
            descriptor = os.dup(self._status)  # of each waiter's own, because only one may wait on a descriptor
            try:
                await anyio.wait_readable(descriptor)
            finally:
                os.close(descriptor)
        return code

    async def aclose(self) -> None:
        """Wait for its end, and forget it."""
        await self.wait()
        os.close(self._descriptor)
        os.close(self._status)


class ForkServer:
    """The process that forks, and our end of its socket."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"]},
            )

    def start(self, environment: Mapping[str, str], stderr: int, *, pace: float = 1) -> Forked:
        """Start a daemon.

        :param pace: how fast its time runs (`clock`).
        :raises OSError: if the server has gone.
        """
        reading, writing = os.pipe()
        try:
            request = json.dumps({"environment": {**environment}, "pace": pace}).encode()
            socket.send_fds(self._socket, [request], [stderr, writing])
        finally:
            os.close(writing)
        data, descriptors, _, _ = socket.recv_fds(self._socket, 4, 1)
        (pid,) = struct.unpack("i", data)
        os.set_blocking(reading, False)
        return Forked(pid, descriptors[0], reading)

    def close(self) -> None:
        """End the server. What it has forked goes on."""
        self._socket.close()
        self._process.wait()


@cache
def server() -> ForkServer:
    """Return this process' server, started when it is first asked for."""
    server = ForkServer()
    atexit.register(server.close)
    return server
