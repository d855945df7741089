"""Today's clients with the daemon of 16a85a5: what it said is replayed frame by frame."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.standin import Peer, Program, peer_in_a_short_directory
from tests.upgrade.golden import SCENARIOS, encoded, field

STOPPED = ": Stopped: chaincode job "

CALLS = [
    pytest.param(conversation, program, id=f"{name}-{index}")
    for name, recorded in SCENARIOS.items()
    for index, (conversation, program) in enumerate(zip(recorded["conversations"], recorded["programs"], strict=True))
]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with peer_in_a_short_directory(sys.executable) as peer:
        peer.daemon.open()
        (peer.output / "image.json").unlink()
        (peer.metadata / "metadata.json").write_bytes(b'{"type":"k8s","label":"basic_1.0"}')
        yield peer


def write_index(peer: Peer, stage: str) -> None:
    below = {"build": peer.source, "release": peer.output}.get(stage)
    if below is not None:
        index = below / "META-INF/statedb/couchdb/indexes/owner.json"
        index.parent.mkdir(parents=True)
        index.write_bytes(b'{"index":{}}')


@pytest.mark.parametrize(("conversation", "before"), CALLS)
def test_they_say_and_do_the_same(peer: Peer, conversation: Any, before: Any) -> None:
    stage = field(conversation, "H").split("\0")[1]
    write_index(peer, stage)
    program = peer.call(stage)
    connection = peer.daemon.accept()
    request = connection.request()
    assert request.one("H").split(b"\0")[:2] == field(conversation, "H").encode().split(b"\0")[:2]
    last = next((i for i, frame in enumerate(conversation["daemon"]) if STOPPED in frame[-1]), None)
    connection.send(*map(encoded, conversation["daemon"][:last]))
    expected = [line.replace(f"[{before['pid']}]: Stopping", f"[{program.pid}]: Stopping") for line in before["lines"]]
    said = []
    if last is not None:
        said = lines(program, expected.index(f"run [{program.pid}]: Stopping the chaincode because of SIGTERM"))
        program.signal()
        connection.is_told_to_stop()
        connection.send(*map(encoded, conversation["daemon"][last:]))
    said += program.rest().decode().splitlines()
    assert program.ends() == before["code"]
    assert said == expected
    if stage == "build" and before["code"] == 0:
        assert (peer.output / "image.json").read_bytes() == (peer.source / "image.json").read_bytes()
        assert (peer.output / "META-INF/statedb/couchdb/indexes/owner.json").exists()
    if stage == "release":
        assert (peer.release / "statedb/couchdb/indexes/owner.json").read_bytes() == b'{"index":{}}'


def lines(program: Program, count: int) -> list[str]:
    return [program.line().decode() for _ in range(count)]


@pytest.mark.parametrize(
    "cursor",
    sorted(
        {
            frame[1]
            for one in SCENARIOS.values()
            for c in one["conversations"]
            for frame in c["daemon"]
            if frame[0] == "L"
        }
    ),
)
def test_they_keep_each_cursor_as_it_is(peer: Peer, cursor: str) -> None:
    program = peer.call("run")
    connection = peer.daemon.accept()
    connection.request()
    connection.send(encoded(["L", cursor, "line\n"]))
    assert program.line() == b"line"
    connection.close()
    connection = peer.daemon.accept()
    assert connection.request().one("C") == cursor.encode()
    connection.send(encoded(["X", "0"]))
    assert program.ends_saying() == 0
