"""The files of systemd/: systemd takes them, and they say what the code does."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from k8s_builderd.gateway.listener import BACKLOG
from k8s_builderd.settings import DEFAULT_SOCKET, Settings
from tests.test_docs import VARIABLES

SYSTEMD = Path(__file__).parents[2] / "systemd"
SERVICE = (SYSTEMD / "k8s-builderd.service").read_text()
SOCKET = (SYSTEMD / "k8s-builderd.socket").read_text()


def tool(name: str) -> str:
    """Return where a program of systemd's is, or skip the test."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here")
    return found


def test_systemd_takes_both_units_without_a_word(tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    # The program need not be installed where this test runs.
    service = re.sub(r"^ExecStart=.*$", f"ExecStart={sys.executable}", SERVICE, flags=re.MULTILINE)
    (tmp_path / "k8s-builderd.service").write_text(service)
    (tmp_path / "k8s-builderd.socket").write_text(SOCKET)
    units = [str(tmp_path / f"k8s-builderd.{kind}") for kind in ("service", "socket")]
    found = subprocess.run([analyze, "verify", *units], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stderr) == (0, "")


def test_the_service_is_exposed_to_little() -> None:
    """2.0 or less, of 10; --threshold counts tenths."""
    command = [tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager"]
    found = subprocess.run(
        [*command, str(SYSTEMD / "k8s-builderd.service")], capture_output=True, text=True, timeout=120
    )
    if "unrecognized option" in found.stderr:
        pytest.skip("this systemd-analyze cannot do it offline")
    assert found.returncode == 0, [*found.stdout.splitlines()[-1:], found.stderr]


def test_user_and_directories_are_made(tmp_path: Path) -> None:
    sysusers, tmpfiles = tool("systemd-sysusers"), tool("systemd-tmpfiles")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    subprocess.run([sysusers, root, str(SYSTEMD / "sysusers.conf")], check=True, capture_output=True)
    [user] = [line for line in (tmp_path / "etc/passwd").read_text().splitlines() if line.startswith("k8s-builderd:")]
    assert user.endswith("nologin")
    uid, gid = (int(number) for number in user.split(":")[2:4])
    done = subprocess.run(
        [tmpfiles, "--create", root, str(SYSTEMD / "tmpfiles.conf")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = {
        path: (
            (tmp_path / path).stat().st_mode & 0o7777,
            (tmp_path / path).stat().st_uid,
            (tmp_path / path).stat().st_gid,
        )
        for path in ("run/k8s-builder", "etc/k8s-builderd")
    }
    assert made == {"run/k8s-builder": (0o750, uid, gid), "etc/k8s-builderd": (0o750, 0, gid)}


def test_the_socket_is_the_one_that_the_programs_look_for() -> None:
    assert f"\nListenStream={DEFAULT_SOCKET}\n" in SOCKET
    assert f"\nSocketMode={Settings.load({}).socket_mode:04o}\n" in SOCKET
    assert f"\nBacklog={BACKLOG}\n" in SOCKET
    assert f"\nRuntimeDirectory={Path(DEFAULT_SOCKET).parent.name}\n" in SERVICE
    assert f"d {Path(DEFAULT_SOCKET).parent} 0750 k8s-builderd k8s-builderd" in (SYSTEMD / "tmpfiles.conf").read_text()


def test_the_environment_file_can_be_used_with_every_setting_in_it() -> None:
    text = (SYSTEMD / "environment").read_text()
    lines = re.findall(r"^#?([A-Z]\w+)=(.*)$", text, re.MULTILINE)
    assert all(line.startswith(("# ", "#F")) or not line or "=" in line for line in text.splitlines())
    assert {name for name, _ in lines} <= set(VARIABLES)
    environment = {name: value for name, value in lines if "POD_TEMPLATE" not in name}
    assert Settings.load(environment).namespace == "fabric"
    assert "EnvironmentFile=/etc/k8s-builderd/environment" in SERVICE
