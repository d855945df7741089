"""A chaincode of keys and values on the shim `fabric-chaincode-python`, in client mode. Never prints by itself.

Its functions: `put KEY VALUE`, `get KEY`, `delete KEY`, `range START END` (a line `KEY=VALUE` for each key), `fail
MESSAGE`, `log COUNT` (prints that many lines) and `exit CODE` (ends the process in the middle of the transaction).
"""

import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio
import fabric_protos.peer.chaincode_shim_pb2_grpc as shim_module
import grpc
import grpc.aio
from fabric_chaincode_python.fabric_shim.handler import Handler
from fabric_chaincode_python.fabric_shim.interfaces import Chaincode
from fabric_chaincode_python.fabric_shim.response import error, success

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What the CORE_ variables say; the PEM files' contents are None without TLS."""

    chaincode_id: str
    peer_address: str
    mspid: str
    root_cert: bytes | None
    client_key: bytes | None
    client_cert: bytes | None


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings. Raises KeyError with the name of a variable that is missing, OSError for a file."""
    tls = environ["CORE_PEER_TLS_ENABLED"] == "true"

    def pem(name: str) -> bytes | None:
        return Path(environ[name]).read_bytes() if tls else None

    return Settings(
        environ["CORE_CHAINCODE_ID_NAME"],
        environ["CORE_PEER_ADDRESS"],
        environ["CORE_PEER_LOCALMSPID"],
        pem("CORE_PEER_TLS_ROOTCERT_FILE"),
        pem("CORE_TLS_CLIENT_KEY_FILE"),
        pem("CORE_TLS_CLIENT_CERT_FILE"),
    )


def quieten() -> None:
    """Keep the shim, which sets up logging when it is imported, from logging all it does, payloads included."""
    for name in ("", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)


async def serve(settings: Settings, say: Say) -> str:
    """Register with the peer, serve transactions until the stream ends, and return why it ended."""
    # The peer is reached directly, whatever proxy the image's environment names.
    options = [("grpc.enable_http_proxy", 0)]
    if settings.root_cert is None:
        channel = grpc.aio.insecure_channel(settings.peer_address, options)
    else:
        credentials = grpc.ssl_channel_credentials(settings.root_cert, settings.client_key, settings.client_cert)
        channel = grpc.aio.secure_channel(settings.peer_address, credentials, options)
    async with channel:
        stream = _Stream(cast("Any", shim_module).ChaincodeSupportStub(channel).Register(), say)
        try:
            await Handler(settings.chaincode_id, KeyValue(say)).chat_with_peer(stream, stream)
        except grpc.aio.AioRpcError as problem:
            return f"the stream to the peer broke: {problem.code().name}: {problem.details()}"
    return "the peer closed the stream"


class KeyValue(Chaincode):  # type: ignore[misc]  # the shim has no types
    """Keys and values in the world state."""

    def __init__(self, say: Say) -> None:
        self._say = say

    async def init(self, _: Any) -> Any:
        """Answer INIT, which nobody sends to a chaincode of the new lifecycle."""
        return success(b"")

    async def invoke(self, stub: Any) -> Any:
        """Answer TRANSACTION."""
        function, arguments = stub.get_function_and_parameters()
        self._say(f"transaction {stub.get_txid()[:8]}: {' '.join([function, *arguments])}")
        try:
            return success(await self._call(stub, function, arguments))
        except ValueError as problem:
            return error(str(problem))

    async def _call(self, stub: Any, function: str, arguments: list[str]) -> bytes:
        match function, arguments:
            case "put", [key, value]:
                await stub.put_state(key, value)
            case "get", [key]:
                return bytes(await stub.get_state(key))
            case "delete", [key]:
                await stub.delete_state(key)
            case "range", [start, end]:
                results = await stub.get_state_by_range(start, end)
                return b"\n".join([f"{entry.key}={entry.value.decode()}".encode() async for entry in results])
            case "fail", [message]:
                raise ValueError(message)
            case "log", [count]:
                for number in range(int(count)):
                    self._say(f"line {number}")
            case "exit", [code]:
                os._exit(int(code))
            case _:
                raise ValueError(f"there is no function {function} with {len(arguments)} arguments")
        return b""


class _Stream:
    """The call as the shim's handler wants it, with one write at a time, which gRPC demands."""

    def __init__(self, call: Any, say: Say) -> None:
        self._call = call
        self._say = say
        self._writing = anyio.Lock()

    async def write(self, message: Any) -> None:
        async with self._writing:
            await self._call.write(message)

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for message in self._call:
            name = type(message).Type.Name(message.type)
            if name in {"REGISTERED", "READY"}:
                self._say(f"the peer answered {name}")
            yield message
