"""What a mistake of the daemon's own costs: the call of another stage, but no chaincode."""

import socket

import pytest

from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.listener import Listener
from k8s_builderd.gateway.protocol import SIGN_OF_LIFE, Request
from k8s_builderd.metrics import Metrics
from k8s_builderd.settings import Settings
from tests.daemon.test_socket import DETECT, END, TOKEN, frame, hello

pytestmark = pytest.mark.anyio


async def mistaken(request: Request, connection: Connection) -> int:
    raise RuntimeError("a mistake")


def never(request: Request, why: str) -> bool:
    raise AssertionError


async def answer(request: bytes) -> bytes:
    listener = Listener(
        Settings.load({}), {"run": mistaken, "detect": mistaken}, Metrics(), knocked=never, deaf=lambda: None
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        theirs.setblocking(False)
        ours.sendall(request)
        await listener._handle(theirs)
        said = b""
        while data := ours.recv(1 << 16):
            said += data
        return said


async def test_a_run_is_closed_without_an_exit_and_comes_again() -> None:
    assert await answer(hello() + frame("T", TOKEN) + END) == SIGN_OF_LIFE


async def test_another_stage_ends() -> None:
    text = b"detect [4242]: Error detecting chaincode: internal error in k8s-builderd: see call_crashed in its log\n"
    assert await answer(DETECT) == SIGN_OF_LIFE + frame("W", text) + frame("X", b"1")
