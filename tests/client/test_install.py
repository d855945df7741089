"""`k8s-builder install-client`: a complete builder folder, written again and again while a peer uses it."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from k8s_builder import programs
from k8s_builder.main import main
from k8s_builder.programs import NAMES, NotInstalled, check, install

from .standin import CLIENT, Peer, exits, log, peer_in_a_short_directory, words
from .test_calls import BROKEN, broken


@pytest.fixture
def peer() -> Iterator[Peer]:
    with peer_in_a_short_directory(sys.executable) as peer:
        peer.daemon.open()
        yield peer


@pytest.fixture
def builder(tmp_path: Path) -> Path:
    return tmp_path / "there/builder"


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["install-client", *map(str, arguments)])


def edition(monkeypatch: pytest.MonkeyPatch, folder: Path, mark: str) -> None:
    """Have another edition be installed from now on, both halves of which show its mark."""
    shutil.copytree(CLIENT, folder / mark, ignore=shutil.ignore_patterns("__pycache__"))
    package = folder / mark / "k8s_builder_client"
    for name, old, new in (
        ("__main__.py", "stderr = Stderr(program,", f"stderr = Stderr(program + ' {mark}',"),
        ("call.py", '"Expected %s', f'"{mark} Expected %s'),
    ):
        text = (package / name).read_text()
        assert old in text
        (package / name).write_text(text.replace(old, new))
    monkeypatch.setattr(programs, "_package", lambda: package)


def says(builder: Path, name: str = "detect", **environment: str) -> str:
    """Call a program without arguments, as a peer with this environment does, and return what it says."""
    done = subprocess.run([builder / "bin" / name], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    return done.stderr


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    found = {file: file.lstat() for file in folder.rglob("*")}
    return {str(file): (status.st_ino, status.st_mtime_ns, status.st_mode) for file, status in found.items()}


def test_the_four_programs_work_from_there(peer: Peer, builder: Path) -> None:
    done = command(builder)
    assert (done.exit_code, done.output) == (0, f"{builder}: detect, build, release, run of k8s-builderd 0.1.0\n")
    assert sorted(file.name for file in (builder / "bin").iterdir()) == sorted(NAMES)
    peer.bin = builder / "bin"
    for name in NAMES:
        program = peer.call(name)
        connection = peer.daemon.accept()
        assert connection.request().one("H") == b"1\0%s\0%d" % (name.encode(), program.pid)
        connection.send(words(b"word\n"), exits(3))
        assert program.ends_saying(b"word\n") == 3


def test_a_second_time_changes_nothing(builder: Path) -> None:
    install(builder)
    before = state(builder)
    install(builder)
    assert state(builder) == before


def test_another_user_can_use_it_whatever_the_umask_is(builder: Path) -> None:
    umask = os.umask(0o077)
    try:
        install(builder)
    finally:
        os.umask(umask)
    for path in (builder.parent, builder, *builder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        program = path.parent == builder / "bin"
        assert mode == (0o755 if path.is_dir() or program else 0o644), path


def test_it_is_compiled(builder: Path) -> None:
    install(builder)
    bundles = {file.name for file in builder.rglob("bundle.*") if file.suffix != ".py"}
    assert f"bundle.{sys.implementation.cache_tag}" in bundles


def modules(builder: Path, program: Path) -> tuple[set[str], str]:
    """Return the files of the package that a call opens, and what it says on standard error."""
    trace = "import sys; sys.addaudithook(lambda event, args: event == 'open' and print(args[0])); "
    run = f"sys.argv = [{str(program)!r}]; exec(compile(open({str(program)!r}).read(), {str(program)!r}, 'exec'),"
    script = f"{trace}{run} {{'__name__': '__main__', '__file__': {str(program)!r}}})"
    command = [sys.executable, "-I", "-S", "-u", "-c", script]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    return {Path(line).name for line in done.stdout.splitlines() if "k8s_builder_client" in line}, done.stderr


@pytest.mark.parametrize("state", ["whole", "missing", "of another Python", "cut off"])
def test_a_call_reads_one_file_where_there_is_byte_code_for_its_python(builder: Path, state: str) -> None:
    install(builder)
    [bundle] = builder.rglob(f"bundle.{sys.implementation.cache_tag}")
    whole = bundle.read_bytes()
    if state == "missing":
        bundle.unlink()
    elif state != "whole":
        bundle.write_bytes(b"0000" + whole[4:] if state == "of another Python" else whole[:1000])
    opened, said = modules(builder, builder / "bin/detect")
    assert "Expected CHAINCODE_SOURCE_DIR and CHAINCODE_METADATA_DIR arguments" in said
    assert ("call.py" in opened) == (state != "whole")
    if state == "whole":
        assert opened == {bundle.name}


def test_a_copied_folder_of_the_image_is_brought_up_to_date(peer: Peer, builder: Path) -> None:
    """Its `python` stays, and so does the package that a running program may be about to import from."""
    shutil.copytree(CLIENT, builder)
    (builder / "python/bin").mkdir(parents=True)
    (builder / "python/bin/python3").write_text(f'#!/bin/sh\necho beside >&2\nexec {sys.executable} "$@"\n')
    (builder / "python/bin/python3").chmod(0o755)
    install(builder)
    assert says(builder).startswith("beside\ndetect [")
    assert (builder / "k8s_builder_client/session.py").exists()


# In use


def test_whoever_calls_meanwhile_gets_all_of_one_edition(
    builder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edition(monkeypatch, tmp_path, "A")
    install(builder)
    failed: list[BaseException] = []
    ended = threading.Event()

    def replace() -> None:
        try:
            for number in range(8):
                edition(monkeypatch, tmp_path, f"B{number}")
                install(builder)
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)
        finally:
            ended.set()

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        while not ended.is_set():
            said = says(builder, "run")
            mark = said.split()[1]
            assert said.startswith(f"run {mark} [")
            assert f": {mark} Expected " in said
    finally:
        replacing.join()
    assert failed == []
    assert says(builder).startswith("detect B7 [")
    assert len(list((builder / "lib").iterdir())) == 2  # this one, and the one before


def test_a_run_that_is_there_stays(peer: Peer, builder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(builder)
    peer.bin = builder / "bin"
    program = peer.call("run")
    connection = peer.daemon.accept()
    connection.request()
    connection.send(log(b"c", b"one\n"))
    assert program.line() == b"one"
    for mark in ("A", "B", "C"):
        edition(monkeypatch, tmp_path, mark)
        install(builder)
    connection.close()
    connection = peer.daemon.accept()
    assert connection.request().one("C") == b"c"
    connection.send(log(b"d", b"two\n"), exits(0))
    assert program.ends_saying(b"two\n") == 0


def test_what_somebody_has_changed_is_not_used_and_not_touched(builder: Path) -> None:
    install(builder)
    [changed] = builder.rglob("session.py")
    changed.write_text("raise SystemExit(99)\n")
    install(builder)
    assert "Expected " in says(builder)
    assert changed.read_text() == "raise SystemExit(99)\n"


def test_what_a_killed_installation_left_is_removed_in_time(builder: Path) -> None:
    install(builder)
    old, new = builder / "lib/.k8s_builder_client-old", builder / "lib/.k8s_builder_client-new"
    for left in (old, new):
        (left / "k8s_builder_client").mkdir(parents=True)
    os.utime(old, (0, 0))
    install(builder)
    assert not old.exists()
    assert new.exists()


# Which Python


def test_the_given_python_is_preferred_to_all_others(builder: Path, tmp_path: Path) -> None:
    given = tmp_path / "with a space" / "$python"
    given.parent.mkdir()
    given.write_text(f'#!/bin/sh\necho "given" >&2\nexec {sys.executable} "$@"\n')
    given.chmod(0o755)
    assert command(builder, "--python", given).exit_code == 0
    assert says(builder, PATH=os.environ["PATH"]).startswith("given\ndetect [")
    given.unlink()
    assert says(builder, PATH=os.environ["PATH"]).startswith("detect [")
    install(builder)
    given.symlink_to(sys.executable)
    assert str(given) not in (builder / "bin/run").read_text()


def test_a_relative_path_is_made_absolute(builder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(sys.executable).parent)
    assert command(builder, "--python", Path(sys.executable).name).exit_code == 0
    assert (builder / "bin/run").read_text().startswith(f"#!{sys.executable} -IS\n")


def test_a_given_python_is_started_without_a_shell(peer: Peer, builder: Path, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.symlink_to(sys.executable)
    install(builder, python)
    peer.bin = builder / "bin"
    peer.environment = {"FABRIC_K8S_BUILDER_SOCKET": peer.environment["FABRIC_K8S_BUILDER_SOCKET"]}
    for name in NAMES:
        program = peer.call(name)
        connection = peer.daemon.accept()
        assert connection.request().one("H") == b"1\0%s\0%d" % (name.encode(), program.pid)
        started = Path(f"/proc/{program.pid}/cmdline").read_bytes().split(b"\0")
        assert started[:3] == [os.fsencode(python), b"-IS", os.fsencode(builder / "bin" / name)]
        connection.send(words(b"word\n"), exits(3))
        assert program.ends_saying(b"word\n") == 3
    assert len([file for file in builder.rglob("bundle.*") if file.suffix != ".py"]) == 1


def test_a_path_too_long_for_the_first_line_goes_through_the_shell(builder: Path, tmp_path: Path) -> None:
    python = tmp_path / ("long" * 30) / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    install(builder, python)
    assert (builder / "bin/run").read_text().startswith("#!/bin/sh\n")
    assert "Expected " in says(builder)


@pytest.mark.parametrize("kind", [*BROKEN, "not there", "a quote", "2.7"])
def test_a_python_that_cannot_be_used_is_refused_in_one_line(builder: Path, tmp_path: Path, kind: str) -> None:
    python = tmp_path / ("a 'quote'" if kind == "a quote" else "there/python3")
    if kind in BROKEN:
        broken(python, kind)
    elif kind == "2.7":
        python.parent.mkdir()
        python.write_text("#!/bin/sh\necho 2 7\n")
        python.chmod(0o755)
    done = command(builder, "--python", python)
    assert done.exit_code == 1
    assert done.output.startswith("Error: ")
    assert done.output.count("\n") == 1
    assert "python3" in done.output or "quote" in done.output
    if kind == "2.7":
        assert done.output == f"Error: {python} is Python 2.7, and the programs need 3.8 or later\n"
    assert not builder.exists()


# Errors


def test_what_is_in_the_way_is_told_in_one_line(builder: Path) -> None:
    builder.parent.mkdir()
    builder.write_text("")
    done = command(builder)
    assert done.exit_code == 1
    assert done.output == f"Error: the builder folder cannot be written: {builder}: File exists\n"


def test_a_program_that_cannot_be_replaced_leaves_the_others_whole(builder: Path) -> None:
    (builder / "bin/run").mkdir(parents=True)
    done = command(builder)
    assert done.exit_code == 1
    assert done.output == f"Error: the builder folder cannot be written: {builder / 'bin/run'}: Is a directory\n"
    assert "Expected " in says(builder)
    assert sorted(file.name for file in (builder / "bin").iterdir()) == sorted(NAMES)


def test_a_python_that_does_not_exit_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o755)
    with pytest.raises(NotInstalled) as refused:
        check(python, patience=0.2)
    assert str(refused.value) == f"{python} cannot be used as Python: it does not exit"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("package", "the package k8s_builder_client is missing: reinstall k8s-builderd"),
        ("programs", "the four programs are not in "),
    ],
)
def test_an_installation_that_lacks_something_is_told(
    builder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    if missing == "package":
        monkeypatch.setattr(programs, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(programs, "_package", lambda: tmp_path)
    done = command(builder)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert said in done.output


def test_an_edition_that_lacks_a_file_is_not_used(builder: Path) -> None:
    install(builder)
    [lost] = builder.rglob("session.py")
    lost.unlink()
    install(builder)
    assert len(list(builder.rglob("session.py"))) == 1
    assert not lost.exists()
    assert "Expected " in says(builder)


def test_a_package_that_cannot_be_written_leaves_nothing_half(builder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(programs, "_compile", full)
    done = command(builder)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    assert "No space left on device" in done.output
    assert list((builder / "lib").iterdir()) == []
    assert not (builder / "bin/run").exists()
