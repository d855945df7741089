"""The demo itself: a chaincode from its package to its stop, with every step checked from outside."""

import hashlib
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import anyio

import k8s_builderd
from k8s_builder.packaging.make import make_package
from k8s_builder.programs import install
from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.package import Image

from .background import Background, open_background
from .builder import ExternalBuilder, open_builder
from .cluster import KINDS, Cluster, open_cluster
from .peer import Peer, open_peer
from .processes import find_by_directory, find_chaincode, until_ended
from .screen import Screen
from .session import Line
from .unpack import read_package

_LABEL = "basic_1.0"
_IMAGE = Image("registry.example.com/demo/chaincode", "sha256:" + hashlib.sha256(b"demo").hexdigest())
_INDEX = "META-INF/statedb/couchdb/indexes/owner.json"
_INDEX_CONTENT = b'{"index":{"fields":["owner"]},"ddoc":"ownerDoc","name":"owner","type":"json"}\n'
_KEY, _VALUE = "asset1", "blue"
_PEER_ID = "org1-peer0"
# A Unix socket's path has at most 107 bytes; this is what the workspace's and the socket's own names leave of them.
_LONGEST_DIRECTORY = 64
_SECONDS = 60.0
_STARTUP_SECONDS = 45.0
_STOP_SECONDS = 20.0


class NotSo(BuilderError):
    """Raised when something that the demo says should be true is not."""


def check(holds: bool, words: str) -> None:
    """Raise NotSo with these words where a condition does not hold."""
    if not holds:
        raise NotSo(words)


async def tell(environ: Mapping[str, str], chaincode: Sequence[str] | None) -> int:
    """Run the demo and return its exit code: 0, 1 where a step failed, 128 and the signal that interrupted it.

    `environ` is what its processes inherit, `chaincode` the command that plays the image.
    """
    screen = Screen(steps=8)
    # Caught until all is cleaned up: a second Ctrl-C must not leave processes behind.
    with (
        _workspace(environ) as directory,
        anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
    ):
        story = _Story(screen, environ, chaincode, Path(directory))
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_at_first, signals, story, tasks.cancel_scope)
                await story.run()
                tasks.cancel_scope.cancel()
        except* (BuilderError, OSError, aiohttp.ClientError) as errors:
            story.failures += [_reason(error) for error in _leaves(errors)]
        finally:
            # What a cluster that was killed could not end itself.
            for pid in find_by_directory(story.directory):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    if story.interrupted:
        screen.end(f"Interrupted at the step `{screen.step_name}`. What was started is stopped.", good=False)
        return 128 + story.interrupted
    if story.failures:
        story.report()
        return 1
    screen.end("All of it happened: packaged, installed, launched, invoked, queried, stopped, nothing left.", good=True)
    return 0


@dataclass
class _Story:
    screen: Screen
    environ: Mapping[str, str]
    chaincode: Sequence[str] | None
    directory: Path
    failures: list[str] = field(default_factory=list)
    interrupted: int = 0
    daemon: Background | None = None
    cluster: Background | None = None
    lines: list[str] = field(default_factory=list)
    more_lines: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """Tell the story from its beginning to its end."""
        async with AsyncExitStack() as stack:
            kubeconfig = self.directory / "kubeconfig"
            self.cluster = await stack.enter_async_context(self._cluster_process(kubeconfig))
            with self.screen.step("Start a Kubernetes cluster: embedded, its pods are local processes", _SECONDS):
                await self.cluster.until_says("API server at")
                cluster = await stack.enter_async_context(open_cluster(kubeconfig))
                await self._look_at_cluster(cluster)
            self.daemon = await stack.enter_async_context(self._daemon_process(kubeconfig))
            with self.screen.step("Start the daemon, k8s-builderd", _SECONDS):
                health = await _until_ready(self.daemon)
                self.screen.say(f"It listens on {self._socket}, and {health} says that it is ready")
            with self.screen.step("Make a chaincode package, as `k8s-builder package` does", _SECONDS):
                content = self._package()
            builder = await stack.enter_async_context(self._builder())
            peer = await stack.enter_async_context(
                open_peer(builder, startup_timeout=_STARTUP_SECONDS, log=self._peer_says)
            )
            with self.screen.step("Install it: the peer unpacks it and calls detect, build and release", _SECONDS):
                chaincode_id = await self._install(builder, content)
            with self.screen.step("Launch it: the peer calls run, the chaincode registers", _SECONDS):
                pids = await self._launch(cluster, peer, chaincode_id)
            with self.screen.step("Use it: an invoke that puts, a query that gets", _SECONDS):
                await self._use(peer, chaincode_id)
            with self.screen.step("Stop it: the peer sends SIGTERM to run", _STOP_SECONDS):
                await self._stop(builder, peer, chaincode_id)
            with self.screen.step("Look for what is left: Job, pod, Secret and process", _STOP_SECONDS):
                await self._look_for_rest(cluster, peer, chaincode_id, pids)

    def report(self) -> None:
        """Tell which step failed and why, and what the daemon said last."""
        for background in (self.cluster, self.daemon):
            if background is not None:
                self.screen.end(f"The last lines of {background.name}:", good=False)
                for line in background.last_lines:
                    self.screen.show(background.name, line)
        for reason in self.failures:
            self.screen.end(f"The demo failed at the step `{self.screen.step_name}`: {reason}", good=False)

    def _cluster_process(self, kubeconfig: Path) -> AbstractAsyncContextManager[Background]:
        images = self.directory / "images.json"
        image = {
            "command": [*(self.chaincode or [sys.executable, "-m", "k8s_builder_lab.demo.chaincode"])],
            "env": {
                "PATH": self.environ.get("PATH", os.defpath),
                "PYTHONPATH": str(Path(k8s_builderd.__file__).parents[1]),
            },
            "digests": [_IMAGE.digest],
        }
        images.write_text(json.dumps({_IMAGE.name: image}))
        arguments = ["--kubeconfig", str(kubeconfig), "--images", str(images), "--with-parent"]
        return open_background(
            "cluster", [sys.executable, "-m", "k8s_builder_lab.embedded", *arguments], self._inherited()
        )

    def _daemon_process(self, kubeconfig: Path) -> AbstractAsyncContextManager[Background]:
        environment = {
            **self._inherited(),
            "KUBECONFIG_PATH": str(kubeconfig),
            "FABRIC_K8S_BUILDER_SOCKET": str(self._socket),
            "FABRIC_K8S_BUILDER_HEALTH_ADDRESS": "127.0.0.1:0",
            "FABRIC_K8S_BUILDER_LOG_FORMAT": "console",
            "FABRIC_K8S_BUILDER_START_TIMEOUT": "30s",
        }
        return open_background("k8s-builderd", [sys.executable, "-m", "k8s_builderd"], environment)

    async def _look_at_cluster(self, cluster: Cluster) -> None:
        for kind in KINDS:
            check(not await cluster.names(kind), f"the new cluster has a {kind}")
        self.screen.say(f"It answers at {cluster.server}, and has no Job, Pod or Secret")

    def _package(self) -> bytes:
        content = make_package(_LABEL, _IMAGE, {_INDEX: _INDEX_CONTENT})
        (self.directory / f"{_LABEL}.tgz").write_bytes(content)
        package = read_package(content)
        self.screen.say(f"{_LABEL}.tgz holds metadata.json and code.tar.gz, and in it image.json and {_INDEX}")
        self.screen.say(f"image {_IMAGE.reference}")
        self.screen.say(f"package id {package.package_id}")
        return content

    @asynccontextmanager
    async def _builder(self) -> AsyncIterator[ExternalBuilder]:
        peer_data = self.directory / "peer"
        peer_data.mkdir(mode=0o700)
        # What core.yaml's propagateEnvironment would list beside PATH.
        environment = {
            "PATH": self.environ.get("PATH", os.defpath),
            "CORE_PEER_ID": _PEER_ID,
            "FABRIC_K8S_BUILDER_SOCKET": str(self._socket),
            "FABRIC_K8S_BUILDER_PYTHON": sys.executable,
        }
        location = self.directory / "client"
        install(location, Path(sys.executable))
        async with open_builder(location, environment, peer_data, self._line, tuple(environment)) as builder:
            yield builder

    async def _install(self, builder: ExternalBuilder, content: bytes) -> str:
        package = read_package(content)
        await builder.install(package)
        built = builder.built(package.package_id)
        check((built / "bld" / "image.json").is_file(), "build left no image.json")
        released = built / "release" / _INDEX.removeprefix("META-INF/")
        check(released.is_file() and released.read_bytes() == _INDEX_CONTENT, "release did not hand over the index")
        self.screen.say("detect, build and release ended with 0; the peer has image.json and the CouchDB index")
        return package.package_id

    async def _launch(self, cluster: Cluster, peer: Peer, chaincode_id: str) -> list[int]:
        await peer.launch(chaincode_id)
        objects = {kind: await cluster.names(kind) for kind in KINDS}
        for kind, names in objects.items():
            check(len(names) == 1, f"there should be one {kind}, and there are {len(names)}")
        pids = find_chaincode(chaincode_id, peer.connection(chaincode_id))
        check(bool(pids), "the chaincode's process was not found")
        self.screen.say(f"Registered over mutual TLS with the peer at {peer.address}, and READY")
        (job,), (pod,), (secret,) = (objects[kind] for kind in KINDS)
        processes = " ".join(map(str, pids))
        self.screen.say(f"The cluster has Job {job}, pod {pod} and Secret {secret}; the pod's process is {processes}")
        return pids

    async def _use(self, peer: Peer, chaincode_id: str) -> None:
        await peer.invoke(chaincode_id, ["put", _KEY, _VALUE])
        self.screen.say(f"invoke: put {_KEY} {_VALUE}")
        value = (await peer.query(chaincode_id, ["get", _KEY])).decode(errors="replace")
        check(value == _VALUE, f"the query should have found {_VALUE}, and found {value!r}")
        self.screen.say(f"query: get {_KEY} is {value}")
        if self.chaincode is None:
            # The chaincode's own words have come all the way: pod, API server, daemon, socket, run, stderr.
            for words in (f"put {_KEY} {_VALUE}", f"get {_KEY}"):
                await self._until_run_says(words)
            self.screen.say("Both are in the chaincode's log as `run` passed it on to the peer")

    async def _stop(self, builder: ExternalBuilder, peer: Peer, chaincode_id: str) -> None:
        began = anyio.current_time()
        await peer.stop(chaincode_id)
        seconds = anyio.current_time() - began
        (session,) = builder.sessions
        code = await session.wait()
        check(code == 0, f"run should have ended with 0, and ended with {code}")
        self.screen.say(f"run ended with 0 after {seconds:.1f} s; the peer would have waited for 5 s")

    async def _look_for_rest(self, cluster: Cluster, peer: Peer, chaincode_id: str, pids: Sequence[int]) -> None:
        for pid in pids:
            await until_ended(pid)
        check(not find_chaincode(chaincode_id, peer.connection(chaincode_id)), "a process of the chaincode is left")
        self.screen.say("The process is gone")
        for kind in KINDS:
            await cluster.until_gone(kind)
            self.screen.say(f"No {kind} is left")

    async def _line(self, line: Line) -> None:
        words = line.text.decode(errors="replace")
        self.screen.show(line.command, words)
        if line.command == "run":
            self.lines.append(words)
            self.more_lines.set()
            self.more_lines = anyio.Event()

    def _peer_says(self, words: str) -> None:
        self.screen.show("peer", words)

    async def _until_run_says(self, words: str) -> None:
        while not any(words in line for line in self.lines):
            await self.more_lines.wait()

    def _inherited(self) -> dict[str, str]:
        """Return the environment without what would change how the daemon or the chaincode behaves."""
        kept = {
            name: value
            for name, value in self.environ.items()
            if not name.startswith(("FABRIC_K8S_BUILDER_", "CORE_", "KUBE"))
        }
        return {**kept, "TMPDIR": str(self.directory)}

    @property
    def _socket(self) -> Path:
        return self.directory / "builder.sock"


def _workspace(environ: Mapping[str, str]) -> tempfile.TemporaryDirectory[str]:
    parent = environ.get("TMPDIR", "/tmp")  # noqa: S108
    if len(os.fsencode(parent)) > _LONGEST_DIRECTORY:
        parent = "/tmp"  # noqa: S108
    return tempfile.TemporaryDirectory(prefix="k8s-builder-demo-", dir=parent, ignore_cleanup_errors=True)


async def _until_ready(daemon: Background) -> str:
    """Wait until the daemon's /readyz answers with 200, and return its URL."""
    line = await daemon.until_says("health_open")
    address = re.search(r"address=(\S+)", line)
    check(address is not None, f"the daemon does not say where /readyz is: {line}")
    assert address is not None
    url = f"http://{address[1]}/readyz"
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as response:
                if response.status == 200:
                    return url
            await anyio.sleep(0.05)


async def _cancel_at_first(signals: AsyncIterator[signal.Signals], story: _Story, scope: anyio.CancelScope) -> None:
    async for number in signals:
        story.interrupted = number
        story.screen.end("Interrupted: stopping what was started", good=False)
        scope.cancel()
        return


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return str(error) or type(error).__name__
