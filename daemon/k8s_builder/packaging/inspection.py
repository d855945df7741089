"""Reads a chaincode package as the peer, `detect`, `build` and `release` will, and tells what would go wrong.

The peer's rules: Fabric's core/chaincode/persistence/chaincode_package.go (the outer archive) and
core/container/externalbuilder/tar.go (code.tar.gz). A package may come from anywhere: everything is read as a
stream, once, and within bounds.
"""

import hashlib
import io
import json
import os
import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO, Self, cast

from msgspec import Struct, field

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric.package import (
    DOCUMENT_SIZE,
    IMAGE_FILE,
    META_INF,
    METADATA_FILE,
    Image,
    Metadata,
    check_label,
    decode_image,
    decode_metadata,
    files_to_build,
    is_index,
    is_k8s,
    shown,
)
from k8s_builderd.gateway.protocol import MAX_PATH, MAX_PATH_BYTES, MAX_PATHS

CODE_FILE = "code.tar.gz"

INSTALL_SIZE = 100 * 1024 * 1024
"""Bytes of the largest message that a peer takes by default, and so of the largest package."""

UNPACKED_SIZE = INSTALL_SIZE
"""Bytes that are unpacked of one archive before its inspection ends."""

ENTRIES = MAX_PATHS
"""Entries of an archive that are looked at; `build` can tell the daemon of no more paths."""

_PEER_LABEL = re.compile("[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Inspection(Struct):
    """What a package holds, as far as it could be read, and what would go wrong with it."""

    sha256: str
    metadata: Metadata | None = None
    image: Image | None = None
    indexes: list[str] = field(default_factory=list)
    problems: list[PackageError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def package_id(self) -> str | None:
        """The id that the peer gives the package; None where its label could not be read."""
        return f"{self.metadata.label}:{self.sha256}" if self.metadata and self.metadata.label else None


def inspect_package(package: bytes) -> Inspection:
    """Inspect a package. No content makes it raise: what is wrong stands in `problems`, in the order of discovery."""
    inspection = Inspection(hashlib.sha256(package).hexdigest())
    if len(package) > INSTALL_SIZE:
        _problem(inspection, "package", f"must be at most {INSTALL_SIZE:,} bytes, which a peer takes by default")
    seen: set[str] = set()
    with _told(inspection, "package"), _entries(io.BytesIO(package)) as archive:
        for member in _members(archive, "package"):
            _inspect_outer(inspection, archive, member, seen)
    for file in (METADATA_FILE, CODE_FILE):
        if file not in seen:
            _problem(inspection, file, "is missing: the peer looks for exactly this name in the package")
    return inspection


def _inspect_outer(inspection: Inspection, archive: tarfile.TarFile, member: tarfile.TarInfo, seen: set[str]) -> None:
    name = member.name
    if not _is_file(member):
        _problem(inspection, "package", f"holds {shown(name)}, which is no regular file: the peer refuses that")
    elif name in seen:
        _problem(inspection, name, "is there twice")
    elif name == METADATA_FILE:
        with _told(inspection, name):
            inspection.metadata = decode_metadata(_document(archive, member, name))
            _check_metadata(inspection, inspection.metadata)
    elif name == CODE_FILE:
        with _told(inspection, name):
            _inspect_code(inspection, _content(archive, member))
    else:
        inspection.notes.append(f"the peer ignores {shown(name)}")
    seen.add(name)


def _check_metadata(inspection: Inspection, metadata: Metadata) -> None:
    if not is_k8s(metadata):
        _problem(inspection, METADATA_FILE, f"must be k8s, in any case; it is {shown(metadata.type)}", "type")
    if not _PEER_LABEL.fullmatch(metadata.label):
        rule = "must begin with a letter or digit and go on with letters, digits and '.+-_', says the peer"
        raise PackageError(METADATA_FILE, f"{rule}; it is {shown(metadata.label)}", "label")
    check_label(metadata.label)


def _inspect_code(inspection: Inspection, code: IO[bytes]) -> None:
    paths: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    with _entries(code) as archive:
        for member in _members(archive, CODE_FILE):
            path = posixpath.normpath(member.name)
            if _escapes(path):
                _problem(inspection, CODE_FILE, f"holds {shown(member.name)}, which the peer refuses: it leads outside")
            elif member.isdir():
                paths.append(("d", path))
            elif not _is_file(member):
                rule = f"holds {shown(path)}, which is neither file nor directory: the peer refuses that"
                _problem(inspection, CODE_FILE, rule)
            elif path in seen:
                _problem(inspection, path, "is there twice: which of them counts is not certain")
            else:
                seen.add(path)
                paths.append(("f", path))
                sizes[path] = member.size
                _inspect_file(inspection, archive, member, path)
    if IMAGE_FILE not in seen:
        _problem(inspection, IMAGE_FILE, f"is missing in {CODE_FILE}")
    below = [(kind, path) for kind, path in paths if path.split("/")[0] == META_INF]
    files_to_build(below)
    _check_listing(inspection, {path: sizes.get(path, 0) for _, path in below})


def _check_listing(inspection: Inspection, sizes: dict[str, int]) -> None:
    """Check that `build` can tell the daemon of META-INF, directories that have no entry of their own included."""
    for path in list(sizes):
        while (path := posixpath.dirname(path)) and path not in sizes:
            sizes[path] = 0
    sizes.pop(META_INF, None)
    lengths = {path: len(os.fsencode(f"f {size} {path}")) for path, size in sizes.items()}
    if len(lengths) > MAX_PATHS:
        _problem(inspection, META_INF, f"must hold at most {MAX_PATHS:,} files and directories")
    if sum(lengths.values()) > MAX_PATH_BYTES:
        _problem(inspection, META_INF, f"must have paths of at most {MAX_PATH_BYTES:,} bytes together")
    for path in (path for path, length in lengths.items() if length > MAX_PATH):
        _problem(inspection, CODE_FILE, f"holds a path of more than {MAX_PATH:,} bytes: {shown(path)}")


def _inspect_file(inspection: Inspection, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    if path == IMAGE_FILE:
        with _told(inspection, path):
            inspection.image = decode_image(_document(archive, member, path))
    elif is_index(path):
        inspection.indexes.append(path)
        if fault := index_fault(_document(archive, member, path)):
            _problem(inspection, path, fault)
    elif path.startswith(f"{META_INF}/"):
        inspection.notes.append(f"{shown(path)} is no index: `release` does not hand it to the peer")
    else:
        inspection.notes.append(f"`build` ignores {shown(path)}")


def index_fault(document: bytes) -> str | None:
    """Return why CouchDB would not make an index of this definition, which the peer only logs; None if it would."""
    try:
        definition = json.loads(document)
    except (ValueError, RecursionError):
        return "must be JSON"
    index = definition.get("index") if isinstance(definition, dict) else None
    if not isinstance(index, dict) or not isinstance(index.get("fields"), list):
        return "must be an index definition: a JSON object with an object 'index', which has an array 'fields'"
    return None


@contextmanager
def _entries(compressed: IO[bytes]) -> Iterator[tarfile.TarFile]:
    # As a stream ("r|"): tarfile then never seeks back, so a crafted size cannot make it read in circles.
    bounded = cast("IO[bytes]", _Bounded(GzipFile(fileobj=compressed)))
    with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_Header) as archive:
        yield archive


def _members(archive: tarfile.TarFile, file: str) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(archive):
        if count >= ENTRIES:
            raise PackageError(file, f"must hold at most {ENTRIES:,} entries")
        if archive.pax_headers:
            # What `git archive` writes. Go's tar hands it out as an entry, and so the peer sees one of a strange type.
            raise PackageError(
                file, "begins with a global PAX header, as `git archive` writes it: the peer refuses that"
            )
        yield member


_EXTENDED = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_LONGEST_EXTENDED = 16 * 1024


class _Header(tarfile.TarInfo):
    """A header that may not be broken: tarfile takes a broken one after the first for the end, the peer does not."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
            if header.type in _EXTENDED and header.size > _LONGEST_EXTENDED:
                # Before 3.11.10 tarfile needs quadratic time for the digits in one (CVE-2024-6232).
                raise tarfile.ReadError("an extended header is too large")
            return header
        except tarfile.HeaderError as error:
            if any(buf):  # else it is the end
                raise tarfile.ReadError(str(error)) from None
            raise


class _Bounded(io.RawIOBase):
    """The decompressed bytes of an archive, up to a bound."""

    def __init__(self, source: GzipFile) -> None:
        self._source = source
        self._left = UNPACKED_SIZE

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        return data


class _TooLargeError(Exception):
    """More than UNPACKED_SIZE bytes come out of an archive."""


@contextmanager
def _told(inspection: Inspection, file: str) -> Iterator[None]:
    """Turn what goes wrong with a file of the package into a problem that names it."""
    try:
        yield
    except PackageError as error:
        inspection.problems.append(error)
    except _TooLargeError:
        _problem(inspection, file, f"unpacks to more than {UNPACKED_SIZE:,} bytes: not inspected further")
    except (BadGzipFile, tarfile.TarError, EOFError, zlib.error, RecursionError, ValueError, OverflowError) as error:
        # zlib and tarfile differ between versions in which of these a broken archive raises.
        _problem(inspection, file, f"must be a tar archive compressed with gzip: {str(error) or type(error).__name__}")


def _problem(inspection: Inspection, file: str, rule: str, name: str = "") -> None:
    inspection.problems.append(PackageError(file if file.isprintable() else shown(file), rule, name))


def _document(archive: tarfile.TarFile, member: tarfile.TarInfo, file: str) -> bytes:
    if member.size > DOCUMENT_SIZE:
        raise PackageError(file, f"must be at most {DOCUMENT_SIZE:,} bytes")
    return _content(archive, member).read()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = archive.extractfile(member)
    assert content is not None  # it is a regular file
    return content


def _is_file(member: tarfile.TarInfo) -> bool:
    """Tell whether Go's tar, and so the peer, takes an entry for a regular file: GNU's sparse ones it does not."""
    return member.type in {tarfile.REGTYPE, tarfile.AREGTYPE}


def _escapes(path: str) -> bool:
    """Tell whether a normalized path leads out of the directory that code.tar.gz is unpacked to."""
    return path.startswith(("/", "../")) or path == ".."
