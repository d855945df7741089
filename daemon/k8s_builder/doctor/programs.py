"""The four programs that the peer calls: in place, executable, and with a Python that runs them."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from k8s_builder.doctor.result import Result, failure, ok, skipped, warning
from k8s_builder.programs import NAMES, NotInstalled, same_version
from k8s_builder.programs import check as check_python
from k8s_builderd.golang import parse_bool

DEFAULT = Path("/opt/k8s-builder")
"""Where the image has them, and the sidecar's pod."""
PYTHON = "FABRIC_K8S_BUILDER_PYTHON"
PATIENCE = 5.0
"""Seconds that one program may take."""

_SHELL = Path("/bin/sh")
_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"
_MARK = b"k8s_builder_client"
_FIRST_LINE = re.compile(rb"#!(/\S+) -IS\n")  # what install-client --python writes
_BESIDE = re.compile(rb"^beside=(.+)$", re.MULTILINE)
_REINSTALL = "Run k8s-builder install-client again, or restart the peer's pod, so that its init container copies them"


def check(
    folder: Path, environment: Mapping[str, str], *, shell: Path = _SHELL, patience: float = PATIENCE
) -> Iterator[Result]:
    """Check a builder folder, and call each program in it as the peer does.

    :param folder: the `path` of the builder in core.yaml.
    :param environment: the peer's, of which PATH and FABRIC_K8S_BUILDER_PYTHON count.
    :param shell: what the programs begin with.
    :param patience: seconds that one program may take.
    """
    faults = [fault for name in NAMES if (fault := _fault(folder / "bin" / name))]
    yield from faults
    if faults:
        return
    yield ok("programs", f"{', '.join(NAMES)} are in {folder / 'bin'}")
    yield _version(folder)
    yield _python(folder, environment)
    if _interpreter(folder) is None and not shell.exists():
        yield skipped("call", f"there is no {shell} here, with which the programs begin: call them where the peer runs")
        return
    failures = [found for name in NAMES if (found := _called(folder / "bin" / name, environment, patience))]
    yield from failures or [ok("call", f"{', '.join(NAMES)} run")]


def starts_daemon(folder: Path, environment: Mapping[str, str]) -> bool:
    """Return whether the programs start a daemon of their own where none answers (docs/operations.md)."""
    try:
        wanted = parse_bool(environment.get("FABRIC_K8S_BUILDER_AUTOSTART") or "")
    except ValueError:
        return os.access(folder / "bin" / "k8s-builderd", os.X_OK)
    return wanted


def _fault(program: Path) -> Result | None:
    """Return what is wrong with one program, None if nothing."""
    if not program.is_file():
        remedy = "Mount or copy all of /opt/k8s-builder, or run k8s-builder install-client; check `path` in core.yaml"
        return failure("programs", f"{program} does not exist", remedy)
    try:
        data = program.read_bytes()
    except OSError as error:
        return failure("programs", f"{program} cannot be read: {error.strerror}", _REINSTALL)
    if _MARK not in data:
        return failure("go-builder", f"{program} is not of k8s-builderd but of another builder", _OTHER)
    if not os.access(program, os.X_OK):
        return failure("programs", f"{program} is not executable for uid {os.geteuid()}", _REINSTALL)
    return None


_OTHER = "Have `path` in core.yaml name the folder of k8s-builderd's programs, and keep the builder's name"


def _version(folder: Path) -> Result:
    if same_version(folder):
        return ok("programs-version", "the programs are of the same version as this command")
    return warning("programs-version", "the programs are of another version than this command", _REINSTALL)


def _interpreter(folder: Path) -> Path | None:
    """Return the Python that the programs' first line names; None if it is a shell, which looks for one."""
    named = _FIRST_LINE.match((folder / "bin" / NAMES[0]).read_bytes())
    return Path(os.fsdecode(named[1])) if named else None


def _python(folder: Path, environment: Mapping[str, str]) -> Result:
    """Return which Python the programs use, by the rules of their first lines."""
    if named := _interpreter(folder):
        try:
            return ok("python", f"{named} is Python {check_python(named, PATIENCE)}")
        except NotInstalled as error:
            return failure("python", str(error), "Run k8s-builder install-client with --python and one that runs here")
    if chosen := environment.get(PYTHON):
        try:
            return ok("python", f"{chosen} is Python {check_python(Path(chosen), PATIENCE)}")
        except NotInstalled as error:
            remedy = "Correct FABRIC_K8S_BUILDER_PYTHON, or unset it: while it is set, no other Python is tried"
            return failure("python", str(error), remedy)
    tried: list[str] = []
    for python in _pythons(folder, environment):
        try:
            return ok("python", f"{python} is Python {check_python(python, PATIENCE)}")
        except NotInstalled as error:
            tried.append(str(error))
    remedy = (
        "Copy all of /opt/k8s-builder, python included; install Python 3.8 or later; or set FABRIC_K8S_BUILDER_PYTHON"
    )
    return failure("python", f"no Python runs the programs here: {'; '.join(tried) or 'there is none'}", remedy)


def _pythons(folder: Path, environment: Mapping[str, str]) -> Iterator[Path]:
    """Return the interpreters that are there, in the order in which a program tries them."""
    beside = folder / "python" / "bin" / "python3"
    named = _BESIDE.search((folder / "bin" / NAMES[0]).read_bytes())
    if named and b"$" not in named[1]:  # written by install-client --python
        beside = Path(os.fsdecode(named[1].strip(b"'")))
    folders = (environment.get("PATH") or _DEFAULT_PATH).split(":")
    return (python for python in (beside, *(Path(each) / "python3" for each in folders)) if os.access(python, os.X_OK))


def _called(program: Path, environment: Mapping[str, str], patience: float) -> Result | None:
    """Call a program without its arguments, which it tells before it does anything; return what is wrong, if so."""
    env = {name: environment[name] for name in ("PATH", PYTHON) if environment.get(name)}
    name = program.name
    try:
        child = subprocess.Popen(
            [program],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        return failure("call", f"{program} cannot be run: {error.strerror}", _REINSTALL)
    with child:
        try:
            _, said = child.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # with what it has started, which holds our pipe
            child.communicate()
            return failure("call", f"{program} does not end within {patience:g} s", "See what its Python waits for")
    words = said.decode("utf-8", "replace").strip()
    if child.returncode == 1 and re.fullmatch(rf"{name} \[\d+\]: Expected .* arguments", words):
        return None
    last = words.splitlines()[-1] if words else "nothing"
    return failure("call", f"{program} ended with {child.returncode} and said: {last}", _REINSTALL)
