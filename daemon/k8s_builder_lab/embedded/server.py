"""Puts the embedded cluster together and runs it until it is cancelled."""

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from aiohttp import web
from anyio.abc import TaskStatus

from k8s_builder_lab.embedded import images
from k8s_builder_lab.embedded.address import Address
from k8s_builder_lab.embedded.api import BODY_LIMIT, Api
from k8s_builder_lab.embedded.components import Components
from k8s_builder_lab.embedded.control import Control
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.faults import Faults
from k8s_builder_lab.embedded.garbage import GarbageCollector
from k8s_builder_lab.embedded.images import Image
from k8s_builder_lab.embedded.jobs import JobController
from k8s_builder_lab.embedded.kubelet import Kubelet
from k8s_builder_lab.embedded.namespaces import NamespaceController
from k8s_builder_lab.embedded.node import Gate, Node
from k8s_builder_lab.embedded.podstatus import NODE
from k8s_builder_lab.embedded.reaper import open_reaper
from k8s_builder_lab.embedded.recorder import Recorder
from k8s_builder_lab.embedded.scheduler import Scheduler
from k8s_builder_lab.embedded.store import Store
from k8s_builder_lab.embedded.timings import Timings
from k8s_builder_lab.embedded.transport import Listener


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How an embedded cluster is to be.

    kubeconfig: where to write one once the API listens; None: nowhere.
    port: of the API, on the loopback; 0: any free one.
    namespaces: those that exist; the first is the kubeconfig's.
    images: image name to Image, or a JSON file of that which is read anew at each pull.
    node_labels, node_taints, service_accounts, pod_quota: see Environment; they can be changed while it runs.
    pace: by how much the times measured on a real cluster are scaled.
    bookmark_interval: seconds between two bookmarks of a quiet watch.
    history: how many changes are remembered for watches that come back.
    log_limit: bytes after which a container's log is rotated.
    path: the PATH of the pods' processes.
    """

    kubeconfig: Path | None = None
    port: int = 0
    namespaces: tuple[str, ...] = ("default",)
    images: Mapping[str, Image] | Path = msgspec.field(default_factory=dict)
    node_labels: dict[str, str] = msgspec.field(default_factory=dict)
    node_taints: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ("default",)
    pod_quota: int | None = None
    pace: float = 0.1
    bookmark_interval: float = 60.0
    history: int = 4096
    log_limit: int = 10 * 1024 * 1024
    path: str = os.defpath


async def serve(options: Options, *, task_status: TaskStatus[Address] = anyio.TASK_STATUS_IGNORED) -> None:
    """Run a cluster until cancelled; then end its pods' processes and leave nothing behind but the kubeconfig.

    Started once the API listens and the kubeconfig is written, with the cluster's Address.

    :raises OSError: the port is taken, the kubeconfig cannot be written, or the file of images cannot be read
    :raises ValueError: the file of images is not one
    """
    images.load(options.images)
    token = secrets.token_urlsafe(32)
    store = Store(options.namespaces, options.history)
    timings = Timings(options.pace)
    rules = Faults()
    gate = Gate()
    environment = Environment(
        node_labels=options.node_labels,
        node_taints=[*options.node_taints],
        service_accounts=[*options.service_accounts],
        pod_quota=options.pod_quota,
    )
    recorder = Recorder(store, NODE, environment)
    async with _directory() as directory, open_reaper(str(directory)) as reaper:
        node = Node(
            store,
            recorder,
            environment,
            options.images,
            timings,
            directory,
            options.path,
            options.log_limit,
            reaper,
            gate,
        )
        kubelet = Kubelet(node)
        components = Components(
            gate,
            kube_scheduler=[Scheduler(store, recorder, environment, timings).serve],
            kube_controller_manager=[
                JobController(store, recorder, environment, timings).serve,
                GarbageCollector(store, timings).serve,
                NamespaceController(store, timings).serve,
            ],
        )
        api = Api(store, kubelet, node, rules, token, options.bookmark_interval, environment)
        control = Control(store, kubelet, api, rules, environment, components, token)
        async with anyio.create_task_group() as tg:
            await tg.start(kubelet.serve)
            await components.start(tg)
            app = web.Application(client_max_size=BODY_LIMIT, middlewares=[api.translate])
            app.add_routes(api.routes())
            async with _listening(app, options.port) as listener:
                switches = web.Application(client_max_size=BODY_LIMIT, middlewares=[control.guard])
                switches.add_routes(control.routes(listener, tg))
                async with _listening(switches, 0) as switch_listener:
                    address = Address(
                        f"http://127.0.0.1:{listener.port}",
                        f"http://127.0.0.1:{switch_listener.port}",
                        token,
                        options.namespaces[0],
                    )
                    if options.kubeconfig is not None:
                        address.write(options.kubeconfig)
                    task_status.started(address)
                    await anyio.sleep_forever()


@asynccontextmanager
async def _listening(app: web.Application, port: int) -> AsyncIterator[Listener]:
    listener = Listener(app, port)
    try:
        await listener.open()
        yield listener
    finally:
        await listener.aclose()


@asynccontextmanager
async def _directory() -> AsyncIterator[Path]:
    """Make the pods' directory, private to this user, and remove it at the end."""
    path = Path(tempfile.mkdtemp(prefix="k8s-builder-embedded-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
