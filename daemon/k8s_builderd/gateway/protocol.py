"""The daemon's half of the protocol (docs/protocol.md): bytes to requests, replies to bytes. No I/O."""

import re
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from msgspec import Struct

from k8s_builderd.errors import PackageError, ProtocolError

VERSION = b"1"
PEOPLES = ("status", "logs", "stop")
"""The stages that people call, by `k8s-builder`; a daemon before 0.1.0 knows none of them."""
STAGES = ("detect", "build", "release", "run", *PEOPLES)
DOCUMENTS = {
    "detect": ("metadata.json",),
    "build": ("metadata.json", "image.json"),
    "release": (),
    "run": ("image.json", "chaincode.json"),
}
"""What each stage sends."""
ARGUMENTS = {
    "logs": ("chaincode", "follow", "since"),
    "stop": ("chaincode",),
}
"""The arguments that a stage takes."""
STARTED = "started"
"""The environment entry of `run` that is none: when its process was started."""
LISTING = ("build", "release")
"""The stages that send paths."""

MAX_PAYLOAD = 1024 * 1024
MAX_ENVIRONMENT = 16
MAX_ENVIRONMENT_ENTRY = 4096
MAX_PATHS = 10_000
MAX_PATH = 4096
MAX_PATH_BYTES = 1024 * 1024
"""Bytes of all paths together: many long ones would cost the memory of a whole sidecar."""
MAX_REASON = 4096
MAX_ARGUMENT = 512
MAX_CURSOR = 512
MAX_LINE = 16 * 1024
"""Bytes of one line of words; what is longer is cut, and says so."""

_HEADER = 5
_TOKEN = re.compile(rb"[0-9a-f]{32}")
_NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]+")


class Kind(IntEnum):
    """The kinds of frames, by their byte."""

    HELLO = ord("H")
    ARGUMENT = ord("A")
    ENVIRONMENT = ord("E")
    DOCUMENT = ord("D")
    UNREADABLE = ord("U")
    PATH = ord("P")
    TOKEN = ord("T")
    CURSOR = ord("C")
    END = ord(".")
    STOP = ord("S")
    WORDS = ord("W")
    LOG = ord("L")
    COPY = ord("Y")
    EXIT = ord("X")


class Entry(Struct, frozen=True):
    """One entry of the listing of META-INF: kind `f`, `d` or `o`, bytes, and the path beginning with META-INF."""

    kind: str
    size: int
    path: str


class Request(Struct, frozen=True):
    """All that a client sends for one call of the peer."""

    stage: str
    pid: int
    environment: dict[str, str]
    documents: dict[str, bytes]
    unreadable: dict[str, str]
    paths: tuple[Entry, ...]
    token: bytes
    """32 hexadecimal digits for `run`, otherwise empty."""
    cursor: str
    arguments: dict[str, str] = {}

    def document(self, name: str) -> bytes:
        """Return a document's content, once: there may be a key in it, and a request is kept as long as its call lasts.

        :raises PackageError: if the client could not read it.
        """
        if name in self.documents:
            return self.documents.pop(name)
        raise PackageError(name, f"cannot be read: {self.unreadable.get(name, 'the client has not sent it')}")

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("stage", self.stage), ("pid", self.pid)]  # msgspec's shows all fields

    def __repr__(self) -> str:
        # Documents hold the chaincode's private key, and the token is a secret too: neither belongs in a log.
        return f"Request(stage={self.stage!r}, pid={self.pid!r}, documents={sorted(self.documents)!r})"


_BULKY = frozenset({Kind.ENVIRONMENT, Kind.DOCUMENT, Kind.UNREADABLE, Kind.PATH})


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._dropped: frozenset[int] = frozenset()
        self._to_drop = 0

    def drop_documents(self) -> None:
        """From now on yield what a request is long by without its payload, which is dropped as it comes."""
        self._dropped = _BULKY

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the kind and payload of each frame that is whole.

        :raises ProtocolError: if a frame is too long.
        """
        self._buffer += data
        while True:
            dropped = min(self._to_drop, len(self._buffer))
            del self._buffer[:dropped]
            self._to_drop -= dropped
            if len(self._buffer) < _HEADER:
                return
            length = int.from_bytes(self._buffer[1:_HEADER], "big")
            if length > MAX_PAYLOAD:
                raise ProtocolError(f"a frame of {length} bytes is longer than {MAX_PAYLOAD}")
            if self._buffer[0] in self._dropped:
                kind = self._buffer[0]
                del self._buffer[:_HEADER]
                self._to_drop = length
                yield kind, b""
                continue
            if len(self._buffer) < _HEADER + length:
                return
            kind, payload = self._buffer[0], bytes(self._buffer[_HEADER : _HEADER + length])
            del self._buffer[: _HEADER + length]
            yield kind, payload


class RequestReader:
    """Puts a request together from its frames."""

    def __init__(self) -> None:
        self.stage = ""
        self.pid = 0
        self.claim_only = False
        """Whether token and cursor are all that is wanted, and the rest comes without its payload."""
        self._counts: Counter[str] = Counter()
        self._path_bytes = 0
        self._environment: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}
        self._unreadable: dict[str, str] = {}
        self._paths: list[Entry] = []
        self._token = b""
        self._cursor = ""
        self._arguments: dict[str, str] = {}

    def add(self, kind: int, payload: bytes) -> Request | None:
        """Take in one frame; return the request when this was its last.

        :raises ProtocolError: if the frame breaks a rule or a bound.
        """
        if not self.stage:
            if kind != Kind.HELLO:
                raise ProtocolError("a request must begin with a hello")
            self._hello(payload)
            return None
        if self.claim_only and kind in _BULKY:
            return None
        match kind:
            case Kind.ENVIRONMENT:
                self._count("environment entries", MAX_ENVIRONMENT)
                self._bound("bytes of an environment entry", len(payload), MAX_ENVIRONMENT_ENTRY)
                name, value = _fields(payload, 2)
                self._environment[_text(name)] = _text(value)
            case Kind.ARGUMENT:
                self._bound("bytes of an argument", len(payload), MAX_ARGUMENT)
                name, value = _fields(payload, 2)
                if _text(name) not in ARGUMENTS.get(self.stage, ()) or _text(name) in self._arguments:
                    raise ProtocolError(f"{self.stage} takes no argument {_shown(name)}, or not twice")
                self._arguments[_text(name)] = _text(value)
            case Kind.DOCUMENT:
                document, content = self._document(payload)
                self._documents[document] = content
            case Kind.UNREADABLE:
                document, reason = self._document(payload)
                self._bound("bytes of a reason", len(reason), MAX_REASON)
                self._unreadable[document] = _text(reason)
            case Kind.PATH:
                if self.stage not in LISTING:
                    raise ProtocolError(f"{self.stage} sends no paths")
                self._count("paths below META-INF", MAX_PATHS)
                self._path_bytes += len(payload)
                self._bound("bytes of paths below META-INF", self._path_bytes, MAX_PATH_BYTES)
                self._paths.append(_entry(payload))
            case Kind.TOKEN:
                if self.stage != "run" or self._token or not _TOKEN.fullmatch(payload):
                    raise ProtocolError("a token is 32 lower-case hexadecimal digits, once, of run")
                self._token = payload
            case Kind.CURSOR:
                self._bound("bytes of a cursor", len(payload), MAX_CURSOR)
                if self.stage != "run" or self._cursor:
                    raise ProtocolError("a cursor is sent once, by run")
                self._cursor = _text(payload)
            case Kind.END:
                if self.stage == "run" and not self._token:
                    raise ProtocolError("run must send a token")
                return Request(
                    self.stage,
                    self.pid,
                    self._environment,
                    self._documents,
                    self._unreadable,
                    tuple(self._paths),
                    self._token,
                    self._cursor,
                    self._arguments,
                )
            case _:
                raise ProtocolError(f"a request has no frame of kind {chr(kind)!a}")
        return None

    def _hello(self, payload: bytes) -> None:
        version, stage, pid = _fields(payload, 3)
        if version != VERSION:
            raise ProtocolError(
                f"the client speaks protocol version {_shown(version)} and this daemon {VERSION.decode()}:"
                " use the programs that came with this daemon"
            )
        if _text(stage) not in STAGES:
            raise ProtocolError(f"there is no stage {_shown(stage)}")
        self.stage, self.pid = _text(stage), _number(pid)

    def _document(self, payload: bytes) -> tuple[str, bytes]:
        name, content = _fields(payload, 2)
        document = _text(name)
        if document not in DOCUMENTS.get(self.stage, ()):
            raise ProtocolError(f"{self.stage} sends no document {_shown(name)}")
        if document in self._documents or document in self._unreadable:
            raise ProtocolError(f"the document {_shown(name)} is sent twice")
        return document, content

    def _count(self, what: str, most: int) -> None:
        self._counts[what] += 1
        self._bound(what, self._counts[what], most)

    def _bound(self, what: str, number: int, most: int) -> None:
        if number > most:
            raise ProtocolError(f"more than {most} {what}")


def _header(kind: Kind, length: int) -> bytes:
    return bytes([kind]) + length.to_bytes(4, "big")


def frame(kind: Kind, payload: bytes) -> bytes:
    """Return a frame as bytes."""
    return _header(kind, len(payload)) + payload


SIGN_OF_LIFE = frame(Kind.WORDS, b"")
"""Words without a word: all clients take them, and newer ones know by them that the daemon is there."""


def words(stage: str, pid: int, text: str, *, debug: bool = False) -> bytes:
    """Return the frame of one line of the builder's own; line feeds and control characters in it become spaces."""
    text = _NOT_PRINTED.sub(" ", text)
    data = text.encode("utf-8", "backslashreplace")
    if len(data) > MAX_LINE:
        data = data[:MAX_LINE] + b" [cut here: %d bytes more]" % (len(data) - MAX_LINE)
    prefix = f"{stage} [{pid}]{' DEBUG' if debug else ''}: ".encode()
    return frame(Kind.WORDS, prefix + data + b"\n")


def log(cursor: str, lines: bytes = b"") -> bytes:
    """Return the frame of whole lines of a log and the cursor after them."""
    at = cursor.encode()
    head = len(at).to_bytes(2, "big") + at
    return b"".join((_header(Kind.LOG, len(head) + len(lines)), head, lines))  # lines may be many: copied once


def copy(source: str, destination: str) -> bytes:
    """Return the frame that has the client copy one file."""
    return frame(
        Kind.COPY, source.encode(errors="surrogateescape") + b"\0" + destination.encode(errors="surrogateescape")
    )


def exit_with(code: int) -> bytes:
    """Return the last frame of a call."""
    return frame(Kind.EXIT, b"%d" % code)


def _fields(payload: bytes, count: int) -> list[bytes]:
    fields = payload.split(b"\0", count - 1)
    if len(fields) != count:
        raise ProtocolError(f"a payload has {len(fields)} fields where {count} are due")
    return fields


def _entry(payload: bytes) -> Entry:
    kind, size, path = _fields(payload, 3)
    if kind not in {b"f", b"d", b"o"}:
        raise ProtocolError(f"there is no kind of path {_shown(kind)}")
    if len(path) > MAX_PATH:
        raise ProtocolError(f"more than {MAX_PATH} bytes of a path")
    return Entry(_text(kind), _number(size), _text(path))


def _shown(field: bytes) -> str:
    return ascii(_text(field[:64]))


def _number(field: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", field):
        raise ProtocolError("a number is written in decimal digits")
    return int(field)


def _text(field: bytes) -> str:
    # Linux' names are bytes; what is not UTF-8 has to come back to the client as it was.
    return field.decode("utf-8", "surrogateescape")
