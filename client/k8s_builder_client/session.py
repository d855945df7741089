"""One call from its request to its exit code: connect, relay, reconnect, stop. The loop over poll is here."""

import _socket
import errno
import posix
import select
import time

from . import reconnect, wire
from .beneath import Copies, CopyError
from .call import Call, shown
from .request import Request
from .signals import Signals
from .stderr import Stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .autostart import Autostart

STOP_TIMEOUT = 2.5
"""Seconds for the daemon to answer a stop; the peer sends SIGKILL, or leaves, 5 s after SIGTERM."""

SILENCE = 12.0
"""Seconds without a frame after which a daemon that gives signs of life, one every 5 s, counts as away."""

UNANSWERED = 30.0
"""Seconds for which a daemon that has read the request of a `run` may say nothing: older ones give no signs of life,
and their first line comes when the API has not answered for their FABRIC_K8S_BUILDER_REQUEST_TIMEOUT."""

FULL = 2.0
"""Seconds for which a `run` that has lost its daemon waits for a full stderr, before it looks for the daemon again."""

CALL_TIMEOUT = 60.0
"""Seconds that the daemon has for a detect, build or release once it can be reached."""

_READ = 1 << 16
_SIOCOUTQ = 0x5411  # bytes sent that the other end has not read; see unix(7)
_CLOSED = "the daemon closed the connection"
_SILENT = "the daemon does not answer", "See its log and its /livez: it may be frozen or short of CPU"


class Session:
    """The call's conversation with the daemon, over as many connections as it takes."""

    def __init__(self, call: Call, request: Request, stderr: Stderr, signals: Signals) -> None:
        self._stage = call.stage
        self._path = call.socket_path
        self._patience = call.connect_timeout
        self._call = call
        self._autostart: "Autostart | None" = None  # made where the daemon is to be started
        self._request = request.frames
        self._copies = Copies(call.input, call.output, request.listed) if call.input is not None else None
        self._stderr = stderr
        self._signals = signals
        now = time.monotonic()
        self._reconnect = reconnect.Reconnect(now, self._patience)
        self._call_deadline = None if call.stage == "run" else now + self._patience + CALL_TIMEOUT
        self._socket = None  # type: _socket.socket | None
        self._frames = wire.Frames()
        self._outgoing = bytearray()
        self._connected_at = now
        self._heard_at = now  # when the newest frame of this connection came
        self._heard = False  # whether there was one
        self._gives_signs = False  # whether there was an empty one, so that its silence says something
        self._broken = ""  # why nothing more comes; what came before is still to be delivered
        self._leave_at = None  # type: float | None # until when it may wait for a full stderr
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
            if self._socket is None and now >= self._reconnect.retry_at:
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
        away = self._reconnect
        if self._stop_deadline is not None:
            if now >= self._stop_deadline:
                self._end_unstopped()
            return
        if self._call_deadline is not None and now >= self._call_deadline:
            self._stderr.words(
                "k8s-builderd at %s did not finish this call within %gs. See its log"
                % (shown(self._path), self._patience + CALL_TIMEOUT)
            )
            self._end(1)
            return
        if self._socket is not None:
            if not self._may_read():
                self._leave(now)
                return  # it is not listened to, so that its silence says nothing
            self._look_for_signs(now)
        if away.over:
            return
        if self._cursor is None and now >= self._gives_up_at():
            self._stderr.words(
                "Could not reach k8s-builderd at %s within %gs: %s. %s"
                % (shown(self._path), self._patience, away.reason, away.remedy)
            )
            self._end(1)
        elif away.tell(now):
            if self._cursor is None:
                text = "Waiting for k8s-builderd at %s: %s"
            else:
                text = "Lost k8s-builderd at %s (%s). Running chaincode goes on; reconnecting"
            self._stderr.words(text % (shown(self._path), away.reason))

    def _leave(self, now: float) -> None:
        """Look for the daemon again though stderr is full: the next one keeps a chaincode for its `run` only so long.

        What is dropped here comes again after the cursor.
        """
        if self._leave_at is not None and now >= self._leave_at:
            self._leave_at = None
            if not self._frames.has(wire.EXIT):
                self._lost(self._broken)

    def _look_for_signs(self, now: float) -> None:
        away = self._reconnect
        silence = self._longest_silence()
        if away.over:
            if silence is not None and now >= self._heard_at + silence:
                away.silent(now, self._heard_at, *_SILENT)
        elif not self._heard and self._cursor is not None and now >= away.settles_at:
            # An older daemon has nothing to say to a run that comes back, until its chaincode has.
            if self._request_is_read():
                self._settle(now)
            else:
                away.settles_at = now + reconnect.LONGEST_DELAY

    def _longest_silence(self) -> "float | None":
        """After how long without a frame the daemon counts as away; None where an older one may have nothing to say."""
        if self._stage != "run":
            return reconnect.FIRST_WORDS
        return SILENCE if self._gives_signs else None

    def _gives_up_at(self) -> float:
        """When a call without a cursor is given up, while the daemon is away."""
        if self._socket is None:
            return self._reconnect.deadline
        if self._heard:
            return self._heard_at + max(self._patience, self._longest_silence() or 0)
        waits = UNANSWERED if self._stage == "run" and self._request_is_read() else reconnect.FIRST_WORDS
        return max(self._reconnect.deadline, self._connected_at + waits)

    def _request_is_read(self) -> bool:
        """Whether the daemon has read the request; one that is frozen leaves it in the socket."""
        if self._socket is None or self._outgoing:
            return False
        try:
            import fcntl  # only those who wait need it

            unread = fcntl.ioctl(self._socket.fileno(), _SIOCOUTQ, bytes(4))
        except (ImportError, OSError):
            return True  # this system does not tell
        return not any(unread)

    def _settle(self, now: float) -> None:
        seconds = self._reconnect.end(now)
        if seconds is not None:
            self._stderr.words("Connected to k8s-builderd after %.0fs" % seconds)

    def _next_time(self, *, reading: bool) -> "float | None":
        away = self._reconnect
        times = [] if self._socket is not None else [away.retry_at]
        if self._stop_deadline is not None:
            times.append(self._stop_deadline)
            if not reading:
                times.append(self._stderr.stalls_at())
            return min(times)
        if self._call_deadline is not None:
            times.append(self._call_deadline)
        if self._socket is not None and not reading:
            if self._leave_at is not None:
                times.append(self._leave_at)
        elif away.over:
            silence = self._longest_silence()
            if silence is not None:
                times.append(self._heard_at + silence)
        else:
            times.append(away.tell_at)
            if self._cursor is None:
                times.append(self._gives_up_at())
            elif self._socket is not None and not self._heard:
                times.append(away.settles_at)
        return min(times) if times else None

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._signals.fd, select.POLLIN)
        self._stderr.register(poll)
        reading = self._may_read()
        if self._socket is not None and not self._broken:
            events = (select.POLLIN if reading else 0) | (select.POLLOUT if self._outgoing else 0)
            poll.register(self._socket.fileno(), events)  # a hang-up is always told
        due = self._next_time(reading=reading)
        ready = dict(poll.poll(None if due is None else max(0, (due - time.monotonic()) * 1000 + 1)))
        if not reading:
            self._heard_at = time.monotonic()
        if self._signals.fd in ready:
            self._stop(self._signals.take())
        self._stderr.write(ready)
        if self._stderr.gone:
            self._stop("the end of the peer")
        if self._socket is not None and self._socket.fileno() in ready:
            if self._outgoing:
                self._send(self._socket)
            if reading or ready[self._socket.fileno()] & (select.POLLHUP | select.POLLERR):
                self._receive(self._socket)

    # The connection

    def _connect(self, now: float) -> None:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError as error:
            connection.close()
            reason, remedy = self._start_daemon(error, now) or _explained(error)
            self._reconnect.failed(now, reason, remedy, self._longest_delay(), _spread())
            return
        self._stderr.debug("Connected to %s" % shown(self._path))
        self._reconnect.connected(now, *_SILENT)
        self._socket = connection
        self._connected_at = self._heard_at = now
        self._heard = self._gives_signs = False
        self._frames = wire.Frames()
        self._broken = ""
        self._leave_at = None
        self._outgoing = bytearray(self._request)
        if self._cursor is not None:
            self._outgoing += wire.frame(wire.CURSOR, self._cursor)
        self._outgoing += wire.frame(wire.END)
        if self.stopping:
            self._outgoing += wire.frame(wire.STOP)

    def _start_daemon(self, error: OSError, now: float) -> "tuple[str, str] | None":
        """Start the daemon that is installed beside the programs, if there is one and `error` says that none runs.

        Returns why nobody answers yet, and what to check; None where nothing is to be started.
        """
        # Nobody needs one that is started for the sake of a peer which is gone.
        if error.errno not in (errno.ENOENT, errno.ECONNREFUSED) or self._stderr.gone or self._call.daemon is None:
            return None
        if self._autostart is None:
            from .autostart import Autostart

            call = self._call
            self._autostart = Autostart(call.daemon or b"", self._path, call.log_file, call.environment)
        explained = self._autostart.attempt(now)
        if self._autostart.news:
            self._stderr.words(self._autostart.news)
        return explained

    def _longest_delay(self) -> float:
        if self.stopping:
            return 0.1
        # A daemon that is started here is there in a moment.
        soon = self._cursor is None or self._autostart is not None
        return reconnect.LONGEST_DELAY_AT_START if soon else reconnect.LONGEST_DELAY

    def _lost(self, reason: str) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        remedy = "See its log"
        self._reconnect.lost(time.monotonic(), reason, remedy, self._longest_delay(), _spread())

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
            data, self._broken = b"", error.strerror or _CLOSED
        if data:
            self._frames.feed(data)
            return
        self._broken = self._broken or _CLOSED
        if self._cursor is not None:
            self._leave_at = time.monotonic() + FULL

    def _deliver(self, now: float) -> None:
        try:
            while self._socket is not None and self._code is None and self._may_read():
                frame = self._frames.next()
                if frame is None:
                    if self._broken:
                        self._lost(self._broken)
                    return
                self._heard = True
                self._settle(now)
                self._obey(*frame)
                self._heard_at = time.monotonic()
        except wire.FrameError as error:
            self._misunderstood(now, str(error))

    def _misunderstood(self, now: float, what: str) -> None:
        if now >= self._malformed_again_at:
            self._malformed_again_at = now + reconnect.MORE_WORDS
            self._stderr.words(
                "k8s-builderd at %s sent %s: use the programs that came with this daemon" % (shown(self._path), what)
            )
        if self._cursor is None:
            self._end(1)
        else:
            self._lost("the daemon sent " + what)

    # The daemon's frames

    def _obey(self, kind: bytes, payload: bytes) -> None:
        if kind == wire.WORDS:
            if not payload:
                self._gives_signs = True
            self._put(payload)
        elif kind == wire.LOG:
            self._cursor, lines = wire.log(payload)
            self._put(lines)
        elif kind == wire.EXIT:
            self._end(wire.exit_code(payload))
        elif self._copies is None:
            raise wire.FrameError("a copy frame to a stage that copies nothing")
        else:
            began = time.monotonic()
            try:
                self._copies.copy(*wire.copy(payload))
            except CopyError as error:
                self._stderr.words(str(error))
                self._end(1)
            if self._call_deadline is not None:  # the time for copying is ours
                self._call_deadline += time.monotonic() - began

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
            self._reconnect.retry_at = time.monotonic()
            if self._socket is not None:
                self._outgoing += wire.frame(wire.STOP)

    def _end_unstopped(self) -> None:
        if self._socket is None:
            self._stderr.words(
                "Could not reach k8s-builderd at %s to stop the chaincode: %s. When the daemon is back, it "
                "deletes the chaincode's Kubernetes job, if there is one" % (shown(self._path), self._reconnect.reason)
            )
        else:
            self._stderr.words(
                "k8s-builderd at %s did not answer the stop within %gs. It deletes the chaincode's Kubernetes job, "
                "if there is one, soon after this program has ended" % (shown(self._path), STOP_TIMEOUT)
            )
        self._end(1)


def _spread() -> float:
    return posix.urandom(1)[0] / 255


def _explained(error: OSError) -> "tuple[str, str]":
    """The reason why there is no connection, and what to check."""
    reason = error.strerror or "unknown error"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        remedy = (
            "Check that the daemon is running and that the peer mounts the directory of its socket. If "
            "FABRIC_K8S_BUILDER_SOCKET is set, list it in the builder's propagateEnvironment in core.yaml"
        )
    elif error.errno == errno.ECONNREFUSED:
        remedy = "The socket exists, but nothing listens on it: check that the daemon is running"
    elif error.errno == errno.EACCES:
        reason += " for uid %d, gid %d" % (posix.geteuid(), posix.getegid())
        remedy = "Check the user and group of the daemon and the peer, and the daemon's FABRIC_K8S_BUILDER_SOCKET_MODE"
    elif error.errno == errno.EAGAIN:
        reason = "its queue of connections is full"
        remedy = "See the daemon's log and its /livez"
    else:
        remedy = "Check the daemon and FABRIC_K8S_BUILDER_SOCKET"
    return reason, remedy
