"""Reads a chaincode package as the peer, `detect`, `build` and `release` will, and tells what would go wrong.

The peer's rules: Fabric's core/chaincode/persistence/chaincode_package.go (the outer archive) and
core/container/externalbuilder/tar.go (code.tar.gz). A package may come from anywhere: everything is read as a
stream, once, and within bounds.
"""

import hashlib
import io
import os
import posixpath
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from typing import IO, cast

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

from .indexes import INDEX_SIZE, Index, collection_fault, decode_index, duplicates
from .reader import GLOBAL_HEADER, Entry, TarError, entries

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
        _problem(inspection, "package", f"must be at most {INSTALL_SIZE:,} bytes, the peer's default limit")
    seen: set[str] = set()
    with _told(inspection, "package"):
        for entry in _entries(io.BytesIO(package), "package"):
            _inspect_outer(inspection, entry, seen)
    for file in (METADATA_FILE, CODE_FILE):
        if file not in seen:
            _problem(inspection, file, "is missing: the peer looks for exactly this name in the package")
    return inspection


def _inspect_outer(inspection: Inspection, entry: Entry, seen: set[str]) -> None:
    name = entry.name
    if not entry.is_file:
        _problem(inspection, "package", f"holds {shown(name)}, which is not a regular file: the peer refuses it")
    elif name in seen:
        _problem(inspection, name, "appears twice")
    elif name == METADATA_FILE:
        with _told(inspection, name):
            inspection.metadata = decode_metadata(_document(entry, name))
            _check_metadata(inspection, inspection.metadata)
    elif name == CODE_FILE:
        with _told(inspection, name):
            _inspect_code(inspection, cast("IO[bytes]", entry.content))
    else:
        inspection.notes.append(f"the peer ignores {shown(name)}")
    seen.add(name)


def _check_metadata(inspection: Inspection, metadata: Metadata) -> None:
    if not is_k8s(metadata):
        _problem(inspection, METADATA_FILE, f"must be k8s, in any case; it is {shown(metadata.type)}", "type")
    if not _PEER_LABEL.fullmatch(metadata.label):
        rule = "must begin with a letter or digit, followed by letters, digits and '.+-_': the peer refuses others"
        raise PackageError(METADATA_FILE, f"{rule}; it is {shown(metadata.label)}", "label")
    check_label(metadata.label)


def _inspect_code(inspection: Inspection, code: IO[bytes]) -> None:
    paths: list[tuple[str, str]] = []
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    indexes: dict[str, Index] = {}
    for entry in _entries(code, CODE_FILE):
        path = posixpath.normpath(entry.name)
        if _escapes(path):
            _problem(
                inspection,
                CODE_FILE,
                f"holds {shown(entry.name)}, which the peer refuses: it points outside the package",
            )
        elif entry.is_directory:
            paths.append(("d", path))
        elif not entry.is_file:
            rule = f"holds {shown(path)}, which is neither a file nor a directory: the peer refuses it"
            _problem(inspection, CODE_FILE, rule)
        elif path in seen:
            _problem(inspection, path, "appears twice: it is not certain which one counts")
        else:
            seen.add(path)
            paths.append(("f", path))
            sizes[path] = entry.size
            try:
                _inspect_file(inspection, entry, path, indexes)
            except PackageError as error:
                _problem(inspection, path, error.rule, error.field)
    if IMAGE_FILE not in seen:
        _problem(inspection, IMAGE_FILE, f"is missing in {CODE_FILE}")
    for path, fault in duplicates(indexes):
        _problem(inspection, path, fault)
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
        _problem(inspection, META_INF, f"must contain at most {MAX_PATHS:,} files and directories")
    if sum(lengths.values()) > MAX_PATH_BYTES:
        _problem(inspection, META_INF, f"must have paths of at most {MAX_PATH_BYTES:,} bytes together")
    for path in (path for path, length in lengths.items() if length > MAX_PATH):
        _problem(inspection, CODE_FILE, f"holds a path of more than {MAX_PATH:,} bytes: {shown(path)}")


def _inspect_file(inspection: Inspection, entry: Entry, path: str, indexes: dict[str, Index]) -> None:
    if path == IMAGE_FILE:
        inspection.image = decode_image(_document(entry, path))
    elif is_index(path):
        inspection.indexes.append(path)
        if fault := collection_fault(path):
            _problem(inspection, path, fault)
        indexes[path] = decode_index(path, _document(entry, path, INDEX_SIZE))
        inspection.notes += [f"{shown(path)}: {note}" for note in indexes[path].notes]
    elif path.startswith(f"{META_INF}/"):
        inspection.notes.append(f"{shown(path)} is not an index: `release` does not hand it to the peer")
    else:
        inspection.notes.append(f"`build` ignores {shown(path)}")


def _entries(compressed: IO[bytes], file: str) -> Iterator[Entry]:
    for count, entry in enumerate(entries(_Bounded(GzipFile(fileobj=compressed)))):
        if count >= ENTRIES:
            raise PackageError(file, f"must contain at most {ENTRIES:,} entries")
        if entry.type == GLOBAL_HEADER:
            # Go's tar hands it out as an entry, and so the peer sees one of a strange type.
            raise PackageError(file, "holds a global PAX header, as `git archive` writes it: the peer refuses it")
        yield entry


class _Bounded:
    """The decompressed bytes of an archive, up to a bound."""

    def __init__(self, source: GzipFile) -> None:
        self._source = source
        self._left = UNPACKED_SIZE

    def read(self, size: int, /) -> bytes:
        data = self._source.read(min(size, self._left + 1))
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
        _problem(inspection, file, f"unpacks to more than {UNPACKED_SIZE:,} bytes: the rest was not inspected")
    except (BadGzipFile, TarError, EOFError, zlib.error) as error:
        _problem(inspection, file, f"must be a tar archive compressed with gzip: {str(error) or type(error).__name__}")


def _problem(inspection: Inspection, file: str, rule: str, name: str = "") -> None:
    inspection.problems.append(PackageError(file if file.isprintable() else shown(file), rule, name))


def _document(entry: Entry, file: str, most: int = DOCUMENT_SIZE) -> bytes:
    if entry.sparse:
        raise PackageError(file, "is stored as a sparse file, which is not inspected: pack it without `tar --sparse`")
    if entry.size > most:
        raise PackageError(file, f"must be at most {most:,} bytes")
    return entry.content.read() or b""


def _escapes(path: str) -> bool:
    """Tell whether a normalized path leads out of the directory that code.tar.gz is unpacked to."""
    return path.startswith(("/", "../")) or path == ".."
