"""A model of the peer: its registry and launches, as in Fabric's core/chaincode.

handler_registry.go, runtime_launcher.go, handler.go and externalbuilder/instance.go, the parts that surprise included.
"""

import base64
from typing import TYPE_CHECKING

import anyio

from tests.simulation.client import Client
from tests.simulation.cluster import Container

if TYPE_CHECKING:
    from tests.simulation.world import Site

CERTIFICATE_LIFE = 600.0
KILL_AFTER = 5.0


class LaunchError(Exception):
    """A request has failed, for this reason."""


class LaunchState:
    """The result of one launch, told once."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: str | None = None

    def notify(self, error: str | None) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()


class Stream:
    """The connection of one chaincode; it stays open when its REGISTER is refused, or its handler dropped."""

    def __init__(self, process: "Process", container: Container, chaincode_id: str) -> None:
        self.process = process
        self.container = container
        self.chaincode_id = chaincode_id
        self.open = True


class Process:
    """One process of a peer, from its start to its end: a new CA, an empty registry."""

    def __init__(self, site: "Site", number: int) -> None:
        self.site = site
        self.world = site.world
        self.number = number
        self.root_cert = f"CA {number} of {site.name}" if site.tls else ""
        self.alive = True
        self.handlers: dict[str, Stream] = {}
        self.launching: dict[str, LaunchState] = {}
        self.streams: list[Stream] = []
        self.sessions: dict[str, Client] = {}
        """The newest `run` of each chaincode: only that one is signalled."""
        self.clients: list[Client] = []
        self.certificates: dict[str, float] = {}
        self._ended = anyio.Event()

    # Requests

    async def invoke(self, chaincode_id: str) -> Container:
        """Serve one request: launch the chaincode where it is not there; return who has answered.

        :raises LaunchError: if it fails.
        """
        if chaincode_id not in self.handlers:
            await self._launch(chaincode_id)
        handler = self.handlers.get(chaincode_id)
        if handler is None:
            raise LaunchError("claimed to start chaincode container but could not find handler")
        await anyio.sleep(0.02)
        if not handler.open or self.handlers.get(chaincode_id) is not handler:
            raise LaunchError("the stream has ended")
        return handler.container

    async def _launch(self, chaincode_id: str) -> None:
        state = self.launching.get(chaincode_id)
        mine = state is None
        if state is None:
            state = self.launching[chaincode_id] = LaunchState()
            self._start(chaincode_id, state)
        with anyio.move_on_after(self.site.startup_timeout if mine else None) as patience:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._until_ended, tasks.cancel_scope)
                await state.done.wait()
                tasks.cancel_scope.cancel()
        if patience.cancelled_caught:
            state.notify("timeout expired while starting chaincode")
        error = state.error if self.alive else "the peer has ended"
        if error is not None:
            if mine:
                self.deregister(chaincode_id)
            raise LaunchError(error)

    async def _until_ended(self, scope: anyio.CancelScope) -> None:
        await self._ended.wait()
        scope.cancel()

    def _start(self, chaincode_id: str, state: LaunchState) -> None:
        client = self.world.new_client(self, chaincode_id)
        self.sessions[chaincode_id] = client
        self.clients.append(client)
        self.certificates[client.certificate] = self.world.now

        async def wait() -> None:
            await client.exited.wait()
            state.notify(f"container exited with {client.code}")

        self.world.sim.spawn(wait)

    # The registry

    def connect(self, container: Container) -> bool:
        """Take a chaincode's connection and REGISTER; return whether it is let in, refused REGISTERs included."""
        if not self.alive or (self.site.tls and not self._certified(container)):
            return False
        chaincode_id = container.key[0]
        stream = Stream(self, container, chaincode_id)
        self.streams.append(stream)
        container.ends.append(lambda: self.close(stream))
        if chaincode_id in self.handlers or chaincode_id not in self.launching:
            self.world.note(f"{self} refuses {container.name}")
            return True
        self.handlers[chaincode_id] = stream
        self.launching[chaincode_id].notify(None)
        self.world.note(f"{self} has {container.name} ready")
        return True

    def _certified(self, container: Container) -> bool:
        secret = self.world.cluster.find("secrets", container.pod.secret)
        data = secret["data"] if secret is not None else container.pod.meta["mounted"]
        if base64.b64decode(data["peer.crt"]).decode() != self.root_cert:
            return False
        made = self.certificates.get(base64.b64decode(data["client_pem.crt"]).decode())
        return made is not None and self.world.now < made + CERTIFICATE_LIFE

    def close(self, stream: Stream) -> None:
        """Take in the end of a stream: whoever holds its id is dropped, a launch in progress included."""
        if stream.open and self.alive:
            stream.open = False
            self.streams.remove(stream)
            self.deregister(stream.chaincode_id)

    def deregister(self, chaincode_id: str) -> None:
        """Drop who holds an id, and its launch, which is not told."""
        holder = self.handlers.pop(chaincode_id, None)
        launch = self.launching.pop(chaincode_id, None)
        if holder is not None or launch is not None:
            self.world.note(f"{self} drops {'a launch' if holder is None else holder.container.name}")

    # Its end

    def stop(self, chaincode_id: str) -> None:
        """Have the newest `run` of a chaincode end: no definition names it any more."""
        client = self.sessions.get(chaincode_id)
        if client is not None and client.alive:
            client.terminate()
            self.world.sim.after(KILL_AFTER, client.kill)

    def end(self, *, gracefully: bool, kills: bool) -> None:
        """End the process: its streams close, and its `run`s see it, or die with it (where it is PID 1)."""
        self.world.note(f"{self} ends")
        self.alive = False
        self._ended.set()
        for stream in list(self.streams):
            stream.open = False
            self.world.stream_lost(stream.container)
        self.streams.clear()
        for client in self.clients:
            if not client.alive:
                continue
            if kills and not gracefully:
                client.kill()
            else:
                client.terminate()
                if kills:
                    self.world.sim.after(KILL_AFTER, client.kill)

    def __str__(self) -> str:
        return f"peer {self.site.name}.{self.number}"
