"""An API server that says, byte for byte, what a test has it say: worse than any embedded cluster should be."""

import json
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSAttribute, TLSListener, TLSStream
from msgspec import Struct

Stream = SocketStream | TLSStream


class Request(Struct, frozen=True):
    """What a client has asked."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    peer: str
    """The common name of the client's certificate, where it has shown one."""


class Reply:
    """Says the answer to one request; the connection closes after it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    async def whole(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(data)}", "Connection: close"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode() + data)

    async def chunked(self, *chunks: bytes, end: bool = True) -> None:
        """Begin a chunked answer; without `end` it is left open, to be gone on with by `chunk`."""
        await self.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for chunk in chunks:
            await self.chunk(chunk)
        if end:
            await self.raw(b"0\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def raw(self, data: bytes) -> None:
        await self.stream.send(data)


Answer = Callable[[Request, Reply], Awaitable[None]]


def status(code: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    """Return a Status object, by which an API server refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return {**body, **({"reason": reason} if reason else {}), **({"details": details} if details else {})}


class Rogue:
    """Where it listens, and what it has been asked."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.asked: list[Request] = []

    def kubeconfig(self, path: Path, **user: Any) -> Path:
        """Write a kubeconfig whose user is this; `cluster` holds further fields of the cluster."""
        cluster = {"server": self.server, **user.pop("cluster", {})}
        named = [{"name": "rogue", "cluster": cluster}]
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "rogue",
            "clusters": named,
            "users": [{"name": "rogue", "user": user or {"token": "token"}}],
            "contexts": [{"name": "rogue", "context": {"cluster": "rogue", "user": "rogue", "namespace": "default"}}],
        }
        path.write_text(json.dumps(document))
        return path


@asynccontextmanager
async def rogue(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Rogue]:
    """Serve on the loopback until the context is left."""
    plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = plain.extra(SocketAttribute.local_port)
    listener = TLSListener(plain, tls, standard_compatible=False) if tls else plain
    server = Rogue(f"{'https' if tls else 'http'}://127.0.0.1:{port}")

    async def handle(stream: Any) -> None:
        async with stream:
            try:
                request = await _read(stream)
                server.asked.append(request)
                await answer(request, Reply(stream))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
                return

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield server
        tasks.cancel_scope.cancel()


async def _read(stream: Stream) -> Request:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += await stream.receive()
    method, target, _ = first.split(" ")
    url = urllib.parse.urlsplit(target)
    certificate = stream.extra(TLSAttribute.peer_certificate, None)
    names = dict(name[0] for name in (certificate or {}).get("subject", ()))  # type: ignore[misc]
    return Request(
        method, url.path, dict(urllib.parse.parse_qsl(url.query)), headers, body, names.get("commonName", "")
    )


EMPTY = {"metadata": {"resourceVersion": "1"}, "items": []}


async def well(request: Request, reply: Reply) -> None:
    await reply.whole(200, EMPTY)


def only_with(*tokens: str) -> Answer:
    """Answer those who have one of the tokens, and tell all others that they are unknown."""

    async def answer(request: Request, reply: Reply) -> None:
        if request.headers.get("authorization") in {f"Bearer {token}" for token in accepted}:
            await reply.whole(200, EMPTY)
        else:
            await reply.whole(401, status(401, "Unauthorized", "Unauthorized"))

    accepted = [*tokens]
    answer.accepted = accepted  # type: ignore[attr-defined]
    return answer
