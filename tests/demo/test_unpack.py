"""What the peer takes as a chaincode package, and what it refuses."""

import gzip
import hashlib
import stat
import tarfile
from pathlib import Path

import pytest

from k8s_builder_lab.demo.unpack import UnpackError, escapes, path_of, read_package, unpack_code
from tests.demo.archives import archive, entry, tar

METADATA = b'{"type":"k8s","label":"basic_1.0"}'
CODE = archive({"image.json": b"{}"})


def test_a_packages_id_is_its_label_and_the_hash_of_all_its_bytes() -> None:
    content = archive({"metadata.json": METADATA, "code.tar.gz": CODE, "unexpected": b""})
    package = read_package(content)
    assert package.package_id == f"basic_1.0:{hashlib.sha256(content).hexdigest()}"
    assert (package.label, package.metadata, package.code) == ("basic_1.0", METADATA, CODE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "did not find a code package"),
        (b"plain", "not a gzip-ed tar archive"),
        (CODE[:-9], "not a gzip-ed tar archive"),
        (gzip.compress(b"no tar", mtime=0), "not a gzip-ed tar archive"),
        (archive({}), "did not find a code package"),
        (archive({"metadata.json": METADATA}), "did not find a code package"),
        (archive({"code.tar.gz": CODE}), "did not find any package metadata"),
        (archive({"./metadata.json": METADATA, "./code.tar.gz": CODE}), "did not find a code package"),
        (archive({"metadata.json": b"{", "code.tar.gz": CODE}), "could not unmarshal metadata.json"),
        (archive({"metadata.json": b'{"label":7}', "code.tar.gz": CODE}), "invalid label '7'"),
        (archive({"metadata.json": b'{"label":"-a"}', "code.tar.gz": CODE}), "invalid label '-a'"),
        (gzip.compress(tar((entry("sub", tarfile.DIRTYPE), b"")), mtime=0), "tar entry sub is not a regular file"),
    ],
)
def test_what_is_no_package_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(UnpackError, match=reason):
        read_package(content)


def test_code_is_unpacked_with_its_directories_and_modes(tmp_path: Path) -> None:
    index = "META-INF/statedb/couchdb/indexes/a.json"
    code = tar(
        (entry("./"  , tarfile.DIRTYPE, mode=0o755), b""),
        (entry("./META-INF", tarfile.DIRTYPE, mode=0o755), b""),
        (entry(f"./{index}"), b"index"),
        (entry("image.json", mode=0o600), b"{}"),
        (entry("not-listed/before/file", mode=0o755), b"x"),
        (entry("long/" + "n" * 200), b"long"),
    )  # fmt: skip
    unpack_code(gzip.compress(code), tmp_path)
    assert (tmp_path / index).read_bytes() == b"index"
    assert (tmp_path / "not-listed/before/file").read_bytes() == b"x"
    assert (tmp_path / "long" / ("n" * 200)).read_bytes() == b"long"
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("META-INF", "not-listed", "image.json")]
    assert modes == [0o700, 0o700, 0o600], "directories are the peer's own, files have the archive's mode"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (tar((entry("link", tarfile.SYMTYPE, link="/etc/passwd"), b"")), "invalid file type '50'"),
        (tar((entry("a"), b""), (entry("hard", tarfile.LNKTYPE, link="a"), b"")), "invalid file type '49'"),
        (tar((entry("pipe", tarfile.FIFOTYPE), b"")), "invalid file type '54'"),
        (tar((entry("device", tarfile.CHRTYPE), b"")), "invalid file type '51'"),
        (tar((entry("../out"), b"")), "absolute or escaping path '../out'"),
        (tar((entry("a/../../out"), b"")), "absolute or escaping path"),
        (tar((entry("/out"), b"")), "absolute or escaping path '/out'"),
        (tar((entry("a"), b"x" * 600))[:1100], "not a gzip-ed tar archive|cut short"),
        (tar((entry("a"), b"x"))[:1024] + b"?" * 1024, "invalid tar header"),
    ],
)
def test_code_that_the_peer_would_not_unpack_is_refused(tmp_path: Path, code: bytes, reason: str) -> None:
    with pytest.raises(UnpackError, match=reason):
        unpack_code(gzip.compress(code), tmp_path)


def test_a_pax_global_header_as_git_archive_writes_it_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo.create_pax_global_header({"comment": "0123456789abcdef"})
    with pytest.raises(UnpackError, match="invalid file type '103'"):
        unpack_code(gzip.compress(header + tar((entry("image.json"), b"{}"))), tmp_path)


@pytest.mark.parametrize(
    ("name", "outside"),
    [("a", False), ("./a", False), ("a/../b", False), ("..a", False), ("...", False), ("a/b/../../..", True),
     ("..", True), ("../a", True), ("/", True), ("./../a", True)],
)  # fmt: skip
def test_a_path_that_leads_out_is_told_from_one_that_looks_like_it(name: str, *, outside: bool) -> None:
    assert escapes(name) is outside


def test_the_peers_directory_for_an_id_has_no_colon() -> None:
    assert path_of("basic_1.0:abc") == "basic_1.0-abc"
