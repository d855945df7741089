"""One call of the daemon over its socket (docs/protocol.md), for a person who waits. Small, so that it starts fast."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from k8s_builder_client import wire

DEFAULT_SOCKET = "/run/k8s-builder/builder.sock"
PATIENCE = 15.0
"""Seconds without a byte after which the daemon counts as away; one that has nothing to say gives a sign each 5 s."""

_READ = 1 << 16

socket_option = click.option(
    "--socket",
    "path",
    metavar="PATH",
    envvar="FABRIC_K8S_BUILDER_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    help="The daemon's socket; also FABRIC_K8S_BUILDER_SOCKET.",
)


class DaemonError(click.ClickException):
    """Raised when the daemon cannot be asked; the message says why and what to do."""


class Refused(DaemonError):
    """Raised when the daemon says no, in its own words."""


class Call:
    """A call that has been asked, and its answer."""

    def __init__(self, connected: socket.socket, path: str, stage: str, patience: float = PATIENCE) -> None:
        self._socket = connected
        self._patience = patience
        self._path = path
        self._stage = stage
        self._frames = wire.Frames()

    def answer(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield what comes: `L` and the bytes of the answer, or `W` and one line of the daemon's own.

        Ends where the daemon says 0. The last line before another code is raised, not yielded.

        :raises DaemonError: if the daemon refuses, or goes away.
        """
        pending = ""
        while True:
            kind, payload = self._next()
            if kind == wire.EXIT:
                if self._code(payload) == 0:
                    if pending:
                        yield wire.WORDS, pending.encode()
                    return
                raise Refused(self._in_our_words(pending))
            if pending:
                yield wire.WORDS, pending.encode()
                pending = ""
            if kind == wire.LOG:
                yield wire.LOG, self._lines(payload)
            elif kind == wire.WORDS:
                pending = self._words(payload)

    def confirm(self) -> None:
        """Say that it shall be done.

        :raises DaemonError: if the daemon has gone away.
        """
        self._send(wire.frame(wire.STOP))

    def request(self, arguments: dict[str, str]) -> None:
        """Ask."""
        pid = str(os.getpid()).encode()
        frames = [wire.frame(wire.HELLO, wire.VERSION, self._stage.encode(), pid)]
        frames += [
            wire.frame(wire.ARGUMENT, name.encode(), os.fsencode(value)) for name, value in arguments.items() if value
        ]
        self._send(b"".join([*frames, wire.frame(wire.END)]))

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            # A daemon that has refused already may have said why.
            if not isinstance(error, BrokenPipeError | ConnectionResetError):
                raise _away(self._path, error) from error

    def _next(self) -> tuple[bytes, bytes]:
        try:
            while (found := self._frames.next()) is None:
                data = self._socket.recv(_READ)
                if not data:
                    raise DaemonError(f"k8s-builderd at {self._path} closed the connection: see its log")
                self._frames.feed(data)
        except TimeoutError:
            raise DaemonError(
                f"k8s-builderd at {self._path} did not answer within {self._patience:g} s. See its log and its /livez"
            ) from None
        except wire.FrameError as error:
            raise self._malformed(error) from error
        except OSError as error:
            raise _away(self._path, error) from error
        return found

    def _lines(self, payload: bytes) -> bytes:
        try:
            return wire.log(payload)[1]
        except wire.FrameError as error:
            raise self._malformed(error) from error

    def _code(self, payload: bytes) -> int:
        try:
            return wire.exit_code(payload)
        except wire.FrameError as error:
            raise self._malformed(error) from error

    def _malformed(self, error: wire.FrameError) -> DaemonError:
        return DaemonError(f"{self._path} is not the socket of a k8s-builderd that this command knows: it sent {error}")

    def _words(self, payload: bytes) -> str:
        """Return a line without the name and pid in front, which are ours."""
        line = payload.decode("utf-8", "replace").rstrip("\n")
        return line.partition("]: ")[2] or line

    def _in_our_words(self, line: str) -> str:
        if f"there is no stage '{self._stage}'" in line:
            return (
                f"k8s-builderd at {self._path} is older than this command and does not know {self._stage!r}: upgrade"
                " it, or use kubectl"
            )
        return line or f"k8s-builderd at {self._path} gave no reason: see its log"


@contextmanager
def calling(path: str, stage: str, *, patience: float = PATIENCE, **arguments: str) -> Iterator[Call]:
    """Call a stage of the daemon, and hang up when the context is left.

    :param patience: seconds without a byte after which the daemon counts as away.
    :param arguments: those of the stage; an empty one is left out.
    :raises DaemonError: if the daemon cannot be reached.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
        connected.settimeout(patience)
        try:
            connected.connect(path)
        except OSError as error:
            raise _away(path, error) from error
        call = Call(connected, path, stage, patience)
        call.request(arguments)
        yield call


def _away(path: str, error: OSError) -> DaemonError:
    why = error.strerror or str(error)
    remedy = "Check that the daemon is running, and FABRIC_K8S_BUILDER_SOCKET"
    if isinstance(error, PermissionError):
        remedy = "Run this as the daemon's user or group"
    return DaemonError(f"cannot reach k8s-builderd at {path}: {why}. {remedy}")


@contextmanager
def interruptible() -> Iterator[None]:
    """End quietly where the person has seen enough, or what reads our output has."""
    with suppress(KeyboardInterrupt, BrokenPipeError):
        yield
