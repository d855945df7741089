"""One call from its request to its exit code: connect, relay, reconnect, stop. The loop over poll is here."""

import _socket
import errno
import os
import select
import time

from . import absence, wire
from .beneath import Copies, CopyError
from .call import Call
from .request import Request
from .signals import Signals
from .stderr import Stderr

STOP_TIMEOUT = 2.5
"""Seconds for the daemon to answer a stop; the peer sends SIGKILL, or leaves, 5 s after SIGTERM."""

_READ = 1 << 16
_CLOSED = "It closed the connection before it had answered"


class Session:
    """The call's conversation with the daemon, over as many connections as it takes."""

    def __init__(self, call: Call, request: Request, stderr: Stderr, signals: Signals) -> None:
        self._stage = call.stage
        self._path = call.socket_path
        self._patience = call.connect_timeout
        self._request = request.frames
        self._copies = Copies(call.input, call.output, request.listed) if call.input is not None else None
        self._stderr = stderr
        self._signals = signals
        self._absence = absence.Absence(time.monotonic(), self._patience)
        self._socket = None  # type: _socket.socket | None
        self._frames = wire.Frames()
        self._outgoing = bytearray()
        self._broken = ""  # why nothing more comes; what came before is still to be delivered
        self._requested = False  # a whole request has left: the daemon may have begun
        self._cursor = None  # type: bytes | None # of the newest log frame; once there is one, the daemon is waited for
        self._malformed_again_at = 0.0
        self._stop_deadline = None  # type: float | None
        self._code = None  # type: int | None

    @property
    def stopping(self) -> bool:
        """Whether a signal, or the peer's disappearance, has asked for the end."""
        return self._stop_deadline is not None

    def serve(self) -> int:
        """Relay until there is an exit code, and return it. What is still pending for stderr is left to the caller."""
        while self._code is None:
            now = time.monotonic()
            if self._socket is None and now >= self._absence.retry_at:
                self._connect(now)
            self._deliver(now)
            self._keep_time(now)
            if self._code is None:
                self._wait()
        if self._socket is not None:
            self._socket.close()
        return self._code

    # Time

    def _keep_time(self, now: float) -> None:
        away = self._absence
        if self._stop_deadline is not None:
            if now >= self._stop_deadline:
                self._end_unstopped()
        elif self._socket is not None:
            if now >= away.settles_at:
                self._settle(now)
        elif self._cursor is None and now >= away.deadline:
            self._stderr.words(
                "Could not reach k8s-builderd at %s within %gs: %s. %s"
                % (os.fsdecode(self._path), self._patience, away.reason, away.remedy)
            )
            self._end(1)
        elif away.tell(now):
            if self._cursor is None:
                text = "Waiting for k8s-builderd at %s: %s"
            else:
                text = "Waiting for k8s-builderd at %s, the chaincode goes on meanwhile: %s"
            self._stderr.words(text % (os.fsdecode(self._path), away.reason))

    def _settle(self, now: float) -> None:
        seconds = self._absence.end(now)
        if seconds is not None:
            self._stderr.words("Connected to k8s-builderd after %.0fs" % seconds)

    def _next_time(self, *, reading: bool) -> "float | None":
        times = []
        if self._stop_deadline is not None:
            times.append(self._stop_deadline)
            if not reading:
                times.append(self._stderr.stalls_at())
        if self._socket is None:
            times.append(self._absence.retry_at)
            if not self.stopping:
                times.append(self._absence.tell_at)
                if self._cursor is None:
                    times.append(self._absence.deadline)
        elif not self._absence.over and not self.stopping:
            times.append(self._absence.settles_at)
        return min(times) if times else None

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        self._stderr.register(poll)
        reading = self._may_read()
        if self._socket is not None and not self._broken:
            events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._outgoing else 0)
            if events:  # else a hang-up would be reported again and again while stderr is full
                poll.register(self._socket.fileno(), events)
        due = self._next_time(reading=reading)
        ready = dict(poll.poll(None if due is None else max(0, (due - time.monotonic()) * 1000 + 1)))
        if self._signals.fd in ready:
            self._stop(self._signals.take())
        self._stderr.write(ready)
        if self._stderr.gone:
            self._stop("the end of the peer")
        if self._socket is not None and self._socket.fileno() in ready:
            if self._outgoing:
                self._send(self._socket)
            if reading:
                self._receive(self._socket)

    # The connection

    def _connect(self, now: float) -> None:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            self._absence.failed(now, *_explained(error), self._longest_delay(), _spread())
            return
        self._stderr.debug("Connected to %s" % os.fsdecode(self._path))
        self._absence.connected(now)
        self._socket = connection
        self._frames = wire.Frames()
        self._broken = ""
        self._outgoing = bytearray(self._request)
        if self._cursor is not None:
            self._outgoing += wire.frame(wire.CURSOR, self._cursor)
        self._outgoing += wire.frame(wire.END)
        if self.stopping:
            self._outgoing += wire.frame(wire.STOP)

    def _longest_delay(self) -> float:
        if self.stopping:
            return 0.1
        return absence.LONGEST_DELAY_AT_START if self._cursor is None else absence.LONGEST_DELAY

    def _lost(self, reason: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        remedy = "Its log says why"
        self._absence.lost(time.monotonic(), reason, remedy, self._longest_delay(), _spread())

    def _send(self, connection: "_socket.socket") -> None:
        try:
            del self._outgoing[: connection.send(self._outgoing[:_READ])]
        except BlockingIOError:
            return
        except OSError:
            # The daemon has closed its end. What it said before, a refusal for one, is still to be read.
            self._outgoing.clear()
            return
        self._requested = self._requested or not self._outgoing

    def _may_read(self) -> bool:
        """Whether the next frame may come: not while stderr is full, unless a stop has to be heard through it."""
        return not self._stderr.pending or (self.stopping and self._stderr.stalled())

    def _receive(self, connection: "_socket.socket") -> None:
        try:
            data = connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken = error.strerror or _CLOSED
            return
        if data:
            self._frames.feed(data)
        else:
            self._broken = _CLOSED

    def _deliver(self, now: float) -> None:
        try:
            while self._socket is not None and self._code is None and self._may_read():
                frame = self._frames.next()
                if frame is None:
                    if self._broken:
                        self._lost(self._broken)
                    return
                self._settle(now)
                self._obey(*frame)
        except wire.FrameError as error:
            self._misunderstood(now, str(error))

    def _misunderstood(self, now: float, what: str) -> None:
        if now >= self._malformed_again_at:
            self._malformed_again_at = now + absence.MORE_WORDS
            self._stderr.words(
                "k8s-builderd at %s sent %s: check that it and this program are of one version"
                % (os.fsdecode(self._path), what)
            )
        if self._cursor is None:
            self._end(1)
        else:
            self._lost("It sent " + what)

    # The daemon's frames

    def _obey(self, kind: bytes, payload: bytes) -> None:
        if kind == wire.WORDS:
            self._put(payload)
        elif kind == wire.LOG:
            self._cursor, lines = wire.log(payload)
            self._put(lines)
        elif kind == wire.EXIT:
            self._end(wire.exit_code(payload))
        elif self._copies is None:
            raise wire.FrameError("a copy frame to a stage that copies nothing")
        else:
            try:
                self._copies.copy(*wire.copy(payload))
            except CopyError as error:
                self._stderr.words(str(error))
                self._end(1)

    def _put(self, data: bytes) -> None:
        # Through a full pipe only a stop is heard: the words are lost, not the stop.
        if not (self.stopping and self._stderr.stalled()):
            self._stderr.put(data)

    # The end

    def _end(self, code: int) -> None:
        self._code = code

    def _stop(self, cause: str) -> None:
        if self.stopping:
            return
        self._stop_deadline = time.monotonic() + STOP_TIMEOUT
        if self._stage != "run":
            self._stderr.words("Stopped by %s" % cause)
            self._end(1)
        elif self._socket is None and not self._requested:
            self._stderr.words("Stopped by %s before anything was started" % cause)
            self._end(0)
        else:
            self._stderr.words("Stopping the chaincode because of %s" % cause)
            self._absence.retry_at = time.monotonic()
            if self._socket is not None:
                self._outgoing += wire.frame(wire.STOP)

    def _end_unstopped(self) -> None:
        if self._socket is None:
            self._stderr.words(
                "Could not reach k8s-builderd at %s to stop the chaincode: %s. Its Kubernetes job, if there is one, is "
                "deleted by the daemon when that is back and nobody has claimed it"
                % (os.fsdecode(self._path), self._absence.reason)
            )
        else:
            self._stderr.words(
                "k8s-builderd at %s has not answered the stop within %gs. It deletes the chaincode's Kubernetes job, "
                "if there is one, by itself soon after this program has ended" % (os.fsdecode(self._path), STOP_TIMEOUT)
            )
        self._end(1)


def _spread() -> float:
    return os.urandom(1)[0] / 255


def _explained(error: OSError) -> "tuple[str, str]":
    """The reason why there is no connection, and what to check."""
    reason = error.strerror or "unknown error"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        remedy = (
            "Check that the daemon runs, that the directory of its socket is shared with the peer, and that "
            "FABRIC_K8S_BUILDER_SOCKET, where it is set, stands in the builder's propagateEnvironment in core.yaml"
        )
    elif error.errno == errno.ECONNREFUSED:
        remedy = "Check that the daemon runs: the socket is there, but nothing listens on it"
    elif error.errno == errno.EACCES:
        reason += " for uid %d, gid %d" % (os.geteuid(), os.getegid())
        remedy = "Check the user and group of the daemon and the peer, and the daemon's FABRIC_K8S_BUILDER_SOCKET_MODE"
    elif error.errno == errno.EAGAIN:
        reason = "Its queue of connections is full"
        remedy = "Check the daemon's log and its /livez"
    else:
        remedy = "Check the daemon and FABRIC_K8S_BUILDER_SOCKET"
    return reason, remedy
