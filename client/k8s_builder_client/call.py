"""One call of the peer: which program, which directories, which settings. Pure; raises CallError for what is wrong."""

import posix
import sys

from . import duration

TYPE_CHECKING = False  # typing's own would cost more than all of this package
if TYPE_CHECKING:
    from typing import Mapping

ARGUMENTS = {
    "detect": ("CHAINCODE_SOURCE_DIR", "CHAINCODE_METADATA_DIR"),
    "build": ("CHAINCODE_SOURCE_DIR", "CHAINCODE_METADATA_DIR", "BUILD_OUTPUT_DIR"),
    "release": ("BUILD_OUTPUT_DIR", "RELEASE_OUTPUT_DIR"),
    "run": ("BUILD_OUTPUT_DIR", "RUN_METADATA_DIR"),
}
"""What Fabric's external builder interface passes to each program, in this order."""

SOCKET = b"FABRIC_K8S_BUILDER_SOCKET"
CONNECT_TIMEOUT = b"FABRIC_K8S_BUILDER_CONNECT_TIMEOUT"
DEBUG = b"FABRIC_K8S_BUILDER_DEBUG"
AUTOSTART = b"FABRIC_K8S_BUILDER_AUTOSTART"
LOG_FILE = b"FABRIC_K8S_BUILDER_LOG_FILE"

_DEFAULT_SOCKET = b"/run/k8s-builder/builder.sock"
_DEFAULT_CONNECT_TIMEOUT = b"30s"
LONGEST_SOCKET_PATH = 107
"""Bytes: sun_path of unix(7), less its final NUL."""
_TRUE = (b"1", b"t", b"T", b"TRUE", b"true", b"True")  # Go's strconv.ParseBool
_FALSE = (b"0", b"f", b"F", b"FALSE", b"false", b"False")


def encoded(text: str) -> bytes:
    """An argument or a file's name as the bytes that it was."""
    return text.encode(sys.getfilesystemencoding(), "surrogateescape")


def shown(path: bytes) -> str:
    """A path as text for a line; bytes that are no UTF-8 become what `Stderr` shows as question marks."""
    return path.decode("utf-8", "surrogateescape")


class CallError(Exception):
    """Raised when the call cannot be carried out; the message is the one line for the peer's log."""


class Call:
    """What the peer called, with what. Takes the stage's name, its arguments and the environment, all as bytes.

    `folder` is where the programs are, and a daemon may be installed beside them.
    """

    def __init__(
        self, stage: str, arguments: "list[bytes]", environment: "Mapping[bytes, bytes]", folder: bytes = b""
    ) -> None:
        self.stage = stage
        self.environment = environment
        self._folder = folder
        names = ARGUMENTS[stage]
        if len(arguments) != len(names):
            raise CallError("Expected %s and %s arguments" % (", ".join(names[:-1]), names[-1]))
        self.directories = {name: arguments[index] for index, name in enumerate(names)}

    @property
    def input(self) -> "bytes | None":
        """The directory that `Y` frames copy from; None where the stage copies nothing."""
        return self.directories[ARGUMENTS[self.stage][0]] if self.stage in ("build", "release") else None

    @property
    def output(self) -> bytes:
        """The directory that `Y` frames copy to, where the stage copies something."""
        return self.directories[ARGUMENTS[self.stage][-1]]

    @property
    def debug(self) -> bool:
        """Whether debug lines are wanted."""
        return self.environment.get(DEBUG) in _TRUE

    @property
    def socket_path(self) -> bytes:
        """The daemon's socket. Raises CallError where it is longer than a socket's path can be."""
        path = self.environment.get(SOCKET) or _DEFAULT_SOCKET
        if path is _DEFAULT_SOCKET and self.daemon is not None:
            from . import place  # the others need not pay for it

            path = place.socket_path(self.environment)
        if len(path) > LONGEST_SOCKET_PATH:
            raise CallError(
                "The %s environment variable must be a maximum of %d bytes, as the path of a Unix socket; it has %d: %s"
                % (SOCKET.decode(), LONGEST_SOCKET_PATH, len(path), shown(path[:200]))
            )
        return path

    @property
    def daemon(self) -> "bytes | None":
        """The daemon to start where none answers: the one beside the programs. None where nothing is to be started.

        Raises CallError where the setting is no truth value.
        """
        wanted = self.environment.get(AUTOSTART, b"")
        if wanted and wanted not in _TRUE + _FALSE:
            raise CallError(
                "The %s environment variable must be true or false; it is %s"
                % (AUTOSTART.decode(), shown(wanted[:200]))
            )
        program = self._folder + b"/k8s-builderd"
        return program if wanted in _TRUE or (not wanted and posix.access(program, posix.X_OK)) else None

    @property
    def log_file(self) -> bytes:
        """Where a daemon that is started here logs to; empty where nobody has said so."""
        return self.environment.get(LOG_FILE, b"")

    @property
    def connect_timeout(self) -> float:
        """Seconds to wait for the daemon. Raises CallError where it is no Go duration."""
        text = self.environment.get(CONNECT_TIMEOUT) or _DEFAULT_CONNECT_TIMEOUT
        try:
            return duration.seconds(text.decode("utf-8", "replace"))
        except ValueError as error:
            raise CallError(
                "The %s environment variable must be a valid Go duration string, e.g. 3m40s: %s"
                % (CONNECT_TIMEOUT.decode(), str(error)[:200])
            ) from None
