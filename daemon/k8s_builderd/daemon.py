"""The composition root: opens what the daemon is made of, in order, and closes it in the reverse order."""

import asyncio
import signal
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import anyio
import structlog
from anyio.abc import TaskStatus

from k8s_builderd import health, memory
from k8s_builderd.access import Access
from k8s_builderd.autostart import AFTER_PEER, PeerProcess, end_with_peer
from k8s_builderd.fabric.plan import Owner
from k8s_builderd.gateway.listener import Listener
from k8s_builderd.gateway.stages import build, detect, logs, release, run, status, stop
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.events import Recorder
from k8s_builderd.metrics import Metrics
from k8s_builderd.owner import OwnPod
from k8s_builderd.podtemplate import PodTemplates
from k8s_builderd.runs.attend import Runs
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.record import Reason, State
from k8s_builderd.runs.store import Store
from k8s_builderd.runs.story import CONTROLLER, Story
from k8s_builderd.settings import Settings
from k8s_builderd.systemd import ServiceManager

_log = structlog.get_logger("k8s_builderd.daemon")


async def serve(settings: Settings, peer: PeerProcess | None = None, manager: ServiceManager | None = None) -> None:
    """Run until SIGTERM or SIGINT; then let go of everything and delete nothing, because chaincode goes on.

    :param peer: if given, the daemon ends after it, too.
    :param manager: is told how the daemon is, and may have made its socket.
    :raises SettingsError: if a setting cannot be used.
    """
    manager = manager or ServiceManager()
    metrics = Metrics()
    metrics.describe_process()
    metrics.expect(Category, Reason)
    access = Access()
    async with (
        Api.open(
            settings.kubeconfig,
            settings.namespace,
            patience=settings.request_timeout,
            observe=metrics.requested,
            answered=access.answered,
        ) as api,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(_end_on_signal, tasks.cancel_scope)
        recorder = Recorder(api, CONTROLLER, settings.pod_name or settings.instance)
        story = Story(recorder.record if settings.events else None)
        store = Store(api, settings, metrics, story)
        runs = Runs(api, store, settings, metrics)
        own_pod = OwnPod()
        templates = PodTemplates(settings)
        listener = Listener(
            settings,
            {
                "detect": detect.serve,
                "build": build.serve,
                "release": release.serve,
                "run": partial(run.serve, settings=settings, runs=runs, template=templates.current),
                "status": partial(status.serve, store=store, about=lambda: about()),
                "logs": partial(logs.serve, store=store, api=api),
                "stop": partial(stop.serve, store=store, runs=runs),
            },
            metrics,
            knocked=partial(run.knocked, runs=runs),
            deaf=store.deaf,
            inherited=manager.listening,
        )
        checks: dict[str, health.Check] = {
            "socket": lambda: None if listener.open else "not open yet",
            "jobs": lambda: store.jobs.error,
            "pods": lambda: store.pods.error,
            "owner": lambda: own_pod.error,
            "access": lambda: access.error,
        }
        # What is told and leaves the daemon ready.
        warnings: dict[str, health.Check] = {
            "template": lambda: templates.warning,
        }
        started = datetime.now(UTC)

        def about() -> status.About:
            return status.About(
                version=version("k8s-builderd"),
                namespace=settings.namespace,
                instance=settings.instance,
                started=started,
                now=datetime.now(UTC),
                checks={name: check() for name, check in checks.items()},
                warnings={name: check() for name, check in warnings.items()},
                connections=listener.connections,
            )

        metrics.gauge("runs", "Runs known", lambda: store.count)
        metrics.gauges("chaincodes", "Runs by their state", "state", lambda: store.states)
        metrics.gauge("connections", "Connections open", lambda: listener.connections)
        metrics.gauge("connections_limit", "Connections that may be open", lambda: listener.most)
        metrics.gauge("tasks", "Tasks of the event loop", lambda: len(asyncio.all_tasks()))
        metrics.gauges(
            "warning",
            "1 while /readyz warns",
            "check",
            lambda: {name: bool(check()) for name, check in warnings.items()},
        )
        metrics.gauge("ready", "1 when /readyz says ok", lambda: not any(check() for check in checks.values()))
        async with store.open():
            await tasks.start(listener.serve, api.server)
            await tasks.start(health.serve, settings.health_address, checks, warnings, metrics)
            memory.settle()
            _log.info("daemon_started", namespace=settings.namespace, instance=settings.instance)
            tasks.start_soon(store.expire_orphans)
            tasks.start_soon(metrics.measure_lag)
            tasks.start_soon(memory.tidy, lambda: store.forgotten + store.count, lambda: store.forgotten)
            tasks.start_soon(templates.watch)
            tasks.start_soon(templates.try_out, api)
            tasks.start_soon(access.keep_asking, api, settings.access_interval)
            if peer is not None:
                patience = settings.reconnect_grace + AFTER_PEER

                def is_idle() -> bool:
                    return not listener.connections and not store.unfinished

                tasks.start_soon(end_with_peer, peer, is_idle, patience, tasks.cancel_scope)
            tasks.start_soon(recorder.run)

            def in_words() -> str:
                wrong = [f"{name}: {fault}" for name, check in checks.items() if (fault := check())]
                return f"{'; '.join(wrong) or 'ready'}; chaincodes running: {store.states[State.RUNNING]}"

            def owner_known(owner: Owner | None) -> None:
                story.set_owner(owner)
                runs.set_owner(owner)

            await tasks.start(manager.reload_on_signal, templates.current)
            manager.notify(READY=1)
            tasks.start_soon(manager.keep_informed, in_words)
            try:
                await own_pod.confirm(api, settings, owner_known)
                await anyio.sleep_forever()
            finally:
                manager.notify(STOPPING=1)


async def _end_on_signal(scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            _log.info("daemon_ends", signal=number.name)
            scope.cancel()
            return
