"""Starts the daemon that is installed beside the programs, where none answers. Imported only then.

There is one daemon however many programs ask for it: the file `<socket>.start` is locked, the daemon inherits the lock,
and the kernel frees it when the daemon ends. A program that is killed in between leaves nothing that has to be cleaned.
The file says when the daemon was started last and how often in a row, and, once it has ended, why it did not start. So
all programs together keep to one pace.
"""

import errno
import fcntl
import os

from . import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from typing import Mapping, NoReturn
else:
    import _signal

FIRST_PAUSE = 1.0
"""Seconds from one start to the next, where the daemon did not last; doubled each time."""
LONGEST_PAUSE = 30.0
LASTED = 60.0
"""Seconds after a start from which on the next one counts as the first."""

_LONGEST_REASON = 2048
_ENDED = "it has ended: %s"
_STDOUT_OF_CONTAINER = b"/proc/1/fd/1"
_NOT_PROPAGATED = (b"CORE_PEER_ID",)
"""What the daemon is not given: each program forwards it, and what the daemon has itself would win."""


def pause(attempts: int) -> float:
    """Seconds from the start of the so-manieth attempt in a row to the next. Pure."""
    return float(min(FIRST_PAUSE * 2 ** min(attempts - 1, 16), LONGEST_PAUSE))


class Autostart:
    """The daemon of one socket, as one program sees it.

    `program` is the daemon's, `log_file` the path of its log or empty, `environment` what the peer has left of its own.
    """

    def __init__(
        self, program: bytes, socket_path: bytes, log_file: bytes, environment: "Mapping[bytes, bytes]"
    ) -> None:
        self._program = os.path.abspath(program)  # the daemon does not start in this folder
        self._socket_path = socket_path
        self._file = socket_path + b".start"
        self._log_file = log_file
        self._environment = environment
        self._child = 0
        self._child_since = b""  # the file's first line of when we started it
        self._child_end = ""
        self._told = ""
        self.news = ""
        """What the last attempt has found and is worth a line of its own."""

    def attempt(self, now: float) -> "tuple[str, str]":
        """Start the daemon if there is none and its time has come. Returns why nobody answers, and what to check."""
        self.news = ""
        self._reap()
        remedy = "See its log: %s" % self._log_name()
        try:
            lock = self._open_file()
        except OSError as error:
            return "it cannot be started: %s: %s" % (os.fsdecode(self._file), error.strerror), "Check that directory"
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._starting(), remedy
            since, at, attempts, reason = _read(lock)
            if self._child_end and since == self._child_since and not reason:
                reason = self._child_end
                os.write(lock, reason.encode() + b"\n")
            if not 0 <= now - at < LASTED:  # it lasted, or the machine, and with it the clock, has been restarted
                attempts, reason = 0, ""
            if reason:
                self._tell(reason, remedy)
            if attempts and now < at + pause(attempts):
                return (_ENDED % reason if reason else "it has ended, and will be started again"), remedy
            self._start(lock, now, attempts + 1)
        except OSError as error:
            return "it cannot be started: %s" % _explained(error), remedy
        finally:
            os.close(lock)
        return self._starting(), remedy

    def _open_file(self) -> int:
        """Open what is locked. Raises OSError, also for another user's file: who made it could lock it for ever."""
        place.make_directory(os.path.dirname(self._socket_path))
        lock = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        owner = os.fstat(lock).st_uid
        if owner != os.geteuid():
            os.close(lock)
            raise OSError(errno.EPERM, "it belongs to user id %d" % owner)
        return lock

    def _starting(self) -> str:
        return "it is starting again after it has ended: %s" % self._told if self._told else "it is starting"

    def _tell(self, reason: str, remedy: str) -> None:
        if reason != self._told:
            self._told = reason
            self.news = "k8s-builderd at %s: %s. %s" % (os.fsdecode(self._socket_path), _ENDED % reason, remedy)

    def _start(self, lock: int, now: float, attempts: int) -> None:
        log = self._open_log()
        try:
            self._child_since = b"%f %d" % (now, attempts)
            os.ftruncate(lock, 0)
            os.write(lock, self._child_since + b"\n")
            arguments = [self._program, b"--start-file", self._file]
            peer = _identity(os.getppid())
            if peer:
                arguments += [b"--peer-process", peer]
            self._child_end = ""
            self._child = os.fork()
            if not self._child:
                self._become_daemon(lock, log, arguments)
        finally:
            os.close(log)
        if attempts == 1:
            self.news = "Started k8s-builderd, process %d. Its log: %s" % (self._child, self._log_name())

    def _become_daemon(self, lock: int, log: int, arguments: "list[bytes]") -> "NoReturn":
        """Become the daemon: a session of its own, and no descriptor of the peer's."""
        try:
            os.setsid()
            os.chdir("/")
            nothing = os.open(os.devnull, os.O_RDONLY)
            for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(descriptor, standard)
            for name in os.listdir("/proc/self/fd"):
                if int(name) not in (0, 1, 2, lock):
                    try:  # noqa: SIM105 - contextlib costs too much to import
                        os.close(int(name))
                    except OSError:  # the one that listdir had
                        pass
            os.set_inheritable(lock, True)
            for number in (_signal.SIGPIPE, _signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
                _signal.signal(number, _signal.SIG_DFL)
            os.execve(self._program, arguments, self._daemons_environment())  # noqa: S606
        except OSError as error:
            os.write(lock, _explained(error).encode() + b"\n")
        finally:
            os._exit(127)

    def _daemons_environment(self) -> "dict[bytes, bytes]":
        environment = {name: value for name, value in self._environment.items() if name not in _NOT_PROPAGATED}
        environment[b"FABRIC_K8S_BUILDER_SOCKET"] = self._socket_path
        return environment

    def _reap(self) -> None:
        """Learn how the daemon has ended, if this program started it."""
        if not self._child:
            return
        try:
            pid, status = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._child, 0
        if pid:
            self._child = 0
            if os.WIFSIGNALED(status):
                self._child_end = "killed by signal %d" % os.WTERMSIG(status)
            else:
                self._child_end = "exit code %d" % os.WEXITSTATUS(status)

    # The log

    def _open_log(self) -> int:
        if self._log_file:
            return _open_for_daemon(self._log_file, os.O_CREAT)
        try:
            log = _open_for_daemon(_STDOUT_OF_CONTAINER)
            if not os.path.samestat(os.fstat(log), os.stat(os.devnull)):
                return log
            os.close(log)
        except OSError:
            pass
        self._log_file = self._socket_path + b".log"
        return _open_for_daemon(self._log_file, os.O_CREAT | os.O_NOFOLLOW)

    def _log_name(self) -> str:
        return os.fsdecode(self._log_file) if self._log_file else "this container's standard output"


def _open_for_daemon(log: bytes, flags: int = 0) -> int:
    # Non-blocking, because a pipe that nobody reads would keep us for ever; the daemon's writes block as any.
    flags |= os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    descriptor = os.open(log, flags, 0o640)
    os.set_blocking(descriptor, True)
    return descriptor


def _read(lock: int) -> "tuple[bytes, float, int, str]":
    """The file's first line, when the daemon was started last, how often in a row, and why it did not start."""
    first, _, rest = os.pread(lock, _LONGEST_REASON, 0).partition(b"\n")
    at, _, attempts = first.partition(b" ")
    try:
        return first, float(at), int(attempts), " ".join(rest.decode("utf-8", "replace").split())
    except ValueError:  # empty, or not ours
        return first, 0.0, 0, ""


def _identity(pid: int) -> bytes:
    """A process's pid and start time, which together name it for good; empty for one that cannot be seen.

    The start time is field 22 of proc(5)'s stat, in clock ticks after the machine's start.
    """
    try:
        with open("/proc/%d/stat" % pid, "rb") as file:
            return b"%d/%s" % (pid, file.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return b""


def _explained(error: OSError) -> str:
    what = os.fsdecode(error.filename) if error.filename else errno.errorcode.get(error.errno or 0, "")
    return "%s: %s" % (what, error.strerror)
