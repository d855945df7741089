"""One program that the peer started: its stderr read line by line as the peer reads it, its signals and its exit.

After Fabric's core/container/externalbuilder/session.go and Go's bufio.Scanner.
"""

import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from subprocess import DEVNULL

import anyio
from anyio.abc import Process, TaskGroup

# bufio.MaxScanTokenSize: the buffer that has to hold a line together with its line feed.
LONGEST_LINE = 64 * 1024


@dataclass(frozen=True)
class Line:
    """A line of stderr: what the peer logs, and the pid, which its log does not have."""

    command: str
    pid: int
    text: bytes


OnLine = Callable[[Line], Awaitable[None]]
OnExit = Callable[[], None]


class LineScanner:
    """Cuts bytes into lines as bufio.Scanner does: no line feed, no carriage return before it."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes."""
        *whole, self._pending = (self._pending + data).split(b"\n")
        lines: list[bytes] = []
        for line in whole:
            if len(line) >= LONGEST_LINE:
                # Those before it were passed on.
                self._pending = line
                break
            lines.append(line.removesuffix(b"\r"))
        return lines

    @property
    def stuck(self) -> bool:
        """Tell whether the buffer is full without a line feed in it."""
        return len(self._pending) >= LONGEST_LINE

    def rest(self) -> bytes:
        """Return the last line, which has no line feed."""
        return self._pending.removesuffix(b"\r")


class Session:
    """A running program. Made by `start_session`."""

    def __init__(self, command: str, process: Process, stderr: int, on_line: OnLine, on_exit: OnExit) -> None:
        self.command = command
        self.pid = process.pid
        self.stuck = False
        """A line was too long: what the program writes from now on is read by nobody."""
        self._process = process
        self._stderr: int | None = stderr
        self._on_line = on_line
        self._on_exit = on_exit
        self._exited = anyio.Event()

    async def wait(self) -> int:
        """Wait until stderr has ended and the program too, in this order; negative is the signal that killed it.

        A child that inherited stderr and outlives the program therefore holds up the peer.
        """
        await self._exited.wait()
        code = self._process.returncode
        assert code is not None
        return code

    @property
    def exited(self) -> bool:
        """Tell whether `wait` would return at once."""
        return self._exited.is_set()

    def signal(self, number: signal.Signals) -> None:
        """Signal the program, if it still runs."""
        # Not by the process object, which polls first and so may take the exit code away from asyncio's watcher
        # (python/cpython 127049).
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close_stderr(self) -> None:
        """Close the reading end, as the peer's death does."""
        if self._stderr is not None:
            stderr, self._stderr = self._stderr, None
            anyio.notify_closing(stderr)
            os.close(stderr)

    async def follow(self) -> None:
        """Read stderr to its end and wait for the program. Killed with SIGKILL if this is cancelled."""
        try:
            await self._read()
            await self._process.wait()
        finally:
            self.close_stderr()
            self.signal(signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await self._process.wait()
            self._on_exit()
            self._exited.set()

    async def _read(self) -> None:
        scanner = LineScanner()
        while (data := await self._receive()) != b"":
            for text in scanner.feed(data):
                await self._on_line(Line(self.command, self.pid, text))
            if scanner.stuck:
                self.stuck = True
                return
        if last := scanner.rest():
            await self._on_line(Line(self.command, self.pid, last))

    async def _receive(self) -> bytes:
        while self._stderr is not None:
            try:
                return os.read(self._stderr, LONGEST_LINE)
            except BlockingIOError:
                try:
                    await anyio.wait_readable(self._stderr)
                except anyio.ClosedResourceError:
                    break
        return b""


async def start_session(
    tasks: TaskGroup,
    arguments: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str],
    on_line: OnLine,
    on_exit: OnExit = lambda: None,
) -> Session:
    """Start a program as the peer does: stdin and stdout are /dev/null, no other environment, no process group.

    `on_line` is awaited for each line and nothing is read meanwhile; `on_exit` is called before `Session.wait` returns.
    Raises OSError if the program cannot be started.
    """
    # A pipe of our own, because a stream of the event loop would read ahead of the scanner.
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    try:
        process = await anyio.open_process(
            [os.fspath(argument) for argument in arguments],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=writing,
            env=environment,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    session = Session(PurePath(arguments[0]).name, process, reading, on_line, on_exit)
    tasks.start_soon(session.follow, name=f"{session.command} {session.pid}")
    return session


def propagated(environ: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return what the peer leaves of its environment for an external builder."""
    kept = (*names, "LD_LIBRARY_PATH", "LIBPATH", "PATH", "TMPDIR")
    return {name: environ[name] for name in kept if name in environ}
