"""Archives are read by the rules of Go's archive/tar."""

import io
import struct
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builder.packaging.archive import tar
from k8s_builder.packaging.reader import TarError, entries

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
END = bytes(1024)

deterministic = settings(derandomize=True, deadline=None, database=None)


def read(archive: bytes) -> list[tuple[str, str, bytes]]:
    return [(entry.name, entry.type, entry.content.read() or b"") for entry in entries(io.BytesIO(archive))]


def written(files: list[tuple[str, bytes]], tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sealed(header: bytearray, *, signed: bool = False) -> bytes:
    """Return a header with the checksum that it should have."""
    header[148:156] = b" " * 8
    total = sum(struct.unpack("512b", header) if signed else header)
    header[148:156] = b"%06o\0 " % total
    return bytes(header)


def changed(start: int, value: bytes) -> bytes:
    """Return the header of an empty file `a` with a field that is another, and the right checksum."""
    header = bytearray(tar({"a": b""})[:512])
    header[start : start + len(value)] = value
    return sealed(header)


@deterministic
@given(
    st.lists(st.tuples(st.text("abü/. -", min_size=1, max_size=300), st.binary(max_size=1500)), max_size=4),
    st.sampled_from(FORMATS[1:]),
)
def test_what_tarfile_writes_is_read(files: list[tuple[str, bytes]], tar_format: int) -> None:
    archive = written(files, tar_format)
    with tarfile.open(fileobj=io.BytesIO(archive)) as known:
        expected = [(info.name, info.type.decode(), (known.extractfile(info) or io.BytesIO()).read()) for info in known]
    # tarfile takes the slash off the name of a directory, and takes a file whose name ends so for one.
    assert [(name.rstrip("/"), content) for name, _, content in read(archive)] == [
        (name.rstrip("/"), content) for name, _, content in expected
    ]


@pytest.mark.parametrize("tar_format", FORMATS)
def test_the_content_of_an_entry_may_be_left_unread(tar_format: int) -> None:
    archive = written([("a", b"x" * 3_000_000), ("n" * 99, b"y"), ("b", b"z")], tar_format)
    assert [entry.name for entry in entries(io.BytesIO(archive))] == ["a", "n" * 99, "b"]


def test_the_oldest_format_marks_directories_by_their_names() -> None:
    for name, kind in ((b"a/", "5"), (b"a", "0")):
        header = bytearray(512)
        header[: len(name)] = name
        header[124:136] = b"00000000000\0"
        assert read(sealed(header) + END) == [(name.decode(), kind, b"")]


def test_large_numbers_and_signed_checksums_are_read() -> None:
    base_256 = bytearray(changed(124, b"\x80" + (1).to_bytes(11, "big")))
    assert read(bytes(base_256) + b"x".ljust(512, b"\0") + END) == [("a", "0", b"x")]
    umlaut = bytearray(tar({"ä": b""})[:512])
    assert read(sealed(umlaut, signed=True) + END) == [("ä", "0", b"")]


def test_the_prefix_of_stars_format_is_shorter() -> None:
    header = bytearray(tar({f"{'p' * 120}/{'n' * 90}": b""})[:512])
    header[476:500] = b"00000000001\0" * 2
    header[508:] = b"tar\0"
    assert read(sealed(header) + END) == [(f"{'p' * 120}/{'n' * 90}", "0", b"")]


def test_an_empty_value_of_an_extended_header_changes_nothing() -> None:
    archive = written([("a", b"x")], tarfile.USTAR_FORMAT)
    assert read(pax(b"8 path=\n") + archive) == [("a", "0", b"x")]
    assert read(pax(b"9 path=b\n") + archive) == [("b", "0", b"x")]


def pax(records: bytes) -> bytes:
    header = bytearray(changed(156, b"x"))
    header[124:136] = b"%011o\0" % len(records)
    return sealed(header) + records.ljust(512, b"\0")


@pytest.mark.parametrize(
    "archive",
    [
        b"x" * 512,
        bytes(512) + b"x" * 512,
        tar({"a": b"x" * 600})[:1000],
        tar({"a": b""})[:200],
        changed(124, b"99999999999\0") + END,
        changed(124, b"\xff" * 12) + END,
        changed(124, b"\xbf" + b"\xff" * 11) + END,
        changed(100, b"rw-r--r-") + END,
        changed(329, b"x") + END,
        *(
            pax(records) + tar({"a": b""})
            for records in (
                b"9 path=b\nx",
                b"9 path=bb",
                b"4 a=\n",
                b"-9 path=b\n",
                b"11 path=b\n",
                b"6 abc\n",
                b"999 path=b\n",
                b"10 path=\0b\n",
                b"8 \0a=bc\n",
                b"9 size=x\n",
                b"10 size=-1\n",
                b"11 mtime=1x\n",
            )
        ),
    ],
)
def test_what_gos_tar_finds_broken_is_broken(archive: bytes) -> None:
    with pytest.raises(TarError):
        read(archive)


@pytest.mark.parametrize("archive", [b"", bytes(512), bytes(1024), tar({})])
def test_an_archive_may_be_empty_and_lack_its_end(archive: bytes) -> None:
    assert read(archive) == []
    assert read(tar({"a": b"x"})[:513]) == [("a", "0", b"x")]
