"""What a call tells the daemon: environment, documents and the listing of META-INF, as frames of docs/protocol.md."""

import _stat
import posix

from . import beneath, wire
from .call import Call, CallError, encoded, shown

ENTRIES = (
    b"CORE_PEER_ID",
    b"FABRIC_K8S_BUILDER_DEBUG",
    b"FABRIC_K8S_BUILDER_NAMESPACE",
    b"FABRIC_K8S_BUILDER_NODE_ROLE",
    b"FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX",
    b"FABRIC_K8S_BUILDER_SERVICE_ACCOUNT",
    b"FABRIC_K8S_BUILDER_START_TIMEOUT",
)
"""The environment entries that are forwarded where they are set; nothing else of the peer's environment is."""

DOCUMENTS = {
    "detect": (("CHAINCODE_METADATA_DIR", b"metadata.json"),),
    "build": (("CHAINCODE_METADATA_DIR", b"metadata.json"), ("CHAINCODE_SOURCE_DIR", b"image.json")),
    "release": (),
    "run": (("BUILD_OUTPUT_DIR", b"image.json"), ("RUN_METADATA_DIR", b"chaincode.json")),
}
"""Each stage's documents, with the argument that names their directory."""

STARTED = b"started"
"""One more entry, of `run` only: which of two launches is the later one, whichever comes through first."""

MAX_ENTRY = 4096
"""Bytes of an `E` frame's payload."""
MAX_PATH = 4096
"""Bytes of a `P` frame's payload."""
MAX_PATHS = 10000
MAX_PATH_BYTES = 1 << 20
"""Bytes of the payloads of all `P` frames of one request together."""


class Request:
    """All of a request but its cursor and its end, and what follows from reading it.

    `frames` are the bytes for the socket, `listed` the files that the daemon may have copied. Raises CallError where a
    bound of the protocol would not be kept.
    """

    def __init__(self, call: Call, pid: int) -> None:
        self.listed = set()  # type: set[bytes]
        self.plainly_not_ours = False
        parts = [wire.frame(wire.HELLO, wire.VERSION, call.stage.encode(), b"%d" % pid)]
        parts += _entries(call)
        start = process_start() if call.stage == "run" else b""
        if start:
            parts.append(wire.frame(wire.ENVIRONMENT, STARTED, start))
        for argument, name in DOCUMENTS[call.stage]:
            directory = call.directories[argument]
            try:
                content = read_document((directory or b".") + b"/" + name, wire.MAX_PAYLOAD - len(name) - 1)
            except OSError as error:
                parts.append(wire.frame(wire.UNREADABLE, name, (error.strerror or "unknown error").encode()))
                continue
            parts.append(wire.frame(wire.DOCUMENT, name, content))
            if directory == call.input:
                self.listed.add(name)
            if call.stage == "detect":
                self.plainly_not_ours = cannot_be_ours(content)
        if call.input is not None:
            room = MAX_PATH_BYTES
            for kind, size, path in list_meta_inf(call.input):
                part = wire.frame(wire.PATH, kind, b"%d" % size, path)
                if len(part) > wire.HEADER + MAX_PATH:
                    raise CallError(
                        "A path below META-INF is longer than %d bytes: %s..." % (MAX_PATH, shown(path[:200]))
                    )
                room -= len(part) - wire.HEADER
                if room < 0:
                    raise CallError("The paths below META-INF have more than %d bytes in total" % MAX_PATH_BYTES)
                parts.append(part)
                if kind == b"f":
                    self.listed.add(path)
        if call.stage == "run":
            parts.append(wire.frame(wire.TOKEN, posix.urandom(16).hex().encode()))
        self.frames = b"".join(parts)


def cannot_be_ours(metadata: bytes) -> bool:
    """Whether metadata.json plainly holds no type `k8s`, however JSON, Unicode or a careless writer might spell it.

    A detect that says so costs the peer no call of the daemon, and no wait for one, for packages of other types.
    """
    return metadata.isascii() and b"\0" not in metadata and b"\\u" not in metadata and b"k8s" not in metadata.lower()


def _entries(call: Call) -> "list[bytes]":
    parts = []
    for name in ENTRIES:
        value = call.environment.get(name)
        if value is None:
            continue
        if len(name) + 1 + len(value) > MAX_ENTRY:
            raise CallError("The %s environment variable is longer than %d bytes" % (name.decode(), MAX_ENTRY))
        parts.append(wire.frame(wire.ENVIRONMENT, name, value))
    return parts


def process_start() -> bytes:
    """Which boot of the kernel this is, and how many clock ticks after it this process was started.

    Empty where the kernel does not say.
    """
    try:
        boot = read_document(b"/proc/sys/kernel/random/boot_id", 256)
        stat = read_document(b"/proc/self/stat", 4096)
        return b"%s %d" % (boot.strip(), int(stat.rpartition(b")")[2].split()[19]))
    except (OSError, ValueError, IndexError):
        return b""


def read_document(path: bytes, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, not following a link. Raises OSError with the reason."""
    descriptor = posix.open(path, posix.O_RDONLY | posix.O_NOFOLLOW | posix.O_NONBLOCK)
    try:
        if not _stat.S_ISREG(posix.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        content = bytearray()
        while len(content) <= limit:
            chunk = posix.read(descriptor, 1 << 16)
            if not chunk:
                return bytes(content)
            content += chunk
        raise OSError(0, "larger than 1 MiB")
    finally:
        posix.close(descriptor)


def list_meta_inf(directory: bytes) -> "list[tuple[bytes, int, bytes]]":
    """Kind, size and relative path of all below META-INF, parents first, without following a link.

    A META-INF that is no directory is listed itself, so that the daemon can say so. Raises CallError for more entries
    than the protocol takes, and where a directory cannot be read.
    """
    name = b"META-INF"
    try:
        status = posix.lstat((directory or b".") + b"/" + name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CallError("Error reading META-INF in %s: %s" % (shown(directory), error.strerror)) from None
    if not _stat.S_ISDIR(status.st_mode):
        return [(*_kind_and_size(status), name)]
    found = []  # type: list[tuple[bytes, int, bytes]]
    waiting = [name]
    while waiting:
        parent = waiting.pop()
        try:
            below = _entries_of(directory, parent, MAX_PATHS - len(found))
        except OSError as error:
            raise CallError("Error reading %s: %s" % (shown(parent[:1024]), error.strerror)) from None
        found += below
        waiting += [path for kind, _, path in reversed(below) if kind == b"d"]
    return found


def _entries_of(directory: bytes, parent: bytes, room: int) -> "list[tuple[bytes, int, bytes]]":
    below = []  # type: list[tuple[bytes, int, bytes]]
    root = posix.open(directory, posix.O_RDONLY | posix.O_DIRECTORY)
    try:
        descriptor = beneath.open_file(root, parent, posix.O_RDONLY | posix.O_DIRECTORY)
    finally:
        posix.close(root)
    try:
        with posix.scandir(descriptor) as entries:
            for entry in entries:
                if len(below) == room:
                    raise CallError("META-INF contains more than %d files and directories" % MAX_PATHS)
                status = entry.stat(follow_symlinks=False)
                below.append((*_kind_and_size(status), parent + b"/" + encoded(entry.name)))
    finally:
        posix.close(descriptor)
    below.sort(key=lambda one: one[2])
    return below


def _kind_and_size(status: posix.stat_result) -> "tuple[bytes, int]":
    if _stat.S_ISREG(status.st_mode):
        return b"f", status.st_size
    return (b"d" if _stat.S_ISDIR(status.st_mode) else b"o"), 0  # what a directory's size says differs by file system
