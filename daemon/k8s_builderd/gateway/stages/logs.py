"""`logs`: the log of one chaincode as the API server gives it, for people. It goes on for as long as they look."""

import math

import anyio

from k8s_builderd.errors import BuilderError, ClientGone
from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.golang import parse_duration
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.logs import ON_ITS_WAY
from k8s_builderd.runs.lookup import choose
from k8s_builderd.runs.record import Run
from k8s_builderd.runs.store import Store
from k8s_builderd.tasks import beside


async def serve(request: Request, connection: Connection, store: Store, api: Api) -> int:
    """Pass on the bytes of a chaincode's log, as they are.

    :raises BuilderError: if there is no such chaincode, or its log cannot be read.
    :raises ClientGone: if the connection closed.
    """
    run = choose((*store, *store.past()), request.arguments.get("chaincode", ""))
    follow = "follow" in request.arguments
    query = {"container": CONTAINER, **_since(request.arguments.get("since", ""))}

    async def show() -> None:
        if follow and not (run.observed.started or run.observed.ended):
            await connection.say(f"Waiting for the container of job {run.job_name} to start")
            await run.observed.until(lambda seen: seen.started or seen.ended)
        pod = run.observed.pod
        if pod is None:
            raise BuilderError(f"job {run.job_name} has no pod, so there is no log")
        if follow and not run.observed.ended:
            await _follow(api, pod.metadata.name, query, run, connection)
            return
        async with api.log(pod.metadata.name, query) as chunks:
            async for chunk in chunks:
                await connection.show(chunk)

    async def gone() -> None:
        await connection.stop_asked()
        raise ClientGone

    await beside(show, gone)
    return 0


async def _follow(api: Api, pod: str, query: dict[str, str], run: Run, connection: Connection) -> None:
    """Follow until the stream ends. One that does not, although the container has, is left."""
    waiting_since = anyio.current_time()

    async def read() -> None:
        nonlocal waiting_since
        async with api.log(pod, {**query, "follow": "true"}) as chunks:
            async for chunk in chunks:
                waiting_since = math.inf
                await connection.show(chunk)
                waiting_since = anyio.current_time()

    async def leave() -> None:
        await run.observed.until(lambda seen: seen.ended)
        while anyio.current_time() < waiting_since + ON_ITS_WAY:  # noqa: ASYNC110 - no polling: a look for each line
            await anyio.sleep(min(ON_ITS_WAY, max(0.0, waiting_since + ON_ITS_WAY - anyio.current_time())))
        scope.cancel()

    with anyio.CancelScope() as scope:
        await beside(read, leave)


def _since(duration: str) -> dict[str, str]:
    if not duration:
        return {}
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise BuilderError(f"--since must be a duration such as 10m or 1h30m: {error}") from None
    if seconds <= 0:
        raise BuilderError(f"--since must be a duration above zero; it is {duration!a}")
    return {"sinceSeconds": str(math.ceil(seconds))}
