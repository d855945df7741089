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
from k8s_builder.packaging.indexes import decode_index
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
        "'META-INF/README' is not an index: `release` does not hand it to the peer",
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
        (b'{"type":"k8s","label":"-a"}', "must begin with a letter or digit, followed by"),
        (b'{"type":"k8s","label":"a+b"}', "metadata.json: field 'label' must be a valid Kubernetes label value"),
        (b'{"type":"k8s","label":"' + b"a" * 64 + b'"}', "must be no more than 63 bytes"),
        (b'{"x":' + b"[" * 60_000, "metadata.json must be valid JSON with less nesting"),
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
    assert "not a regular file: the peer refuses it" in problem


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
    assert "neither a file nor a directory: the peer refuses it" in problem


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "META-INF/../../x", ".."])
def test_the_peer_refuses_paths_that_lead_outside(package: Package, path: str) -> None:
    (problem,) = problems(package(code=[(path, b"x")]))
    assert "which the peer refuses: it points outside the package" in problem


def test_the_peer_refuses_what_git_archive_writes(archive: Archive) -> None:
    pax = {"pax_headers": {"comment": "0123"}, "tar_format": tarfile.PAX_FORMAT}
    code = archive([("image.json", IMAGE)])
    (*_, problem) = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)], **pax))
    (outer, *_) = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)], **pax))
    assert "global PAX header" in outer
    assert "code.tar.gz" in problem
    inner = problems(archive([("metadata.json", METADATA), ("code.tar.gz", archive([("image.json", IMAGE)], **pax))]))
    assert any("code.tar.gz holds a global PAX header" in text for text in inner)


def test_a_file_that_is_there_twice_is_a_problem(archive: Archive, package: Package) -> None:
    code = archive([("image.json", IMAGE)])
    outer = archive([("metadata.json", METADATA), ("code.tar.gz", code), ("metadata.json", METADATA)])
    assert problems(outer) == ["metadata.json appears twice"]
    assert problems(package(code=[("./image.json", IMAGE)])) == [
        "image.json appears twice: it is not certain which one counts"
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
    assert f"code.tar.gz must contain at most {ENTRIES:,} entries" in said


def test_a_chain_of_long_name_headers_is_a_problem_and_no_crash(archive: Archive) -> None:
    link = tarfile.TarInfo("././@LongLink")
    link.type = tarfile.GNUTYPE_LONGNAME
    link.size = 2
    chain = (link.tobuf(tarfile.GNU_FORMAT) + b"x\0".ljust(512, b"\0")) * 20_000
    assert len(problems(gzip.compress(chain))) == 2  # metadata.json and code.tar.gz are missing


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


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_up_to_the_bound_of_gos_tar(archive: Archive, tar_format: int) -> None:
    """1 MiB: GNU's header is the name and a NUL, PAX's `<length> path=<name>` and a line feed."""
    longest = 1024 * 1024 - (1 if tar_format == tarfile.GNU_FORMAT else len("1048576 path=\n"))
    for length, refused in ((longest, False), (longest + 1, True)):
        code = archive([("image.json", IMAGE), ("n" * length, b"")], tar_format=tar_format)
        said = problems(archive([("metadata.json", METADATA), ("code.tar.gz", code)]))
        assert any("an extended header is longer than 1,048,576 bytes" in text for text in said) == refused
        assert bool(said) == refused


def test_a_package_made_on_a_mac_is_good(archive: Archive) -> None:
    """Its tar keeps extended attributes, which can be long, in a PAX header before each file."""
    info = tarfile.TarInfo("image.json")
    info.size = len(IMAGE)
    info.pax_headers = {"SCHILY.xattr.com.apple.provenance": "x" * 20_000, "mtime": "1732500000.123456789"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as code:
        code.addfile(info, io.BytesIO(IMAGE))
    assert problems(archive([("metadata.json", METADATA), ("code.tar.gz", buffer.getvalue())])) == []


def test_a_sparse_file_is_told(archive: Archive) -> None:
    info = tarfile.TarInfo("GNUSparseFile.0/image.json")
    info.size = len(IMAGE)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "image.json"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as code:
        code.addfile(info, io.BytesIO(IMAGE))
    (problem,) = problems(archive([("metadata.json", METADATA), ("code.tar.gz", buffer.getvalue())]))
    assert problem.startswith("image.json is stored as a sparse file")


def test_a_million_digits_in_an_extended_header_cost_no_time() -> None:
    """tarfile before Python 3.11.10 looks for a length in them in quadratic time, which takes hours."""
    outer = tarfile.TarInfo("x")
    outer.type, outer.size = tarfile.XHDTYPE, 1024 * 1024
    (problem, *_) = problems(gzip.compress(outer.tobuf() + b"1" * outer.size, mtime=0))
    assert "a PAX header is broken" in problem


# Indexes, by what the peer and CouchDB do with them

GOOD = [
    INDEX,
    b' \n{"index": {"fields": ["a", "b.c"]}}\r\n',
    b'{"index":{"fields":[{"size":"desc"},{"color":"desc"}]},"ddoc":"_design/d"}',
    b'{"index":{"fields":["a",{"b":"asc"}],"partial_filter_selector":{"n":{"$gt":1e300}}},"type":"json"}',
    '{"index":{"fields":["größe"]},"name":"größe"}'.encode(),
    b'{"index":{"fields":[]},"w":2,"partitioned":false}',
    b'{"index":{"fields":["a"],"partial_filter_selector":{"a":{"$in":["' + b"x" * 70_000 + b'"]}}}}',
]
WRONG = [
    (INDEX.decode().encode("utf-16"), "must be UTF-8; it is UTF-16"),
    (INDEX.decode().encode("utf-16-be"), "must be UTF-8; it is UTF-16"),
    (b"\xef\xbb\xbf" + INDEX, "must not begin with a byte order mark"),
    ('{"index":{"fields":["größe"]}}'.encode("latin-1"), "must be UTF-8 throughout"),
    (b'{"index":{"fields":["\\ud800"]}}', "must be UTF-8 throughout"),
    (b"", "must be valid JSON: line 1, column 1"),
    (b'{"index":{"fields":["a"]}} x', "must be valid JSON: line 1, column 28"),
    (
        b'{"index":{"fields":["a"],"partial_filter_selector":{"n":NaN}}}',
        "must be JSON: NaN and Infinity are not allowed",
    ),
    (b'{"index":{"fields":["a"],"partial_filter_selector":{"n":1e999}}}', "a number is too large"),
    (b'{"index":{"fields":["a"],"partial_filter_selector":{"n":1' + b"0" * 310 + b"}}}", "a number is too large"),
    (b'{"index":{"fields":["a"]},"index":{"fields":["b"]}}', "an object has the same key twice"),
    (b"null", "must be an index definition"),
    (b"[]", "must be an index definition"),
    (b'{"fields":["a"]}', "must be an index definition"),
    (b'{"index":["a"]}', "must be an index definition"),
    (b'{"index":{}}', "must be an index definition: its 'index' must have an array 'fields'"),
    (b'{"index":{"fields":"a"}}', "must be an index definition: its 'index' must have an array 'fields'"),
    (b'{"index":{"fields":[5]}}', "field 'index.fields' must contain names, or objects of one name"),
    (b'{"index":{"fields":[null]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":[""]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":[{"a":"up"}]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":[{"a":"ASC"}]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":[{"a":"asc","b":"asc"}]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":[{}]}}', "field 'index.fields' must contain names"),
    (b'{"index":{"fields":["a",{"b":"desc"}]}}', "field 'index.fields' must all be 'asc' or all be 'desc'"),
    (b'{"index":{"fields":["a"],"where":{}}}', "field 'index' must not contain 'where'"),
    (b'{"index":{"fields":["a"],"partial_filter_selector":[]}}', "field 'index.partial_filter_selector' must be an"),
    (b'{"index":{"fields":["a"]},"name":7}', "field 'name' must be a string that is not empty"),
    (b'{"index":{"fields":["a"]},"name":""}', "field 'name' must be a string that is not empty"),
    (b'{"index":{"fields":["a"]},"name":null}', "field 'name' must be a string that is not empty"),
    (b'{"index":{"fields":["a"]},"ddoc":["a"]}', "field 'ddoc' must be a string that is not empty"),
    (b'{"index":{"fields":["a"]},"ddoc":"_design/"}', "field 'ddoc' must be a string that is not empty"),
    (b'{"index":{"fields":["a"]},"type":"JSON"}', "field 'type' must be json; it is 'JSON'"),
    (b'{"index":{"fields":["a"]},"comment":"x"}', "must not contain 'comment'"),
    (b'{"index":{"fields":["a"]},"w":0}', "field 'w' must be a whole number above zero"),
    (b'{"index":{"fields":["a"]},"partitioned":true}', "field 'partitioned' must be false"),
]


@pytest.mark.parametrize("index", GOOD)
def test_an_index_that_couchdb_makes_is_good(package: Package, index: bytes) -> None:
    assert problems(package(code=[(f"{INDEXES}/a.json", index)])) == []


@pytest.mark.parametrize(("index", "said"), WRONG)
def test_an_index_that_peer_or_couchdb_refuse_is_told(package: Package, index: bytes, said: str) -> None:
    (problem,) = problems(package(code=[(f"{INDEXES}/a.json", index)]))
    assert problem.startswith(f"{INDEXES}/a.json")
    assert said in problem


def test_an_index_for_search_is_noted() -> None:
    index = decode_index("a.json", b'{"index":{"fields":[{"name":"a","type":"string"}]},"type":"text"}')
    assert index.notes == ("CouchDB needs its search add-on for an index of type 'text'",)


def test_two_indexes_of_one_name_are_told_where_one_is_lost(package: Package) -> None:
    other = INDEX.replace(b"owner", b"size").replace(b"indexOwnerDoc", b"_design/indexOwnerDoc")
    private = f"{INDEXES.replace('/indexes', '/collections/c1/indexes')}/a.json"
    found = problems(package(code=[(f"{INDEXES}/b.json", INDEX), (f"{INDEXES}/a.json", other), (private, other)]))
    assert found == [
        f"{INDEXES}/a.json will be lost: '{INDEXES}/b.json' has the same 'ddoc' and 'name' and replaces it"
    ]
    same = [(f"{INDEXES}/a.json", INDEX), (f"{INDEXES}/b.json", INDEX)]
    unnamed = [(f"{INDEXES}/{field}.json", b'{"index":{"fields":["%c"]},"ddoc":"d"}' % field) for field in b"xyz"]
    assert problems(package(code=[*same, *unnamed])) == []


@pytest.mark.parametrize(
    ("collection", "said"),
    [
        ("_implicit_org_Org1MSP", "the peer creates none for an implicit collection of an organization"),
        ("_c", "no collection can be called '_c'"),
        ("a.b", "no collection can be called 'a.b'"),
        ("a b", "no collection can be called 'a b'"),
    ],
)
def test_an_index_of_a_collection_that_cannot_be_is_told(package: Package, collection: str, said: str) -> None:
    path = f"META-INF/statedb/couchdb/collections/{collection}/indexes/a.json"
    (problem,) = problems(package(code=[(path, INDEX)]))
    assert said in problem
    assert problems(package(code=[(path.replace(collection, "-A_1"), INDEX)])) == []
