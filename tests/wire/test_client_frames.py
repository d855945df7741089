"""The client's half of the protocol says and reads the golden frames, byte for byte."""

import json
from pathlib import Path
from typing import Any

import pytest

from k8s_builder_client import wire

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("frames.json").read_text())


def field(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else bytes.fromhex(value["hex"])


def named(frames: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(frame, id=frame["name"]) for frame in frames]


def decoded(data: bytes, piece: int) -> list[tuple[bytes, bytes]]:
    frames = wire.Frames()
    found = []
    for start in range(0, len(data), piece):
        frames.feed(data[start : start + piece])
        while (frame := frames.next()) is not None:
            found.append(frame)
    return found


@pytest.mark.parametrize("golden", named(GOLDEN["client"]))
def test_the_client_says_the_golden_frame(golden: dict[str, Any]) -> None:
    fields = [field(value) for value in golden["fields"].values()]
    assert wire.frame(golden["kind"].encode(), *fields) == bytes.fromhex(golden["hex"])


@pytest.mark.parametrize("golden", named(GOLDEN["daemon"]))
def test_the_client_reads_the_golden_frame(golden: dict[str, Any]) -> None:
    [(kind, payload)] = decoded(bytes.fromhex(golden["hex"]), 1 << 16)
    fields = [field(value) for value in golden["fields"].values()]
    assert kind == golden["kind"].encode()
    read: list[bytes]
    if kind == wire.WORDS:
        read = [payload]
    elif kind == wire.LOG:
        read = list(wire.log(payload))
    elif kind == wire.COPY:
        read = list(wire.copy(payload))
    else:
        assert kind == wire.EXIT
        read = [b"%d" % wire.exit_code(payload)]
    assert read == fields


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 1 << 16])
def test_frames_come_out_whole_however_the_stream_is_cut(piece: int) -> None:
    stream = bytes.fromhex("".join(golden["hex"] for golden in GOLDEN["daemon"]))
    assert [kind.decode() for kind, _ in decoded(stream, piece)] == [golden["kind"] for golden in GOLDEN["daemon"]]
    assert b"".join(wire.frame(kind, payload) for kind, payload in decoded(stream, piece)) == stream


def read_to_the_end(data: bytes) -> None:
    for kind, payload in decoded(data, 1 << 16):
        {wire.LOG: wire.log, wire.COPY: wire.copy, wire.EXIT: wire.exit_code}[kind](payload)


@pytest.mark.parametrize("golden", named(GOLDEN["malformed"]))
def test_what_is_no_frame_of_the_daemon_is_refused(golden: dict[str, Any]) -> None:
    with pytest.raises(wire.FrameError):
        read_to_the_end(bytes.fromhex(golden["hex"]))


def test_the_golden_frames_hold_every_kind() -> None:
    assert {golden["kind"] for golden in GOLDEN["client"]} == set("HAEDUPTC.S")
    assert {golden["kind"] for golden in GOLDEN["daemon"]} == set("WLYX")


def test_a_frame_of_the_greatest_length_is_taken() -> None:
    [(kind, payload)] = decoded(b"W" + (1 << 20).to_bytes(4, "big") + bytes(1 << 20), 1 << 16)
    assert (kind, len(payload)) == (b"W", wire.MAX_PAYLOAD)
