"""A tiny process beside the cluster that ends the pods and removes their directory should the cluster be killed.

Run as a script with the directory as its argument it reads `+PID` and `-PID`, a line each, from standard input: the
sessions that begin and end. At the end of its input it kills those that are left. It imports next to nothing, so that
it costs next to nothing.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Reaper:
    """Tells the process which sessions there are."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def born(self, pid: int) -> None:
        """Tell of a session that has begun."""
        self._tell(f"+{pid}\n")

    def gone(self, pid: int) -> None:
        """Tell of a session that has ended."""
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with suppress(BrokenPipeError):  # without it the cluster is as good, as long as nobody kills it
            os.write(self._pipe, line.encode())


@asynccontextmanager
async def open_reaper(directory: str) -> AsyncIterator[Reaper]:
    """Start the process for the pods below `directory`; at the end it finds nothing to do, and ends."""
    import anyio

    read_end, write_end = os.pipe()
    try:
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                [sys.executable, "-I", "-S", __file__, directory],
                stdin=read_end,
                stdout=None,
                stderr=None,
                start_new_session=True,  # a Ctrl-C is for the cluster, which then says what there is to do
            )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    try:
        yield Reaper(write_end)
    finally:
        os.close(write_end)
        with anyio.CancelScope(shield=True):
            await process.wait()


def main() -> None:
    """Wait for the end of the cluster and clean up after it."""
    sessions = set()
    for line in sys.stdin:
        pid = int(line)
        if pid > 0:
            sessions.add(pid)
        else:
            sessions.discard(-pid)
    for pid in sessions:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if os.path.isdir(sys.argv[1]):  # noqa: PTH112 (pathlib would double the cost)
        import shutil

        shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
