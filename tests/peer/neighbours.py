"""What stands around the peer in its tests: chaincode that speaks raw messages, and a runtime that starts nothing."""

import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
from anyio.abc import TaskGroup

from k8s_builder_lab.demo.builder import PeerConnection
from k8s_builder_lab.demo.messages import (
    REGISTER_METHOD,
    ChaincodeMessage,
    Kind,
    decode,
    encode,
    encode_chaincode_id,
)
from k8s_builder_lab.demo.session import Line, Session, start_session

DEADLINE = 60.0
"""Seconds after which a test gives up on an event; nothing measures by it."""


class Journal:
    """Lines as they are written, for tests that wait for one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = anyio.Event()

    def write(self, line: str) -> None:
        self.lines.append(line)
        self._more.set()
        self._more = anyio.Event()

    async def __call__(self, line: Line) -> None:
        self.write(line.text.decode())

    async def has(self, part: str, times: int = 1) -> str:
        """Wait until `part` stands in so many lines, and return the last of them."""
        with anyio.fail_after(DEADLINE):
            while len(found := [line for line in self.lines if part in line]) < times:
                await self._more.wait()
        return found[times - 1]


class HeldRun:
    """A `run` that ends when the test says so."""

    def __init__(self, connection: PeerConnection) -> None:
        self.connection = connection
        self.signals: list[signal.Signals] = []
        self.ends_on: set[signal.Signals] = {signal.SIGTERM}
        self._code: int | None = None
        self._ended = anyio.Event()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._code is not None
        return self._code

    def signal(self, number: signal.Signals) -> None:
        self.signals.append(number)
        if number in self.ends_on:
            self.end(0)

    def end(self, code: int) -> None:
        self._code = code
        self._ended.set()


class HeldRuntime:
    """A runtime that starts nothing; the test plays the chaincode."""

    def __init__(self) -> None:
        self.runs: list[HeldRun] = []
        self._more = anyio.Event()

    async def start(self, _: str, connection: PeerConnection) -> HeldRun:
        self.runs.append(HeldRun(connection))
        self._more.set()
        self._more = anyio.Event()
        return self.runs[-1]

    async def started(self, number: int = 1) -> HeldRun:
        """Wait until the so-manieth `run` was started."""
        with anyio.fail_after(DEADLINE):
            while len(self.runs) < number:
                await self._more.wait()
        return self.runs[number - 1]


class RawStream:
    """The chaincode's end of one stream, without a shim."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, kind: Kind, payload: bytes = b"", txid: str = "", channel_id: str = "") -> None:
        await self._call.write(ChaincodeMessage(kind, payload, txid, channel_id))

    async def register(self, chaincode_id: str) -> None:
        await self.send(Kind.REGISTER, encode_chaincode_id(chaincode_id))

    async def received(self) -> ChaincodeMessage:
        """Return the next message. Raises EOFError when the peer has ended the stream."""
        with anyio.fail_after(DEADLINE):
            message = await self._call.read()
        if message is grpc.aio.EOF:
            raise EOFError
        assert isinstance(message, ChaincodeMessage)
        return message

    async def becomes_ready(self, chaincode_id: str) -> None:
        await self.register(chaincode_id)
        assert [(await self.received()).kind for _ in range(2)] == [Kind.REGISTERED, Kind.READY]

    async def refusal(self) -> str:
        """Wait until the peer has ended the call, and return why."""
        with anyio.fail_after(DEADLINE):
            return f"{(await self._call.code()).name}: {await self._call.details()}"


@asynccontextmanager
async def raw_stream(connection: PeerConnection) -> AsyncIterator[RawStream]:
    """Connect as the chaincode of a launch does; leaving breaks the connection."""
    if connection.root_cert:
        credentials = grpc.ssl_channel_credentials(
            connection.root_cert.encode(),
            connection.client_key.encode() or None,
            connection.client_cert.encode() or None,
        )
        channel = grpc.aio.secure_channel(connection.peer_address, credentials)
    else:
        channel = grpc.aio.insecure_channel(connection.peer_address)
    async with channel:
        yield RawStream(
            channel.stream_stream(REGISTER_METHOD, request_serializer=encode, response_deserializer=decode)()
        )


class LocalRuntime:
    """Starts the demo's chaincode as a process, with what a pod would give it; its stdout is in the journal."""

    def __init__(self, tasks: TaskGroup, directory: Path) -> None:
        self.journal = Journal()
        self.sessions: list[Session] = []
        self._tasks = tasks
        self._directory = directory

    async def start(self, chaincode_id: str, connection: PeerConnection) -> Session:
        command = f'exec "{sys.executable}" -m k8s_builder_lab.demo.chaincode 1>&2'
        environment = self.environment(chaincode_id, connection)
        self.sessions.append(await start_session(self._tasks, ["/bin/sh", "-c", command], environment, self.journal))
        return self.sessions[-1]

    def environment(self, chaincode_id: str, connection: PeerConnection) -> dict[str, str]:
        """Lay out the files and return the nine variables, beside those that this Python needs."""
        certs = Path(tempfile.mkdtemp(dir=self._directory))
        paths = {
            "CORE_PEER_TLS_ROOTCERT_FILE": connection.root_cert,
            "CORE_TLS_CLIENT_KEY_FILE": connection.client_key,
            "CORE_TLS_CLIENT_CERT_FILE": connection.client_cert,
        }
        for name, content in paths.items():
            (certs / name).write_text(content)
        return {
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "CORE_CHAINCODE_ID_NAME": chaincode_id,
            "CORE_PEER_ADDRESS": connection.peer_address,
            "CORE_PEER_LOCALMSPID": connection.mspid,
            "CORE_PEER_TLS_ENABLED": "true" if connection.root_cert else "false",
            **{name: str(certs / name) for name in paths},
        }
