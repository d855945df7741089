"""One container as a local process: started, its output read, told to stop, and gone with all of its group."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anyio
import msgspec
from anyio.abc import Process

from k8s_builder_lab.embedded.logs import ContainerLog, read_available

_REFERENCE = re.compile(r"\$(\$|\(([-._a-zA-Z][-._a-zA-Z0-9]*)\))")

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

    def __init__(self, process: Process, pipe: int, log: ContainerLog) -> None:
        self._process = process
        self._pipe = pipe
        self._log = log
        self.started_at = time.time()
        self.killed = False

    @property
    def pid(self) -> int:
        """The process, which is also its session and its group."""
        return self._process.pid

    @classmethod
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], directory: Path, log: ContainerLog
    ) -> "ContainerProcess":
        """Start `command` in `directory`; nothing is inherited but `env`.

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
        return cls(process, read_end, log)

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
                finished_at = time.time()
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
