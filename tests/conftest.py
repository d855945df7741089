"""What all tests share: anyio's plugin on asyncio, and a way to let no test be skipped."""

import os
import signal
from collections.abc import Generator

import pytest

NO_SKIPS = bool(os.environ.get("K8S_BUILDER_NO_SKIPS"))

# No test asks the world, and to read its certificate authorities takes each process that imports aiohttp 0.1 s.
os.environ.setdefault("SSL_CERT_FILE", os.devnull)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def pytest_configure() -> None:
    """Have Ctrl-C end what the tests start: a shell that starts pytest in the background lets it ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let a skipped test fail where everything that the tests need is said to be there."""
    report = yield
    if NO_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, with K8S_BUILDER_NO_SKIPS: {report.longrepr}"
    return report
