"""What each program asks of the daemon, byte for byte, and what it asks nothing about."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from .standin import Daemon, Peer, exits, words


def raw_request(daemon: Daemon) -> tuple[bytes, int]:
    """All bytes of one request, answered with exit 0, and the number of its frames."""
    connection = daemon.accept()
    request = connection.request()
    connection.send(exits(0))
    connection.is_left()
    return b"".join(frame.encoded() for frame in request), len(request)


def test_detect_sends_its_metadata(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("detect")
    request, _ = raw_request(daemon)
    pid = str(program.pid).encode()
    content = b'{"type":"k8s","label":"basic_1.0"}'
    assert request == (
        b"H\0\0\0" + bytes([9 + len(pid)]) + b"1\0detect\0" + pid
        + b"D\0\0\0" + bytes([14 + len(content)]) + b"metadata.json\0" + content
        + b".\0\0\0\0"
    )  # fmt: skip
    assert program.ends_saying() == 0


def test_build_sends_both_documents_and_lists_meta_inf(peer: Peer, daemon: Daemon) -> None:
    indexes = peer.source / "META-INF/statedb/couchdb/indexes"
    indexes.mkdir(parents=True)
    (indexes / "owner.json").write_bytes(b"12345")
    (indexes / "alias").symlink_to("owner.json")
    (peer.source / "META-INF/a").write_bytes(b"")
    os.mkfifo(peer.source / "META-INF/z")
    program = peer.call("build")
    connection = daemon.accept()
    request = connection.request()
    assert request == [
        ("H", b"1\0build\0%d" % program.pid),
        ("D", b'metadata.json\0{"type":"k8s","label":"basic_1.0"}'),
        ("D", b'image.json\0{"name":"n"}'),
        ("P", b"f\x000\0META-INF/a"),
        ("P", b"d\x000\0META-INF/statedb"),
        ("P", b"o\x000\0META-INF/z"),
        ("P", b"d\x000\0META-INF/statedb/couchdb"),
        ("P", b"d\x000\0META-INF/statedb/couchdb/indexes"),
        ("P", b"o\x000\0META-INF/statedb/couchdb/indexes/alias"),
        ("P", b"f\x005\0META-INF/statedb/couchdb/indexes/owner.json"),
        (".", b""),
    ]
    connection.send(exits(0))
    assert program.ends_saying() == 0


def test_release_sends_only_the_listing(peer: Peer, daemon: Daemon) -> None:
    (peer.output / "META-INF").mkdir()
    (peer.output / "META-INF/x.json").write_bytes(b"{}")
    program = peer.call("release")
    connection = daemon.accept()
    assert connection.request() == [
        ("H", b"1\0release\0%d" % program.pid),
        ("P", b"f\x002\0META-INF/x.json"),
        (".", b""),
    ]
    connection.send(exits(0))
    assert program.ends_saying() == 0


def test_run_sends_documents_and_a_token_and_only_the_agreed_environment(peer: Peer, daemon: Daemon) -> None:
    environment = {
        "CORE_PEER_ID": "peer0",
        "FABRIC_K8S_BUILDER_DEBUG": "no",
        "FABRIC_K8S_BUILDER_NAMESPACE": "ns",
        "FABRIC_K8S_BUILDER_NODE_ROLE": "",
        "FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX": "px",
        "FABRIC_K8S_BUILDER_SERVICE_ACCOUNT": "sa",
        "FABRIC_K8S_BUILDER_START_TIMEOUT": "1m",
    }
    peer.environment |= environment
    program = peer.call("run", CORE_PEER_TLS_KEY="secret", TMPDIR="/tmp")
    connection = daemon.accept()
    request = connection.request()
    token = request.one("T")
    assert re.fullmatch(rb"[0-9a-f]{32}", token)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    start = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert request == [
        ("H", b"1\0run\0%d" % program.pid),
        *(("E", f"{name}\0{value}".encode()) for name, value in environment.items()),
        ("E", f"started\0{boot} {start}".encode()),
        ("D", b'image.json\0{"name":"o"}'),
        ("D", b'chaincode.json\0{"chaincode_id":"a:b"}'),
        ("T", token),
        (".", b""),
    ]
    connection.send(exits(7))
    assert program.ends_saying() == 7


def test_no_two_runs_share_a_token(peer: Peer, daemon: Daemon) -> None:
    tokens = set()
    for _ in range(3):
        program = peer.call("run")
        connection = daemon.accept()
        tokens.add(connection.request().one("T"))
        connection.send(exits(0))
        assert program.ends() == 0
    assert len(tokens) == 3


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"type":"golang","label":"basic_1.0"}',
        b'{"type":"k9s"}',
        b"",
        b"not JSON",
        b'{"type":"ccaas","label":"a\\/b"}',
    ],
)
@pytest.mark.parametrize("listening", [False, True])
def test_detect_leaves_other_types_alone_without_a_word_or_a_daemon(
    peer: Peer, metadata: bytes, listening: bool
) -> None:
    if listening:
        peer.daemon.open().listener.setblocking(False)
    (peer.metadata / "metadata.json").write_bytes(metadata)
    assert peer.call("detect").ends_saying() == 1
    if listening:
        with pytest.raises(BlockingIOError):
            peer.daemon.accept()


@pytest.mark.parametrize(
    "metadata",
    [
        b'{"type":"K8s"}',
        b'{"type":"golang","label":"for-k8s"}',
        b'{"type":"\\u006b8s"}',
        '{"type":"\N{KELVIN SIGN}8S"}'.encode(),
        '{"type":"k8s"}'.encode("utf-16"),
        '{"type":"k8s"}'.encode("utf-16-be"),
    ],
)
def test_detect_asks_the_daemon_wherever_it_could_be_k8s(peer: Peer, daemon: Daemon, metadata: bytes) -> None:
    (peer.metadata / "metadata.json").write_bytes(metadata)
    program = peer.call("detect")
    connection = daemon.accept()
    assert connection.request().one("D") == b"metadata.json\0" + metadata
    connection.send(words(b"detect [1]: Detected\n"), exits(0))
    assert program.ends_saying(b"detect [1]: Detected\n") == 0


def unreadable(peer: Peer, daemon: Daemon) -> bytes:
    program = peer.call("run")
    connection = daemon.accept()
    request = connection.request()
    connection.send(exits(1))
    assert program.ends_saying() == 1
    assert [name.partition(b"\0")[0] for name in request.of("D")] == [b"image.json"]
    return request.one("U")


def test_a_missing_document_is_told_with_its_reason(peer: Peer, daemon: Daemon) -> None:
    (peer.run_metadata / "chaincode.json").unlink()
    assert unreadable(peer, daemon) == b"chaincode.json\0No such file or directory"


def test_a_document_that_is_a_link_is_not_followed(peer: Peer, daemon: Daemon) -> None:
    (peer.run_metadata / "chaincode.json").rename(peer.directory / "elsewhere")
    (peer.run_metadata / "chaincode.json").symlink_to(peer.directory / "elsewhere")
    assert unreadable(peer, daemon) == b"chaincode.json\0Too many levels of symbolic links"


def test_a_document_that_is_a_pipe_holds_nobody_up(peer: Peer, daemon: Daemon) -> None:
    (peer.run_metadata / "chaincode.json").unlink()
    os.mkfifo(peer.run_metadata / "chaincode.json")
    assert unreadable(peer, daemon) == b"chaincode.json\0not a regular file"


def test_a_document_larger_than_a_frame_is_not_sent(peer: Peer, daemon: Daemon) -> None:
    (peer.run_metadata / "chaincode.json").write_bytes(bytes((1 << 20) - len("chaincode.json")))
    assert unreadable(peer, daemon) == b"chaincode.json\0larger than 1 MiB"


def test_a_document_as_large_as_a_frame_is_sent(peer: Peer, daemon: Daemon) -> None:
    content = bytes((1 << 20) - len("chaincode.json") - 1)
    (peer.run_metadata / "chaincode.json").write_bytes(content)
    program = peer.call("run")
    connection = daemon.accept()
    assert connection.request().of("D")[1] == b"chaincode.json\0" + content
    connection.send(exits(0))
    assert program.ends_saying() == 0


@pytest.mark.parametrize(("kind", "listed"), [("file", b"f\x003\0META-INF"), ("link", b"o\x000\0META-INF")])
def test_a_meta_inf_that_is_no_directory_is_listed_itself(peer: Peer, daemon: Daemon, kind: str, listed: bytes) -> None:
    if kind == "file":
        (peer.source / "META-INF").write_bytes(b"abc")
    else:
        (peer.source / "META-INF").symlink_to(peer.directory)
    program = peer.call("build")
    connection = daemon.accept()
    assert connection.request().of("P") == [listed]
    connection.send(exits(1))
    assert program.ends_saying() == 1


def test_names_are_listed_as_the_bytes_they_are(peer: Peer, daemon: Daemon) -> None:
    directory = peer.source / "META-INF"
    directory.mkdir()
    names = [b"\n", b"\xc3\xa4", b"\xff\xfe"]
    for name in names:
        (directory / os.fsdecode(name)).write_bytes(b"")
    program = peer.call("build")
    connection = daemon.accept()
    assert connection.request().of("P") == [b"f\x000\0META-INF/" + name for name in names]
    connection.send(exits(0))
    assert program.ends_saying() == 0


def make_files(directory: Path, names: Iterable[str]) -> None:
    """Make empty files, some thousands of them in little time."""
    here = os.open(directory, os.O_RDONLY)
    for name in names:
        os.mknod(name, dir_fd=here)
    os.close(here)


def test_ten_thousand_paths_are_sent(peer: Peer, daemon: Daemon) -> None:
    (peer.source / "META-INF").mkdir()
    make_files(peer.source / "META-INF", map(str, range(10_000)))
    program = peer.call("build")
    connection = daemon.accept()
    assert len(connection.request().of("P")) == 10_000
    connection.send(exits(0))
    assert program.ends_saying() == 0


def test_more_paths_are_refused_before_the_daemon_is_asked(peer: Peer) -> None:
    for directory in ("META-INF", "META-INF/b"):
        (peer.source / directory).mkdir()
        make_files(peer.source / directory, map(str, range(5_000)))
    program = peer.call("build")
    program.says("META-INF contains more than 10000 files and directories")
    assert program.ends_saying() == 1


def test_a_path_longer_than_its_bound_is_refused(peer: Peer) -> None:
    here = os.open(peer.source, os.O_RDONLY)
    for name in ["META-INF", *["d" * 240] * 17]:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    program = peer.call("build")
    program.says("A path below META-INF is longer than 4096 bytes: META-INF/ddd")
    assert program.ends_saying() == 1


def paths_of_one_mebibyte(peer: Peer) -> Path:
    """Make files of which the `P` payloads are 1,048,576 bytes together, and return the last of them."""
    directory = peer.source / "META-INF"
    directory.mkdir()
    # 4 bytes for kind and size, 9 for the directory: 256 each
    make_files(directory, (f"{number:04}{'x' * 239}" for number in range(4095)))
    last = directory / ("z" * 243)
    last.touch()
    return last


def test_paths_of_just_one_mebibyte_together_are_sent(peer: Peer, daemon: Daemon) -> None:
    paths_of_one_mebibyte(peer)
    program = peer.call("build")
    connection = daemon.accept()
    assert sum(map(len, connection.request().of("P"))) == 1_048_576
    connection.send(exits(0))
    assert program.ends_saying() == 0


@pytest.mark.parametrize("stage", ["build", "release"])
def test_paths_that_are_longer_together_are_refused_before_the_daemon_is_asked(peer: Peer, stage: str) -> None:
    last = paths_of_one_mebibyte(peer)
    last.rename(last.with_name(last.name + "z"))
    if stage == "release":
        (peer.source / "META-INF").rename(peer.output / "META-INF")
    program = peer.call(stage)
    program.says("The paths below META-INF have more than 1048576 bytes in total")
    assert program.ends_saying() == 1


def test_an_environment_entry_longer_than_its_bound_is_refused(peer: Peer) -> None:
    program = peer.call("run", CORE_PEER_ID="p" * 4084)
    program.says("The CORE_PEER_ID environment variable is longer than 4096 bytes")
    assert program.ends_saying() == 1
