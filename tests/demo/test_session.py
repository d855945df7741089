"""How the peer starts a program and reads its stderr, up to the line that is too long for it."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import TaskGroup

from k8s_builder_lab.demo.session import LONGEST_LINE, Line, LineScanner, Session, propagated, start_session
from tests.peer.neighbours import Journal

pytestmark = pytest.mark.anyio


def scanned(*parts: bytes) -> tuple[list[bytes], bool]:
    scanner = LineScanner()
    lines = [line for part in parts for line in scanner.feed(part)]
    return lines, scanner.stuck


def test_lines_are_cut_at_line_feeds_and_lose_one_carriage_return() -> None:
    assert scanned(b"one\ntw", b"o\r\n\r\r\n", b"\n") == ([b"one", b"two", b"\r", b""], False)


@pytest.mark.parametrize("size", [LONGEST_LINE - 1, LONGEST_LINE, LONGEST_LINE + 1])
@pytest.mark.parametrize("chunk", [1000, LONGEST_LINE, 10 * LONGEST_LINE])
def test_a_line_fits_with_its_line_feed_or_the_scanner_is_stuck(size: int, chunk: int) -> None:
    data = b"before\n" + b"x" * size + b"\nafter\n"
    lines, stuck = scanned(*(data[start : start + chunk] for start in range(0, len(data), chunk)))
    assert stuck is (size >= LONGEST_LINE)
    assert lines[0] == b"before"
    assert (b"x" * size in lines) is not stuck


def test_a_last_line_without_a_line_feed_counts() -> None:
    scanner = LineScanner()
    assert scanner.feed(b"one\ntwo") == [b"one"]
    assert scanner.rest() == b"two"


def test_the_environment_is_emptied_but_for_four_names_and_those_of_the_builder() -> None:
    environ = {"PATH": "p", "HOME": "h", "LANG": "C", "TMPDIR": "t", "CORE_PEER_ID": "peer0", "OTHER": "o"}
    assert propagated(environ, ["CORE_PEER_ID", "UNSET"]) == {"PATH": "p", "TMPDIR": "t", "CORE_PEER_ID": "peer0"}


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def python(tasks: TaskGroup, journal: Journal, code: str) -> Session:
    return await start_session(tasks, [sys.executable, "-c", code], {"ONLY": "this"}, journal)


async def test_only_stderr_is_read_and_the_environment_is_what_was_given() -> None:
    journal = Journal()
    async with anyio.create_task_group() as tasks:
        session = await python(
            tasks,
            journal,
            "import os, sys\n"
            "os.write(1, b'unseen')\n"
            "own = {name: value for name, value in os.environ.items() if name != 'LC_CTYPE'}\n"
            "devices = [os.readlink(f'/proc/self/fd/{number}') for number in (0, 1)]\n"
            "sys.stderr.write(f'{own} {devices} {os.getpgid(0) == os.getpgid(os.getppid())}')\n"
            "sys.exit(3)",
        )
        assert await session.wait() == 3
    assert journal.lines == ["{'ONLY': 'this'} ['/dev/null', '/dev/null'] True"]


async def test_after_a_line_that_is_too_long_nobody_reads_and_the_program_blocks() -> None:
    journal = Journal()
    async with anyio.create_task_group() as tasks:
        session = await python(
            tasks,
            journal,
            "import os, signal\n"
            "signal.signal(signal.SIGALRM, lambda *_: os._exit(7))\n"
            "os.write(2, b'ready\\n' + b'x' * 65536 + b'\\n')\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.5)\n"
            "os.write(2, b'more\\n' * 200000)",
        )
        assert await session.wait() == 7
        assert session.stuck
    assert journal.lines == ["ready"]


async def test_a_reader_that_takes_its_time_holds_up_the_program_and_loses_nothing() -> None:
    lines: list[bytes] = []
    gate = anyio.Event()

    async def slowly(line: Line) -> None:
        await gate.wait()
        lines.append(line.text)

    async with anyio.create_task_group() as tasks:
        code = "import os\nfor number in range(50000): os.write(2, b'%d\\n' % number)"
        session = await start_session(tasks, [sys.executable, "-c", code], {}, slowly)
        await anyio.wait_all_tasks_blocked()
        assert not session.exited
        gate.set()
        assert await session.wait() == 0
    assert lines == [b"%d" % number for number in range(50000)]


async def test_closing_the_reading_end_is_what_the_peers_death_does() -> None:
    journal = Journal()
    async with anyio.create_task_group() as tasks:
        session = await python(
            tasks,
            journal,
            "import os, select, sys\n"
            "os.write(2, b'up\\n')\n"
            "poll = select.poll()\n"
            "poll.register(2, 0)\n"
            "sys.exit(9 if poll.poll()[0][1] & select.POLLERR else 1)",
        )
        await journal.has("up")
        session.close_stderr()
        assert await session.wait() == 9


async def test_a_child_that_keeps_stderr_holds_up_the_peer() -> None:
    journal = Journal()
    async with anyio.create_task_group() as tasks:
        session = await start_session(tasks, ["/bin/sh", "-c", "sleep 1000 & echo pid $! >&2"], {}, journal)
        child = int((await journal.has("pid")).removeprefix("pid "))
        with suppress(ChildProcessError):
            await anyio.to_thread.run_sync(os.waitid, os.P_PID, session.pid, os.WEXITED | os.WNOWAIT)
        assert not session.exited
        os.kill(child, signal.SIGKILL)
        assert await session.wait() == 0


async def test_cancelling_kills_the_program() -> None:
    async with anyio.create_task_group() as tasks:
        session = await start_session(tasks, ["/bin/sleep", "1000"], {}, Journal())
        tasks.cancel_scope.cancel()
    assert await session.wait() == -signal.SIGKILL


async def test_a_program_that_is_not_there_is_an_error_and_leaks_no_descriptor() -> None:
    before = open_descriptors()
    async with anyio.create_task_group() as tasks:
        with pytest.raises(OSError, match="nowhere"):
            await start_session(tasks, ["/nowhere/bin/run"], {}, Journal())
    assert open_descriptors() == before
