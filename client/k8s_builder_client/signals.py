"""SIGTERM, SIGINT and SIGHUP as one readable file descriptor. Decides nothing."""

import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # the signal module costs an enum, which costs as much as the interpreter's start


class Signals:
    """From its making on the three signals end nothing; they are to be read here. Make one, before all else."""

    def __init__(self) -> None:
        self.fd, self._wakeup = posix.pipe()
        posix.set_blocking(self.fd, False)
        posix.set_blocking(self._wakeup, False)
        _signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, _to_wakeup_fd)

    def take(self) -> str:
        """The name of the first signal that came since the last call, or '' where none did."""
        try:
            numbers = posix.read(self.fd, 256)
        except BlockingIOError:
            return ""
        if numbers[0] == _signal.SIGTERM:
            return "SIGTERM"
        return "SIGINT" if numbers[0] == _signal.SIGINT else "SIGHUP"


def _to_wakeup_fd(_number: int, _frame: object) -> None:
    """Nothing: the interpreter has written the signal's number to the wake-up descriptor."""
