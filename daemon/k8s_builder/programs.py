"""Writes a builder folder: the four programs that a peer calls, and the package they import.

A peer may call a program at any moment, and a `run` stays for as long as its chaincode. So nothing that may be in use
is ever changed: each edition of the package has a folder of its own below `lib`, which appears whole, and each
program names the edition that it imports and is replaced by a rename.
"""

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from k8s_builderd.errors import BuilderError

NAMES = ("detect", "build", "release", "run")

OLDEST = (3, 8)
"""The Python that the programs need."""

_DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"  # the programs', where the peer's environment has no PATH
_PROBE = "import sys, _socket, select; print(*sys.version_info[:2])"
_PROBE_TIMEOUT = 30.0  # seconds
# The lines of a program that say where things are.
_LIBRARY = '    library = (here.rpartition("/")[0] or ".") + "/.."\n'
_BESIDE = "beside=${self%/*}/../python/bin/python3\n"
_END_OF_SHELL = "\n'''\n"
_LONGEST_INTERPRETER = 120  # bytes; Linux takes 127 for the whole first line where it is older than 5.1
_EDITION = re.compile(r"k8s_builder_client-[0-9a-f]{12}(?:-[0-9]+)?")
_STAGE = ".k8s_builder_client-"
_STALE = 3600.0  # seconds


class NotInstalled(BuilderError):
    """Raised when a builder folder cannot be written; the text says why."""


def install(folder: Path, python: Path | None = None) -> None:
    """Make `folder` a builder folder, or bring the one that is there up to date.

    :param folder: the `path` of the builder in core.yaml; it need not exist.
    :param python: the interpreter that the programs are to use before all others.
    :raises NotInstalled: if that is not possible. What was there goes on working.
    """
    if python is not None:
        python = python.absolute()
        check(python)
    package, program = _package(), _program()
    library, programs = folder / "lib", folder / "bin"
    try:
        for directory in (folder, library, programs):
            _make_directory(directory)
        with _alone(library):
            edition = _install_package(package, library, _interpreters(python))
            text = _adapted(program, edition, python)
            used = {edition}
            for name in NAMES:
                used |= _editions_of(programs / name)
                _replace(programs / name, text)
            _remove_old(library, used)
    except OSError as error:
        path = error.filename2 or error.filename
        where = f"{path}: " if path else ""
        raise NotInstalled(f"the builder folder cannot be written: {where}{error.strerror}") from error


def check(python: Path, patience: float = _PROBE_TIMEOUT) -> str:
    """See that an interpreter runs and is new enough, and return its version, such as `3.12`.

    :param patience: seconds that it may take.
    :raises NotInstalled: if not, or if its path cannot stand in a program.
    """
    if not str(python).isprintable() or set(str(python)) & set("\\'"):
        raise NotInstalled(f"{str(python)!a} cannot be used in a shell script: make a link to it with a plain path")
    command = [os.fspath(python), "-I", "-S", "-c", _PROBE]
    try:
        done = subprocess.run(command, env={}, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"{python} cannot be used as Python: it does not exit") from None
    except OSError as error:
        raise NotInstalled(f"{python} cannot be used as Python: {error.strerror}") from error
    version = re.fullmatch(r"(\d+) (\d+)\n", done.stdout.decode(errors="replace"))
    if done.returncode != 0 or version is None:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise NotInstalled(f"{python} cannot be used as Python: {said[-1] if said else 'it is not Python'}")
    if (int(version[1]), int(version[2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        raise NotInstalled(f"{python} is Python {version[1]}.{version[2]}, and the programs need {needed} or later")
    return f"{version[1]}.{version[2]}"


def same_version(folder: Path) -> bool:
    """Return whether the programs in a builder folder import the package that this installation would write there.

    :raises NotInstalled: if this installation has none.
    """
    package = _package()
    editions = {edition for name in NAMES for edition in _editions_of(folder / "bin" / name)}
    imported = [folder / "lib" / edition for edition in editions] or [folder]
    return all(_is_same(package, each / package.name) for each in imported)


def _package() -> Path:
    client = find_spec("k8s_builder_client")
    if client is None or client.origin is None:
        raise NotInstalled("the package k8s_builder_client is missing: reinstall k8s-builderd")
    return Path(client.origin).parent


def _program() -> str:
    """Return the text that the four programs share. A wheel has them in the package, a checkout beside it."""
    package = _package()
    for programs in (package / "bin", package.parent / "bin"):
        if (programs / "run").is_file():
            return (programs / "run").read_text()
    raise NotInstalled(f"the four programs are not in {package}: reinstall k8s-builderd")


def _adapted(program: str, edition: str, python: Path | None) -> str:
    """Return the program with the places where this folder has its package, and its interpreter, in it.

    Where the kernel can find the interpreter by the first line, no shell is needed, which would cost a fifth of a call.
    """
    assert program.count(_LIBRARY) == program.count(_BESIDE) == program.count(_END_OF_SHELL) == 1
    program = program.replace(_LIBRARY, _LIBRARY.replace('"/.."', f'"/../lib/{edition}"'))
    if python is None:
        return program
    if _is_named_by_first_line(python):
        return f"#!{python} -IS\n{program.partition(_END_OF_SHELL)[2]}"
    return program.replace(_BESIDE, f"beside={shlex.quote(str(python))}\n")


def _is_named_by_first_line(python: Path) -> bool:
    """Say whether the kernel understands this path behind `#!`."""
    return len(os.fsencode(python)) <= _LONGEST_INTERPRETER and not re.search(r"\s", str(python))


def _editions_of(program: Path) -> set[str]:
    """Return the edition that a program which is there imports."""
    try:
        return set(_EDITION.findall(program.read_text(errors="replace")))
    except FileNotFoundError:
        return set()


# The package


def _sources(package: Path) -> list[Path]:
    return sorted(file for file in package.iterdir() if file.suffix == ".py")


def _install_package(package: Path, library: Path, interpreters: Iterable[Path]) -> str:
    """Put the package into an edition of its own, unless it is there, and return the edition's name."""
    digest = hashlib.sha256()
    for file in _sources(package):
        digest.update(b"%s\0%d\0%s" % (file.name.encode(), file.stat().st_size, file.read_bytes()))
    name = edition = f"{package.name}-{digest.hexdigest()[:12]}"
    another = 1
    while (there := library / edition).exists() and not _is_same(package, there / package.name):
        edition = f"{name}-{another}"  # somebody has changed what is there, and it may be in use
        another += 1
    if there.exists():
        _compile(there / package.name, interpreters)
    else:
        _stage(package, there, interpreters)
    return edition


def _is_same(package: Path, installed: Path) -> bool:
    try:
        return all((installed / file.name).read_bytes() == file.read_bytes() for file in _sources(package))
    except (FileNotFoundError, NotADirectoryError):
        return False


def _stage(package: Path, destination: Path, interpreters: Iterable[Path]) -> None:
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=destination.parent))
    try:
        staged = stage / package.name
        staged.mkdir()
        for file in _sources(package):
            _replace(staged / file.name, file.read_text(), mode=0o644)
        _compile(staged, interpreters)
        for directory in (staged, stage):
            directory.chmod(0o755)
        stage.rename(destination)
    except OSError:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _interpreters(python: Path | None) -> list[Path]:
    """Return the interpreters that may come to run the programs: each has byte code of its own."""
    if python is not None and _is_named_by_first_line(python):
        return [python]
    directories = [*os.get_exec_path(), *_DEFAULT_PATH.split(":")]
    found = [python, Path(sys.executable), *(Path(directory, "python3") for directory in directories)]
    return list(dict.fromkeys(path for path in found if path is not None and path.is_file()))


def _compile(package: Path, interpreters: Iterable[Path]) -> None:
    """Compile what has not been compiled yet. An interpreter that cannot do so runs the package all the same."""
    for python in interpreters:
        command = [os.fspath(python), "-I", "-S", os.fspath(package / "bundle.py"), os.fspath(package)]
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, umask=0o022, check=False)


def _remove_old(library: Path, used: set[str]) -> None:
    """Remove editions that no program names, and what an installation that was killed has left."""
    for found in library.iterdir():
        stale = found.name.startswith(_STAGE) and time.time() > found.stat().st_mtime + _STALE
        if stale or (_EDITION.fullmatch(found.name) and found.name not in used):
            shutil.rmtree(found, ignore_errors=True)


# Files


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    """Make a directory and its parents, which other users may enter whatever the umask is."""
    for directory in (*reversed(path.parents), path):
        if not directory.is_dir():
            directory.mkdir()
            directory.chmod(0o755)


def _replace(path: Path, text: str, *, mode: int = 0o755) -> None:
    """Have a file hold this text: whoever opens it finds all of the old one or all of the new one."""
    data = text.encode()
    if path.is_file() and path.read_bytes() == data and path.stat().st_mode & 0o777 == mode:
        return
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}-", dir=path.parent, delete=False) as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())
    temporary = Path(file.name)
    try:
        temporary.replace(path)  # closed before: Linux executes nothing that is open for writing
    except OSError:
        temporary.unlink()
        raise
