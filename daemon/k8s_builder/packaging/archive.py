"""Writes gzipped tar archives whose bytes follow from their content alone. Pure.

A package's id is the hash of its bytes, and every organisation that makes the package must come to the same one.
So both formats are written here: what tarfile puts into the fields for devices, and above all what deflate makes of
the same data, differ between versions of Python and zlib (zlib-ng, where Python is built with it, finds other
matches). Deflate's stored blocks leave nothing to choose; a package of some kilobytes can bear that.
"""

import struct
import zlib
from collections.abc import Mapping

from k8s_builderd.errors import PackageError

_BLOCK = 512
_NAME_LENGTH, _PREFIX_LENGTH = 100, 155
_STORED_LENGTH = 0xFFFF


def tar_gz(files: Mapping[str, bytes]) -> bytes:
    """Return a gzipped tar archive of regular files: sorted, of mode 0644, owned by 0, from 1970.

    :param files: content by path, `/` between its parts
    :raises PackageError: where a path is too long for the format (POSIX ustar)
    """
    return gzip_stored(tar(files))


def tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive in POSIX ustar format; see `tar_gz`."""
    blocks = []
    for path in sorted(files, key=str.encode):
        content = files[path]
        blocks += [_header(path, len(content)), content, bytes(-len(content) % _BLOCK)]
    blocks.append(bytes(2 * _BLOCK))
    return b"".join(blocks)


def gzip_stored(data: bytes) -> bytes:
    """Return `data` as a gzip stream without name, time and compression (RFC 1951, 3.2.4; RFC 1952, 2.3)."""
    parts = [b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"]  # no flags, no time, no hint, unknown system
    for start in range(0, max(len(data), 1), _STORED_LENGTH):
        chunk = data[start : start + _STORED_LENGTH]
        last = start + _STORED_LENGTH >= len(data)
        parts += [struct.pack("<BHH", last, len(chunk), len(chunk) ^ 0xFFFF), chunk]
    parts.append(struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF))
    return b"".join(parts)


def _header(path: str, size: int) -> bytes:
    prefix, name = _split(path)
    fields = struct.pack(
        "100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x",
        name,
        b"0000644\0",  # mode
        b"0000000\0",  # user id
        b"0000000\0",  # group id
        b"%011o\0" % size,
        b"00000000000\0",  # modification time
        b" " * 8,  # the checksum counts as spaces while it is taken
        b"0",  # regular file
        b"",  # no link
        b"ustar\0",
        b"00",
        b"",  # user and group name
        b"",
        b"0000000\0",  # device numbers
        b"0000000\0",
        prefix,
    )
    return fields[:148] + b"%06o\0 " % sum(fields) + fields[156:]


def _split(path: str) -> tuple[bytes, bytes]:
    """Split a path into ustar's prefix and name."""
    encoded = path.encode("utf-8", "surrogateescape")
    if len(encoded) <= _NAME_LENGTH:
        return b"", encoded
    slash = encoded.find(b"/", len(encoded) - _NAME_LENGTH - 1)  # the name as long as it may be
    if not 0 < slash <= _PREFIX_LENGTH or slash == len(encoded) - 1:
        raise PackageError(path, f"has a path that is too long: at most {_NAME_LENGTH} bytes may follow some '/'")
    return encoded[:slash], encoded[slash + 1 :]
