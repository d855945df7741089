"""The client's half of docs/protocol.md: frames to bytes, bytes to frames. Never touches a file or a socket."""

VERSION = b"1"
MAX_PAYLOAD = 1 << 20
"""Bytes; the bound holds in both directions."""

HEADER = 5
"""Bytes in front of a payload: the kind and the length."""

# Client to daemon.
HELLO = b"H"
ARGUMENT = b"A"
ENVIRONMENT = b"E"
DOCUMENT = b"D"
UNREADABLE = b"U"
PATH = b"P"
TOKEN = b"T"
CURSOR = b"C"
END = b"."
STOP = b"S"

# Daemon to client.
WORDS = b"W"
LOG = b"L"
COPY = b"Y"
EXIT = b"X"
_FROM_DAEMON = WORDS + LOG + COPY + EXIT


class FrameError(Exception):
    """Raised when the daemon's bytes are no frames of this protocol. The message says what is wrong with them."""


def frame(kind: bytes, *fields: bytes) -> bytes:
    """One frame of `kind`, its fields separated by NUL bytes. The caller keeps to the bounds."""
    payload = b"\0".join(fields)
    return kind + len(payload).to_bytes(4, "big") + payload


class Frames:
    """Cuts the daemon's byte stream into frames. Holds at most one frame and what one read brought beyond it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what was read from the socket."""
        self._buffer += data

    def next(self) -> "tuple[bytes, bytes] | None":
        """Take the next whole frame, as kind and payload; None while it is incomplete.

        Raises FrameError as soon as the header is here and cannot be right.
        """
        if len(self._buffer) < HEADER:
            return None
        kind = bytes(self._buffer[:1])
        length = int.from_bytes(self._buffer[1:HEADER], "big")
        if kind not in _FROM_DAEMON:
            raise FrameError("a frame of the unknown kind %r" % kind)
        if length > MAX_PAYLOAD:
            raise FrameError("a frame of %d bytes, where %d are allowed" % (length, MAX_PAYLOAD))
        if len(self._buffer) < HEADER + length:
            return None
        payload = bytes(self._buffer[HEADER : HEADER + length])
        del self._buffer[: HEADER + length]
        return kind, payload

    def has(self, kind: bytes) -> bool:
        """Whether a frame of `kind` has come and was not taken yet."""
        at = 0
        while at + HEADER <= len(self._buffer):
            if self._buffer[at : at + 1] == kind:
                return True
            at += HEADER + int.from_bytes(self._buffer[at + 1 : at + HEADER], "big")
        return False


def log(payload: bytes) -> "tuple[bytes, bytes]":
    """The cursor and the lines of an `L` frame. Raises FrameError where the cursor is longer than the payload."""
    end = 2 + int.from_bytes(payload[:2], "big")
    if len(payload) < end:
        raise FrameError("a log frame shorter than its cursor")
    return payload[2:end], payload[end:]


def copy(payload: bytes) -> "tuple[bytes, bytes]":
    """The source and the destination of a `Y` frame, both relative. Raises FrameError where there are not two."""
    source, separator, destination = payload.partition(b"\0")
    if not separator:
        raise FrameError("a copy frame without a destination")
    return source, destination


def exit_code(payload: bytes) -> int:
    """The exit code of an `X` frame. Raises FrameError unless it is a decimal number from 0 to 255."""
    if not (payload.isdigit() and len(payload) <= 3 and int(payload) <= 255):
        raise FrameError("an exit frame without an exit code")
    return int(payload)
