"""What the image and an installation hold, and that what they leave out is told in one line."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.deploy import wheel
from tests.deploy.wheel import ROOT

PROGRAMS = ("detect", "build", "release", "run")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build of the image gets."""
    return wheel.context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def production(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image's stage `daemon` installs, without what it depends on."""
    built = wheel.build(context, tmp_path_factory.mktemp("wheel"))
    return wheel.unpack(built, tmp_path_factory.mktemp("production"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `pip install k8s-builderd` installs."""
    return wheel.unpack(wheel.build(ROOT, tmp_path_factory.mktemp("wheel")), tmp_path_factory.mktemp("complete"))


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "deploy/Containerfile").read_text().replace("\\\n", " ")
    return re.findall(r"^([A-Z]+) (.*)", text, re.MULTILINE)


def test_the_context_is_what_the_image_copies_and_nothing_else(context: Path) -> None:
    copied = {
        word
        for instruction, words in instructions()
        for word in words.split()[:-1]
        if instruction == "COPY" and not word.startswith(("-", "/"))
    }
    assert {"/".join(Path(file).parts[: 2 if file.startswith("deploy/") else 1]) for file in files(context)} == copied


def test_the_image_holds_the_daemon_and_the_client_and_no_test_equipment(context: Path, production: Path) -> None:
    copies = [words for instruction, words in instructions() if instruction == "COPY"]
    assert "client /opt/k8s-builder" in copies
    assert "daemon daemon" in copies
    installed = {f"/opt/k8s-builderd/{file}" for file in files(production)}
    for_the_peer = {f"/opt/k8s-builder/{file}" for file in files(context / "client")}
    image = installed | for_the_peer
    assert not [
        file for file in image if re.search(r"k8s_builder_lab|(^|/)tests?(/|_)|conftest|benchmarks|\.ci/", file)
    ]
    packages = {Path(file).parts[3] for file in installed if ".dist-info" not in file}
    assert packages == {"k8s_builderd", "k8s_builder", "k8s_builder_client"}
    assert {file for file in for_the_peer if "/bin/" in file} == {f"/opt/k8s-builder/bin/{name}" for name in PROGRAMS}
    client = {file.name for file in (ROOT / "client/k8s_builder_client").glob("*.py")}
    assert {f"/opt/k8s-builder/k8s_builder_client/{name}" for name in client} <= image
    daemon = {str(file.relative_to(ROOT / "daemon")) for file in (ROOT / "daemon/k8s_builderd").rglob("*.py")}
    assert {f"/opt/k8s-builderd/{file}" for file in daemon} <= image


def test_the_image_gets_no_compiler_and_loses_pip() -> None:
    runs = [words for instruction, words in instructions() if instruction == "RUN"]
    assert not [words for words in runs if re.search(r"\b(apt|apt-get|apk|dnf|gcc|cc|make)\b", words)]
    assert "pip uninstall --yes" in " ".join(runs)


def test_the_wheel_holds_the_programs_as_they_are(complete: Path, production: Path) -> None:
    for installed in (complete, production):
        for name in PROGRAMS:
            program = installed / "k8s_builder_client/bin" / name
            assert program.read_bytes() == (ROOT / "client/bin" / name).read_bytes()
            assert program.stat().st_mode & 0o111 == 0o111


def test_the_wheel_holds_the_lab_which_the_first_command_of_the_readme_needs(complete: Path) -> None:
    lab = {str(file.relative_to(ROOT / "daemon")) for file in (ROOT / "daemon/k8s_builder_lab").rglob("*.py")}
    assert lab <= files(complete)


@pytest.mark.parametrize("kind", ["complete", "production"])
def test_an_installation_writes_a_builder_folder(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    installed: Path = request.getfixturevalue(kind)
    builder = tmp_path / "builder"
    done = wheel.python(installed, "-m", "k8s_builder", "install-client", str(builder), PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    for name in PROGRAMS:
        called = subprocess.run([builder / "bin" / name], env={}, capture_output=True, text=True, check=False)
        assert called.returncode == 1
        assert re.fullmatch(rf"{name} \[\d+\]: Expected .* arguments\n", called.stderr), called.stderr


@pytest.mark.parametrize("command", ["demo", "embedded-cluster"])
@pytest.mark.parametrize("more", [[], ["--help"], ["--whatever", "x"]])
def test_a_command_that_is_left_out_is_told_in_one_line(production: Path, command: str, more: list[str]) -> None:
    done = wheel.python(production, "-m", "k8s_builder", command, *more)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {command} needs the package k8s_builder_lab, which is not installed:"
        " pip install 'k8s-builderd[demo]'\n"
    )


def test_the_other_commands_are_there_without_it(production: Path) -> None:
    done = wheel.python(production, "-m", "k8s_builder", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    people = ("doctor", "status", "logs", "stop")
    for command in ("package", "inspect", "packageid", "install-client", "demo", "embedded-cluster", *people):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
    done = wheel.python(production, "-m", "k8s_builder", "package", "--help")
    assert done.returncode == 0
    done = wheel.python(production, "-m", "k8s_builder", "doctor", "--only", "core-yaml")
    assert (done.returncode, done.stdout.splitlines()[1].split()[:2]) == (0, ["skipped", "core-yaml"])


@pytest.mark.parametrize("command", [["status"], ["status", "--json"], ["logs", "a", "-f"], ["stop", "a", "--yes"]])
def test_the_daemon_is_asked_out_of_the_image(production: Path, command: list[str]) -> None:
    """Where there is a daemon: tests/daemon/test_status.py."""
    done = wheel.python(production, "-m", "k8s_builder", *command, FABRIC_K8S_BUILDER_SOCKET="/nonexistent/b.sock")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: cannot reach k8s-builderd at /nonexistent/b.sock: No such file or directory. Check that the daemon"
        " is running, and FABRIC_K8S_BUILDER_SOCKET\n"
    )


def test_kubectl_exec_finds_the_command_without_a_shell() -> None:
    environment = " ".join(words for instruction, words in instructions() if instruction == "ENV")
    assert "PATH=/opt/k8s-builderd/bin:$PATH" in environment
    assert dict(instructions())["ENTRYPOINT"] == '["/opt/k8s-builderd/bin/k8s-builderd"]'


def test_free_memory_is_given_back_by_the_page() -> None:
    """Python's own allocator keeps a MiB wherever one small thing in it stays."""
    assert ("ENV", "PYTHONMALLOC=malloc") in instructions()
    service = (wheel.ROOT / "systemd/k8s-builderd.service").read_text()
    assert "\nEnvironment=PYTHONMALLOC=malloc\n" in service


def test_embedded_without_the_lab_is_told_in_one_line(production: Path) -> None:
    done = wheel.python(production, "-m", "k8s_builderd", "--embedded")
    assert done.returncode == 1
    assert done.stderr == (
        "k8s-builderd: --embedded needs the package k8s_builder_lab, which is not installed: pip install k8s-builderd\n"
    )


def test_with_it_they_are_there(complete: Path) -> None:
    for command in ("demo", "embedded-cluster"):
        done = wheel.python(complete, "-m", "k8s_builder", command, "--help")
        assert (done.returncode, done.stderr) == (0, "")


def test_the_wheel_holds_no_file_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel.build(ROOT, tmp_path)) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
