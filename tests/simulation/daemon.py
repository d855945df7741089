"""The daemon's own code, from the request of a `run` downwards, with the model cluster below and no socket above."""

import hashlib
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import msgspec
from structlog.contextvars import bound_contextvars

from k8s_builderd.errors import BuilderError, ClientGone, SettingsError
from k8s_builderd.gateway.protocol import STARTED, Request
from k8s_builderd.gateway.stages import run
from k8s_builderd.metrics import Metrics
from k8s_builderd.owner import OwnPod
from k8s_builderd.podtemplate import PodTemplates
from k8s_builderd.runs.attend import Runs
from k8s_builderd.runs.store import Store
from k8s_builderd.settings import Settings
from tests.simulation.api import ModelApi
from tests.simulation.client import Client, Connection

if TYPE_CHECKING:
    from tests.simulation.world import Site

FAREWELL = 2.0
IMAGE = msgspec.json.encode({"name": "localhost/chaincode", "digest": "sha256:" + "0" * 64})

serving: ContextVar["Daemon | None"] = ContextVar("serving", default=None)
"""Whose task this is."""


class Daemon:
    """One daemon, from its start to its end."""

    def __init__(self, site: "Site", number: int) -> None:
        self.site = site
        self.world = site.world
        self.number = number
        self.started_at = self.world.now
        self.listening = False
        self.connections: list[Connection] = []
        self._served: list[Connection] = []
        self.settings = Settings(
            environment={},
            kubeconfig="",
            namespace="fabric",
            instance=site.instance,
            host="a node" if site.pod else f"host of {site.name}",
            pod_name=site.pod["name"] if site.pod else "",
            pod_uid=site.pod["uid"] if site.pod else "",
            **site.settings,
        )
        self.api = ModelApi(self.world.cluster, self.settings.request_timeout)
        self.api.faults += [replace(fault) for fault in site.faults]
        self.api.creating = lambda job: self.world.job_created(self, job)
        self.api.deleting = lambda job: self.world.job_deleted(self, job)
        self.alive = True
        self.metrics = Metrics()
        self._scope = anyio.CancelScope()
        self._tasks: anyio.abc.TaskGroup
        self.store: Store
        self.world.sim.spawn(self._serve)

    async def _serve(self) -> None:
        serving.set(self)
        api: Any = self.api  # it has the methods of the real one
        try:
            with self._scope:
                async with anyio.create_task_group() as self._tasks:
                    self.store = Store(api, self.settings, self.metrics)
                    self._templates = PodTemplates(self.settings)
                    self._runs = Runs(api, self.store, self.settings, self.metrics)
                    async with self.store.open():
                        self.listening = True
                        self._tasks.start_soon(self.store.expire_orphans)
                        await OwnPod().confirm(api, self.settings, self._runs.set_owner)
                        await anyio.sleep_forever()
        finally:
            self.alive = self.listening = False

    def accept(self, connection: Connection) -> None:
        """Serve a connection in a task of its own."""
        self.connections.append(connection)
        self._tasks.start_soon(self._handle, connection)

    async def _handle(self, connection: Connection) -> None:
        serving.set(self)
        request: Any = _request(connection.client)
        try:
            if len(self._served) >= self.settings.max_connections:
                run.knocked(request, "more connections than there may be", runs=self._runs)
                return  # the `run` is to come again
            self._served.append(connection)
            connection.give_sign()
            with bound_contextvars(client_pid=request.pid):
                code = await self._call(request, connection)
            with anyio.move_on_after(FAREWELL):
                await connection.exit(code)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001 - it is told as wrong
            self.world.wrong(f"the daemon's code broke: {error!r}", error)
        finally:
            if connection in self._served:
                self._served.remove(connection)
            self.connections.remove(connection)
            connection.close()

    async def _call(self, request: Request, connection: Any) -> int:
        try:
            return await run.serve(request, connection, self.settings, self._runs, self._templates.current)
        except SettingsError as error:
            text = str(error)
        except BuilderError as error:
            text = f"Error running chaincode: {error}"
        with anyio.move_on_after(FAREWELL):
            await connection.say(text)
        return 1

    def crash(self) -> None:
        """Be killed: nothing that it does after this has an effect."""
        self.world.note(f"{self} is killed")
        self.listening = False
        self.api.dead = True
        for connection in list(self.connections):
            connection.close()
        self._scope.cancel()

    def end(self) -> None:
        """Be told to end."""
        self.world.note(f"{self} ends")
        self.listening = False
        self._scope.cancel()

    def __str__(self) -> str:
        return f"daemon {self.site.name}.{self.number}"


def _request(client: Client) -> Request:
    site = client.site
    environment = {"CORE_PEER_ID": site.peer_id}
    if site.start_timeout:
        environment["FABRIC_K8S_BUILDER_START_TIMEOUT"] = site.start_timeout
    chaincode = {
        "chaincode_id": client.chaincode_id,
        "peer_address": site.address,
        "client_cert": client.certificate,
        "client_key": client.certificate and "key",
        "root_cert": client.process.root_cert,
        "mspid": site.msp_id,
    }
    if site.tells_start:
        environment[STARTED] = f"b007 {client.started_ticks}"
    documents = {"image.json": IMAGE, "chaincode.json": msgspec.json.encode(chaincode)}
    return Request("run", client.number, environment, documents, {}, (), client.token.encode(), client.cursor)


def token_sha256(client: Client) -> str:
    """Return what the cluster knows of a client's token."""
    return hashlib.sha256(client.token.encode()).hexdigest()
