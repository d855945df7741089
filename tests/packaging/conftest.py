"""Chaincode packages as others make them, and a registry."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable

import pytest

DIGEST = "sha256:" + "0123456789abcdef" * 4
METADATA = b'{"type":"k8s","label":"basic_1.0"}'
IMAGE = json.dumps({"name": "ghcr.io/org/cc", "digest": DIGEST}).encode()

Entry = tuple[str, bytes | None] | tarfile.TarInfo
"""Path and content of a file (None: a directory), or a header without content."""

Archive = Callable[..., bytes]


@pytest.fixture(scope="session")
def archive() -> Archive:
    """Make a .tar.gz with Python's tarfile, in any format."""

    def make(entries: Iterable[Entry], tar_format: int = tarfile.GNU_FORMAT, **options: dict[str, str]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz", format=tar_format, **options) as tar:  # type: ignore[call-overload]
            for entry in entries:
                if isinstance(entry, tarfile.TarInfo):
                    tar.addfile(entry)
                    continue
                path, content = entry
                header = tarfile.TarInfo(path)
                if content is None:
                    header.type = tarfile.DIRTYPE
                    tar.addfile(header)
                else:
                    header.size = len(content)
                    tar.addfile(header, io.BytesIO(content))
        return buffer.getvalue()

    return make


@pytest.fixture(name="package", scope="session")
def make_package(archive: Archive) -> Callable[..., bytes]:
    """Make a package of which nothing is wrong but what the arguments change."""

    def make(metadata: bytes = METADATA, image: bytes = IMAGE, code: Iterable[Entry] = (), **options: int) -> bytes:
        inner = archive([("image.json", image), *code], **options)
        return archive([("metadata.json", metadata), ("code.tar.gz", inner)], **options)

    return make
