"""Archives have the same bytes everywhere, and every tar and gzip reads them."""

import gzip
import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builder.packaging.archive import gzip_stored, tar, tar_gz
from k8s_builderd.errors import PackageError

deterministic = settings(derandomize=True, deadline=None, database=None)

FILES = {"b/ü.json": b"{}", "a": b"x" * 70_000, "META-INF/empty": b""}


def test_the_bytes_are_those_that_every_other_machine_makes() -> None:
    digest = hashlib.sha256(tar_gz(FILES)).hexdigest()
    assert digest == "b013c56a16938c04063eef569bdfe36bf67dc7c2f69e6dda8b358d682a47aebd"
    assert tar_gz(dict(reversed(FILES.items()))) == tar_gz(FILES)


def test_entries_are_sorted_and_say_nothing_of_the_machine() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_gz(FILES)), mode="r:gz") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["META-INF/empty", "a", "b/ü.json"]
    for member in members:
        assert member.isreg()
        assert (member.mode, member.mtime, member.uid, member.gid) == (0o644, 0, 0, 0)
        assert (member.uname, member.gname) == ("", "")


def test_the_gzip_header_has_neither_name_nor_time() -> None:
    assert gzip_stored(b"x")[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"


def test_gnu_tar_and_gzip_read_it(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(tar_gz(FILES))
    subprocess.run(["gzip", "-t", "x.tgz"], cwd=tmp_path, check=True)
    subprocess.run(["tar", "-xzf", "x.tgz"], cwd=tmp_path, check=True)
    assert {path: (tmp_path / path).read_bytes() for path in FILES} == FILES


@deterministic
@given(st.binary(max_size=2000), st.sampled_from([0, 1, 65534, 65535, 65536, 131070, 131071]))
def test_whatever_is_compressed_comes_out_again(data: bytes, padding: int) -> None:
    data += bytes(padding)
    assert gzip.decompress(gzip_stored(data)) == data


@pytest.mark.parametrize(
    "path", ["x" * 100, "d/" + "x" * 100, "d" * 155 + "/" + "x" * 100, "/".join(["0123456789"] * 23), "d/" * 120 + "x"]
)
def test_long_paths_are_split_as_the_format_says(path: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar({path: b"content"}))) as archive:
        assert archive.getnames() == [path]
        extracted = archive.extractfile(path)
        assert extracted is not None
        assert extracted.read() == b"content"


@pytest.mark.parametrize("path", ["x" * 101, "d/" + "x" * 101, "d" * 156 + "/" + "x" * 100, "d" * 300 + "/x"])
def test_paths_that_do_not_fit_are_refused(path: str) -> None:
    with pytest.raises(PackageError, match="path that is too long"):
        tar({path: b""})


paths = st.lists(st.text("abcü.-_", min_size=1, max_size=60), min_size=1, max_size=6).map("/".join)


@deterministic
@given(st.dictionaries(paths, st.binary(max_size=1200), max_size=5))
def test_every_tree_that_fits_comes_out_again(files: dict[str, bytes]) -> None:
    try:
        archive = tar(files)
    except PackageError:
        assert any(len(path.encode()) > 100 for path in files)
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        read = {}
        for member in opened:
            content = opened.extractfile(member)
            assert content is not None
            read[member.name] = content.read()
    assert read == files
