"""The daemon's half of the protocol reads and says the golden frames, and both halves keep to the page's bounds."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builder_client import request as client_request
from k8s_builder_client import wire
from k8s_builderd.errors import ProtocolError
from k8s_builderd.gateway import protocol
from k8s_builderd.gateway.protocol import Entry, Frames, Kind, Request, RequestReader
from k8s_builderd.settings import FORWARDED, NAMESPACE

ROOT = Path(__file__).parents[2]
GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("frames.json").read_text())
# The page is wrapped; what it promises is not.
PAGE = " ".join((ROOT / "docs" / "protocol.md").read_text().split())
TOKEN = b"000102030405060708090a0b0c0d0e0f"


def named(frames: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(frame, id=frame["name"]) for frame in frames]


def text(value: str | dict[str, str]) -> str:
    return value if isinstance(value, str) else bytes.fromhex(value["hex"]).decode("utf-8", "surrogateescape")


def raw(value: str | dict[str, str]) -> bytes:
    return value.encode() if isinstance(value, str) else bytes.fromhex(value["hex"])


def decoded(data: bytes, piece: int = 1 << 16) -> list[tuple[int, bytes]]:
    frames = Frames()
    return [frame for start in range(0, len(data), piece) for frame in frames.feed(data[start : start + piece])]


def frame(kind: str, *fields: bytes) -> bytes:
    payload = b"\0".join(fields)
    return kind.encode() + len(payload).to_bytes(4, "big") + payload


def hello(stage: str = "run") -> bytes:
    return frame("H", b"1", stage.encode(), b"7")


def read(*frames: bytes) -> Request:
    """Return the request that these frames are."""
    reader = RequestReader()
    for kind, payload in decoded(b"".join(frames)):
        request = reader.add(kind, payload)
        if request is not None:
            return request
    raise AssertionError("the request has no end")


# The golden frames


def sender(document: str) -> list[bytes]:
    """Return the beginning of a request of a stage that sends the document."""
    stage = next(stage for stage, names in protocol.DOCUMENTS.items() if document in names)
    return [hello(stage), *([frame("T", TOKEN)] if stage == "run" else [])]


@pytest.mark.parametrize("golden", named(GOLDEN["client"]))
def test_the_daemon_reads_the_golden_frame(golden: dict[str, Any]) -> None:
    data, fields = bytes.fromhex(golden["hex"]), [*golden["fields"].values()]
    [(kind, payload)] = decoded(data)
    assert kind == ord(golden["kind"])
    assert payload == b"\0".join(map(raw, fields))
    match golden["kind"]:
        case "H":
            request = read(data, frame("T", TOKEN), frame("."))
            assert (request.stage, str(request.pid)) == (fields[1], fields[2])
        case "A":
            assert read(hello("logs"), data, frame(".")).arguments == {fields[0]: fields[1]}
        case "E":
            assert read(hello("build"), data, frame(".")).environment == {fields[0]: fields[1]}
        case "D":
            assert read(*sender(fields[0]), data, frame(".")).documents == {fields[0]: raw(fields[1])}
        case "U":
            assert read(*sender(fields[0]), data, frame(".")).unreadable == {fields[0]: fields[1]}
        case "P":
            [entry] = read(hello("build"), data, frame(".")).paths
            assert entry == Entry(fields[0], int(fields[1]), text(fields[2]))
        case "T":
            assert read(hello(), data, frame(".")).token == fields[0].encode()
        case "C":
            assert read(hello(), frame("T", TOKEN), data, frame(".")).cursor == fields[0]
        case ".":
            assert read(hello("detect"), data).stage == "detect"
        case _:
            assert kind == Kind.STOP


@pytest.mark.parametrize("golden", named(GOLDEN["daemon"]))
def test_the_daemon_says_the_golden_frame(golden: dict[str, Any]) -> None:
    fields = [*golden["fields"].values()]
    said: bytes
    match golden["kind"]:
        case "W":
            said = protocol.frame(Kind.WORDS, raw(fields[0]))
        case "L":
            said = protocol.log(text(fields[0]), raw(fields[1]))
        case "Y":
            said = protocol.copy(text(fields[0]), text(fields[1]))
        case _:
            said = protocol.exit_with(int(fields[0]))
    assert said == bytes.fromhex(golden["hex"])


def test_one_line_of_words_is_the_golden_frame() -> None:
    [golden] = [frame for frame in GOLDEN["daemon"] if frame["name"] == "words"]
    said = protocol.words("run", 7, "Running chaincode ID a:b with kubernetes job ns/j")
    assert said == bytes.fromhex(golden["hex"])


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 64, 1 << 16])
def test_frames_come_out_whole_however_the_stream_is_cut(piece: int) -> None:
    stream = bytes.fromhex("".join(golden["hex"] for golden in GOLDEN["client"]))
    found = decoded(stream, piece)
    assert [chr(kind) for kind, _ in found] == [golden["kind"] for golden in GOLDEN["client"]]
    assert b"".join(bytes([kind]) + len(data).to_bytes(4, "big") + data for kind, data in found) == stream


def test_the_two_halves_name_the_same_kinds() -> None:
    ours = {name: bytes([kind]) for name, kind in Kind.__members__.items()}
    assert ours == {name: getattr(wire, name) for name in ours}
    assert {golden["kind"] for golden in [*GOLDEN["client"], *GOLDEN["daemon"]]} == {chr(kind) for kind in Kind}


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([*Kind]), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_what_the_client_frames_the_daemon_unframes(sent: list[tuple[Kind, bytes]], cuts: list[int]) -> None:
    stream = b"".join(wire.frame(bytes([kind]), payload) for kind, payload in sent)
    frames, start, turn = Frames(), 0, 0
    got: list[tuple[int, bytes]] = []
    while start < len(stream):
        end = start + cuts[turn % len(cuts)]
        got += frames.feed(stream[start:end])
        start, turn = end, turn + 1
    assert got == sent


# What the page promises is what both halves do


def test_the_bounds_of_the_page_are_the_bounds_of_both_halves() -> None:
    assert "No payload is longer than 1 MiB (1,048,576 bytes)" in PAGE
    assert protocol.MAX_PAYLOAD == wire.MAX_PAYLOAD == 1_048_576
    bounds = dict(re.findall(r"\| `([HAEDUPTC.S])` \| [^|]+ \| [^|]+ \| ([^|]+?) \|", PAGE))
    assert bounds["A"] == "512 bytes each"
    assert protocol.MAX_ARGUMENT == 512
    assert bounds["E"] == "16; 4 KiB each"
    assert (protocol.MAX_ENVIRONMENT, protocol.MAX_ENVIRONMENT_ENTRY) == (16, 4096)
    assert client_request.MAX_ENTRY == 4096
    assert len(client_request.ENTRIES) <= 16
    assert bounds["D"] == "4"
    assert bounds["U"] == "counts as `D`; 4 KiB of reason"
    assert protocol.MAX_REASON == 4096
    assert all(len(documents) <= 4 for documents in protocol.DOCUMENTS.values())
    assert bounds["P"] == "10,000; 4 KiB each; 1 MiB in all"
    assert protocol.MAX_PATH_BYTES == client_request.MAX_PATH_BYTES == 1_048_576
    assert (protocol.MAX_PATHS, protocol.MAX_PATH) == (10_000, 4096)
    assert (client_request.MAX_PATHS, client_request.MAX_PATH) == (10_000, 4096)


def test_the_version_of_the_page_is_that_of_both_halves() -> None:
    assert "protocol version (`1`)" in PAGE
    assert protocol.VERSION == wire.VERSION == b"1"


def test_the_entries_of_the_page_are_those_that_the_client_sends_and_the_daemon_uses() -> None:
    [names] = re.findall(r"only for these names, where they are set: (.*?)\. ", PAGE)
    first, prefix, *rest = re.findall(r"`([^`]+)`", names)
    page = {first, *(prefix + name for name in rest)}
    assert page == {name.decode() for name in client_request.ENTRIES} == {*FORWARDED, NAMESPACE}


def test_the_documents_of_the_client_are_those_that_the_daemon_takes() -> None:
    sent = {stage: {name.decode() for _, name in names} for stage, names in client_request.DOCUMENTS.items()}
    assert sent == {stage: {*names} for stage, names in protocol.DOCUMENTS.items()}
    assert {*client_request.DOCUMENTS} | {*protocol.PEOPLES} == {*protocol.STAGES}


def test_the_stages_and_arguments_of_the_page_are_those_of_the_daemon() -> None:
    assert f"stage ({', '.join(f'`{stage}`' for stage in protocol.STAGES)})" in PAGE
    table = dict(re.findall(r"\| `(status|logs|stop)` \| ([^|]+) \|", PAGE))
    assert {stage: tuple(re.findall("`([^`]+)`", cell)) for stage, cell in table.items()} == {
        "status": (),
        **protocol.ARGUMENTS,
    }


# What is no request


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        pytest.param([frame("E", b"A", b"b")], "must begin with a hello", id="no hello"),
        pytest.param([frame(".")], "must begin with a hello", id="nothing but the end"),
        pytest.param([hello(), hello()], "no frame of kind 'H'", id="second hello"),
        pytest.param([hello(), frame("A", b"chaincode", b"a")], "run takes no argument 'chaincode'", id="argument"),
        pytest.param([hello("logs"), frame("A", b"tail", b"1")], "logs takes no argument 'tail'", id="any argument"),
        pytest.param([hello("stop"), *[frame("A", b"chaincode", b"a")] * 2], "or not twice", id="argument twice"),
        pytest.param([hello("stop"), frame("A", b"chaincode", b"x" * 512)], "512 bytes of an argument", id="long"),
        pytest.param([hello("status"), frame("D", b"image.json", b"")], "status sends no document", id="no documents"),
        pytest.param([hello("status"), frame("T", TOKEN)], "of run", id="a token of status"),
        pytest.param([hello(), frame("S")], "no frame of kind 'S'", id="stop before the end"),
        pytest.param([hello(), frame("W", b"x")], "no frame of kind 'W'", id="a frame of the daemon"),
        pytest.param([hello(), b"\xe9\0\0\0\0"], r"no frame of kind '\xe9'", id="any byte"),
        pytest.param([frame("H", b"2", b"run", b"7")], "protocol version '2' and this daemon 1", id="version"),
        pytest.param([frame("H", b"", b"run", b"7")], "protocol version ''", id="no version"),
        pytest.param([frame("H", b"1", b"invoke", b"7")], "no stage 'invoke'", id="stage"),
        pytest.param([frame("H", b"1", b"RUN", b"7")], "no stage 'RUN'", id="stage in capitals"),
        pytest.param([frame("H", b"1", b"run")], "2 fields where 3 are due", id="no pid"),
        pytest.param([frame("H", b"1", b"run", b"")], "decimal digits", id="empty pid"),
        pytest.param([frame("H", b"1", b"run", b"-1")], "decimal digits", id="negative pid"),
        pytest.param([frame("H", b"1", b"run", b"9" * 20)], "decimal digits", id="pid without end"),
        pytest.param([frame("H", b"1", b"run", "٣".encode())], "decimal digits", id="digits of another script"),
        pytest.param([frame("H", b"1", b"run", b"7\n")], "decimal digits", id="line feed after the pid"),
        pytest.param([hello(), frame(".")], "run must send a token", id="no token"),
        pytest.param([hello(), frame("T", TOKEN), frame("T", TOKEN)], "a token is", id="two tokens"),
        pytest.param([hello(), frame("T", TOKEN[:-1])], "32 lower-case hexadecimal", id="short token"),
        pytest.param([hello(), frame("T", TOKEN.upper())], "32 lower-case hexadecimal", id="token in capitals"),
        pytest.param([hello(), frame("T", TOKEN + b"\n")], "32 lower-case hexadecimal", id="token and line feed"),
        pytest.param([hello("build"), frame("T", TOKEN)], "of run", id="token of build"),
        pytest.param([hello("build"), frame("C", b"x")], "by run", id="cursor of build"),
        pytest.param([hello(), frame("C", b"x"), frame("C", b"y")], "sent once", id="two cursors"),
        pytest.param([hello(), frame("C", b"x" * 513)], "more than 512 bytes of a cursor", id="long cursor"),
        pytest.param([hello(), frame("D", b"image.json")], "1 fields where 2 are due", id="document without content"),
        pytest.param([hello(), frame("D", b"../image.json", b"")], "no document '../image.json'", id="document"),
        pytest.param([hello(), frame("U", b"core.yaml", b"")], "no document 'core.yaml'", id="unread document"),
        pytest.param([hello(), frame("E", b"A")], "1 fields where 2 are due", id="entry without a value"),
        pytest.param(
            [hello(), frame("E", b"A", b"x" * 4095)], "more than 4096 bytes of an environment entry", id="long entry"
        ),
        pytest.param(
            [hello(), *(frame("E", b"A%d" % n, b"") for n in range(17))], "more than 16 environment", id="17 entries"
        ),
        pytest.param(
            [hello(), *(frame("E", b"A", b"%d" % n) for n in range(17))],
            "more than 16 environment",
            id="one entry 17 times",
        ),
        pytest.param(
            [hello(), *(frame("D", b"image.json", b"%d" % n) for n in range(5))],
            "'image.json' is sent twice",
            id="one document five times",
        ),
        pytest.param(
            [hello(), *(frame("DU"[n % 2], b"image.json", b"%d" % n) for n in range(5))],
            "'image.json' is sent twice",
            id="one document read and unread in turn",
        ),
        pytest.param([hello("build"), frame("P", b"l", b"0", b"META-INF/a")], "no kind of path 'l'", id="path's kind"),
        pytest.param([hello("build"), frame("P", b"f", b"1k", b"META-INF/a")], "decimal digits", id="path's size"),
        pytest.param([hello("build"), frame("P", b"f", b"0")], "2 fields where 3 are due", id="path without a path"),
        pytest.param([hello("build"), frame("P", b"f", b"0", b"x" * 4097)], "more than 4096 bytes", id="long path"),
        pytest.param(
            [hello("build"), *(frame("P", b"f", b"0", b"x") for _ in range(10_001))],
            "more than 10000 paths below META-INF",
            id="10,001 paths",
        ),
        pytest.param([b"D\x00\x10\x00\x01"], "a frame of 1048577 bytes is longer than 1048576", id="long frame"),
        pytest.param([b"GET / HTTP/1.1\r\n\r\n"], "is longer than 1048576", id="HTTP"),
        pytest.param([b"\x16\x03\x01\x02\x00\x01"], "is longer than 1048576", id="TLS"),
    ],
)
def test_a_breach_is_refused_with_the_rule(frames: list[bytes], rule: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        read(*frames)
    assert rule in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_just_keeps_to_the_bounds_is_taken() -> None:
    request = read(
        hello(),
        *(frame("E", b"A%02d" % n, b"x" * 4092) for n in range(16)),
        frame("D", b"image.json", b"x" * (1_048_576 - 11)),
        frame("U", b"chaincode.json", b"x" * 4096),
        frame("T", TOKEN),
        frame("C", b"x" * 512),
        frame("."),
    )
    assert (len(request.environment), len(request.documents["image.json"])) == (16, 1_048_565)


def test_a_listing_that_just_keeps_to_the_bounds_is_taken() -> None:
    many = read(hello("build"), *(frame("P", b"f", b"0", b"x" * 100) for _ in range(10_000)), frame("."))
    assert len(many.paths) == 10_000
    size = 4 + 4092  # f NUL 0 NUL, and the path
    long = read(hello("build"), *(frame("P", b"f", b"0", b"x" * 4092) for _ in range(1_048_576 // size)), frame("."))
    assert len(long.paths) == 256
    with pytest.raises(ProtocolError, match="more than 1048576 bytes of paths"):
        read(hello("build"), *(frame("P", b"f", b"0", b"x" * 4092) for _ in range(257)), frame("."))


def test_what_a_refusal_repeats_of_the_client_is_short() -> None:
    """A line in the daemon's log for each call of a broken client is no place for a megabyte."""
    for frames in ([frame("H", b"x" * 9999, b"run", b"7")], [hello(), frame("D", b"x" * 9999, b"")]):
        with pytest.raises(ProtocolError) as refused:
            read(*frames)
        assert len(str(refused.value)) < 1000


# What is said


@pytest.mark.parametrize(
    "said",
    ["one\ntwo", "one\r\ntwo", "one\x00two", "one\x1b[31mtwo", "one\x85two", "one\u2028two", "one\x7ftwo"],
    ids=ascii,
)
def test_words_are_one_line_without_control_characters(said: str) -> None:
    [(_, payload)] = decoded(protocol.words("run", 7, said))
    assert payload.count(b"\n") == 1
    assert payload.decode().endswith("\n")
    assert payload.decode().rstrip("\n").isprintable()


def test_words_of_any_length_stay_under_64_kib_and_say_that_they_are_cut() -> None:
    [(_, payload)] = decoded(protocol.words("release", 9999999, "\N{SNOWMAN}" * 100_000))
    assert len(payload) < 64 * 1024
    assert payload.endswith(b"[cut here: %d bytes more]\n" % (300_000 - protocol.MAX_LINE))


def test_names_that_are_not_utf_8_come_back_as_they_were() -> None:
    [entry] = read(hello("build"), frame("P", b"f", b"1", b"META-INF/\xff"), frame(".")).paths
    assert decoded(protocol.copy(entry.path, entry.path)) == [(Kind.COPY, b"META-INF/\xff\0META-INF/\xff")]


def test_a_request_does_not_show_its_secrets() -> None:
    request = read(hello(), frame("T", TOKEN), frame("D", b"chaincode.json", b"PRIVATE KEY"), frame("."))
    assert "PRIVATE" not in f"{request!r} {request}"
    assert TOKEN.decode() not in f"{request!r} {request}"


# What is kept of a run that is turned away


@pytest.mark.parametrize("piece", [1, 7, 1 << 16])
def test_a_claim_is_read_without_its_documents(piece: int) -> None:
    documents = frame("E", b"CORE_PEER_ID", b"p") + frame("D", b"image.json", bytes(300_000)) * 2
    stream = documents + frame("T", TOKEN) + frame("C", b"1 uid") + frame("D", b"") + frame(".")
    frames, reader = Frames(), RequestReader()
    frames.drop_documents()
    reader.claim_only = True
    held = 0
    for kind, payload in decoded(hello()):
        reader.add(kind, payload)
    found = []
    for start in range(0, len(stream), piece):
        for kind, payload in frames.feed(stream[start : start + piece]):
            held = max(held, len(payload))
            if (request := reader.add(kind, payload)) is not None:
                found.append((request.token, request.cursor, request.documents, request.environment))
    assert found == [(TOKEN, "1 uid", {}, {})]
    assert held == len(TOKEN)


def test_a_frame_that_is_too_long_is_a_breach_of_a_claim_too() -> None:
    frames = Frames()
    frames.drop_documents()
    with pytest.raises(ProtocolError, match="longer than 1048576"):
        list(frames.feed(b"D\xff\xff\xff\xff"))


def test_the_sign_of_life_is_the_golden_frame() -> None:
    [golden] = [frame for frame in GOLDEN["daemon"] if frame["name"] == "words without a word: a sign of life"]
    assert bytes.fromhex(golden["hex"]) == protocol.SIGN_OF_LIFE
