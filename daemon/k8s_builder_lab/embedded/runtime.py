"""The container runtime: a container is a local process, whose output is read and whose whole group ends with it."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import msgspec
from anyio.abc import Process

from k8s_builder_lab.embedded.logs import ContainerLog, read_available
from k8s_builder_lab.embedded.reaper import Reaper

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")

Clock = Callable[[], float]
"""Tells the time, in seconds since the epoch."""

DRAIN_SECONDS = 2
"""How long output is still read after the process is gone, should somebody else hold its pipe open."""


class StartError(Exception):
    """The program is not there or is no program; the text is what the container runtime would say."""


class Ended(msgspec.Struct, frozen=True):
    """How a process ended: its exit code as a container runtime counts it (128 + n for signal n)."""

    exit_code: int
    finished_at: float


def expand(argument: str, env: Mapping[str, str]) -> str:
    """Expand `$(NAME)` as Kubernetes does in command and args; what is not known stays, `$$` is one `$`."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(value, argument)


def command_line(container: Mapping[str, list[str]], image: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Return what to run: the container's command and args in front of the image's own, by Kubernetes' rules."""
    own, args = container.get("command"), container.get("args")
    if own:
        line = [*own, *(args or [])]
    elif args:
        line = [*image[:1], *args]
    else:
        return [*image]
    return [expand(part, env) for part in line]


def _why(program: str, error: OSError) -> str:
    """Return what runc says of a program that cannot be started."""
    if not isinstance(error, FileNotFoundError):
        return (error.strerror or str(error)).lower()
    return f"stat {program}: no such file or directory" if "/" in program else "executable file not found in $PATH"


class ContainerProcess:
    """A running process in a session of its own whose stdout and stderr come in order out of one pipe."""

    def __init__(self, process: Process, pipe: int, log: ContainerLog, now: Clock) -> None:
        self._process = process
        self._pipe = pipe
        self._log = log
        self._now = now
        self.started_at = now()
        self.killed = False

    @property
    def pid(self) -> int:
        """The process, which is also its session and its group."""
        return self._process.pid

    @classmethod
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], directory: Path, log: ContainerLog, now: Clock
    ) -> "ContainerProcess":
        """Start `command` in `directory`; nothing is inherited but `env`. Its times are those of `now`.

        :raises StartError: it cannot be started
        """
        if not command:
            raise StartError("failed to create containerd task: no command specified")
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        try:
            # A process that is half started could not be ended: not to be cancelled.
            with anyio.CancelScope(shield=True):
                process = await anyio.open_process(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    cwd=directory,
                    env=env,
                    start_new_session=True,
                )
        except OSError as error:
            os.close(read_end)
            raise StartError(
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc "
                f'create failed: unable to start container process: exec: "{command[0]}": '
                f"{_why(command[0], error)}: unknown"
            ) from None
        finally:
            os.close(write_end)
        return cls(process, read_end, log, now)

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.returncode is not None

    async def run(self) -> Ended:
        """Read its output until it has ended, end what is left of its group, and say how it ended."""
        try:
            async with anyio.create_task_group() as tg:
                tg.start_soon(self._read_output)
                await self.wait()
                finished_at = self._now()
                tg.cancel_scope.deadline = anyio.current_time() + DRAIN_SECONDS
        finally:
            os.close(self._pipe)
        code = self._process.returncode
        assert code is not None
        return Ended(code if code >= 0 else 128 - code, finished_at)

    async def wait(self) -> None:
        """Wait until the process is gone, and take what is left of its group along, as a container does."""
        await self._process.wait()
        self._send(os.killpg, signal.SIGKILL)

    async def _read_output(self) -> None:
        while True:
            chunk = read_available(self._pipe)
            if chunk is None:
                await anyio.wait_readable(self._pipe)
                continue
            if not chunk:
                self._log.finish()
                return
            self._log.write(chunk)
            await anyio.lowlevel.checkpoint()

    def terminate(self) -> None:
        """Send SIGTERM to the process, as to a container's first; its children are its own affair."""
        if not self.gone:
            self._send(os.kill, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process and its group."""
        self.killed = True
        self._send(os.killpg, signal.SIGKILL)

    def _send(self, send: Callable[[int, signal.Signals], None], number: signal.Signals) -> None:
        # Not through the process object: that polls first, which takes the exit status away from who waits for it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(self.pid, number)


async def execute(
    command: Sequence[str], env: Mapping[str, str], directory: Path, limit: float, reaper: Reaper
) -> tuple[bool, str]:
    """Run a command beside a container's process for at most `limit` seconds.

    Returns whether it succeeded in time, and what it printed on stdout and stderr (or why it did not start).
    """
    try:
        with anyio.CancelScope(shield=True):
            process = await anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=env,
                start_new_session=True,
            )
    except OSError as error:
        return False, _why(command[0], error)
    reaper.born(process.pid)
    printed = bytearray()
    try:
        with anyio.move_on_after(limit):
            assert process.stdout is not None
            async for chunk in process.stdout:
                printed += chunk
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await process.aclose()
        reaper.gone(process.pid)
    return process.returncode == 0, printed.decode(errors="replace")
