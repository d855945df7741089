"""Where the demo finds the programs that the peer calls."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from k8s_builder_lab.demo.programs import NAMES, builder_location


def test_in_a_checkout_they_are_the_checkouts_own(tmp_path: Path) -> None:
    location = builder_location(tmp_path)
    assert location == Path(__file__).parents[2] / "client"


def test_an_installation_without_them_gets_some_that_behave_the_same(tmp_path: Path) -> None:
    client = find_spec("k8s_builder_client")
    assert client is not None
    assert client.origin is not None
    shutil.copytree(Path(client.origin).parent, tmp_path / "site" / "k8s_builder_client")
    code = f"from k8s_builder_lab.demo.programs import *; print(builder_location(Path({str(tmp_path / 'made')!r})))"
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    made = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, check=True)
    assert made.stdout.decode().strip() == str(tmp_path / "made")
    for name in NAMES:
        program = subprocess.run([tmp_path / "made" / "bin" / name], env={}, capture_output=True, check=False)
        assert program.returncode == 1
        assert program.stderr.startswith(f"{name} [".encode())
        assert b": Expected " in program.stderr
