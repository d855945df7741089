"""What all tests share: anyio's plugin on asyncio, and a way to let no test be skipped."""

import gc
import os
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

NO_SKIPS = bool(os.environ.get("K8S_BUILDER_NO_SKIPS"))

# No test asks the world, and to read its certificate authorities takes each process that imports aiohttp 0.1 s.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)


def _holds_the_tests(directory: Path, room: int = 2 << 30) -> bool:
    """Tell whether the tests' files can be here: in `room` bytes, and with programs among them that are run."""
    try:
        status = os.statvfs(directory)
    except OSError:
        return False
    may_run = not status.f_flag & os.ST_NOEXEC
    return may_run and status.f_bavail * status.f_frsize >= room and os.access(directory, os.W_OK | os.X_OK)


# Some tests make files by the ten thousand: in memory that takes a thirtieth of the time it takes on a disk.
if "TMPDIR" not in os.environ and _holds_the_tests(Path("/dev/shm")):
    os.environ["TMPDIR"] = tempfile.tempdir = "/dev/shm"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_configure() -> None:
    """Have Ctrl-C end what the tests start: a shell that starts pytest in the background lets it ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Spare the garbage collections of each test the way through all the tests there are."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail where everything that the tests need is said to be there."""
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, with K8S_BUILDER_NO_SKIPS: {report.longrepr}"
    return report
