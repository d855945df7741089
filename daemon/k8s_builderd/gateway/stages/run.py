"""`run`: makes the plan of a launch from its request, and attends the run."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from k8s_builderd.errors import BuilderError, ClientGone, ProtocolError
from k8s_builderd.fabric import names
from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.package import CHAINCODE_FILE, IMAGE_FILE, decode_built_image, decode_chaincode
from k8s_builderd.fabric.plan import Plan, Start
from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import STARTED, Request
from k8s_builderd.runs.attend import Runs, cannot_continue
from k8s_builderd.runs.cursor import DROPPED, Cursor
from k8s_builderd.settings import Settings

_log = structlog.get_logger("k8s_builderd.run")


async def serve(
    request: Request,
    connection: Connection,
    settings: Settings,
    runs: Runs,
    template: Callable[[], Awaitable[PodTemplate]],
) -> int:
    """Launch the chaincode, pass on its log, and return the exit code of `run` when it has ended.

    :param template: returns the pod template as it is now.
    :raises BuilderError: if the request cannot be used or the chaincode does not run.
    :raises ClientGone: if the connection closed.
    """
    cursor: Cursor | None = None
    try:
        cursor = read_cursor(request)
        plan = make_plan(request, settings, cursor, await template())
    except BuilderError as error:
        if not request.cursor or cursor == DROPPED:
            raise
        # Another daemon took this request, and its chaincode may be running: no word of ours ends that.
        if knocked(request, str(error), runs=runs):
            _log.error("request_refused", reason=str(error))
            await connection.say(cannot_continue(str(error)))
        raise ClientGone from error
    connection.debug = plan.settings.debug
    for name in settings.overridden(request.environment):
        await connection.say_debug(f"Using the daemon's {name}, not the peer's")
    if cursor is None:
        await _warn(plan, connection)
    return await runs.attend(plan, cursor, connection)


async def _warn(plan: Plan, connection: Connection) -> None:
    """Tell what is allowed and yet may be a mistake."""
    if plan.image.tag:
        await connection.say(
            f"image.json names the tag {plan.image.tag!a} and a digest. Kubernetes uses the digest and ignores the tag"
        )
    if not plan.chaincode.reachable:
        await connection.say(
            f"The peer tells the chaincode to connect to {plan.chaincode.peer_address}, which only works on the peer's"
            " own machine. For chaincode in pods, set CORE_PEER_CHAINCODEADDRESS on the peer to an address that pods"
            " can reach"
        )


def make_plan(request: Request, settings: Settings, cursor: Cursor | None, template: PodTemplate) -> Plan:
    """Check all of the request and return what to launch. Pure.

    :raises SettingsError: if an environment variable cannot be used.
    :raises PackageError: if a document cannot be used.
    """
    launch = settings.for_launch(request.environment)
    image = decode_built_image(request.document(IMAGE_FILE))
    chaincode = decode_chaincode(request.document(CHAINCODE_FILE))
    token = token_of(request, cursor)
    layers = template.layers(names.package_id(chaincode.chaincode_id).label)
    takeovers = cursor.takeovers if cursor is not None else 0
    start = Start.parse(request.environment.get(STARTED, ""))
    return settings.plan(launch, chaincode, image, token, layers, takeovers=takeovers, start=start)


def knocked(request: Request, because: str, *, runs: Runs) -> bool:
    """Take note that the client of a run is there, though it is turned away for now.

    :param request: need not hold more than token and cursor.
    :param because: why.
    :returns: whether its client has not been told so yet.
    """
    cursor = None
    with suppress(ProtocolError):
        cursor = read_cursor(request)
    return runs.knocked(token_of(request, cursor).sha256, because)


def token_of(request: Request, cursor: Cursor | None) -> Token:
    """Return the token of the run: the client's own, or of the earlier launch with whose Job it goes on."""
    reused = cursor.token if cursor is not None else None
    return reused or Token(request.token.decode())


def read_cursor(request: Request) -> Cursor | None:
    """Return the request's cursor.

    :raises ProtocolError: if it is none of ours.
    """
    try:
        return Cursor.parse(request.cursor) if request.cursor else None
    except ValueError:
        # Cursors of older versions can all be read.
        raise ProtocolError("this daemon is older than the one before. Go back to that version") from None
