"""What a pod's log is made of: timestamped bytes to whole lines, each with a position that can be found again.

Pure: bytes in, batches out. A position names a line by its timestamp, a hash of it, and how many alike have been
seen, because timestamps alone cannot: they go backwards where stdout and stderr mix (up to 4.7 ms were measured), and
several lines may share one. The order of the lines in the file never changes, which is what all of this rests on.
"""

import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from hashlib import blake2b

from msgspec import Struct

PIECE = 32 * 1024
"""Bytes after which a line is cut. The peer stops reading for good at a line of 64 KiB (its bufio.Scanner)."""

BATCH = 256 * 1024
"""Bytes after which a batch is handed on; a frame holds 1 MiB at most."""

DISORDER = timedelta(seconds=0.05)
"""By how much a line's timestamp may be later than that of the next; 4.7 ms were measured."""

_OURS = (b"run [", b"detect [", b"build [", b"release [")
_REMEMBERED = 512  # and those of one more answer; lines alike stand close together
_MANY = 16 * 1024  # bytes of lines that are not counted unless it matters
_REMEMBERED_WORDS = 64
_LONGEST_TIMESTAMP = 40
_SECOND = len("2026-11-23T06:57:07")
_SHORTEST_LINE = len("2026-11-23T06:57:07Z \n")
_TIMESTAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-][01]\d:[0-5]\d)\Z")
_PLAIN = re.compile(rb"\d{4}-[-0-9T:.+Z]{15,35} (?!%b)(.{0,%d}\n)|.*\n" % (b"|".join(map(re.escape, _OURS)), PIECE))
"""A line: its text, where it is passed on as it is; nothing of any other.

What looks like a timestamp is taken for one here: the file has nothing else in front of a line. `_TIMESTAMP` would take
a third of the time for all that is done to a line.
"""


class Position(Struct, frozen=True):
    """A place in a log: after the `alike`-th line with this timestamp and hash.

    `pieces` is 0 where the whole line has been passed on, otherwise so many pieces of it.
    """

    at: str
    digest: str
    alike: int = 1
    pieces: int = 0

    @property
    def since(self) -> str:
        """The whole second to ask the log from: the API cuts sinceTime to it, and timestamps may go back a little."""
        return (_time(self.at).replace(microsecond=0) - timedelta(seconds=1)).isoformat()


class Batch(Struct, frozen=True):
    """Whole lines for stderr, and the position after them; None where no line of the log itself has come yet."""

    lines: bytes
    count: int
    position: Position | None


class Reader:
    """Reads one response of the log endpoint (`timestamps=true`), from its first byte on.

    `found` says whether the position to resume after has come by; `passed_by` that it will not, because a line that
    is clearly later has come: it was thrown away; `astray` that only lines of about its time have come, which are held
    back, so that it may have been; `beside` that one of these is no earlier, so that it is likely; `preceded` that it
    was not, because a line that is clearly earlier has come, and what is thrown away is the beginning. Otherwise
    nothing is known.
    """

    def __init__(self, after: Position | None = None, *, reported: set[str] | None = None, prefix: bytes = b"") -> None:
        """Begin before the first byte.

        :param prefix: stands in front of each line that is passed on; a position knows nothing of it.
        :param reported: hashes of words of the kubelet passed on before; it repeats them in every answer.
        """
        self.found = after is None
        self.passed_by = False
        self.beside = False
        self._preceded = False
        self._after = after
        self._prefix = prefix
        self._reported = set() if reported is None else reported
        self._latest = _time(after.at) + DISORDER if after else None
        self._seen: Counter[int] = Counter()  # how often which line has come, by its hash
        self._seen_before: Counter[int] = Counter()
        self._uncounted = b""  # lines that have come since
        self._stretch = BATCH * _SHORTEST_LINE // (_SHORTEST_LINE + len(prefix))
        """Bytes of lines that make a batch, even if all are short."""
        self._is_harmless = not any(prefix and (ours.startswith(prefix) or prefix.startswith(ours)) for ours in _OURS)
        self._rest = b""
        self._second = b""  # of the newest line
        # The line that is being read.
        self._last = b""  # its timestamp and its first piece
        self._in_line = False
        self._stamped = True
        self._alike = 0
        self._pieces = 0
        self._silent = 0

    def feed(self, chunk: bytes) -> Iterator[Batch]:
        """Take in bytes cut anywhere, and yield what may be passed on; while not `found`, that is nothing."""
        data = self._rest + chunk
        start, whole = 0, data.rfind(b"\n") + 1
        while start < whole:
            end = data.find(b"\n", start + self._stretch, whole) + 1 or whole
            yield from self._lines(data[start:end])
            start = end
        self._rest = data[whole:]
        if len(self._rest) > PIECE + _LONGEST_TIMESTAMP + 1 and (out := [*self._line(self._rest, ended=False)]):
            yield self._batch(out)

    def end(self, *, gone: bool = False) -> Iterator[Batch]:
        """Take what is left as a line of its own: the container has ended, its log has no more.

        :param gone: whether the position was thrown away, so that what is left comes after it.
        """
        self.found = self.found or gone
        if self._rest or self._pieces:
            out = list(self._line(self._rest, ended=True))
            self._rest = b""
            if out:
                yield self._batch(out)

    @property
    def tail(self) -> tuple[int, bytes]:
        """What has come of a line that has not ended, which may be a last line without a line feed, or half of one."""
        return self._pieces, self._rest

    @property
    def preceded(self) -> bool:
        """Say whether a line, or the beginning of one, has come that is clearly earlier than the position."""
        stamp, _, _ = self._rest.partition(b" ")
        begun = not self._in_line and _is_time(stamp)
        return self._preceded or (begun and self._precedes(_time(stamp.decode())))

    @property
    def astray(self) -> bool:
        """Say whether lines are held back that may be later than the position, which has not come by."""
        return bool(self._last) and not (self.found or self.passed_by or self.preceded)

    def _precedes(self, at: datetime) -> bool:
        return self._latest is not None and at < self._latest - 2 * DISORDER

    @property
    def position(self) -> Position | None:
        """The place after everything that has been yielded so far."""
        if not self._last:
            return self._after
        at = self._last.partition(b" ")[0].decode()
        return Position(at, _hash(self._last), self._alike, self._pieces if self._stamped else 0)

    def _lines(self, data: bytes) -> Iterator[Batch]:
        """Yield what may be passed on of whole lines."""
        if self.found and not self._in_line and self._is_harmless:
            # Nearly all lines are plain ones. A loop in Python over each would take most of the daemon's time.
            texts = _PLAIN.findall(data)
            if all(texts) and self._is_timed(_newest(data)):
                self._remember(data)
                self._stamped = True
                self._silent = 0
                yield Batch(self._prefix + self._prefix.join(texts), len(texts), self.position)
                return
        out: list[bytes] = []
        size = 0
        for line in data[:-1].split(b"\n"):
            for text in self._line(line, ended=True):
                out.append(text)
                size += len(text)
                if size >= BATCH:
                    yield self._batch(out)
                    out, size = [], 0
        if out:
            yield self._batch(out)

    def _is_timed(self, line: bytes) -> bool:
        """Say whether what has the form of a time is one; that of a plain line changes once a second."""
        second = line[:_SECOND]
        if second != self._second and _is_time(line.partition(b" ")[0]):
            self._second = second
        return second == self._second

    def _batch(self, lines: list[bytes]) -> Batch:
        return Batch(b"".join(lines), len(lines), self.position)

    def _remember(self, lines: bytes) -> None:
        """Take the last of these lines for the newest, and find out how many like it have come."""
        self._last = _newest(lines)
        key = hash(self._last)
        if len(lines) > _MANY and not self._may_be_alike(lines):
            self._uncounted = lines
            itself = 1
        else:
            if self._uncounted:
                self._count(self._uncounted)
                self._uncounted = b""
            self._count(lines)
            itself = 0
        self._alike = self._seen[key] + self._seen_before[key] + itself

    def _may_be_alike(self, lines: bytes) -> bool:
        """Say whether another of these lines, or of the uncounted ones, has the time of the newest; few ever have."""
        stamp = self._last.partition(b" ")[0]
        before = len(lines) - len(self._last) - 1
        return lines.rfind(stamp, 0, before) >= 0 or self._uncounted.rfind(stamp) >= 0  # `in` is slower here

    def _count(self, lines: bytes) -> None:
        if len(self._seen) > _REMEMBERED:
            self._seen, self._seen_before = Counter(), self._seen
        self._seen.update(map(hash, lines[:-1].split(b"\n")))

    def _line(self, data: bytes, *, ended: bool) -> Iterator[bytes]:
        """Yield the pieces of a line that may be passed on; without `ended`, keep what is not a whole piece yet."""
        if not self._in_line:
            stamp, _, text = data.partition(b" ")
            self._in_line = True
            self._stamped = _is_time(stamp)
            if self._stamped:
                data = text
                self._identify(stamp, data[:PIECE])
            else:
                # The kubelet's own words, such as that it cannot watch the file: no line of the log, so no position.
                words = _hash(data[:PIECE])
                self._silent = 0 if self.found and words not in self._reported else _WHOLE
                if self.found and len(self._reported) < _REMEMBERED_WORDS:
                    self._reported.add(words)
        while len(data) > PIECE:
            piece, data = data[:PIECE], data[PIECE:]
            self._pieces += 1
            if self._pieces > self._silent:
                yield _plain(self._prefix + piece) + b" [piece %d of a longer line]\n" % self._pieces
        self._rest = data
        if ended:
            last = self._pieces + 1
            self._pieces = 0
            self._in_line = False
            if self._silent != _WHOLE:
                yield _plain(self._prefix + data) + (
                    b"\n" if last == 1 else b" [piece %d, the last of this line]\n" % last
                )
            self._silent = 0 if self.found else _WHOLE

    def _identify(self, stamp: bytes, first: bytes) -> None:
        self._remember(stamp + b" " + first + b"\n")
        after = self._after
        if self.found or after is None or self._latest is None:
            self._silent = 0
            return
        self._silent = _WHOLE
        at = stamp.decode()
        if at == after.at and (_hash(self._last), self._alike) == (after.digest, after.alike):
            self.found = True
            self._silent = after.pieces or _WHOLE
        else:
            time = _time(at)
            self.beside = self.beside or time >= self._latest - DISORDER
            self._preceded = self._preceded or self._precedes(time)
            self.passed_by = self.passed_by or time > self._latest


_WHOLE = 1 << 62


def _newest(lines: bytes) -> bytes:
    """Return the last of whole lines, without its line feed."""
    return lines[lines.rfind(b"\n", 0, -1) + 1 : -1]


def _hash(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()


def _plain(line: bytes) -> bytes:
    """Keep a line from being taken for one of the builder's own."""
    return b"| " + line if line.startswith(_OURS) else line


def _is_time(stamp: bytes) -> bool:
    try:
        _time(stamp.decode("ascii", "replace"))
    except ValueError:
        return False
    return True


def _time(at: str) -> datetime:
    if _TIMESTAMP.match(at.encode()) is None:
        raise ValueError(f"not an RFC 3339 timestamp: {at!r}")
    return datetime.fromisoformat(at)  # to the microsecond; that is exact enough to tell what is clearly later
