"""Reads tar archives by the rules of Go's archive/tar, which the peer unpacks packages with. No I/O but its source's.

Why not tarfile: it takes a broken header after the first for the end of the archive, hides a global PAX header, which
the peer sees, and before Python 3.11.10 needs quadratic time for the digits in an extended header (CVE-2024-6232).
"""

import io
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from msgspec import Struct

FILE, DIRECTORY, GLOBAL_HEADER = "0", "5", "g"
"""Types of entries, as they stand in a header."""

EXTENDED_SIZE = 1024 * 1024
"""Bytes of the longest PAX header or GNU long name (Go: maxSpecialFileSize)."""

_BLOCK = 512
_HEADER_ONLY = frozenset("123456")
_USTAR, _GNU, _STAR = b"ustar\0", b"ustar  \0", b"tar\0"
_LENGTH_DIGITS = 20
_SPARSE = "GNU.sparse."


class TarError(Exception):
    """An archive that the peer cannot read."""


class Source(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, and none only at the end."""


class Entry(Struct):
    """One entry of an archive. Its content can be read until the next entry is asked for."""

    name: str
    type: str
    size: int
    content: io.RawIOBase
    sparse: bool = False
    """Whether the content is stored with GNU tar's map of its holes, and so not as it will be unpacked."""

    @property
    def is_file(self) -> bool:
        """Tell whether the peer takes the entry for a regular file."""
        return self.type == FILE

    @property
    def is_directory(self) -> bool:
        """Tell whether the peer takes the entry for a directory."""
        return self.type == DIRECTORY


def entries(source: Source) -> Iterator[Entry]:
    """Yield the entries of an archive, in its order, up to its end.

    :raises TarError: where the peer would find the archive broken
    """
    extended: dict[str, str] = {}
    long_name = ""
    while (header := _header(source)) is not None:
        if header.type in "xLK":  # it says more of the entry that follows
            content = _Content(source, header.size)
            data = _special(content)
            if header.type == "x":
                extended = _records(data)
            elif header.type == "L":
                long_name = _text(data)
        else:
            if header.type != GLOBAL_HEADER:
                _merge(header, extended, long_name)
            content = _Content(source, 0 if header.type in _HEADER_ONLY else header.size)
            sparse = any(key.startswith(_SPARSE) for key in extended)
            yield Entry(header.name, header.type, header.size, content, sparse)
            extended, long_name = {}, ""
        content.skip()


class _Header(Struct):
    name: str
    type: str
    size: int


class _Content(io.RawIOBase):
    """The bytes of one entry."""

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._left = size
        self._padding = -size % _BLOCK

    def read(self, size: int = -1, /) -> bytes:
        size = self._left if size < 0 else min(size, self._left)
        data = _exactly(self._source, size)
        if len(data) < size:
            raise TarError("it is cut short")
        self._left -= size
        return data

    def skip(self) -> None:
        """Go on to the next header."""
        while self._left:
            self.read(1024 * 1024)
        _exactly(self._source, self._padding)  # at the archive's end it may be missing


def _header(source: Source) -> _Header | None:
    """Return the next header, None at the end: two blocks of zeros, or nothing more."""
    block = _exactly(source, _BLOCK)
    if block == bytes(_BLOCK):
        block = _exactly(source, _BLOCK)
        if block and block != bytes(_BLOCK):
            raise TarError("it has a block of zeros before its end")
        return None
    if not block:
        return None
    if len(block) < _BLOCK:
        raise TarError("it is cut short")
    checksum = _number(block[148:156])
    counted = block[:148] + b" " * 8 + block[156:]
    if checksum not in (sum(counted), sum(counted) - 256 * sum(byte > 127 for byte in counted)):
        raise TarError("the checksum of a header is wrong")
    for start, end in ((100, 108), (108, 116), (116, 124), (136, 148)):  # mode, owners, time
        _number(block[start:end])
    name = _text(block[:100])
    if block[257:263] == _USTAR:
        prefix = _text(block[345:476] if block[508:] == _STAR else block[345:500])
        name = f"{prefix}/{name}" if prefix else name
    if block[257:263] == _USTAR or block[257:265] == _GNU:
        _number(block[329:337])
        _number(block[337:345])
    return _Header(name, chr(block[156]), max(_number(block[124:136]), -1))


def _merge(header: _Header, extended: Mapping[str, str], long_name: str) -> None:
    """Apply to a header what came before it."""
    for key in ("size", "uid", "gid"):
        if (value := extended.get(key)) and not re.fullmatch("[+-]?[0-9]{1,19}", value):
            raise TarError(f"an extended header has a wrong {key}")
    for key in ("atime", "mtime", "ctime"):
        if (value := extended.get(key)) and not re.fullmatch(r"[+-]?[0-9]{1,19}(\.[0-9]*)?", value):
            raise TarError(f"an extended header has a wrong {key}")
    header.name = extended.get(_SPARSE + "name") or long_name or extended.get("path") or header.name
    header.size = int(extended.get("size") or header.size)
    if header.size < 0:
        raise TarError("an entry has a negative size")
    if header.type == "\0":
        header.type = DIRECTORY if header.name.endswith("/") else FILE


def _special(content: _Content) -> bytes:
    data = content.read(EXTENDED_SIZE + 1)
    if len(data) > EXTENDED_SIZE:
        raise TarError(f"an extended header is longer than {EXTENDED_SIZE:,} bytes")
    return data


def _records(data: bytes) -> dict[str, str]:
    """Return the records of a PAX header, each `<its own length> <key>=<value>` and a line feed."""
    records = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start, start + _LENGTH_DIGITS)
        digits = data[start : max(space, start)]
        end = start + int(digits) if re.fullmatch(b"[0-9]+", digits) else 0
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if end < start + 5 or not space < end <= len(data) or data[end - 1 : end] != b"\n" or not equals:
            raise TarError("a PAX header is broken")
        if b"\0" in (value if key in {b"path", b"linkpath", b"uname", b"gname"} else key):
            raise TarError("a PAX header is broken")
        records[_decoded(key)] = _decoded(value)
        start = end
    return records


def _number(field: bytes) -> int:
    """Return the number in a field: octal digits, or base 256 where the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
        value -= (1 << (8 * len(field) - 1)) if field[0] & 0x40 else 0
        if not -(1 << 63) <= value < 1 << 63:
            raise TarError("a number in a header is too large")
        return value
    digits = field.strip(b" \0").partition(b"\0")[0]
    if digits and not re.fullmatch(b"[0-7]+", digits):
        raise TarError("a number in a header is broken")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _exactly(source: Source, size: int) -> bytes:
    """Return `size` bytes, fewer only at the end."""
    parts = []
    while size and (part := source.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
