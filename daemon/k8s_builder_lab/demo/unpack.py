"""Takes a chaincode package apart as the peer does when it is installed.

The rules are those of Fabric's core/chaincode/persistence (ParseChaincodePackage) and
core/container/externalbuilder/tar.go (Untar, ValidPath).
"""

import gzip
import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from k8s_builderd.errors import BuilderError

_LABEL = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.+-]*")
_REGULAR = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})
# Fabric's pkgIDreg: what may not stand in the name of a directory made for a chaincode id.
_NOT_IN_A_PATH = re.compile(r'[<>:"/\\|?*&]')


class UnpackError(BuilderError):
    """Raised when the peer would not install, or not unpack, a chaincode package."""


@dataclass(frozen=True)
class Package:
    """An installed package: `metadata` and `code` are the bytes of metadata.json and code.tar.gz."""

    package_id: str
    label: str
    metadata: bytes
    code: bytes


def read_package(content: bytes) -> Package:
    """Read a .tgz as the peer reads it at its installation. Raises UnpackError."""
    metadata = code = None
    for entry, data in _entries(content, "the chaincode package"):
        if entry.type not in _REGULAR:
            raise UnpackError(f"tar entry {entry.name} is not a regular file, type {entry.type.decode()}")
        # Names are compared as they stand: the peer does not know ./metadata.json.
        if entry.name == "metadata.json":
            metadata = data
        elif entry.name == "code.tar.gz":
            code = data
    if code is None:
        raise UnpackError("did not find a code package inside the package")
    if metadata is None:
        raise UnpackError("did not find any package metadata (missing metadata.json)")
    label = _label(metadata)
    return Package(f"{label}:{hashlib.sha256(content).hexdigest()}", label, metadata, code)


def unpack_code(code: bytes, directory: Path) -> None:
    """Unpack code.tar.gz into `directory`. Raises UnpackError at the first entry that the peer would refuse."""
    for entry, data in _entries(code, "code.tar.gz"):
        if escapes(entry.name):
            raise UnpackError(f"tar contains the absolute or escaping path '{entry.name}'")
        if entry.type not in _REGULAR and entry.type != tarfile.DIRTYPE:
            raise UnpackError(f"invalid file type '{entry.type[0]}' contained in archive for file '{entry.name}'")
        target = directory / entry.name
        try:
            if entry.type == tarfile.DIRTYPE:
                _make_directories(target)
            else:
                _make_directories(target.parent)
                _write(target, data, entry.mode & 0o777)
        except OSError as error:
            raise UnpackError(f"could not create '{entry.name}': {error.strerror}") from error


def escapes(name: str) -> bool:
    """Tell whether a path is absolute or leads out of the directory that it is relative to."""
    clean = posixpath.normpath(name)
    return clean == ".." or clean.startswith(("/", "../"))


def path_of(chaincode_id: str) -> str:
    """Return the name of the directory that the peer keeps for a chaincode id."""
    return _NOT_IN_A_PATH.sub("-", chaincode_id)


def _make_directories(path: Path) -> None:
    if not path.is_dir():
        _make_directories(path.parent)
        path.mkdir(mode=0o700)


def _write(path: Path, content: bytes, mode: int) -> None:
    # The mode is the archive's own, as with the peer, which does not cut a file that an earlier entry made.
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY, mode), "wb") as stream:
        stream.write(content)


def _label(metadata: bytes) -> str:
    try:
        document = json.loads(metadata)
        label = document["label"]
    except (ValueError, TypeError, KeyError):
        raise UnpackError("could not unmarshal metadata.json as json with a label") from None
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise UnpackError(
            f"invalid label '{label}'. Label must be non-empty, can only consist of alphanumerics, "
            "symbols from '.+-_', and can only begin with alphanumerics"
        )
    return label


def _entries(content: bytes, what: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    try:
        stream = io.BytesIO(gzip.decompress(content))
        # An archive without any entry is zeros only, or empty.
        if not stream.getvalue().strip(b"\0"):
            return
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield from _read(archive, stream)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UnpackError(f"{what} is not a gzip-ed tar archive: {error}") from error


def _read(archive: tarfile.TarFile, stream: io.BytesIO) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for entry in archive:
        reader = archive.extractfile(entry) if entry.isreg() else None
        data = b"" if reader is None else reader.read()
        if reader is not None and len(data) != entry.size:
            raise UnpackError(f"tar entry {entry.name} is cut short")
        if archive.pax_headers:
            # Python takes a global header in silently; the peer sees an entry that is neither file nor directory.
            raise UnpackError("invalid file type '103' contained in archive (a pax global header)")
        yield entry, data
    # Python ends at a header that it cannot read as if the archive ended there; the peer does not.
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise UnpackError("could not get next tar element: invalid tar header")
