"""The daemon decides what is copied; the program copies only what it listed itself, and only into its output."""

import os
import stat

import pytest

from .standin import Connection, Daemon, Peer, Program, copy, exits, words


@pytest.fixture
def indexes(peer: Peer) -> None:
    """A package with an index and a link, at the source of `build` and of `release`."""
    for directory in (peer.source, peer.output):
        (directory / "META-INF/statedb").mkdir(parents=True)
        (directory / "META-INF/statedb/a.json").write_bytes(b"index")
        (directory / "META-INF/statedb/link.json").symlink_to("a.json")


def asked(peer: Peer, stage: str = "release") -> tuple[Program, Connection]:
    program = peer.call(stage)
    connection = peer.daemon.accept()
    connection.request()
    return program, connection


def files(peer: Peer) -> list[str]:
    """What release has put into its output directory."""
    return sorted(str(path.relative_to(peer.release)) for path in peer.release.rglob("*"))


@pytest.mark.usefixtures("daemon", "indexes")
def test_build_copies_image_json_and_meta_inf(peer: Peer) -> None:
    (peer.output / "image.json").unlink()
    program, connection = asked(peer, "build")
    connection.send(copy(b"image.json", b"image.json"), copy(b"META-INF/statedb/a.json", b"META-INF/b/c/d.json"))
    connection.send(words(b"built\n"), exits(0))
    assert program.ends_saying(b"built\n") == 0
    assert (peer.output / "image.json").read_bytes() == b'{"name":"n"}'
    assert (peer.output / "META-INF/b/c/d.json").read_bytes() == b"index"
    assert stat.S_IMODE((peer.output / "image.json").stat().st_mode) & 0o600 == 0o600


@pytest.mark.usefixtures("daemon")
def test_a_large_file_is_copied_whole(peer: Peer) -> None:
    content = os.urandom(3_000_001)
    (peer.output / "META-INF").mkdir()
    (peer.output / "META-INF/large").write_bytes(content)
    program, connection = asked(peer)
    connection.send(copy(b"META-INF/large", b"large"), exits(0))
    assert program.ends_saying() == 0
    assert (peer.release / "large").read_bytes() == content


@pytest.mark.usefixtures("daemon", "indexes")
@pytest.mark.parametrize(
    "destination",
    [b"../escaped", b"a/../../escaped", b"..", b".", b"", b"a//b", b"a/", b"./a", b"a/./b", b"a\0b"],
)
def test_a_destination_that_leads_out_is_refused(peer: Peer, destination: bytes) -> None:
    program, connection = asked(peer)
    connection.send(copy(b"META-INF/statedb/a.json", destination), exits(0))
    program.says("Error copying META-INF/statedb/a.json to ")
    assert program.ends_saying() == 1
    assert not [name for name in files(peer) if not (peer.release / name).is_dir()]
    assert not (peer.directory / "escaped").exists()


@pytest.mark.usefixtures("daemon", "indexes")
def test_an_absolute_destination_is_refused(peer: Peer) -> None:
    program, connection = asked(peer)
    target = peer.directory / "escaped"
    connection.send(copy(b"META-INF/statedb/a.json", os.fsencode(target)), exits(0))
    program.says(
        f"Error copying META-INF/statedb/a.json to {target} in {peer.release}: the path leads out of its directory"
    )
    assert program.ends_saying() == 1
    assert not target.exists()


@pytest.mark.usefixtures("daemon", "indexes")
@pytest.mark.parametrize(
    "source",
    [
        b"META-INF/statedb/link.json",
        b"META-INF/statedb",
        b"META-INF/none",
        b"image.json",
        b"../run/chaincode.json",
        b"",
    ],
)
def test_a_source_that_was_not_listed_as_a_file_is_refused(peer: Peer, source: bytes) -> None:
    program, connection = asked(peer)
    connection.send(copy(source, b"copied"), exits(0))
    program.says(f"Error copying {source.decode()} to copied in {peer.release}: this program has not listed that file")
    assert program.ends_saying() == 1
    assert files(peer) == []


@pytest.mark.usefixtures("daemon", "indexes")
def test_metadata_json_lies_elsewhere_and_is_not_copied(peer: Peer) -> None:
    program, connection = asked(peer, "build")
    connection.send(copy(b"metadata.json", b"metadata.json"), exits(0))
    program.says("Error copying metadata.json to metadata.json in ")
    assert program.ends_saying() == 1


@pytest.mark.usefixtures("daemon", "indexes")
@pytest.mark.parametrize("swapped", ["file", "directory"])
def test_a_source_that_became_a_link_is_not_followed(peer: Peer, swapped: str) -> None:
    program, connection = asked(peer)
    (peer.directory / "secret").mkdir()
    (peer.directory / "secret/a.json").write_bytes(b"secret")
    statedb = peer.output / "META-INF/statedb"
    if swapped == "file":
        (statedb / "a.json").unlink()
        (statedb / "a.json").symlink_to(peer.directory / "secret/a.json")
    else:
        statedb.rename(peer.directory / "moved")
        statedb.symlink_to(peer.directory / "secret")
    connection.send(copy(b"META-INF/statedb/a.json", b"a.json"), exits(0))
    program.says("Error copying META-INF/statedb/a.json to a.json in ")
    assert program.ends_saying() == 1
    assert files(peer) == []


@pytest.mark.usefixtures("daemon", "indexes")
def test_a_source_that_became_a_pipe_holds_nobody_up(peer: Peer) -> None:
    program, connection = asked(peer)
    (peer.output / "META-INF/statedb/a.json").unlink()
    os.mkfifo(peer.output / "META-INF/statedb/a.json")
    connection.send(copy(b"META-INF/statedb/a.json", b"a.json"), exits(0))
    program.says(f"Error copying META-INF/statedb/a.json to a.json in {peer.release}: no longer a regular file")
    assert program.ends_saying() == 1
    assert files(peer) == []


@pytest.mark.usefixtures("daemon", "indexes")
def test_a_link_on_the_way_to_the_destination_is_not_followed(peer: Peer) -> None:
    (peer.directory / "elsewhere").mkdir()
    (peer.release / "statedb").symlink_to(peer.directory / "elsewhere")
    program, connection = asked(peer)
    connection.send(copy(b"META-INF/statedb/a.json", b"statedb/a.json"), exits(0))
    program.says(f"Error copying META-INF/statedb/a.json to statedb/a.json in {peer.release}: ")
    assert program.ends_saying() == 1
    assert list((peer.directory / "elsewhere").iterdir()) == []


@pytest.mark.usefixtures("daemon", "indexes")
@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory"])
def test_what_is_there_already_is_not_overwritten(peer: Peer, kind: str) -> None:
    target = peer.release / "a.json"
    kept = peer.directory / "kept"
    if kind == "directory":
        target.mkdir()
    elif kind == "file":
        target.write_bytes(b"kept")
    else:
        if kind == "link":
            kept.write_bytes(b"kept")
        target.symlink_to(kept)
    program, connection = asked(peer)
    connection.send(copy(b"META-INF/statedb/a.json", b"a.json"), exits(0))
    program.says(f"Error copying META-INF/statedb/a.json to a.json in {peer.release}: File exists")
    assert program.ends_saying() == 1
    assert kept.exists() == (kind == "link")
    if kind in ("file", "link"):
        assert target.read_bytes() == b"kept"


@pytest.mark.usefixtures("indexes")
def test_a_copy_is_repeated_after_a_reconnect_without_complaint(peer: Peer, daemon: Daemon) -> None:
    program, connection = asked(peer)
    connection.send(copy(b"META-INF/statedb/a.json", b"a.json"), words(b"copied\n"))
    assert program.line() == b"copied"
    connection.close()
    connection = daemon.accept()
    connection.request()
    connection.send(copy(b"META-INF/statedb/a.json", b"a.json"), exits(0))
    assert program.ends_saying() == 0
    assert (peer.release / "a.json").read_bytes() == b"index"


@pytest.mark.usefixtures("daemon", "indexes")
def test_nothing_that_follows_a_failed_copy_is_obeyed(peer: Peer) -> None:
    program, connection = asked(peer)
    connection.send(copy(b"none", b"a"), copy(b"META-INF/statedb/a.json", b"b"), words(b"copied\n"), exits(0))
    program.says("Error copying none to a in ")
    assert program.ends_saying() == 1
    assert files(peer) == []


@pytest.mark.usefixtures("daemon", "indexes")
def test_a_name_with_control_characters_is_told_on_one_line(peer: Peer) -> None:
    program, connection = asked(peer)
    connection.send(copy(b"a\nb\x1b[2J\xff\xc3\xa4", b"c"), exits(0))
    program.says("Error copying a?b?[2J?\N{LATIN SMALL LETTER A WITH DIAERESIS} to c in ")
    assert program.ends_saying() == 1
