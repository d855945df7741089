"""A stand-in API server and a daemon, both processes, and many `run`s that are nothing but their connections."""

import asyncio
import json
import os
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

from k8s_builder_client import wire

ROOT = Path(__file__).parents[1]
DIGEST = "sha256:" + "5e" * 32
HASH = "6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45"
_CPUCLOCK_SCHED = 2  # what clock_getcpuclockid(3) makes of a pid, which Python has for threads only


def chaincode_json(label: str) -> bytes:
    """Return what a peer writes for the `run` of a chaincode."""
    document = {
        "chaincode_id": f"{label}:{HASH}",
        "peer_address": "peer0.org1.example.com:7052",
        "client_cert": "-----BEGIN CERTIFICATE-----\n" + "c" * 800,
        "client_key": "-----BEGIN PRIVATE KEY-----\n" + "k" * 240,
        "root_cert": "-----BEGIN CERTIFICATE-----\n" + "r" * 800,
        "mspid": "Org1MSP",
    }
    return json.dumps(document).encode()


def image_json(image: str) -> bytes:
    """Return the package of an image."""
    return json.dumps({"name": f"localhost/{image}", "digest": DIGEST}).encode()


def request(image: str, label: str, *, token: str = "") -> bytes:
    """Return the request of a `run`, as the client sends it."""
    return b"".join(
        [
            wire.frame(wire.HELLO, wire.VERSION, b"run", b"1"),
            wire.frame(wire.ENVIRONMENT, b"CORE_PEER_ID", b"peer0.org1.example.com"),
            wire.frame(wire.DOCUMENT, b"image.json", image_json(image)),
            wire.frame(wire.DOCUMENT, b"chaincode.json", chaincode_json(label)),
            wire.frame(wire.TOKEN, (token or os.urandom(16).hex()).encode()),
            wire.frame(wire.END),
        ]
    )


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process has taken, user and system, to the nanosecond."""
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def memory(pid: int) -> float:
    """Return the memory of a process in MB; of pages that it shares, its part."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in rollup.splitlines() if line.startswith("Pss:"))


class Run:
    """The connection of one `run`: what came over it, and when."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.job = ""
        self.lines = 0
        self.bytes = 0
        self.words: list[str] = []
        self.code: int | None = None
        self.ended_at = 0.0
        self._event = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, socket: Path, image: str, label: str) -> Self:
        """Connect and ask."""
        reader, writer = await asyncio.open_unix_connection(str(socket), limit=1 << 20)
        run = cls(reader, writer)
        writer.write(request(image, label))
        await writer.drain()
        return run

    async def _read(self) -> None:
        try:
            while True:
                header = await self._reader.readexactly(wire.HEADER)
                payload = await self._reader.readexactly(int.from_bytes(header[1:], "big"))
                kind = header[:1]
                if kind == wire.LOG:
                    lines = payload[2 + int.from_bytes(payload[:2], "big") :]
                    self.lines += lines.count(b"\n")
                    self.bytes += len(lines)
                elif kind == wire.WORDS and payload:
                    text = payload.decode()
                    self.words.append(text.rstrip())
                    if " with kubernetes job " in text:
                        self.job = text.rpartition("/")[2].strip()
                elif kind == wire.EXIT:
                    self.code = int(payload)
                    self.ended_at = time.monotonic()
                    return
                self._event.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self._event.set()
            self._writer.close()

    async def until(self, holds: Any) -> None:
        """Wait until something holds of this."""
        while not holds(self):
            if self._task.done():
                raise RuntimeError(f"the run has ended: {self.words}")
            self._event.clear()
            await self._event.wait()

    def take_nothing(self) -> None:
        """Read no more, so that the daemon reads no more of the log either."""
        self._writer.transport.pause_reading()

    def take_all(self) -> None:
        """Read again."""
        self._writer.transport.resume_reading()

    async def stop(self) -> float:
        """Ask for the end, wait for the answer, and return the seconds that it took."""
        began = time.monotonic()
        self._writer.write(wire.frame(wire.STOP))
        await self._task
        return self.ended_at - began

    async def end(self) -> None:
        """Wait for the exit code."""
        await self._task


class Daemon:
    """The daemon's process, looked at from outside."""

    def __init__(self, process: asyncio.subprocess.Process, socket: Path, health: str, report: Path) -> None:
        self.process = process
        self.socket = socket
        self.report = report
        self._health = health

    @property
    def cpu(self) -> float:
        """The CPU seconds that it has taken, user and system."""
        return cpu_seconds(self.process.pid)

    @property
    def resident(self) -> float:
        """Its resident memory in MB, less what it shares with other processes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Rss")}
        return int(found["RssAnon"]) * 1024 / 1e6

    @property
    def total(self) -> float:
        """Its resident memory in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmRSS"))

    async def metrics(self) -> dict[str, float]:
        """Return its metrics, by name and labels."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self._health}/metrics") as answer:
            text = await answer.text()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[dict[str, float]]:
        """Hand out what becomes the longest pauses of its event loop meanwhile (`benchmarks.watched`), in ms."""
        found: dict[str, float] = {}
        self.report.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        yield found
        self.process.send_signal(signal.SIGUSR1)
        while not self.report.exists():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.02)
        found |= json.loads(self.report.read_text())

    async def probe(self) -> float:
        """Ask whether it is alive, and return the seconds that it took."""
        began = time.monotonic()
        async with aiohttp.ClientSession() as session, session.get(f"http://{self._health}/livez") as answer:
            await answer.read()
        return time.monotonic() - began


class Cluster:
    """An API server, whose kubeconfig is in `directory`, and its daemons."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._count = 0

    @asynccontextmanager
    async def daemon(self, *command: str, **environment: str) -> AsyncIterator[Daemon]:
        """Start a daemon and wait until it listens."""
        self._count += 1
        socket = self.directory / f"s{self._count}"
        port = _free_port()
        variables = {
            "PATH": os.defpath,
            "PYTHONMALLOC": "malloc",  # as in the image
            "KUBECONFIG_PATH": str(self.kubeconfig),
            "FABRIC_K8S_BUILDER_SOCKET": str(socket),
            "FABRIC_K8S_BUILDER_HEALTH_ADDRESS": f"127.0.0.1:{port}",
            "FABRIC_K8S_BUILDER_INSTANCE": f"bench{self._count}",
            **environment,
        }
        report = self.directory / f"pauses{self._count}"
        with (self.directory / f"daemon{self._count}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(command or (sys.executable, "-m", "benchmarks.watched", str(report))),
                env=variables,
                stderr=log,
                stdout=log,
                cwd=ROOT,
            )
        try:
            daemon = Daemon(process, socket, f"127.0.0.1:{port}", report)
            while not socket.exists():
                if process.returncode is not None:
                    raise RuntimeError((self.directory / f"daemon{self._count}.log").read_text()[-2000:])
                await asyncio.sleep(0.02)
            yield daemon
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()


class Scene(Cluster):
    """The stand-in server and its daemons."""

    def __init__(self, directory: Path, session: aiohttp.ClientSession, server: str) -> None:
        super().__init__(directory)
        self._session = session
        self._server = server

    async def control(self, what: str, method: str = "GET") -> dict[str, Any]:
        """Ask the stand-in server something."""
        async with self._session.request(method, f"{self._server}/control/{what}") as answer:
            found: dict[str, Any] = await answer.json()
            return found


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def open_scene() -> AsyncIterator[Scene]:
    """Start a stand-in API server, and end it at the end."""
    with tempfile.TemporaryDirectory(prefix="kb-") as name:
        directory = Path(name)
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.apiserver", name), stdin=asyncio.subprocess.PIPE, cwd=ROOT
        )
        try:
            kubeconfig = directory / "kubeconfig"
            while not kubeconfig.exists():
                if server.returncode is not None:
                    raise RuntimeError("the stand-in API server did not start")
                await asyncio.sleep(0.02)
            address: Mapping[str, str] = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]
            context = ssl.create_default_context(cafile=address["certificate-authority"])
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
            connector = aiohttp.TCPConnector(ssl=context)
            async with aiohttp.ClientSession(connector=connector) as session:
                yield Scene(directory, session, address["server"])
        finally:
            assert server.stdin is not None
            server.stdin.close()
            await server.wait()
