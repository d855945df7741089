"""The package's byte code in one file: what is in it, and that its modules are the package's own."""

import importlib.util
import marshal
import shutil
import sys
from pathlib import Path

from k8s_builder_client import bundle, wire

from .standin import CLIENT

PACKAGE = CLIENT / "k8s_builder_client"


def written(directory: Path) -> Path:
    copy = directory / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "bin"))
    bundle.write(str(copy))
    [file] = (copy / "__pycache__").iterdir()
    return file


def codes(file: Path) -> dict[str, bytes]:
    content = file.read_bytes()
    magic = importlib.util.MAGIC_NUMBER
    assert content.startswith(magic)
    found: dict[str, bytes] = marshal.loads(content[len(magic) :])[1]
    return found


def test_it_holds_every_module(tmp_path: Path) -> None:
    file = written(tmp_path)
    assert file.name == f"bundle.{sys.implementation.cache_tag}"
    modules = {f"k8s_builder_client.{path.stem}" for path in PACKAGE.glob("*.py")}
    assert set(codes(file)) == modules - {"k8s_builder_client.__init__"} | {"k8s_builder_client"}


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    file = written(tmp_path)
    before = file.stat().st_mtime_ns
    bundle.write(str(file.parents[1]))
    assert file.stat().st_mtime_ns == before


def test_its_modules_are_those_of_the_package(tmp_path: Path) -> None:
    finder = bundle.Bundle(codes(written(tmp_path)), "/somewhere")
    assert finder.find_spec("wire") is None
    package = finder.find_spec("k8s_builder_client")
    assert package is not None
    assert package.submodule_search_locations == ["/somewhere"]
    spec = finder.find_spec("k8s_builder_client.wire")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    finder.exec_module(module)
    assert module.frame(b"L", b"1", b"2") == wire.frame(b"L", b"1", b"2")
