"""`status`: what this daemon knows of itself and of each chaincode. No key and no token is in it."""

from collections.abc import Callable
from datetime import datetime

import msgspec
from msgspec import Struct

from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.runs.overview import tell
from k8s_builderd.runs.store import Store

FORMAT = 1
"""The version of what is told: it grows by one when a field goes or means something else, not when one is added."""

_encode = msgspec.json.Encoder().encode


class About(Struct, frozen=True, kw_only=True):
    """The first line: the daemon. Times are UTC, by the daemon's clock."""

    format: int = FORMAT
    version: str
    namespace: str
    instance: str
    started: datetime
    now: datetime
    checks: dict[str, str | None]
    """What /readyz says: for each check what is wrong, or null."""
    warnings: dict[str, str | None] = {}
    """The same for what leaves the daemon ready."""
    connections: int


async def serve(request: Request, connection: Connection, store: Store, about: Callable[[], About]) -> int:
    """Tell all, a JSON object a line.

    :raises ClientGone: if the connection closed.
    """
    lines = [_encode(about()), *(_encode(tell(run)) for run in store)]
    lines += [_encode(tell(run, past=True)) for run in store.past()]
    await connection.show(b"".join(line + b"\n" for line in lines))
    return 0
