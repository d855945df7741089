"""`stop`: ends a chaincode whose peer cannot be asked, when the one who calls has seen which it is and says so."""

import msgspec

from k8s_builderd.errors import BuilderError
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.runs.attend import Runs
from k8s_builderd.runs.lookup import choose
from k8s_builderd.runs.overview import tell
from k8s_builderd.runs.record import State
from k8s_builderd.runs.store import Store


async def serve(request: Request, connection: Connection, store: Store, runs: Runs) -> int:
    """Tell which chaincode it is, wait for the word, and stop it.

    :returns: 0 when the API has accepted the deletion.
    :raises BuilderError: if there is no such chaincode, or it has ended.
    :raises ClientGone: if the connection closed; nothing is stopped then, before the word.
    """
    run = choose(store, request.arguments.get("chaincode", ""))
    await connection.show(msgspec.json.encode(tell(run)) + b"\n")
    await connection.stop_asked()
    if run.state is State.ENDED or store.find(run.token_sha256) is not run:
        raise BuilderError(f"the chaincode of job {run.job_name} has ended already")
    return await runs.stop(run, f"user id {connection.credentials.uid}", connection)
