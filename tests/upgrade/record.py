"""Records what the clients and the daemon of a version say to each other, and what they make in the cluster.

Call it in a checkout of that version, with an environment in which that is installed: `python record.py FILE`. What
stands in recorded.json is from commit 16a85a5.
"""

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream

from tests.daemon.scene import Running, Scene, open_scene

LONG = "head -c 33000 /dev/zero | tr '\\0' x; echo; "  # longer than a piece
STAYS = "trap 'exit 0' TERM; echo hello; {}echo same; echo same; sleep 0.2; echo there; while :; do sleep 0.1; done"
ROLE = {"FABRIC_K8S_BUILDER_NODE_ROLE": "chaincode"}


class Proxy:
    """Stands between the programs and the daemon, and keeps what goes by: for each connection both directions."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.path = scene.socket.with_name("p")
        self.conversations: list[dict[str, bytearray]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with await anyio.create_unix_listener(self.path) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            yield
            tasks.cancel_scope.cancel()

    async def _serve(self, client: SocketStream) -> None:
        conversation = {"client": bytearray(), "daemon": bytearray()}
        self.conversations.append(conversation)
        async with client, await anyio.connect_unix(self.scene.socket) as daemon, anyio.create_task_group() as tasks:

            async def pump(source: SocketStream, sink: SocketStream, kept: bytearray) -> None:
                with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                    async for data in source:
                        kept += data
                        await sink.send(data)
                tasks.cancel_scope.cancel()

            tasks.start_soon(pump, client, daemon, conversation["client"])
            await pump(daemon, client, conversation["daemon"])


class Recorder:
    """One scenario being played."""

    def __init__(self, scene: Scene, socket: Path) -> None:
        self.scene = scene
        self.said: list[dict[str, Any]] = []
        self.objects: dict[str, list[Any]] = {}
        self.log = ""
        self._socket = socket

    async def package(self, label: str = "basic_1.0", *, script: str = "") -> Any:
        """Make a package whose launches are called as they were recorded, whatever tests' packages are like today."""
        package = await self.scene.package(label, script=script)
        package.connect(
            peer_address="127.0.0.1:7052",
            client_cert="-----BEGIN CERTIFICATE-----\nclient\n",
            client_key="-----BEGIN PRIVATE KEY-----\nsecret\n",
            root_cert="-----BEGIN CERTIFICATE-----\nroot\n",
            mspid="Org1MSP",
        )
        return package

    async def call(self, program: str, package: Any, **environment: str) -> Running:
        variables: dict[str, Any] = {"FABRIC_K8S_BUILDER_SOCKET": str(self._socket), **environment}
        return await self.scene.call(program, package, **variables)

    async def end(self, program: Running) -> None:
        """Wait for a program's end, and keep its exit code and its lines."""
        code = await program.wait()
        self.said.append({"pid": program.pid, "code": code, "lines": [line.decode() for line in program.lines]})

    async def look(self) -> None:
        """Keep what is in the cluster now, the log included."""
        for plural in ("jobs", "pods", "secrets"):
            self.objects[plural] = (await self.scene.cluster.list(plural))["items"]
        [pod] = self.objects["pods"]
        self.log = (await self.scene.cluster.log(pod["metadata"]["name"], timestamps="true")).decode()


async def stages(recorder: Recorder) -> None:
    package = await recorder.package()
    (package.root / "output/image.json").unlink()
    package.write("source/META-INF/statedb/couchdb/indexes/owner.json", {"index": {}})
    for program in ("detect", "build", "release"):
        await recorder.end(await recorder.call(program, package))


async def refusals(recorder: Recorder) -> None:
    package = await recorder.package()
    await recorder.end(await recorder.call("run", package, CORE_PEER_ID=""))
    await recorder.end(await recorder.call("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT="3 minutes"))
    await recorder.end(await recorder.call("run", package, FABRIC_K8S_BUILDER_NAMESPACE="elsewhere"))
    package.image({"name": "n", "digest": "sha256:1"})
    await recorder.end(await recorder.call("build", package))
    package.metadata({"type": "ccaas", "label": "not k8s"})
    await recorder.end(await recorder.call("detect", package))


async def stopped(recorder: Recorder) -> None:
    package = await recorder.package(script=STAYS.format(LONG))
    run = await recorder.call("run", package)
    await run.line("there")
    await recorder.look()
    await run.terminate()
    await recorder.end(run)


async def crashed(recorder: Recorder) -> None:
    package = await recorder.package(script="echo bye; exit 3")
    run = await recorder.call("run", package)
    await run.wait()
    await recorder.look()
    await recorder.end(run)


async def with_settings(recorder: Recorder) -> None:
    await recorder.scene.cluster.switch(
        "PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}}
    )
    package = await recorder.package(label="Fancy_CC.v1", script=STAYS.format(""))
    package.connect(peer_address="127.0.0.1:7052", client_cert="", client_key="", root_cert="")
    run = await recorder.call(
        "run",
        package,
        CORE_PEER_ID="peer1.org2.example.com",
        FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX="a-prefix",
        FABRIC_K8S_BUILDER_SERVICE_ACCOUNT="default",
        **ROLE,
    )
    await run.line("there")
    await recorder.look()
    await run.terminate()
    await recorder.end(run)


async def timed_out(recorder: Recorder) -> None:
    package = await recorder.package()
    await recorder.end(await recorder.call("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT="2s", **ROLE))


async def dropped(recorder: Recorder) -> None:
    package = await recorder.package(script=STAYS.format(""))
    first = await recorder.call("run", package)
    await first.line("there")
    second = await recorder.call("run", package)
    await recorder.end(first)
    await recorder.end(second)


async def inherited(recorder: Recorder) -> None:
    package = await recorder.package(script=STAYS.format(""))
    first = await recorder.call("run", package, **ROLE)
    await first.line("Waiting for chaincode to start")
    second = await recorder.call("run", package, **ROLE)
    await recorder.end(first)
    await second.line("Waiting for chaincode to start")
    await recorder.scene.cluster.switch(
        "PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}}
    )
    await second.line("there")
    await recorder.look()
    await second.terminate()
    await recorder.end(second)


SCENARIOS: list[Callable[[Recorder], Awaitable[None]]] = [
    stages,
    refusals,
    stopped,
    crashed,
    with_settings,
    timed_out,
    dropped,
    inherited,
]


async def record() -> str:
    """Play all scenarios and return what was recorded, as JSON."""
    recorded = {}
    for play in SCENARIOS:
        with tempfile.TemporaryDirectory() as directory:
            async with open_scene(Path(directory)) as scene:
                daemon = await scene.daemon()
                proxy = Proxy(scene)
                async with proxy.open():
                    recorder = Recorder(scene, proxy.path)
                    await play(recorder)
                await daemon.terminate()
        recorded[play.__name__] = {
            "conversations": [
                {direction: [_frame(*one) for one in frames(bytes(data))] for direction, data in both.items()}
                for both in proxy.conversations
            ],
            "programs": recorder.said,
            "objects": recorder.objects,
            "log": recorder.log,
        }
    return json.dumps(recorded, indent=1, ensure_ascii=False) + "\n"


def frames(data: bytes) -> list[tuple[str, bytes]]:
    """Cut a recorded stream into frames."""
    found = []
    while data:
        end = 5 + int.from_bytes(data[1:5], "big")
        found.append((chr(data[0]), data[5:end]))
        data = data[end:]
    return found


def _frame(kind: str, payload: bytes) -> list[Any]:
    if kind == "L":
        end = 2 + int.from_bytes(payload[:2], "big")
        return [kind, payload[2:end].decode(), payload[end:].decode()]
    return [kind, payload.decode()]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(anyio.run(record))
