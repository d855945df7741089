"""The HTTP endpoints: /livez for the kubelet, /readyz and /healthz for people, /metrics for Prometheus."""

from collections.abc import Callable, Mapping

import anyio
import structlog
from aiohttp import web
from anyio.abc import TaskStatus

from k8s_builderd.errors import SettingsError
from k8s_builderd.metrics import Metrics

_log = structlog.get_logger("k8s_builderd.health")

MOST_CONNECTIONS = 64
CONNECTION_AGE = 10.0
"""Seconds after which a connection is cut; a probe or a scrape takes milliseconds."""

Check = Callable[[], str | None]
"""Returns what is wrong, or None."""


async def serve(
    address: tuple[str, int],
    checks: Mapping[str, Check],
    warnings: Mapping[str, Check],
    metrics: Metrics,
    *,
    connection_age: float = CONNECTION_AGE,
    task_status: TaskStatus[None],
) -> None:
    """Answer until cancelled. /livez answers as long as the event loop turns; the checks decide the other two.

    :param warnings: are shown with the checks, and decide nothing.
    :param address: host and port; port 0 takes any that is free, and the log says which.
    :param connection_age: seconds after which a connection is cut.
    :raises SettingsError: if the address cannot be listened on.
    """

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        found = {name: check() for name, check in checks.items()}
        lines = [f"[-]{name} failed: {fault}" if fault else f"[+]{name} ok" for name, fault in found.items()]
        for name, check in warnings.items():
            lines.append(f"[!]{name} warning: {' '.join(fault.split())}" if (fault := check()) else f"[+]{name} ok")
        failed = any(found.values())
        return web.Response(
            status=503 if failed else 200, text="\n".join([*lines, "not ready" if failed else "ok", ""])
        )

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.exposition(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", live),
            web.get("/readyz", ready),
            web.get("/healthz", ready),
            web.get("/metrics", exposition),
        ]
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        host, port = address
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise SettingsError(
                f"The FABRIC_K8S_BUILDER_HEALTH_ADDRESS environment variable must be an address that can be listened"
                f" on: {host}:{port}: {error.strerror}"
            ) from error
        _log.info("health_open", address="{}:{}".format(*runner.addresses[0][:2]))
        task_status.started()
        await _keep_few(runner, connection_age)
    finally:
        with anyio.move_on_after(1, shield=True):
            await runner.cleanup()


async def _keep_few(runner: web.AppRunner, age: float) -> None:
    """Cut connections that are too many or too old: chaincode can reach this port, and aiohttp waits for ever."""
    assert runner.server is not None
    since: dict[web.RequestHandler, float] = {}
    while True:
        await anyio.sleep(1)
        now = anyio.current_time()
        since = {each: since.get(each, now) for each in runner.server.connections}
        newest_first = sorted(since, key=lambda each: -since[each])
        for number, each in enumerate(newest_first):
            if (number >= MOST_CONNECTIONS or now - since[each] > age) and each.transport is not None:
                each.transport.abort()
