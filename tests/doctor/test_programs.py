"""The client programs as the doctor finds them: real folders, real calls."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from k8s_builder.doctor import programs
from k8s_builder.doctor.result import Result
from k8s_builder.programs import install
from tests.doctor.results import told

PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed") / "builder"
    install(folder, Path(sys.executable))
    return folder


@pytest.fixture
def folder(installed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(installed, tmp_path / "builder"))


@pytest.fixture
def looking(tmp_path: Path) -> Path:
    """Programs that look for a Python at each call, with the help of a shell."""
    install(tmp_path / "looking")
    return tmp_path / "looking"


def found(folder: Path, environment: dict[str, str] = PATH) -> list[Result]:
    return [*programs.check(folder, environment)]


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_folder_that_was_just_installed_is_well(folder: Path) -> None:
    assert [(each.check, each.status.value) for each in found(folder)] == [
        ("programs", "ok"),
        ("programs-version", "ok"),
        ("python", "ok"),
        ("call", "ok"),
    ]
    [(_, seen, _)] = told(found(folder), "python")
    assert seen == f"{sys.executable} is Python {sys.version_info.major}.{sys.version_info.minor}"


def test_a_checkouts_programs_are_found_to_be_of_this_version() -> None:
    checkout = Path(__file__).parents[2] / "client"
    results = found(checkout, {**PATH, "FABRIC_K8S_BUILDER_PYTHON": sys.executable})
    assert {each.status.value for each in results} == {"ok"}


def test_a_program_that_is_missing_is_told(folder: Path) -> None:
    (folder / "bin" / "run").unlink()
    [result] = found(folder)
    assert (result.check, result.status.value) == ("programs", "failure")
    assert result.seen == f"{folder}/bin/run does not exist"
    assert result.remedy.startswith("Mount or copy all of /opt/k8s-builder")


def test_a_program_that_is_not_executable_is_told(folder: Path) -> None:
    (folder / "bin" / "detect").chmod(0o644)
    [(status, seen, remedy)] = told(found(folder), "programs")
    assert (status, seen) == ("failure", f"{folder}/bin/detect is not executable for uid {os.geteuid()}")
    assert "install-client again" in remedy


def test_a_program_of_another_builder_is_told(folder: Path) -> None:
    (folder / "bin" / "build").write_bytes(b"\x7fELF\x02\x01\x01 a Go program")
    [(status, seen, remedy)] = told(found(folder), "go-builder")
    assert (status, seen) == ("failure", f"{folder}/bin/build is not of k8s-builderd but of another builder")
    assert remedy.endswith("and keep the builder's name")


def test_a_program_that_cannot_be_read_is_told(folder: Path) -> None:
    program = folder / "bin" / "detect"
    if os.geteuid() == 0:  # whom modes do not stop
        program.unlink()
        program.symlink_to("/proc/self/mem")
    else:
        program.chmod(stat.S_IXUSR)
    [(status, seen, _)] = told(found(folder), "programs")
    assert (status, f"{program} cannot be read: " in seen) == ("failure", True)


def test_programs_of_another_version_are_told(folder: Path) -> None:
    [module] = folder.glob("lib/*/k8s_builder_client/request.py")
    module.write_text(module.read_text() + "# older\n")
    [(status, _, remedy)] = told(found(folder), "programs-version")
    assert (status, "install-client again" in remedy) == ("warning", True)


def test_a_python_of_the_first_line_that_is_gone_is_told(folder: Path, tmp_path: Path) -> None:
    for program in (folder / "bin").iterdir():
        program.write_text(program.read_text().replace(sys.executable, f"{tmp_path}/python3"))
    results = found(folder)
    [(status, seen, remedy)] = told(results, "python")
    assert (status, seen) == ("failure", f"{tmp_path}/python3 cannot be used as Python: No such file or directory")
    assert remedy == "Run k8s-builder install-client with --python and one that runs here"
    assert told(results, "call")[0][1] == f"{folder}/bin/detect cannot be run: No such file or directory"


def test_a_python_that_is_chosen_and_does_not_run_is_told(looking: Path, tmp_path: Path) -> None:
    results = found(looking, {**PATH, "FABRIC_K8S_BUILDER_PYTHON": str(tmp_path / "none")})
    [(status, seen, remedy)] = told(results, "python")
    assert (status, seen) == ("failure", f"{tmp_path}/none cannot be used as Python: No such file or directory")
    assert remedy.startswith("Correct FABRIC_K8S_BUILDER_PYTHON")
    calls = told(results, "call")
    assert [status for status, _, _ in calls] == ["failure"] * 4
    assert "detect ended with 1 and said: detect [" in calls[0][1]
    assert "FABRIC_K8S_BUILDER_PYTHON" in calls[0][1]


def test_a_python_that_is_chosen_and_runs_is_told(looking: Path) -> None:
    [(status, seen, _)] = told(found(looking, {"FABRIC_K8S_BUILDER_PYTHON": sys.executable}), "python")
    assert (status, seen.startswith(f"{sys.executable} is Python 3.")) == ("ok", True)


def test_where_no_python_runs_the_programs_do_not(looking: Path, tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    script(tmp_path / "path" / "python3", '[ "$1" = -V ] && echo Python 3.7.1 || echo 3 7')
    results = found(looking, {"PATH": str(tmp_path / "path")})
    [(status, seen, remedy)] = told(results, "python")
    assert (status, f"{tmp_path}/path/python3 is Python 3.7, and the programs need 3.8 or later" in seen) == (
        "failure",
        True,
    )
    assert "python included" in remedy
    assert "Found no Python (3.8 or later) that runs here" in told(results, "call")[0][1]
    shutil.rmtree(tmp_path / "path")
    [(_, seen, _)] = told(found(looking, {"PATH": str(tmp_path / "path")}), "python")
    assert seen == "no Python runs the programs here: there is none"


def test_a_program_that_cannot_be_started_is_told(folder: Path) -> None:
    program = folder / "bin" / "release"
    program.write_text("#!/nowhere/sh\n# k8s_builder_client\n")
    [(status, seen, _)] = told(found(folder), "call")
    assert (status, seen) == ("failure", f"{program} cannot be run: No such file or directory")


def test_a_program_that_says_nothing_is_told(folder: Path) -> None:
    script(folder / "bin" / "release", "# k8s_builder_client\nexit 3")
    [(status, seen, _)] = told(found(folder), "call")
    assert (status, seen) == ("failure", f"{folder}/bin/release ended with 3 and said: nothing")


def test_a_program_that_hangs_is_ended_with_what_it_has_started(folder: Path, tmp_path: Path) -> None:
    script(folder / "bin" / "release", f"# k8s_builder_client\nsleep 600 & echo $! > {tmp_path}/pid\nwait")
    [(status, seen, _)] = told([*programs.check(folder, PATH, patience=1.0)], "call")
    assert (status, seen) == ("failure", f"{folder}/bin/release does not end within 1 s")
    pid = int((tmp_path / "pid").read_text())
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_python_beside_the_programs_comes_first(looking: Path) -> None:
    (looking / "python" / "bin").mkdir(parents=True)
    python = script(looking / "python" / "bin" / "python3", f'exec {sys.executable} "$@"')
    assert told(found(looking), "python")[0][1].startswith(f"{python} is Python 3.")
    python.chmod(0o644)
    assert not told(found(looking), "python")[0][1].startswith(f"{python} is")


def test_a_python_with_a_space_in_its_path_is_found_by_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a place").mkdir()
    python = script(tmp_path / "a place" / "python3", f'exec {sys.executable} "$@"')
    install(tmp_path / "builder", python)
    results = found(tmp_path / "builder")
    assert [each.status.value for each in results] == ["ok"] * 4
    assert told(results, "python")[0][1].startswith(f"{python} is Python 3.")


def test_without_a_shell_nothing_is_called(looking: Path, tmp_path: Path) -> None:
    results = [*programs.check(looking, PATH, shell=tmp_path / "sh")]
    [(status, seen, _)] = told(results, "call")
    assert (status, seen.startswith(f"there is no {tmp_path}/sh here")) == ("skipped", True)
    assert [each.status.value for each in results if each.check != "call"] == ["ok"] * 3


def test_programs_with_a_daemon_beside_them_start_it(folder: Path) -> None:
    assert not programs.starts_daemon(folder, {})
    assert programs.starts_daemon(folder, {"FABRIC_K8S_BUILDER_AUTOSTART": "true"})
    script(folder / "bin" / "k8s-builderd", "exit 0")
    assert programs.starts_daemon(folder, {})
    assert programs.starts_daemon(folder, {"FABRIC_K8S_BUILDER_AUTOSTART": "maybe"})
    assert not programs.starts_daemon(folder, {"FABRIC_K8S_BUILDER_AUTOSTART": "false"})
