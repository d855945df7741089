"""The whole demo as a process of its own: all of it happens, or it says at which step it did not."""

import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from tempfile import TemporaryDirectory

import anyio
import pytest
from anyio.abc import Process

from tests.peer.neighbours import Journal

pytestmark = pytest.mark.anyio

DEADLINE = 180.0
"""Seconds after which a test gives up on the demo; nothing measures by it."""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short directory: the demo's socket lies in it, and the path of one has at most 107 bytes."""
    with TemporaryDirectory(prefix="kb-") as directory:
        yield Path(directory)


class Demo:
    """A demo that runs, with the processes it has started."""

    def __init__(self, process: Process, directory: Path) -> None:
        self.journal = Journal()
        self.process = process
        self._directory = directory

    async def listen(self) -> None:
        assert self.process.stdout is not None
        pending = b""
        async for data in self.process.stdout:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                self.journal.write(line.decode())

    async def ends(self) -> int:
        with anyio.fail_after(DEADLINE):
            return await self.process.wait()

    def processes(self, part: str = "") -> list[int]:
        """The processes that have the demo's own TMPDIR and `part` in their command line, and the demo itself."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                environ = (process / "environ").read_bytes().split(b"\0")
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue
            ours = any(os.fsencode(self._directory) in entry for entry in environ)
            if ours and part.encode() in command:
                found.append(int(process.name))
        return found


@asynccontextmanager
async def demo(directory: Path, *arguments: str) -> AsyncIterator[Demo]:
    environ = {**os.environ, "TMPDIR": str(directory), "FABRIC_K8S_BUILDER_NAMESPACE": "to-be-ignored"}
    async with (
        await anyio.open_process(
            [sys.executable, "-m", "k8s_builder_lab.demo", *arguments],
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env=environ,
        ) as process,
        anyio.create_task_group() as tasks,
    ):
        running = Demo(process, directory)
        tasks.start_soon(running.listen)
        yield running
        await running.ends()
        assert running.processes() == []
        assert [path async for path in anyio.Path(directory).iterdir()] == []


async def test_it_succeeds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """On a terminal; as plain lines it runs in tests/tutorials."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TMPDIR": str(tmp_path), "TERM": "xterm"}
    arguments: Sequence[str] = [sys.executable, "-m", "k8s_builder_lab.demo"]
    shown = b""
    async with await anyio.open_process(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environ) as process:
        os.close(theirs)
        with anyio.fail_after(DEADLINE):
            while True:
                await anyio.wait_readable(ours)
                try:
                    shown += os.read(ours, 65536)
                except OSError:
                    break  # all of its ends are closed
            assert await process.wait() == 0
    os.close(ours)
    assert [path async for path in anyio.Path(tmp_path).iterdir()] == []
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode()).replace("\r", "")
    steps = re.findall(r"^\[(\d)/8\]", text, re.MULTILINE)
    assert steps == list("12345678")
    for words in (
        "detect | detect [",
        "run | chaincode starts with pid",
        "sending back REGISTERED",
        "and READY",
        "put asset1 blue",
        "query: get asset1 is blue",
        "run ended with 0",
        "No Job is left",
        "No Pod is left",
        "No Secret is left",
        "The process is gone",
        "All of it happened",
    ):
        assert words in text
    assert "PRIVATE KEY" not in text


@pytest.mark.parametrize(
    ("chaincode", "reason"),
    [
        ("/bin/false", "the chaincode ended with exit code 1"),
        ("/nowhere/chaincode", "no such file or directory"),
    ],
)
async def test_a_broken_image_fails_the_launch_and_says_so(tmp_path: Path, chaincode: str, reason: str) -> None:
    async with demo(tmp_path, "--chaincode", chaincode) as running:
        assert await running.ends() == 1
        await running.journal.has("The demo failed at the step `Launch it")
        await running.journal.has(reason)
        await running.journal.has("The last lines of k8s-builderd:")
        assert not any("All of it happened" in line for line in running.journal.lines)


@pytest.mark.parametrize(
    ("words", "number"), [("[1/8]", signal.SIGTERM), ("[2/8]", signal.SIGINT), ("run | run [", signal.SIGTERM)]
)
async def test_an_interrupted_demo_stops_everything(tmp_path: Path, words: str, number: signal.Signals) -> None:
    # A chaincode that never registers, so that the launch is under way when the signal comes.
    async with demo(tmp_path, "--chaincode", "/bin/sleep 1000") as running:
        await running.journal.has(words)
        running.process.send_signal(number)
        assert await running.ends() == 128 + number
        await running.journal.has("What was started is stopped.")


@pytest.mark.parametrize(
    ("module", "name"), [("k8s_builderd", "k8s-builderd"), ("k8s_builder_lab.embedded", "cluster")]
)
async def test_the_end_of_the_daemon_or_the_cluster_ends_the_demo(tmp_path: Path, module: str, name: str) -> None:
    async with demo(tmp_path, "--chaincode", "/bin/sleep 1000") as running:
        await running.journal.has("run | run [")
        (pid,) = running.processes(f"-m\0{module}\0")
        os.kill(pid, signal.SIGKILL)
        assert await running.ends() == 1
        await running.journal.has(f"{name} ended by itself with exit status -9")


async def test_without_the_extra_it_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['grpc'] = None; from k8s_builder_lab.demo.command import demo; demo()"
    result = await anyio.run_process([sys.executable, "-c", code], check=False)
    assert result.returncode == 1
    assert result.stdout == b""
    assert b"(grpc)" in result.stderr
    assert b"pip install 'k8s-builderd[demo]'" in result.stderr
