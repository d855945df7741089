"""A scene: an embedded cluster, daemons that come and go, and programs called as the peer calls them.

Everything is a process or a socket of its own; a test waits for what it sees (a line, an object, an end), never for
time to pass. PATIENCE only ends a test whose event does not come.
"""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import anyio
from anyio.abc import Process, TaskGroup

from k8s_builder_lab.embedded.address import Address
from k8s_builder_lab.embedded.objects import Object
from k8s_builder_lab.embedded.server import Options, serve
from tests import forkserver, measured
from tests.embedded.cluster import PATIENCE, Cluster, running
from tests.embedded.cluster import eventually as eventually
from tests.forkserver import Forked

DAEMON = [sys.executable, "-m", "k8s_builderd"]
BIN = Path(__file__).parents[2] / "client" / "bin"
DIGEST = "sha256:" + "5e" * 32
HASH = "6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45"
PEER_ID = "peer0.org1.example.com"
ARGUMENTS = {
    "detect": ("source", "metadata"),
    "build": ("source", "metadata", "output"),
    "release": ("output", "release"),
    "run": ("output", "run"),
}


class Package:
    """The peer's directories of one chaincode: what it has unpacked, and what it writes for one launch."""

    def __init__(self, root: Path, label: str = "basic_1.0", *, image: str) -> None:
        self.root = root
        for name in ("source", "metadata", "output", "release", "run"):
            (root / name).mkdir(mode=0o700, parents=True)
        self.image_name = image
        self.chaincode_id = f"{label}:{HASH}"
        self.metadata({"type": "k8s", "label": label})
        self.image({"name": image, "digest": DIGEST})
        self.connect()

    def metadata(self, document: Any) -> None:
        self.write("metadata/metadata.json", document)

    def image(self, document: Any) -> None:
        """Write image.json where the peer finds it, and where `build` has left it for `run`."""
        self.write("source/image.json", document)
        self.write("output/image.json", document)

    def connect(self, **fields: str) -> None:
        """Write chaincode.json as one peer process would; `root_cert` tells one such process from the next."""
        document = {
            "chaincode_id": self.chaincode_id,
            "peer_address": "peer0.org1.example.com:7052",
            "client_cert": "-----BEGIN CERTIFICATE-----\nclient\n",
            "client_key": "-----BEGIN PRIVATE KEY-----\nsecret\n",
            "root_cert": "-----BEGIN CERTIFICATE-----\nroot\n",
            "mspid": "Org1MSP",
            **fields,
        }
        self.write("run/chaincode.json", document)

    def write(self, path: str, document: Any) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())

    def directories(self, program: str) -> list[str]:
        return [str(self.root / name) for name in ARGUMENTS[program]]


class Lines:
    """Lines that a process prints into a pipe of ours, read as they come, or not."""

    def __init__(self, descriptor: int) -> None:
        self.lines: list[bytes] = []
        self.reading = anyio.Event()
        self.ended = anyio.Event()
        self._descriptor = descriptor
        self._changed = anyio.Event()
        self._rest = b""

    async def read(self) -> None:
        """Read to the end, once `reading` is set."""
        try:
            await self.reading.wait()
            while not self.ended.is_set():
                try:
                    await anyio.wait_readable(self._descriptor)
                except anyio.ClosedResourceError:
                    break
                if self._descriptor < 0:
                    break
                data = os.read(self._descriptor, 1 << 16)
                *whole, self._rest = (self._rest + data).split(b"\n")
                if not data:
                    self.ended.set()
                    whole += [self._rest] if self._rest else []
                self.lines += whole
                self._pulse()
        finally:
            self.ended.set()
            self._pulse()
            self.close()

    async def full(self) -> None:
        """Wait until nobody can write more into the pipe, which nobody reads."""
        capacity = fcntl.fcntl(self._descriptor, fcntl.F_GETPIPE_SZ)
        await eventually(lambda: _readable(self._descriptor) > capacity - 2 * select.PIPE_BUF)

    def close(self) -> None:
        """Close the reading end, as a peer that dies does."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            anyio.notify_closing(descriptor)
            os.close(descriptor)

    def count(self, text: str | bytes) -> int:
        return sum(_bytes(text) in line for line in self.lines)

    async def line(self, text: str | bytes, times: int = 1) -> bytes:
        """Wait for the first (or a later) line that holds the text, and return it."""
        wanted = _bytes(text)
        return (await self.until(lambda lines: len([line for line in lines if wanted in line]) >= times, wanted))[-1]

    async def until(self, ready: Callable[[list[bytes]], bool], what: object = "") -> list[bytes]:
        """Wait until the lines are as wanted, and return them up to there."""
        with anyio.move_on_after(PATIENCE):
            start = 0
            while True:
                for end in range(start, len(self.lines)):
                    if ready(self.lines[: end + 1]):
                        return self.lines[: end + 1]
                start = len(self.lines)
                if self.ended.is_set():
                    break
                await self._changed.wait()
        raise AssertionError(f"{what!r} did not come: {b' | '.join(self.lines[-30:])!r}")

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Running(Lines):
    """A process whose stderr is read here."""

    def __init__(self, process: Process | Forked, descriptor: int) -> None:
        super().__init__(descriptor)
        self.process = process

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for the exit code, and for all it has printed where that is read."""
        with anyio.fail_after(PATIENCE):
            code = await self.process.wait()
            if self.reading.is_set():
                await self.ended.wait()
        return code

    async def terminate(self) -> int:
        self.send(signal.SIGTERM)
        return await self.wait()


class Scene:
    """What one test plays in."""

    def __init__(self, cluster: Cluster, kubeconfig: Path, directory: Path, tasks: TaskGroup) -> None:
        self.cluster = cluster
        self.directory = directory
        self.socket = directory / "s" / "b.sock"
        self.socket.parent.mkdir()
        self.kubeconfig = kubeconfig
        self.bin = BIN
        self._tasks = tasks
        self._packages = 0

    async def package(self, label: str = "basic_1.0", *, script: str = "") -> Package:
        """Make the directories of a chaincode; its image runs this script of /bin/sh, or sleeps for an hour."""
        self._packages += 1
        image = f"localhost/chaincode{self._packages}"
        command = ["/bin/sh", "-c", script] if script else ["sleep", "3600"]
        await self.cluster.switch("PATCH", "environment", {"extraImages": {image: {"command": command}}})
        return Package(self.directory / f"package{self._packages}", label, image=image)

    async def daemon(
        self, *arguments: str, ready: bool = True, program: list[str] | None = None, pace: float = 1, **settings: str
    ) -> Running:
        """Start a daemon; `settings` are names without FABRIC_K8S_BUILDER_.

        :param pace: how fast its time runs, for a test that waits out a pause of the daemon's which no setting bounds.
        :param program: a command to start instead, whose stdout is read as its stderr is.
        """
        environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG_PATH": str(self.kubeconfig),
            **{
                f"FABRIC_K8S_BUILDER_{name}": value
                for name, value in {
                    "SOCKET": str(self.socket),
                    "HEALTH_ADDRESS": "127.0.0.1:0",
                    "INSTANCE": "scene",
                    "PEER_PATIENCE": "0s",  # tests without a peer launch again whenever they like
                    **settings,
                }.items()
                if not name.startswith("CORE_")
            },
            **{name: value for name, value in settings.items() if name.startswith("CORE_")},
        }
        daemon = await self._start([*(program or DAEMON), *arguments], environment, daemon=True, pace=pace)
        if ready:
            await daemon.line("socket_open")
        return daemon

    async def call(self, program: str, package: Package, *, read: bool = True, **environment: str) -> Running:
        """Call one of the four programs as the peer does: an emptied environment, and stderr alone is read."""
        return await self.execute(program, *package.directories(program), read=read, **environment)

    async def execute(self, program: str, *arguments: str, read: bool = True, **environment: str) -> Running:
        """Call a program with any arguments; an empty value leaves a variable out."""
        defaults = {
            "PATH": os.environ["PATH"],
            "CORE_PEER_ID": PEER_ID,
            "FABRIC_K8S_BUILDER_SOCKET": str(self.socket),
            "FABRIC_K8S_BUILDER_PYTHON": measured.python(sys.executable),
        }
        variables = {name: value for name, value in {**defaults, **environment}.items() if value}
        return await self._start([str(self.bin / program), *arguments], variables, read=read)

    async def said(self, program: str, package: Package, **environment: str) -> tuple[int, list[str]]:
        """Call a program to its end; return its exit code and its lines without the `<program> [<pid>]: `."""
        running = await self.call(program, package, read=True, **environment)
        code = await running.wait()
        prefix = f"{program} [{running.pid}]: "
        return code, [line.decode().removeprefix(prefix) for line in running.lines]

    async def health(self, daemon: Running, path: str) -> tuple[int, str]:
        """Ask a daemon's health endpoint."""
        line = json.loads(await daemon.line("health_open"))
        async with aiohttp.ClientSession() as session, session.get(f"http://{line['address']}{path}") as answer:
            return answer.status, await answer.text()

    async def only(self, plural: str) -> Object:
        """Return the only object of its kind."""
        [found] = (await self.cluster.list(plural))["items"]
        return found  # type: ignore[no-any-return]

    async def none(self, *plurals: str) -> None:
        """Wait until there are no objects of these kinds."""
        for plural in plurals:
            for item in (await self.cluster.list(plural))["items"]:
                await self.cluster.gone(plural, item["metadata"]["name"])

    async def count(self, plural: str) -> int:
        return len((await self.cluster.list(plural))["items"])

    async def asked(self, what: str, times: int = 1) -> None:
        """Wait until the API has had so many requests of a verb and resource, such as `create jobs`."""

        async def enough() -> bool:
            return int((await self.state())["requests"].get(what, 0)) >= times

        await eventually(enough)

    async def state(self) -> Object:
        """Return what the embedded cluster says of itself (k8s_builder_lab.embedded.control)."""
        state: Object = await self.cluster.switch("GET", "state")
        return state

    async def running_pod(self) -> Object:
        """Wait until a pod's container runs, and return the pod."""
        async with self.cluster.watch("pods") as watch:
            pod: Object = (await watch.until(lambda event: running(event["object"])))[-1]["object"]
            return pod

    async def fault(self, **rule: Any) -> None:
        """Have a request meet a fault (k8s_builder_lab.embedded.faults)."""
        await self.cluster.switch("POST", "faults", rule)

    async def _start(
        self,
        command: list[str],
        environment: Mapping[str, str],
        *,
        read: bool = True,
        daemon: bool = False,
        pace: float = 1,
    ) -> Running:
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            process: Process | Forked
            if command == DAEMON:
                process = forkserver.server().start({**environment, **measured.ENVIRONMENT}, writing, pace=pace)
            else:
                assert pace == 1, "only a daemon that is forked has a time of its own"
                process = await anyio.open_process(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=writing if daemon else subprocess.DEVNULL,
                    stderr=writing,
                    env={**environment, **measured.ENVIRONMENT},
                )
        finally:
            os.close(writing)
        running = Running(process, reading)
        if read:
            running.reading.set()
        self._tasks.start_soon(self._keep, running, daemon)
        return running

    async def _keep(self, running: Running, daemon: bool) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.read)
            try:
                await running.process.wait()
            finally:
                # Whatever the test has left: a process that is stopped or hangs does not outlive it.
                if measured.ENVIRONMENT and daemon:
                    await self._written(running)
                if running.process.returncode is None:
                    running.process.kill()
                with anyio.CancelScope(shield=True):
                    await running.process.aclose()
                if not running.reading.is_set():
                    tasks.cancel_scope.cancel()

    async def _written(self, daemon: Running) -> None:
        """Have a daemon end by itself, and write down which of its lines it has run."""
        with anyio.move_on_after(PATIENCE, shield=True):
            if daemon.process.returncode is None:
                daemon.send(signal.SIGTERM)
                daemon.send(signal.SIGCONT)
            await daemon.process.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._tasks.cancel_scope.cancel()


@asynccontextmanager
async def open_scene(directory: Path, **options: Any) -> AsyncIterator[Scene]:
    """Open a scene with an embedded cluster in this process, its pods being processes of their own.

    The socket lies in a short directory, because a path of a Unix socket has at most 107 bytes.
    """
    kubeconfig = directory / "kubeconfig"
    settings = {
        "pace": 0.02,
        "path": os.environ["PATH"],
        **options,
    }
    with tempfile.TemporaryDirectory(prefix="kb-") as short:
        async with anyio.create_task_group() as clusters:
            address: Address = await clusters.start(serve, Options(kubeconfig=kubeconfig, **settings))
            async with (
                Cluster(address.server, address.token, address.namespace, control=address.control) as cluster,
                anyio.create_task_group() as tasks,
                Scene(cluster, kubeconfig, Path(short), tasks) as scene,
            ):
                yield scene
            clusters.cancel_scope.cancel()


def _readable(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
