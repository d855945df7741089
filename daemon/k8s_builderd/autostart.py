"""For a daemon that the peer's programs have started: it says why it did not start, and it ends with the peer.

The programs' half is client/k8s_builder_client/autostart.py. The lock that keeps a second daemon from being started is
an open file which this process has inherited: it needs no hand of ours.
"""

from collections.abc import Callable
from pathlib import Path

import anyio
import structlog

from k8s_builderd.errors import BuilderError

LOOK = 1.0
"""Seconds between two looks at the peer's process."""
AFTER_PEER = 5.0
"""Seconds beyond FABRIC_K8S_BUILDER_RECONNECT_GRACE for which the daemon outlives its peer to stop its chaincode."""

_log = structlog.get_logger("k8s_builderd.autostart")


class PeerProcess:
    """The process that called the program which started this daemon."""

    def __init__(self, identity: str) -> None:
        """Take `PID/START`, where START is the time of its start as in field 22 of proc(5)'s stat.

        :raises ValueError: if it is nothing of that kind.
        """
        pid, _, self._start = identity.partition("/")
        self.pid = int(pid)

    @property
    def is_alive(self) -> bool:
        """Say whether it still runs; a process that got its pid later is another one."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return False
        except OSError:  # such as no file descriptor left for us: it says nothing of the peer
            return True
        return fields[19].decode() == self._start and fields[0] not in (b"Z", b"X")

    async def ended(self) -> None:
        """Wait until it has ended. A look a second, as not every kernel that containers run on has pidfds."""
        while self.is_alive:  # noqa: ASYNC110 - a process that is no child of ours tells nobody of its end
            await anyio.sleep(LOOK)


async def end_with_peer(
    peer: PeerProcess, is_idle: Callable[[], bool], patience: float, scope: anyio.CancelScope
) -> None:
    """Cancel the scope when the peer has ended and its chaincode has been stopped.

    :param is_idle: says whether there is nothing left to stop.
    :param patience: seconds after which the scope is cancelled all the same.
    """
    await peer.ended()
    _log.info("peer_ended", pid=peer.pid)
    with anyio.move_on_after(patience):
        while not is_idle():  # noqa: ASYNC110 - for some seconds, once
            await anyio.sleep(LOOK / 4)
    scope.cancel()


def say_why(file: Path, errors: list[BaseException]) -> None:
    """Write why the daemon did not start where the programs look for it."""
    words = "; ".join(str(error) for error in errors if isinstance(error, BuilderError))
    with file.open("a") as start:
        start.write(" ".join(words.split()) + "\n")
