"""A container's log as the kubelet keeps it: timestamped lines in files of which only the newest is served."""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal

import anyio

STAMP = 30
"""Characters of a timestamp: RFC 3339 with nine digits of a second, and Z."""

PIECE = 16 * 1024
"""Without a line feed, so much of a line is written at once; a shorter beginning waits for its end."""

ROTATE_SECONDS = 10
"""How often the size is looked at, as the kubelet does."""

KEPT = 4
"""Rotated files that stay for the sake of followers who are behind."""

JITTER_NS = 4_700_000
"""How far back timestamps were seen to go where stdout and stderr mix."""

Clock = Literal["exact", "jitter", "coarse"]


class _Segment:
    """One file of the log; `size` grows until `next` is set."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.next: _Segment | None = None


class ContainerLog:
    """Writes what a container prints; any number of readers follow it.

    A line is held back until its line feed comes (or it is longer than a piece); a carriage return before the line
    feed is dropped; what is left at the end is written without a line feed. All of this is as measured.
    """

    def __init__(
        self,
        directory: Path,
        clock: Clock = "exact",
        limit: int = 10 * 1024 * 1024,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._limit = limit
        self._now = now
        self._rest = b""
        self._in_line = False
        self._count = 0
        self._kept: list[_Segment] = []
        self._changed = anyio.Event()
        self.closed = False
        self.newest = self._open()

    def _open(self) -> _Segment:
        self._count += 1
        segment = _Segment(self._directory / f"{self._count}.log")
        self._file: BinaryIO = segment.path.open("wb", buffering=0)
        self._looked_at = time.monotonic()
        return segment

    def write(self, chunk: bytes) -> None:
        """Take in what the container has printed."""
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        out = bytearray()
        for line in lines:
            if not self._in_line:
                out += self._stamp()
            out += line.removesuffix(b"\r")
            out += b"\n"
            self._in_line = False
        if len(self._rest) > PIECE:
            keep = 1 if self._rest.endswith(b"\r") else 0
            if not self._in_line:
                out += self._stamp()
            out += self._rest[: len(self._rest) - keep]
            self._rest = self._rest[len(self._rest) - keep :]
            self._in_line = True
        self._append(out)
        size = self.newest.size
        if not self._in_line and (
            size > 8 * self._limit or (size > self._limit and time.monotonic() - self._looked_at > ROTATE_SECONDS)
        ):
            self.rotate()

    def finish(self) -> None:
        """Write what is left: the container has closed its output."""
        if self._rest:
            out = bytearray()
            if not self._in_line:
                out += self._stamp()
            out += self._rest
            self._rest = b""
            self._append(out)

    def close(self) -> None:
        """End the log: readers see its end once they have read the rest. May be called again."""
        self.finish()
        self._file.close()
        self.closed = True
        self._wake()

    def rotate(self) -> None:
        """Begin a new file: from now on only that one is served, and followers cross over to it."""
        if self.closed:
            return
        self._file.close()
        previous = self.newest
        self._kept.append(previous)
        while len(self._kept) > KEPT:
            self._kept.pop(0).path.unlink()
        self.newest = previous.next = self._open()
        self._wake()

    def _append(self, out: bytes | bytearray) -> None:
        if out and not self.closed:
            view = memoryview(out)
            while view:
                view = view[self._file.write(view) :]
            self.newest.size += len(out)
            self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _stamp(self) -> bytes:
        now = self._now()
        if self._clock == "jitter":
            now -= random.randrange(JITTER_NS)  # noqa: S311 (jitter)
        elif self._clock == "coarse":
            now -= now % 1_000_000_000
        return stamp(now) + b" "

    async def changed(self) -> None:
        """Wait until there is more to read, or the log is closed."""
        await self._changed.wait()


def stamp(at: int) -> bytes:
    """Return a time (nanoseconds since the epoch) as the log writes it: 30 characters."""
    whole, rest = divmod(at, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)).encode() + b".%09dZ" % rest


class Reader:
    """Reads a log from the beginning of its newest file; closes what it opened in `close`.

    since: only lines whose timestamp is in this second or later (`2026-01-31T12:00:00`); None: all.
    """

    def __init__(self, log: ContainerLog, *, since: str | None, timestamps: bool, follow: bool) -> None:
        self._log = log
        self._since = since.encode() if since else None
        self._timestamps = timestamps
        self._follow = follow
        self._segment = log.newest
        self._file = self._segment.path.open("rb", buffering=0)
        self._offset = 0
        self._head = b""
        self._at_start = True
        self._wanted = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    async def receive(self, size: int = 65536) -> bytes:
        """Return the next bytes, waiting for them if the reader follows; empty at the end."""
        while True:
            data = self._file.read(size) or b""
            self._offset += len(data)
            if data and (out := self._select(data)):
                return out
            if data:
                await anyio.lowlevel.checkpoint()
                continue
            if self._offset < self._segment.size:
                continue
            if self._segment.next is not None:
                if not self._follow:
                    return b""
                self._cross(self._segment.next)
            elif self._log.closed or not self._follow:
                return b""
            else:
                await self._log.changed()

    def _cross(self, segment: _Segment) -> None:
        self._file.close()
        while True:
            try:
                self._file = segment.path.open("rb", buffering=0)
            except FileNotFoundError:  # rotated away while this reader did not read
                assert segment.next is not None
                segment = segment.next
            else:
                self._segment, self._offset = segment, 0
                return

    def _select(self, data: bytes) -> bytes:
        """Cut timestamps and lines that are not wanted out of the next bytes of the file."""
        if self._timestamps and self._since is None:
            return data
        out = bytearray()
        data = self._head + data
        self._head = b""
        at = 0
        while at < len(data):
            if self._at_start:
                if len(data) - at < STAMP + 1:
                    self._head = data[at:]
                    break
                self._wanted = self._since is None or data[at : at + len(self._since)] >= self._since
                if self._wanted and self._timestamps:
                    out += data[at : at + STAMP + 1]
                at += STAMP + 1
                self._at_start = False
            end = data.find(b"\n", at) + 1
            stop = end or len(data)
            if self._wanted:
                out += data[at:stop]
            self._at_start = end > 0
            at = stop
        return bytes(out)


def read_available(fd: int, size: int = 65536) -> bytes | None:
    """Return what a non-blocking pipe holds, empty at its end, None if it holds nothing now."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
