"""A container for the peer and its daemon, of Linux' namespaces: what each network that people use gives the peer."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct

from tests.daemon.scene import DIGEST, HASH, Scene
from tests.embedded.cluster import PATIENCE
from tests.kube.certificates import Authority

INSIDE = Path(__file__).with_name("inside.py")
PORT = 6443  # of a network namespace of its own
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
IN_CLUSTER = ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")
NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--mount-proc", "--propagation", "private")


class Network(Struct, frozen=True):
    """What a network gives its peers, as far as an external builder sees it."""

    path: str
    """The builder's folder in its core.yaml."""
    hostname: str
    environment: Mapping[str, str]
    propagate: tuple[str, ...]
    uid: int = 0
    groups: tuple[int, ...] = ()


NETWORKS = {
    # Copies the folder out of the image into a volume, for a peer of Fabric's own image.
    "kubernetes test network": Network(
        path="/var/hyperledger/fabric/external_builders/k8s_builder",
        hostname="org1-peer1-5d4f8b7c9-x2xkq",
        environment={
            "FABRIC_CFG_PATH": "/var/hyperledger/fabric/config",
            "CORE_PEER_ID": "org1-peer1.org1.example.com",
            "CORE_PEER_ADDRESS": "org1-peer1:7051",
            "FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX": "org1-peer1-cc",
        },
        propagate=("CORE_PEER_ID", "FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX", *IN_CLUSTER),
    ),
    # Its core.yaml names the Go builder's path. 200m of CPU, 400 MB, no capabilities.
    "fabric operator": Network(
        path="/opt/hyperledger/k8s_builder",
        hostname="org1-peer1-7c6b5d8f4-abcde",
        environment={"LICENSE": "accept", "FABRIC_CFG_PATH": "/certs", "CORE_PEER_ID": "org1-peer1"},
        propagate=("CORE_PEER_ID", *IN_CLUSTER),
        uid=7051,
        groups=(2000,),
    ),
    # The FabricPeer's externalBuilders say what is propagated.
    "hlf-operator": Network(
        path="/opt/hyperledger/k8s_builder",
        hostname="org1-peer0-0a1b2c3d4-vwxyz",
        environment={"CORE_PEER_ID": "org1-peer0", "CORE_PEER_ADDRESSAUTODETECT": "true"},
        propagate=("CORE_PEER_ID", *IN_CLUSTER),
    ),
}


class Container:
    """A container that runs; the peer's stand-in is its process 1."""

    def __init__(self, process: anyio.abc.Process) -> None:
        self.log: list[str] = []
        """The container's standard output."""
        self.seen: list[dict[str, Any]] = []
        """What the peer has seen."""
        self.all_ended = anyio.Event()
        """Set when no process has the standard output any more."""
        self._process = process
        self._changed = anyio.Event()

    async def do(self, command: str) -> None:
        assert self._process.stdin is not None
        await self._process.stdin.send(command.encode() + b"\n")

    async def execute(self, uid: int, *command: str) -> tuple[int, str, str]:
        """Execute a command in the container as any user; return its exit code, and what it has printed on both."""
        children = anyio.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        [init] = (await children.read_text()).split()
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
        done = await anyio.run_process(
            ["nsenter", f"--target={init}", "--mount", "--pid", *user, *command], env={"PATH": PATH}, check=False
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    async def end(self) -> None:
        """End process 1, and with it the container."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    async def sees(self, **wanted: Any) -> dict[str, Any]:
        """Wait until the peer has seen something with these fields; of a line, a part is enough."""

        def is_wanted(found: dict[str, Any]) -> bool:
            return all(
                key in found and (value in found[key] if key == "line" else value in (found[key], ...))
                for key, value in wanted.items()
            )

        with anyio.move_on_after(PATIENCE):
            while not (matches := [found for found in self.seen if is_wanted(found)]):
                await self._changed.wait()
            return matches[0]
        raise AssertionError(f"{wanted} was not seen: {self.seen} {self.log[-20:]}")

    async def call(self, program: str, *directories: str) -> tuple[int, list[str]]:
        """Call a program to its end; return its exit code and its lines."""
        self.seen = [found for found in self.seen if found.get("program") != program]
        await self.do(" ".join((program, *directories)))
        code = (await self.sees(program=program, code=...))["code"]
        return code, [found["line"] for found in self.seen if found.get("program") == program and "line" in found]

    async def read(self, stream: anyio.abc.ByteReceiveStream, take: Any, ended: anyio.Event) -> None:
        rest = b""
        async for data in stream:
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                take(line)
            self._changed.set()
            self._changed = anyio.Event()
        ended.set()


@asynccontextmanager
async def container(
    network: Network,
    builder: Path,
    scene: Scene,
    directory: Path,
    *,
    run_is_writable: bool = False,
    token: str = "",
) -> AsyncIterator[Container]:
    """Run a container with this builder's folder; its Kubernetes API is the scene's cluster, by TLS.

    :param token: its service account's, if not the cluster's own.
    """
    api = directory / "api"
    api.mkdir(mode=0o755)
    authority = Authority(directory)
    config = {
        "builder": str(builder),
        "path": network.path,
        "api": str(api),
        "port": PORT,
        "hostname": network.hostname,
        "uid": network.uid,
        "groups": network.groups,
        "run_is_writable": run_is_writable,
        "account": {
            "token": token or scene.cluster.token,
            "namespace": scene.cluster.namespace,
            "ca.crt": authority.file.read_text(),
        },
        "environment": {
            "PATH": PATH,
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(PORT),
            **network.environment,
        },
        "propagate": network.propagate,
        "package": package(scene),
    }
    python = builder / "python/bin/python3"
    command = ["unshare", *NAMESPACES, str(python), "-I", "-S", "-B", "-c", INSIDE.read_text()]
    async with (
        # Outside of the tasks: to close it takes a moment, which a scope that is cancelled would not give.
        await anyio.open_process([*command, json.dumps(config)], env={"PATH": PATH}) as process,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(offer, api / "api", authority, scene.cluster.server)
        running = Container(process)
        assert process.stdout is not None
        assert process.stderr is not None
        to_log, to_seen = (
            (lambda line: running.log.append(line.decode())),
            (lambda line: running.seen.append(json.loads(line))),
        )
        tasks.start_soon(running.read, process.stdout, to_log, running.all_ended)
        tasks.start_soon(running.read, process.stderr, to_seen, anyio.Event())
        try:
            await running.sees(ready=True)
            yield running
        finally:
            # Not by killing unshare, which process 1 does not notice once it has changed its user.
            with anyio.CancelScope(shield=True):
                await running.end()
                await process.wait()
            tasks.cancel_scope.cancel()


def package(scene: Scene) -> dict[str, str]:
    """Return what the peer writes for its programs."""
    metadata = json.dumps({"type": "k8s", "label": "basic_1.0"})
    image = json.dumps({"name": "localhost/chaincode1", "digest": DIGEST})
    chaincode = {
        "chaincode_id": f"basic_1.0:{HASH}",
        "peer_address": "peer:7052",
        "client_cert": "",
        "client_key": "",
        "root_cert": "",
        "mspid": "Org1MSP",
    }
    return {
        "metadata/metadata.json": metadata,
        "source/image.json": image,
        "run/chaincode.json": json.dumps(chaincode),
    }


async def offer(path: Path, authority: Authority, server: str) -> None:
    """Offer an API server by TLS on a Unix socket."""
    host, _, port = server.removeprefix("http://").partition(":")

    async def serve(outer: asyncio.StreamReader, to_outer: asyncio.StreamWriter) -> None:
        try:
            inner, to_inner = await asyncio.open_connection(host, port)
        except OSError:
            to_outer.close()
            return
        await asyncio.gather(pump(outer, to_inner), pump(inner, to_outer))

    async def pump(source: asyncio.StreamReader, destination: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                destination.write(data)
                await destination.drain()
        except OSError:
            pass
        finally:
            destination.close()  # which ends the other direction, too

    # asyncio's own, because anyio's Unix streams may fail where one is cancelled just when something comes.
    async with await asyncio.start_unix_server(serve, path, ssl=authority.server()) as listener:
        await anyio.Path(path).chmod(0o666)
        await listener.serve_forever()


def needs_namespaces() -> pytest.MarkDecorator:
    """Skip where containers cannot be made of namespaces."""
    why = ""
    if os.geteuid() != 0 or sys.platform != "linux":
        why = "needs root, for users and mounts of its own"
    elif shutil.which("unshare") is None:
        why = "needs unshare"
    else:
        tried = subprocess.run(
            ["unshare", *NAMESPACES, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True
        )
        why = f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""
    return pytest.mark.skipif(bool(why), reason=why)
