"""A log cut anywhere and taken up anywhere is passed on once, in order, in pieces that the peer can read."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from k8s_builderd.fabric.logprefix import MAX_PREFIX
from k8s_builderd.gateway.protocol import MAX_CURSOR, MAX_PAYLOAD
from k8s_builderd.kube.loglines import BATCH, PIECE, Batch, Position, Reader

PEERS_LONGEST = 64 * 1024
START = datetime(2026, 11, 23, 6, 56, 59, tzinfo=UTC)
exact = settings(derandomize=True, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])


class Line(Struct, frozen=True):
    """One line of a file as the kubelet keeps it: nanoseconds after START, and what was printed."""

    at: int
    text: bytes

    @property
    def stamp(self) -> bytes:
        whole = START + timedelta(seconds=self.at // 10**9)
        return whole.strftime("%Y-%m-%dT%H:%M:%S").encode() + b".%09dZ" % (self.at % 10**9)

    @property
    def stored(self) -> bytes:
        return self.stamp + b" " + self.text

    @property
    def mark(self) -> bytes:
        """What it is known by: its time and its first piece."""
        return self.stamp + b" " + self.text[:PIECE]


def pieces(text: bytes, prefix: bytes = b"") -> Iterator[bytes]:
    """Yield what is to come of one line: the bytes themselves, cut only where they would be too long."""
    if len(text) <= PIECE:
        yield plain(prefix + text)
        return
    parts = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    for number, part in enumerate(parts, 1):
        last = number == len(parts)
        yield (
            plain(prefix + part)
            + (b" [piece %d, the last of this line]" if last else b" [piece %d of a longer line]") % number
        )


def plain(text: bytes) -> bytes:
    """Return a line, marked where it would pass for one of the builder's own."""
    return b"| " + text if text.startswith((b"run [", b"detect [", b"build [", b"release [")) else text


def expected(lines: list[Line], prefix: bytes = b"") -> bytes:
    return b"".join(piece + b"\n" for line in lines for piece in pieces(line.text, prefix))


class Log:
    """A file of a log, and what the API serves of it."""

    def __init__(self, lines: list[Line], *, newline: bool = True) -> None:
        self.lines = lines
        self.newline = newline

    def served(self, after: Position | None) -> bytes:
        """Return the lines from the position's whole second on, as sinceTime selects them."""
        since = datetime.fromisoformat(after.since) if after else None
        chosen = [line for line in self.lines if since is None or START + timedelta(seconds=line.at // 10**9) >= since]
        data = b"".join(line.stored + b"\n" for line in chosen)
        return data if self.newline or not chosen else data[:-1]


texts = st.one_of(
    st.sampled_from([b"", b"a", b"b", b"same", b"\r", b"crlf\r", b"\xff\xfe", b"2026-11-23T06:56:59Z x", b" "]),
    st.sampled_from([b"run [1]: Lost", b"build [", b"n [1]: Lost", b"release[", b" run [1]"]),
    st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"?")),
    st.builds(
        lambda size, byte: byte * size,
        st.one_of(st.integers(PIECE - 45, PIECE + 45), st.sampled_from([2 * PIECE, 2 * PIECE + 1, 5 * PIECE - 1])),
        st.sampled_from([b"x", b"y"]),
    ),
)


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Lines whose times mostly go on, often stand still, and sometimes go back by up to 5 ms."""
    at = draw(st.integers(10**9, 3 * 10**9))
    lines = []
    steps = st.sampled_from([0, 0, 0, 1, 1_000, 4_000_000, 600_000_000, 1_500_000_000, -1, -4_000_000, -5_000_000])
    for step, text in draw(st.lists(st.tuples(steps, texts), max_size=25)):
        at += step
        lines.append(Line(at, text))
    return Log(lines, newline=draw(st.booleans()))


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """Cut the data into chunks of these sizes in turn; what is left of a long one after 60 comes in large chunks."""
    start, turn = 0, 0
    while start < len(data):
        end = start + (sizes[turn % len(sizes)] if turn < 60 else 50_000)
        yield data[start:end]
        start, turn = end, turn + 1


cuts = st.lists(st.sampled_from([1, 2, 7, 31, 100, 4096, PIECE, PIECE + 31, 65536, 200_000]), min_size=1, max_size=12)


def sound(batch: Batch) -> bytes:
    """Return the lines of a batch, once they are seen to be what the client and the peer can take."""
    assert batch.lines.endswith(b"\n")
    assert batch.lines.count(b"\n") == batch.count
    assert max(map(len, batch.lines.split(b"\n"))) < PEERS_LONGEST
    assert len(batch.lines) < MAX_PAYLOAD - MAX_CURSOR - 2
    return batch.lines


# One reading


@exact
@given(logs(), cuts)
def test_a_log_cut_anywhere_comes_whole(log: Log, sizes: list[int]) -> None:
    reader = Reader()
    found = [sound(batch) for chunk in cut(log.served(None), sizes) for batch in reader.feed(chunk)]
    found += [sound(batch) for batch in reader.end()]
    assert b"".join(found) == expected(log.lines)
    assert reader.found
    assert not reader.passed_by


@exact
@given(logs(), cuts)
def test_nothing_is_passed_on_before_its_line_feed_or_a_whole_piece(log: Log, sizes: list[int]) -> None:
    """What is cut off in the middle of a line comes whole the next time, or it would come torn."""
    reader = Reader()
    data = log.served(None)
    found = b"".join(batch.lines for chunk in cut(data, sizes) for batch in reader.feed(chunk))
    assert expected(log.lines).startswith(found)


# Stopped, and taken up again


@exact
@given(logs(), cuts, st.lists(st.integers(0, 400_000), max_size=6))
def test_a_log_taken_up_again_and_again_is_neither_lost_nor_repeated(
    log: Log, sizes: list[int], stops: list[int]
) -> None:
    """Each stop is after so many bytes of an answer, wherever that is; the last answer comes to its end."""
    position: Position | None = None
    found = b""
    for stop in [*stops, None]:
        reader = Reader(position)
        for chunk in cut(log.served(position)[:stop], sizes):
            for batch in reader.feed(chunk):
                found += sound(batch)
                position = batch.position
        assert not reader.passed_by or not reader.found
    for batch in reader.end():
        found += sound(batch)
        position = batch.position
    assert found == expected(log.lines)
    if position is not None:
        # Once more from the very end: there it is, and nothing is behind it.
        reader = Reader(position)
        again = [*reader.feed(log.served(position)), *reader.end()]
        assert reader.found
        assert again == []


LONGEST_PREFIX = b"x" * MAX_PREFIX


@exact
@given(
    logs(),
    cuts,
    st.lists(st.integers(0, 400_000), max_size=4),
    st.sampled_from([b"basic_1.0 ", b"run [1]: ", b"ru", LONGEST_PREFIX]),
)
def test_a_prefix_stands_before_each_line_and_changes_nothing_else(
    log: Log, sizes: list[int], stops: list[int], prefix: bytes
) -> None:
    """Positions are the same with another prefix or with none, as after a daemon with other settings."""
    position: Position | None = None
    found = b""
    for stop in [*stops, None]:
        reader = Reader(position, prefix=prefix)
        plainly = Reader(position)
        for chunk in cut(log.served(position)[:stop], sizes):
            for batch in reader.feed(chunk):
                found += sound(batch)
                position = batch.position
            for _ in plainly.feed(chunk):
                pass
            assert plainly.position == reader.position
    found += b"".join(sound(batch) for batch in reader.end())
    assert found == expected(log.lines, prefix)


def test_many_short_lines_with_the_longest_prefix_fit_into_frames() -> None:
    lines = [Line(10**9 + number, b"") for number in range(5000)]
    reader = Reader(prefix=LONGEST_PREFIX)
    batches = [*reader.feed(Log(lines).served(None)), *reader.end()]
    assert b"".join(map(sound, batches)) == expected(lines, LONGEST_PREFIX)
    # Each has its own position: what is taken up after any of them is the rest.
    assert len({batch.position for batch in batches}) == len(batches) > 5


def test_what_a_prefix_makes_of_a_line_is_not_taken_for_the_builders_own() -> None:
    stamp = Line(10**9, b"").stamp
    [batch] = Reader(prefix=b"ru").feed(stamp + b" n [12]: Running\n")
    assert batch.lines == b"| run [12]: Running\n"


@exact
@given(logs(), st.data())
def test_a_consumer_that_stops_after_any_batch_goes_on_after_it(log: Log, data: st.DataObject) -> None:
    """A batch is either delivered or not; the position of the last one that was is all that is kept."""
    position: Position | None = None
    found = b""
    for _ in range(data.draw(st.integers(0, 5))):
        reader = Reader(position)
        batches = [*reader.feed(log.served(position)), *reader.end()]
        taken = data.draw(st.integers(0, len(batches)))
        for batch in batches[:taken]:
            found += batch.lines
            position = batch.position
    reader = Reader(position)
    found += b"".join(batch.lines for batch in [*reader.feed(log.served(position)), *reader.end()])
    assert found == expected(log.lines)


@exact
@given(logs(), st.integers(1, 25))
def test_a_line_that_was_rotated_away_is_missed_in_time_and_nothing_is_passed_on(log: Log, gone: int) -> None:
    lines = log.lines
    if len(lines) <= gone:
        return
    reader = Reader()
    batches = [batch for line in lines[:gone] for batch in reader.feed(line.stored + b"\n")]
    position = batches[-1].position
    marks = {line.mark for line in lines[:gone]}
    rest = Log([line for line in lines[gone:] if line.mark not in marks])
    late = Line(lines[-1].at + 60 * 10**9, b"much later")
    reader = Reader(position)
    assert [*reader.feed(rest.served(position) + late.stored + b"\n"), *reader.end()] == []
    assert not reader.found
    assert reader.passed_by


# The edges


def read(*lines: bytes, after: Position | None = None) -> tuple[bytes, Position | None]:
    reader = Reader(after)
    batches = [*reader.feed(b"".join(line + b"\n" for line in lines)), *reader.end()]
    return b"".join(batch.lines for batch in batches), batches[-1].position if batches else after


@pytest.mark.parametrize("length", [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 1])
def test_a_line_is_cut_only_where_it_is_longer_than_a_piece(length: int) -> None:
    text = b"x" * length
    found, _ = read(Line(0, text).stored)
    assert found == b"".join(piece + b"\n" for piece in pieces(text))
    assert found.count(b"\n") == -(-length // PIECE)


def test_identical_lines_of_one_moment_are_told_apart_by_their_number() -> None:
    line = Line(0, b"same").stored
    for delivered in range(1, 6):
        _, position = read(*[line] * delivered)
        assert position is not None
        assert position.alike == delivered
        assert read(*[line] * 6, after=position)[0] == b"same\n" * (6 - delivered)


def test_a_stop_within_a_long_line_goes_on_with_its_next_piece() -> None:
    text = b"".join(b"%d" % (n % 10) * PIECE for n in range(4)) + b"end"
    stored = Line(5 * 10**9, text).stored
    whole = [piece + b"\n" for piece in pieces(text)]
    for delivered in range(1, 5):
        reader = Reader()
        batches = [*reader.feed(stored[: 31 + delivered * PIECE + 42])]
        assert b"".join(batch.lines for batch in batches) == b"".join(whole[:delivered])
        position = batches[-1].position
        assert position is not None
        assert position.pieces == delivered
        again = Reader(position)
        rest = [*again.feed(stored + b"\n"), *again.end()]
        assert b"".join(batch.lines for batch in rest) == b"".join(whole[delivered:])
        end = rest[-1].position
        assert end is not None
        assert end.pieces == 0


def test_a_long_line_is_known_by_the_same_mark_wherever_it_is_cut_first() -> None:
    """It is recognised by its first piece, so it must not be taken in hand before that is there."""
    stored = Line(5 * 10**9, b"x" * (2 * PIECE + 100)).stored
    for first in range(PIECE - 1, PIECE + 45):
        reader = Reader()
        batches = [*reader.feed(stored[:first]), *reader.feed(stored[first:])]
        assert b"".join(batch.lines for batch in batches).count(b"\n") == 2
        again = Reader(batches[-1].position)
        rest = [*again.feed(stored + b"\n"), *again.end()]
        assert [batch.lines for batch in rest] == [b"x" * 100 + b" [piece 3, the last of this line]\n"]


def test_a_line_without_end_costs_no_memory() -> None:
    reader = Reader()
    size = 0
    for _ in range(1000):
        for batch in reader.feed(b"x" * 65536):
            size += len(batch.lines)
        assert len(reader._rest) <= PIECE + 41
    assert size > 1000 * 65536 - 2 * PIECE


def test_a_flood_of_lines_comes_in_batches_that_fit_a_frame() -> None:
    reader = Reader()
    data = b"".join(Line(n, b"x" * 1000).stored + b"\n" for n in range(2000))
    sizes = [len(sound(batch)) for batch in reader.feed(data)]
    assert len(sizes) > 5
    assert max(sizes) <= BATCH + 1001


stored_lines = st.lists(
    st.one_of(
        st.builds(
            lambda stamp, text: stamp + b" " + text,
            st.sampled_from([Line(0, b"").stamp, Line(1, b"").stamp, b"2026-11-23T07:57:01.5+01:00"]),
            st.one_of(texts, st.sampled_from([b"x" * (PIECE + 1)])),
        ),
        st.sampled_from([Line(2, b"").stamp, b"", b"failed to watch the file"]),
    ),
    max_size=60,
)


@exact
@given(stored_lines, st.sampled_from([b"newest", b"2026-13-23T06:56:51Z newest"]), st.sampled_from([b"", b"a ", b"ru"]))
def test_many_lines_at_once_come_as_they_do_one_by_one(stored: list[bytes], newest: bytes, prefix: bytes) -> None:
    stored.append(newest)
    together, alone = Reader(prefix=prefix), Reader(prefix=prefix)
    one = b"".join(batch.lines for line in stored for batch in alone.feed(line + b"\n"))
    many = b"".join(batch.lines for batch in together.feed(b"".join(line + b"\n" for line in stored)))
    assert many == one
    assert together.position == alone.position


@pytest.mark.parametrize("size", [31, 4096, 65536, 1_000_000])
def test_lines_alike_are_counted_over_many_others(size: int) -> None:
    """The count is the same wherever the answer is cut: by it the place is found again."""
    others = [Line(0, b"other %d" % number).stored for number in range(300)]
    same = [Line(0, b"same").stored] * 5000
    data = b"".join(line + b"\n" for line in [*same, *others, *same[:7]])
    reader = Reader()
    for chunk in cut(data, [size]):
        for _ in reader.feed(chunk):
            pass
    assert reader.position is not None
    assert reader.position.alike == 5007


def test_how_much_is_remembered_of_lines_alike_is_bounded() -> None:
    reader = Reader()
    for number in range(20_000):
        [*reader.feed(Line(number, b"x").stored + b"\n")]
    assert len(reader._seen) + len(reader._seen_before) <= 4096


@pytest.mark.parametrize("zone", [b"Z", b"+02:00", b"-11:30", b"+00:00"])
@pytest.mark.parametrize("fraction", [b"", b".1", b".123456789"])
def test_timestamps_of_any_zone_and_precision_are_taken_off_and_found_again(zone: bytes, fraction: bytes) -> None:
    stamp = b"2026-11-23T06:56:51" + fraction + zone
    found, position = read(stamp + b" one", stamp + b" two")
    assert found == b"one\ntwo\n"
    assert read(stamp + b" one", stamp + b" two", stamp + b" three", after=position)[0] == b"three\n"


@pytest.mark.parametrize(
    "text",
    [
        b"2026-11-23T06:56:51Zx",
        b"2026-11-23 06:56:51Z",
        b"2026-11-23T06:56:51",
        b"2026-13-23T06:56:51Z",
        b"2026-11-23T06:56:51+31:00",
        b"x 2026-11-23T06:56:51Z",
    ],
)
def test_what_is_no_timestamp_is_left_as_it_is(text: bytes) -> None:
    assert read(text + b" words")[0] == text + b" words\n"


def test_an_empty_line_may_come_with_or_without_the_space() -> None:
    assert read(Line(0, b"").stored, Line(0, b"").stamp, Line(1, b"x").stored)[0] == b"\n\nx\n"


KUBELET = b"failed to create fsnotify watcher: too many open files"


@pytest.mark.parametrize("before", [0, 1, 3])
def test_the_kubelets_own_words_are_passed_on_and_not_taken_for_a_place_in_the_log(before: int) -> None:
    """They stand in one answer and not in the file, so a position that named them would never be found again."""
    lines = [Line(number * 10**9, b"line %d" % number) for number in range(6)]
    reader = Reader()
    first = [*reader.feed(b"".join(line.stored + b"\n" for line in lines[:before]) + KUBELET + b"\n"), *reader.end()]
    found = b"".join(batch.lines for batch in first)
    assert found == expected(lines[:before]) + KUBELET + b"\n"
    position = first[-1].position
    again = Reader(position)
    rest = [*again.feed(Log(lines).served(position)), *again.end()]
    assert again.found
    assert b"".join(batch.lines for batch in rest) == expected(lines[before:])


def test_words_of_the_kubelet_before_the_position_are_not_taken_for_it() -> None:
    one, two = Line(0, b"one").stored, Line(1, b"two").stored
    _, position = read(one)
    assert read(KUBELET, one, two, after=position)[0] == b"two\n"


def test_the_end_of_a_long_line_that_began_before_sinceTime_is_passed_over() -> None:  # noqa: N802 - the API's word
    """The runtime writes a long line in parts with a time each; the API drops the early ones, timestamp included."""
    _, position = read(Line(2 * 10**9, b"here").stored)
    assert read(
        b"rest of an older line", Line(2 * 10**9, b"here").stored, Line(3 * 10**9, b"new").stored, after=position
    )[0] == (b"new\n")


def test_lines_that_went_back_in_time_over_a_second_are_asked_for_again() -> None:
    """06:57:00.001 was passed on; 06:56:59.997 is behind it in the file and must be in what is asked for next."""
    log = Log([Line(10**9 + 1_000_000, b"late"), Line(10**9 - 3_000_000, b"early"), Line(10**9 + 2_000_000, b"last")])
    found, position = read(log.lines[0].stored)
    assert position is not None
    assert datetime.fromisoformat(position.since) <= START + timedelta(seconds=0)
    reader = Reader(position)
    found += b"".join(batch.lines for batch in reader.feed(log.served(position)))
    assert found == expected(log.lines)


def test_a_position_asks_for_whole_seconds_in_its_own_zone() -> None:
    assert Position("2026-11-23T06:57:00.999999999Z", "").since == "2026-11-23T06:56:59+00:00"
    assert Position("2026-11-23T06:57:00+02:00", "").since == "2026-11-23T06:56:59+02:00"
