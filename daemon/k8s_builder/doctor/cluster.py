"""The API server, our rights there, and what a launch would meet in the namespace."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio

from k8s_builder.doctor import namespace
from k8s_builder.doctor.result import Result, failure, ok, skipped, warning
from k8s_builder.doctor.sample import Launch
from k8s_builderd.errors import SettingsError
from k8s_builderd.kube import review
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, Forbidden, NotFound, NotServed, Unauthorized
from k8s_builderd.kube.review import Server
from k8s_builderd.kube.rights import RIGHTS, Right
from k8s_builderd.settings import Settings

PATIENCE = 5.0
"""Seconds that one request may take."""

LOAD_TIMEOUT = 10.0
"""Seconds that loading the credentials may take (an exec plugin)."""

CLOCK = 5.0
"""Seconds by which two clocks may differ without a word."""

Check = Callable[[Api], Awaitable[list[Result]]]


async def check(settings: Settings, launch: Launch, *, patience: float = PATIENCE) -> list[Result]:
    """Return what there is to say of the API server and the namespace of the Jobs.

    :param launch: what is tried.
    :param patience: seconds that one request may take; a check may take twice as long, and all run at once.
    """
    try:
        async with Api.open(
            settings.kubeconfig, settings.namespace, patience=patience, load_timeout=LOAD_TIMEOUT
        ) as api:
            return await _all(api, launch, patience)
    except SettingsError as error:
        remedy = "Run this in the sidecar (kubectl exec POD -c k8s-builderd), or set KUBECONFIG_PATH"
        return [failure("api", str(error), remedy)]


async def _all(api: Api, launch: Launch, patience: float) -> list[Result]:
    first, server = await reachable(api)
    if server is None:
        return [first, skipped("permission", "the API server cannot be asked")]
    checks: list[tuple[str, Check]] = [
        ("identity", identity),
        *(("permission", partial(permission, right=right)) for right in RIGHTS),
        *namespace.checks(launch),
    ]
    found: list[list[Result]] = [[] for _ in checks]

    async def ask(number: int, name: str, look: Check) -> None:
        found[number] = [failure(name, "the API server takes too long to answer", "See the API server; try again")]
        with anyio.move_on_after(2 * patience):
            found[number] = await _told(api, name, look)

    async with anyio.create_task_group() as tasks:
        for number, (name, look) in enumerate(checks):
            tasks.start_soon(ask, number, name, look)
    return [first, clock(server), *(result for results in found for result in results)]


async def _told(api: Api, name: str, look: Check) -> list[Result]:
    """Return what a check has found, or why it has not."""
    try:
        return await look(api)
    except Forbidden as error:
        return [skipped(name, f"not allowed to look: cannot {error.verb} {error.resource}")]
    except ApiError as error:
        return [failure(name, str(error.args[0]), error.remedy or "See the API server; try again")]


async def reachable(api: Api) -> tuple[Result, Server | None]:
    """Return whether the API server answers us."""
    try:
        server = await review.reach(api)
    except Unauthorized as error:
        return failure("api", f"{api.server}: {error.args[0]}", error.remedy), None
    except Forbidden:  # an answer all the same
        server = Server("", None)
    except ApiError as error:
        remedy = "Check the address, the network between, and the certificates in the kubeconfig"
        return failure("api", f"{api.server}: {error.args[0]}", remedy), None
    version = f" answers: Kubernetes {server.version}" if server.version else " answers"
    return ok("api", api.server + version), server


def clock(server: Server) -> Result:
    """Return how far the API server's clock is from ours."""
    if server.ahead is None:
        return skipped("clock", "the API server has not told its time")
    if abs(server.ahead) < CLOCK:
        return ok("clock", "the API server's clock agrees with this one")
    seen = (
        f"the API server's clock is {abs(server.ahead):.0f} s {'ahead of' if server.ahead > 0 else 'behind'} this one"
    )
    return warning("clock", seen, "Synchronise both clocks (NTP): certificates and tokens are valid by the clock")


async def identity(api: Api) -> list[Result]:
    """Return who we are to the API server."""
    try:
        return [ok("identity", f"this is {await review.who(api)} to the API server")]
    except (NotFound, NotServed):
        return [skipped("identity", "Kubernetes before 1.28 does not tell who we are")]


async def permission(api: Api, right: Right) -> list[Result]:
    """Return whether RBAC lets us do one thing that the daemon does."""
    verdict = await review.may(api, right)
    where = f"{right} in namespace {api.namespace}"
    if verdict.allowed:
        return [ok("permission", f"may {where}")]
    reason = f" ({verdict.reason})" if verdict.reason else ""
    remedy = "Apply deploy/role and its RoleBinding in that namespace"
    if right.needed:
        return [failure("permission", f"may not {where}{reason}", remedy)]
    return [warning("permission", f"may not {where}{reason}: a launch works, but less is told of it", remedy)]
