"""A process beside the demo, the cluster or the daemon: started, its last lines kept, ended with the demo."""

import subprocess
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from k8s_builderd.errors import BuilderError

# How many lines are kept for the report of a failure.
_LAST_LINES = 20
# From SIGTERM to SIGKILL at the end.
_TERM_SECONDS = 10.0


class EndedEarly(BuilderError):
    """Raised when the process ends while the demo still needs it."""


class Background:
    """A running process. Made by `open_background`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._more = anyio.Event()

    async def until_says(self, words: str) -> str:
        """Wait for a line that has these words in it and return it; of those that came before the last ones count."""
        while True:
            for line in self.last_lines:
                if words in line:
                    return line
            await self._more.wait()

    def hear(self, line: str) -> None:
        """Keep a line of its output."""
        self.last_lines.append(line)
        self._more.set()
        self._more = anyio.Event()


@asynccontextmanager
async def open_background(
    name: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> AsyncIterator[Background]:
    """Start a process whose standard input stays open as long as it is wanted.

    Its end before that is raised as EndedEarly. Leaving sends SIGTERM, and SIGKILL if that does not help.
    Raises OSError if it cannot be started.
    """
    process = await anyio.open_process(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        # Ctrl-C is for the demo, which ends its processes in their order.
        start_new_session=True,
    )
    background = Background(name)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_listen, process, background)
            yield background
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _listen(process: Process, background: Background) -> None:
    assert process.stdout is not None
    pending = ""
    async for text in TextReceiveStream(process.stdout, errors="replace"):
        *lines, pending = (pending + text).split("\n")
        for line in lines:
            background.hear(line)
    if pending:
        background.hear(pending)
    code = await process.wait()
    raise EndedEarly(f"{background.name} ended by itself with exit status {code}")


async def _end(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()
    with anyio.move_on_after(_TERM_SECONDS):
        async with anyio.create_task_group() as tasks:
            # Its pipe is emptied meanwhile, or it could not say its last words.
            tasks.start_soon(_drain, process)
            await process.wait()
            tasks.cancel_scope.cancel()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.aclose()


async def _drain(process: Process) -> None:
    assert process.stdout is not None
    async for _ in process.stdout:
        pass
