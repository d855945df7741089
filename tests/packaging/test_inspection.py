"""A package from anywhere is judged as the peer and the builder will judge it, within bounds."""

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builder.packaging.archive import gzip_stored, tar, tar_gz
from k8s_builder.packaging.inspection import ENTRIES, inspect_package
from k8s_builderd.fabric.package import Image, Metadata
from tests.packaging.conftest import DIGEST, IMAGE, METADATA, Archive

Package = Callable[..., bytes]

deterministic = settings(derandomize=True, deadline=None, database=None)
INDEX = b'{"index":{"fields":["owner"]},"ddoc":"indexOwnerDoc","name":"indexOwner","type":"json"}'
INDEXES = "META-INF/statedb/couchdb/indexes"


def problems(package: bytes) -> list[str]:
    return [str(problem) for problem in inspect_package(package).problems]


def header(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_good_package_of_any_format_has_no_problem(package: Package, tar_format: int) -> None:
    long = "META-INF/" + "long/" * 60 + "ü.json"
    code = [] if tar_format == tarfile.USTAR_FORMAT else [(long, b"{}")]
    content = package(code=[(f"{INDEXES}/indexOwner.json", INDEX), *code], tar_format=tar_format)
    inspection = inspect_package(content)
    assert inspection.problems == []
    assert inspection.metadata == Metadata("k8s", "basic_1.0")
    assert inspection.image == Image("ghcr.io/org/cc", DIGEST)
    assert inspection.indexes == [f"{INDEXES}/indexOwner.json"]
    assert inspection.package_id == f"basic_1.0:{hashlib.sha256(content).hexdigest()}"


def test_code_may_have_dot_slash_prefixes_and_list_its_directories(archive: Archive) -> None:
    code = archive([("./", None), ("./image.json", IMAGE), ("./META-INF", None), (f"./{INDEXES}/x.json", INDEX)])
    inspection = inspect_package(archive([("metadata.json", METADATA), ("code.tar.gz", code)]))
    assert inspection.problems == []
    assert inspection.indexes == [f"{INDEXES}/x.json"]


def test_files_that_nobody_uses_are_noted_and_no_problem(archive: Archive, package: Package) -> None:
    inspection = inspect_package(package(code=[("src/main.go", b"package main"), ("META-INF/README", b"")]))
    assert inspection.problems == []
    assert inspection.notes == [
        "`build` ignores 'src/main.go'",
        "'META-INF/README' is no index: `release` does not hand it to the peer",
    ]
    extra = archive([("README", b""), ("metadata.json", METADATA), ("code.tar.gz", archive([("image.json", IMAGE)]))])
    assert inspect_package(extra).notes == ["the peer ignores 'README'"]


def test_an_upper_case_type_is_ours_and_another_is_not(package: Package) -> None:
    assert problems(package(metadata=b'{"type":"K8S","label":"a"}')) == []
    assert problems(package(metadata=b'{"type":"ccaas","label":"a"}')) == [
        "metadata.json: field 'type' must be k8s, in any case; it is 'ccaas'"
    ]


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (b"\xef\xbb\xbf" + METADATA, "metadata.json must not begin with a byte order mark"),
        (METADATA.decode().encode("utf-16"), "metadata.json must be UTF-8"),
        (b'{"type":"k8s","label":"a","label":"b c"}', "metadata.json: field 'label' must begin with a letter or digit"),
        (b'{"type":"k8s","label":"-a"}', "must begin with a letter or digit and go on with"),
        (b'{"type":"k8s","label":"a+b"}', "metadata.json: field 'label' must be a valid Kubernetes label value"),
        (b'{"type":"k8s","label":"' + b"a" * 64 + b'"}', "must be no more than 63 bytes"),
        (b'{"x":' + b"[" * 60_000, "metadata.json must be valid JSON that is not nested so deeply"),
        (b" " * 65_537, "metadata.json must be at most 65,536 bytes"),
        (b"", "metadata.json must be valid JSON"),
    ],
)
def test_what_is_wrong_with_the_metadata_is_told(package: Package, metadata: bytes, said: str) -> None:
    (problem,) = problems(package(metadata=metadata))
    assert said in problem


def test_what_is_wrong_with_image_and_indexes_is_told_at_once(package: Package) -> None:
    content = package(
        image=b'{"name":"ghcr.io/org/cc:1","digest":"sha256:00"}',
        code=[(f"{INDEXES}/a.json", b"{"), (f"{INDEXES}/b.json", b"{}"), (f"{INDEXES}/c.json", b"[" * 100_000)],
    )
    assert [text.partition(" must")[0] for text in problems(content)] == [
        "image.json: field 'name'",
        f"{INDEXES}/a.json",
        f"{INDEXES}/b.json",
        f"{INDEXES}/c.json",
    ]


def test_huge_numbers_and_duplicate_keys_do_no_harm(package: Package) -> None:
    metadata = b'{"x":' + b"9" * 60_000 + b',"label":"a","type":"k8s","label":"b"}'
    inspection = inspect_package(package(metadata=metadata))
    assert inspection.problems == []
    assert inspection.metadata == Metadata("k8s", "b")


def test_the_peer_finds_no_file_under_another_name(archive: Archive) -> None:
    code = archive([("image.json", IMAGE)])
    said = problems(archive([("./metadata.json", METADATA), ("./code.tar.gz", code)]))
    assert said == [
        "metadata.json is missing: the peer looks for exactly this name in the package",
        "code.tar.gz is missing: the peer looks for exactly this name in the package",
    ]
    assert inspect_package(archive([])).package_id is None


@pytest.mark.parametrize(
    "entry",
    [
        ("sub/", None),
        header("x", tarfile.SYMTYPE, "y"),
        header("x", tarfile.LNKTYPE, "metadata.json"),
        header("x", tarfile.FIFOTYPE),
    ],
)
def test_the_peer_refuses_anything_but_files_beside_the_metadata(archive: Archive, entry: object) -> None:
    code = archive([("image.json", IMAGE)])
    (problem,) = problems(archive([("metadata.json", METADATA), entry, ("code.tar.gz", code)]))
    assert "no regular file: the peer refuses that" in problem


@pytest.mark.parametrize(
    "entry",
    [
        header("META-INF/x", tarfile.SYMTYPE, "y"),
        header("META-INF/x", tarfile.LNKTYPE, "image.json"),
        header("x", tarfile.CHRTYPE),
    ],
)
def test_the_peer_refuses_links_and_devices_in_the_code(package: Package, entry: tarfile.TarInfo) -> None:
    (problem,) = problems(package(code=[entry]))
    assert "neither file nor directory: the peer refuses that" in problem


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "META-INF/../../x", ".."])
def test_the_peer_refuses_paths_that_lead_outside(package: Package, path: str) -> None:
    (problem,) = problems(package(code=[(path, b"x")]))
    assert "which the peer refuses: it leads outside" in problem


def test_the_peer_refuses_what_git_archive_writes(archive: Archive) -> None:
    pax = {"pax_headers": {"comment": "0123"}, "tar_format": tarfile.PAX_FORMAT}
    code = archive([("image.json", IMAGE)])
    (*_, problem) = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)], **pax))
    (outer, *_) = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)], **pax))
    assert "global PAX header" in outer
    assert "code.tar.gz" in problem
    inner = problems(archive([("metadata.json", METADATA), ("code.tar.gz", archive([("image.json", IMAGE)], **pax))]))
    assert any("code.tar.gz begins with a global PAX header" in text for text in inner)


def test_a_file_that_is_there_twice_is_a_problem(archive: Archive, package: Package) -> None:
    code = archive([("image.json", IMAGE)])
    outer = archive([("metadata.json", METADATA), ("code.tar.gz", code), ("metadata.json", METADATA)])
    assert problems(outer) == ["metadata.json is there twice"]
    assert problems(package(code=[("./image.json", IMAGE)])) == [
        "image.json is there twice: which of them counts is not certain"
    ]


def test_code_without_an_image_is_a_problem(archive: Archive) -> None:
    content = archive([("metadata.json", METADATA), ("code.tar.gz", archive([("sub/image.json", IMAGE)]))])
    assert problems(content) == ["image.json is missing in code.tar.gz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"x", b"PK\x03\x04", b"\x1f\x8b", gzip.compress(b"", mtime=0), gzip.compress(b"no tar", mtime=0), tar_gz({})],
)
def test_what_is_no_package_is_told(content: bytes) -> None:
    said = problems(content)
    assert "metadata.json is missing: the peer looks for exactly this name in the package" in said


def test_a_package_that_is_cut_short_anywhere_before_its_end_is_a_problem(package: Package) -> None:
    content = package(code=[(f"{INDEXES}/x.json", INDEX)])
    assert problems(content) == []
    for end in range(0, len(content) - 100, 7):
        assert problems(content[:end]), end


def test_a_broken_header_is_no_end_of_the_archive() -> None:
    plain = bytearray(tar({"code.tar.gz": tar_gz({"image.json": IMAGE}), "metadata.json": METADATA, "x": b""}))
    broken = plain.rindex(b"x\0\0\0\0")
    plain[broken] = ord("y")
    (problem,) = problems(gzip_stored(bytes(plain)))
    assert "must be a tar archive compressed with gzip" in problem


def test_a_bomb_is_not_unpacked_beyond_the_bound() -> None:
    outer = header("metadata.json", tarfile.REGTYPE)
    outer.size = 10**12
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
        file.write(outer.tobuf())
        file.write(bytes(101 * 1024 * 1024))
    assert any("must be at most 65,536 bytes" in text for text in problems(buffer.getvalue()))
    assert any("unpacks to more than" in text for text in problems(buffer.getvalue()))


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ([f"META-INF/{number}/x" for number in range(ENTRIES // 2 + 1)], "at most 10,000 files and directories"),
        ([f"META-INF/{number:0200}" for number in range(5100)], "paths of at most 1,048,576 bytes together"),
        (["META-INF/" + "x/" * 2100 + "y"], "code.tar.gz holds a path of more than 4,096 bytes: 'META-INF/x"),
    ],
    ids=["number", "bytes", "path"],
)
def test_paths_that_build_cannot_tell_the_daemon_of(archive: Archive, paths: list[str], said: str) -> None:
    code = archive([("image.json", IMAGE), *((path, b"") for path in paths)])
    found = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)]))
    assert any(said in problem for problem in found), found
    code = archive([("image.json", IMAGE), *((path, b"") for path in paths[: len(paths) // 2])])
    assert problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)])) == []


def test_too_many_entries_are_a_problem(archive: Archive) -> None:
    code = archive([("image.json", IMAGE), *((f"META-INF/{number}", b"") for number in range(ENTRIES))])
    said = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)]))
    assert f"code.tar.gz must hold at most {ENTRIES:,} entries" in said


def test_a_chain_of_long_name_headers_is_a_problem_and_no_crash(archive: Archive) -> None:
    link = tarfile.TarInfo("././@LongLink")
    link.type = tarfile.GNUTYPE_LONGNAME
    link.size = 2
    chain = (link.tobuf(tarfile.GNU_FORMAT) + b"x\0".ljust(512, b"\0")) * 20_000
    assert any("must be a tar archive" in text for text in problems(gzip.compress(chain)))


def test_names_from_the_archive_cannot_write_to_the_terminal(archive: Archive, package: Package) -> None:
    name = f"{INDEXES}/\x1b[2J\n.json"
    inspection = inspect_package(package(code=[(name, b"{"), ("\x1b]0;x", b"")]))
    assert all(str(problem).isprintable() for problem in inspection.problems)
    assert all(note.isprintable() for note in inspection.notes)


@deterministic
@given(st.data())
def test_no_damage_makes_the_inspection_raise(package: Package, data: st.DataObject) -> None:
    content = bytearray(gzip_stored(gzip.decompress(package(code=[(f"{INDEXES}/x.json", INDEX)]))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    inspection = inspect_package(bytes(content))
    assert all(str(problem) for problem in inspection.problems)


@deterministic
@given(st.binary(max_size=4096))
def test_no_tar_at_all_makes_the_inspection_raise(content: bytes) -> None:
    assert inspect_package(gzip_stored(content)).problems


def test_a_huge_extended_header_is_refused_before_it_is_parsed() -> None:
    """It would cost minutes: tarfile looks for a length in its digits in quadratic time."""
    outer = tarfile.TarInfo("x")
    outer.type, outer.size = tarfile.XHDTYPE, 200 * 1024
    said = problems(gzip.compress(outer.tobuf() + b"1" * (200 * 1024), mtime=0))
    assert any("an extended header is too large" in text for text in said)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_up_to_the_bound_of_their_header(archive: Archive, tar_format: int) -> None:
    """Both bounds of 16 KiB: GNU's header is the name and a NUL, PAX's `<length> path=<name>` and a line feed."""
    longest = 16 * 1024 - (1 if tar_format == tarfile.GNU_FORMAT else len("16384 path=\n"))
    for length, refused in ((longest, False), (longest + 1, True)):
        code = archive([("image.json", IMAGE), ("n" * length, b"")], tar_format=tar_format)
        said = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)]))
        assert any("an extended header is too large" in text for text in said) == refused
        assert bool(said) == refused
