"""Every test of the programs runs under the current interpreter and those of K8S_BUILDER_CLIENT_PYTHONS."""

import os
import sys
from collections.abc import Iterator

import pytest

from .standin import Daemon, Peer, peer_in_a_short_directory

INTERPRETERS = [sys.executable, *filter(None, os.environ.get("K8S_BUILDER_CLIENT_PYTHONS", "").split(":"))]


@pytest.fixture(params=INTERPRETERS)
def interpreter(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def peer(interpreter: str) -> Iterator[Peer]:
    with peer_in_a_short_directory(interpreter) as peer:
        yield peer


@pytest.fixture
def daemon(peer: Peer) -> Daemon:
    """The peer's daemon, listening."""
    return peer.daemon.open()
