"""Writes to standard error that never block, so that a peer that stops reading cannot keep a stop from working."""

import errno
import posix
import select
import time

_FD = 2
_ATOMIC = 4096  # PIPE_BUF: a pipe that polls as writable takes this much without blocking
_ROOM_FOR_WORDS = 1 << 16
_STALL = 0.25  # seconds
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Stderr:
    """What waits to be written for the peer's log, at most one frame of the daemon and a few words of our own."""

    def __init__(self, program: str, pid: int) -> None:
        self._prefix = "%s [%d]" % (program, pid)
        self.debugging = False
        self.pending = bytearray()
        self.gone = False
        self._progress = 0.0

    def words(self, text: str) -> None:
        """Add a line of this program's own; dropped where a full pipe has kept too many waiting already."""
        self._say("%s: %s" % (self._prefix, text))

    def debug(self, text: str) -> None:
        """Add a debug line, where they are wanted."""
        if self.debugging:
            self._say("%s DEBUG: %s" % (self._prefix, text))

    def _say(self, line: str) -> None:
        if len(self.pending) < _ROOM_FOR_WORDS:
            # A path may hold any bytes; the line stays one line and says nothing to a terminal.
            self.put("".join(c if c.isprintable() else "?" for c in line).encode() + b"\n")

    def put(self, data: bytes) -> None:
        """Add bytes as they are."""
        if self.gone:
            return
        if not self.pending:
            self._progress = time.monotonic()
        self.pending += data

    def register(self, poll: "select.poll") -> None:
        """Have `poll` report when something can be written, and always when the reader is gone."""
        if not self.gone:
            poll.register(_FD, select.POLLOUT if self.pending else 0)

    def write(self, ready: "dict[int, int]") -> None:
        """Write what fits without blocking, by what poll reported; learn whether the reader is gone."""
        events = ready.get(_FD, 0)
        try:
            if events & _GONE:
                raise BrokenPipeError(errno.EPIPE, "The reader is gone")
            if events & select.POLLOUT and self.pending:
                del self.pending[: posix.write(_FD, self.pending[:_ATOMIC])]
                self._progress = time.monotonic()
        except BlockingIOError:  # somebody else made it non-blocking
            return
        except OSError as error:
            self.gone = error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk ends no chaincode
            self.pending.clear()

    def stalls_at(self) -> float:
        """The time from which on the reader counts as one that does not read, while something is pending."""
        return self._progress + _STALL

    def stalled(self) -> bool:
        """Whether something is pending and the reader has not taken anything for a moment."""
        return bool(self.pending) and time.monotonic() >= self.stalls_at()

    def drain(self, stop: int, *, stopping: bool) -> None:
        """Write all that is pending. Once stopping, or `stop` is readable, a reader that stalls is not waited for."""
        while self.pending and not (stopping and self.stalled()):
            poll = select.poll()
            self.register(poll)
            if not stopping:
                poll.register(stop, select.POLLIN)
            wait = (self.stalls_at() - time.monotonic()) * 1000 + 1 if stopping else None
            ready = dict(poll.poll(wait if wait is None else max(wait, 0)))
            stopping = stopping or stop in ready
            self.write(ready)
