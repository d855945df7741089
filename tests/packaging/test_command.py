"""`k8s-builder package`, `inspect` and `packageid` as people and scripts call them."""

import contextlib
import hashlib
import os
import pty
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from k8s_builder.commands.package import inspect, package, packageid
from tests.packaging.conftest import DIGEST

IMAGE = f"ghcr.io/org/cc@{DIGEST}"
INDEX = '{"index":{"fields":["owner"]}}'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Call a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(command: click.Command, *arguments: str) -> Result:
        return CliRunner().invoke(command, arguments, env={"DOCKER_CONFIG": str(tmp_path / "no-docker")})

    return call


Run = Callable[..., Result]


@pytest.fixture(name="made")
def package_of_others(request: pytest.FixtureRequest) -> Callable[..., bytes]:
    """Make a package as others do."""
    made: Callable[..., bytes] = request.getfixturevalue("package")
    return made


def index(folder: Path) -> Path:
    """Make a META-INF folder with one index and one other file."""
    indexes = folder / "META-INF" / "statedb" / "couchdb" / "indexes"
    indexes.mkdir(parents=True)
    (indexes / "indexOwner.json").write_text(INDEX)
    (folder / "META-INF" / "README").write_text("not for the peer")
    return folder / "META-INF"


def test_a_package_has_the_same_id_on_every_machine(run: Run) -> None:
    result = run(package, "basic_1.0", "--image", IMAGE)
    assert result.exit_code == 0, result.output
    golden = "basic_1.0:d7132755cae74f4631cec35b560359238471a3a5351e96a6a05d4712319ecc94"
    assert result.output.splitlines() == [f"package id  {golden}", "path        basic_1.0.tgz", f"image       {IMAGE}"]
    assert golden.endswith(hashlib.sha256(Path("basic_1.0.tgz").read_bytes()).hexdigest())
    assert run(packageid, "basic_1.0.tgz").output == golden + "\n"


def test_meta_inf_is_packed_whatever_its_times_modes_and_order(run: Run, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first, second = index(tmp_path / "one"), index(tmp_path / "two")
    (second / "README").chmod(0o600)
    (second / "empty").mkdir()
    for number, folder in enumerate((first, second)):
        result = run(package, "a", "--image", IMAGE, "--meta-inf", str(folder), "-o", f"{number}.tgz")
        assert result.exit_code == 0, result.output
    assert Path("0.tgz").read_bytes() == Path("1.tgz").read_bytes()
    assert "index       META-INF/statedb/couchdb/indexes/indexOwner.json" in result.output
    assert "note        'META-INF/README' is not an index" in result.output


def test_tar_unpacks_it_to_what_fabrics_documentation_describes(run: Run, tmp_path: Path) -> None:
    run(package, "a", "--name", "ghcr.io/org/cc", "--digest", DIGEST, "--meta-inf", str(index(tmp_path)))
    Path("out").mkdir()
    with tarfile.open("a.tgz") as outer:
        assert outer.getnames() == ["code.tar.gz", "metadata.json"]
    subprocess.run(["tar", "-xzf", "a.tgz", "-C", "out"], check=True)
    assert Path("out/metadata.json").read_text() == '{"label":"a","type":"k8s"}\n'
    subprocess.run(["tar", "-xzf", "out/code.tar.gz", "-C", "out"], check=True)
    assert Path("out/image.json").read_text() == f'{{"digest":"{DIGEST}","name":"ghcr.io/org/cc"}}\n'
    assert Path("out/META-INF/statedb/couchdb/indexes/indexOwner.json").read_text() == INDEX


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a+b", "--image", IMAGE], "metadata.json: field 'label' must be a valid Kubernetes label value"),
        (["x" * 64, "--image", IMAGE], "metadata.json: field 'label' must be no more than 63 bytes"),
        (["", "--image", IMAGE], "metadata.json: field 'label' must not be empty"),
        (["a", "--image", "Org/CC@" + DIGEST], "image.json: field 'name' must be lower case"),
        (["a", "--image", "cc@sha256:00"], "image.json: field 'digest' must have 64 hexadecimal digits"),
        (["a", "--name", "cc:1", "--digest", DIGEST], "image.json: field 'name' must not contain a tag"),
        (["a", "--image", IMAGE, "-o", "no/such/folder/a.tgz"], "No such file or directory"),
    ],
)
def test_what_build_or_the_peer_would_refuse_is_refused_before(run: Run, arguments: list[str], said: str) -> None:
    result = run(package, *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(Path().glob("*.tgz")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a"], "Give the image"),
        (["a", "--name", "cc"], "Give the image"),
        (["a", "--image", IMAGE, "--name", "cc"], "Give either --image NAME@DIGEST, or --name and --digest."),
        (["a", "--image", "cc:1"], "has no digest: give NAME@sha256:..., or --resolve to ask the registry."),
        (["a", "--image", f"cc:1@{DIGEST}"], "leave out ':1'"),
        (["a", "--resolve"], "--resolve needs --image NAME:TAG."),
        (["a", "--resolve", "--image", IMAGE], "there is nothing to resolve"),
        (["a", "--resolve", "--image", "CC:1"], "the name must be lower case"),
        (["a", "--resolve", "--image", "cc:-1"], "the tag must be at most 128"),
    ],
)
def test_a_wrong_use_is_told(run: Run, arguments: list[str], said: str) -> None:
    result = run(package, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_a_folder_that_holds_a_meta_inf_is_not_taken_for_one(run: Run, tmp_path: Path) -> None:
    index(tmp_path)
    result = run(package, "a", "--image", IMAGE, "--meta-inf", str(tmp_path))
    assert result.exit_code == 2
    assert "give " in result.stderr


def test_links_and_broken_indexes_are_refused(run: Run, tmp_path: Path) -> None:
    folder = index(tmp_path)
    (folder / "link").symlink_to("README")
    result = run(package, "a", "--image", IMAGE, "--meta-inf", str(folder))
    assert result.stderr == (
        "Error: META-INF/link must be a file or a directory: the peer refuses links and anything else\n"
    )
    (folder / "link").unlink()
    (folder / "statedb/couchdb/indexes/indexOwner.json").write_text("{")
    result = run(package, "a", "--image", IMAGE, "--meta-inf", str(folder))
    assert result.exit_code == 1
    assert "META-INF/statedb/couchdb/indexes/indexOwner.json must be valid JSON" in result.stderr


def test_a_package_that_cannot_be_written_leaves_nothing_behind(run: Run) -> None:
    Path("a.tgz").mkdir()
    assert run(package, "a", "--image", IMAGE).exit_code == 1
    assert [path.name for path in Path().iterdir()] == ["a.tgz"]


def test_inspect_shows_a_good_package_and_ends_with_0(run: Run) -> None:
    run(package, "basic_1.0", "--image", IMAGE)
    result = run(inspect, "basic_1.0.tgz")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["package", "label", "type", "image"]


def test_inspect_tells_all_that_is_wrong_and_ends_with_1(run: Run, made: Callable[..., bytes]) -> None:
    Path("p.tgz").write_bytes(made(metadata=b'{"type":"golang","label":"a+"}', image=b"{}"))
    result = run(inspect, "p.tgz")
    assert result.exit_code == 1
    wrong = [line.removeprefix("wrong       ") for line in result.stdout.splitlines() if line.startswith("wrong")]
    assert wrong[0] == "metadata.json: field 'type' must be k8s, in any case; it is 'golang'"
    assert wrong[1].startswith("metadata.json: field 'label' must be a valid Kubernetes label value")
    assert wrong[2] == ("image.json: field 'name' is missing or empty; the file must contain 'name' and 'digest'")
    assert len(wrong) == 3


def test_on_a_terminal_no_word_is_lost_to_the_width(run: Run, tmp_path: Path) -> None:
    run(package, "basic_1.0", "--image", IMAGE)
    program = "from k8s_builder.commands.package import inspect; inspect(['basic_1.0.tgz'])"
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=follower) as process:
        os.close(follower)
        seen = b""
        # Linux ends the reading of a terminal without a writer with EIO.
        with contextlib.suppress(OSError):
            while chunk := os.read(leader, 65536):
                seen += chunk
    os.close(leader)
    assert process.returncode == 0
    words = re.sub(r"\x1b\[[0-9;]*m|\s", "", seen.decode())
    assert IMAGE in words
    assert b"\x1b[" in seen or "TERM" not in os.environ


def test_what_a_package_says_cannot_write_to_the_terminal(run: Run, made: Callable[..., bytes]) -> None:
    Path("p.tgz").write_bytes(made(metadata=rb'{"type":"\u001b[2J","label":"a\nb"}'))
    result = run(inspect, "p.tgz")
    assert result.exit_code == 1
    assert result.stdout.replace("\n", "").isprintable()
    assert len(result.stdout.splitlines()) == 6
    assert run(packageid, "p.tgz").exit_code == 1


def test_packageid_prints_the_id_alone_or_says_why_there_is_none(run: Run, made: Callable[..., bytes]) -> None:
    content = made(metadata=b'{"type":"golang","label":"a+b"}')
    Path("p.tgz").write_bytes(content)
    assert run(packageid, "p.tgz").stdout == f"a+b:{hashlib.sha256(content).hexdigest()}\n"
    Path("p.tgz").write_bytes(b"no package")
    result = run(packageid, "p.tgz")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: package must be a tar archive compressed with gzip")
    assert run(packageid, "absent.tgz").exit_code == 2


def test_a_package_goes_to_standard_output_alone(run: Run, tmp_path: Path) -> None:
    folder = str(index(tmp_path))
    to_file = run(package, "a", "--image", IMAGE, "--meta-inf", folder, "-o", "a.tgz")
    piped = run(package, "a", "--image", IMAGE, "--meta-inf", folder, "--output", "-")
    assert piped.exit_code == 0
    assert piped.stdout_bytes == Path("a.tgz").read_bytes()
    assert piped.stderr == to_file.stdout.replace("a.tgz", "-")
    assert sorted(path.name for path in Path().iterdir()) == ["META-INF", "a.tgz"]


def test_a_package_does_not_go_to_a_terminal(tmp_path: Path) -> None:
    program = f"from k8s_builder.commands.package import package; package(['a', '--image', '{IMAGE}', '-o', '-'])"
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, stdout=follower, stderr=subprocess.PIPE, text=True, check=False)
    os.close(follower)
    os.close(leader)
    assert result.returncode == 2
    assert "standard output is a terminal" in " ".join(result.stderr.split())


def test_a_package_is_read_from_standard_input(run: Run) -> None:
    run(package, "a", "--image", IMAGE)
    content = Path("a.tgz").read_bytes()
    for command in (inspect, packageid):
        piped = CliRunner().invoke(command, ["-"], input=content)
        assert (piped.exit_code, piped.stdout) == (0, run(command, "a.tgz").stdout)


@pytest.mark.parametrize("path", ["META-INF/statedb", "META-INF/statedb/couchdb", "META-INF/empty"])
def test_a_folder_without_an_index_is_told(run: Run, tmp_path: Path, path: str) -> None:
    index(tmp_path)
    (tmp_path / path).mkdir(exist_ok=True)
    result = run(package, "a", "--image", IMAGE, "--meta-inf", path)
    assert result.exit_code == 0
    assert f"Warning: {path} has no CouchDB index" in result.stderr
    assert "Warning" not in run(package, "a", "--image", IMAGE, "--meta-inf", "META-INF").stderr
    assert "Warning" not in run(package, "a", "--image", IMAGE).stderr
