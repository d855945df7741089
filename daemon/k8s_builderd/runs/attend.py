"""Serves one connection of a `run`: follows the launch to its end, stops it, or, when it closes, starts the grace."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import anyio
import structlog
from msgspec.structs import replace

from k8s_builderd.errors import BuilderError, ClientGone, ProtocolError
from k8s_builderd.fabric.plan import Owner, Plan
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.cursor import DROPPED, Cursor
from k8s_builderd.runs.failures import Audience, LaunchFailed, OtherInstance, TimedOut, Unseen, Vanished
from k8s_builderd.runs.launch import QUIET, Launch
from k8s_builderd.runs.predecessors import Yielded, launched_again, make_way, reuse
from k8s_builderd.runs.record import Claim, Deletion, Reason, Run, State
from k8s_builderd.runs.store import Store
from k8s_builderd.settings import Settings

STOP_PATIENCE = 2.0
"""Seconds that a stop waits for the API: to know what there is, and that it is to be deleted. The peer waits for 5."""

WITHDRAWAL = 30.0
"""Seconds that the API has to accept the deletion of a Job that has not started, before its `run` ends all the same."""

REFUSALS_KEPT = 4096
"""How many refusals are remembered, so that a client which comes again and again is told once."""

_log = structlog.get_logger("k8s_builderd.runs")


def _ends_nothing(failure: Exception, run: Run, cursor: Cursor | None) -> bool:
    """Say whether a `run` comes back after this error, because its chaincode is running, or may be."""
    if isinstance(failure, OtherInstance | Unseen):
        return True
    if isinstance(failure, ApiError) and cursor is not None and cursor.job and run.state is State.CREATING:
        return True  # its client knows of a Job that the API does not let us see
    return isinstance(failure, BuilderError) and run.state is State.RUNNING


class Connection(Audience, Protocol):
    """The connection of one `run`, as this room needs it."""

    @property
    def pid(self) -> int:
        """The client's pid, by its own word."""

    def listen(self, heard: Callable[[ClientGone | ProtocolError | None], None]) -> None:
        """Have the client's next word told, once, until `stop_listening`.

        :param heard: is told None for a stop, otherwise that the client is gone, or has said something else.
        """

    def stop_listening(self) -> None:
        """Leave what the client says where it is."""


class Runs:
    """Serves the connections of `run`, each for as long as it lasts."""

    def __init__(self, api: Api, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._api = api
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._owner: Owner | None = None
        self._owner_known = anyio.Event()
        self._refused: dict[tuple[str, str], None] = {}

    def set_owner(self, owner: Owner | None) -> None:
        """Say which pod is to own the Jobs; launches wait for this."""
        self._owner = owner
        self._owner_known.set()

    def knocked(self, token_sha256: str, because: str = "") -> bool:
        """Keep the claim of a run whose client is there but cannot be served now; return whether that is news to it."""
        self._store.knocked(token_sha256)
        refusal = (token_sha256, because)
        new = refusal not in self._refused
        self._refused[refusal] = None
        if len(self._refused) > REFUSALS_KEPT:
            del self._refused[next(iter(self._refused))]
        return new

    async def attend(self, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        """Serve one connection of a run until its chaincode ends, or it is stopped.

        :returns: the exit code of `run`.
        :raises BuilderError: what to tell the client before it exits with 1.
        :raises ClientGone: if the connection closed, or is to be closed for the client to come again; the run has its
            grace now.
        """
        if cursor is None:
            plan = await reuse(self._store, plan, self._settings.peer_patience)
        run = self._store.get_or_make(plan)
        if plan.takeovers < run.takeovers:
            raise launched_again()
        if run.deletion is not None and run.deletion.reason is Reason.STOPPED:
            return await self._tell_stopped(run.deletion, run, connection)  # its client has not heard the answer
        if run.deletion is not None and not self._store.keep(run):
            raise LaunchFailed(
                f"chaincode job {plan.namespace}/{run.job_name} is being deleted ({run.deletion.reason})"
            )
        previous = run.claim
        claim = self._store.take(run, plan, connection.pid, connection)
        try:
            if previous is not None:
                previous.revoke(
                    launched_again() if plan.takeovers else Yielded("this run continues on a newer connection")
                )
                await previous.left.wait()
            if plan.takeovers and cursor is None:
                if (found := run.observed.job) is not None:
                    # First of all, or a client that is cut off now would come back as a launch of its own, and replace
                    # the one that it goes on with.
                    await connection.log(str(Cursor(found.metadata.uid, token=plan.token, takeovers=plan.takeovers)))
                job = f"{plan.namespace}/{run.job_name}"
                await connection.say(
                    f"Reusing job {job} of an earlier launch of this chaincode, which is still starting"
                )
                run.tells_anew()
            return await self._until_end(run, claim, plan, cursor, connection)
        finally:
            self._store.release(run, claim)

    async def _until_end(
        self, run: Run, claim: Claim, plan: Plan, cursor: Cursor | None, connection: Connection
    ) -> int:
        """Take the run to its end, unless its client has another word first or its claim is revoked."""
        word: list[ClientGone | ProtocolError | None] = []

        def hear(heard: ClientGone | ProtocolError | None) -> None:
            word.append(heard)
            claim.scope.cancel()

        failure: Exception | None
        connection.listen(hear)
        try:
            with claim.scope:
                return await self._launch(run, plan, cursor, connection)
            failure = claim.revoked or word[0]
        except Exception as error:  # noqa: BLE001 - told apart below
            failure = error
        finally:
            connection.stop_listening()
        try:
            if None in word:  # where both came in one turn, the client's word counts
                return await self._stopped(run, claim, connection)
            assert failure is not None
            raise await self._outcome(failure, run, claim, cursor, connection)
        finally:
            word.clear()  # or what is raised would hold this frame, and this frame that
            del failure

    async def _stopped(self, run: Run, claim: Claim, connection: Connection) -> int:
        """Do what the client has asked for."""
        if not run.observed.started and run.claim is claim:
            self._metrics.launched("stopped")
        if not self._store.may_have_job(run):
            return 0
        return await self._tell_stopped(self._store.delete(run, Reason.STOPPED), run, connection)

    async def _outcome(
        self, failure: Exception, run: Run, claim: Claim, cursor: Cursor | None, connection: Connection
    ) -> Exception:
        """Return what the end of an attendance is, after an error or a word."""
        over = not run.observed.started and run.claim is claim  # else it goes on over a newer connection
        if _ends_nothing(failure, run, cursor) and claim.revoked is None:
            if self.knocked(run.token_sha256, str(failure)):
                _log.error("launch_interrupted", job=run.job_name, reason=str(failure))
                await connection.say(cannot_continue(str(failure)))
            return ClientGone()
        if isinstance(failure, BuilderError | ClientGone):
            if over and not isinstance(failure, ClientGone | Vanished):
                outcome = "yielded" if isinstance(failure, Yielded) else "failed"
                self._metrics.launched(outcome, failure.category)
                if outcome == "failed":
                    self._store.story.failed(run, failure)
            return failure
        # A mistake of ours ends no chaincode: its `run` comes back, and goes on where it was.
        run.has_problem("internal error in k8s-builderd: see launch_crashed in its log")
        _log.error("launch_crashed", job=run.job_name, exc_info=failure)
        if self._store.may_have_job(run):
            return ClientGone()
        return LaunchFailed("internal error in k8s-builderd: see launch_crashed in its log")

    async def _launch(self, run: Run, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        deadline = anyio.current_time() + plan.settings.start_timeout
        came_dropped = cursor == DROPPED
        if came_dropped:
            run.drop()
            cursor = None
        if cursor is not None:
            run.named()
        await self._know(plan, cursor, connection, deadline)
        plan = replace(plan, job_name=run.job_name)
        if cursor is None and (came_dropped or run.state is State.WAITING):
            await make_way(
                self._store,
                run,
                plan,
                connection,
                deadline=deadline,
                peer_patience=self._settings.peer_patience,
                came_dropped=came_dropped,
            )
            await anyio.lowlevel.checkpoint_if_cancelled()  # revoked meanwhile: then no Job is asked for
        elif cursor is not None:
            deadline = anyio.current_time() + plan.settings.start_timeout
        steps = Launch(self._api, self._store, self._metrics, plan, run, connection)
        while True:
            try:
                return await steps.to_end(self._owner, cursor, deadline)
            except BuilderError as error:
                if steps.unseen:
                    raise Unseen(str(error)) from error
                if not steps.unstarted or not run.state.may_run or run.observed.started:
                    raise
                deletion = self._store.delete(run, Reason.NOT_STARTED)
                if not await self._withdrawn(deletion):
                    raise

    async def _know(self, plan: Plan, cursor: Cursor | None, connection: Connection, deadline: float) -> None:
        """Wait until it is known what there is. A chaincode that runs already has all the time in the world."""
        with anyio.move_on_after(QUIET):
            await self._all_known(cursor)
            return
        why = self._store.watch_error or "the daemon has not looked up its own pod yet"
        await connection.say(f"Waiting for the Kubernetes API: {why}")
        with anyio.move_on_after(math.inf if cursor is not None else deadline - anyio.current_time()) as waiting:
            await self._all_known(cursor)
        if waiting.cancelled_caught:
            raise TimedOut(plan, self._store.watch_error or why, Category.API_UNAVAILABLE)

    async def _all_known(self, cursor: Cursor | None) -> None:
        await self._store.synced()
        if cursor is None:
            await self._owner_known.wait()

    async def stop(self, run: Run, who: str, audience: Audience) -> int:
        """Stop a run for somebody who is not its client, and tell both.

        Its client goes on to the end of a chaincode that has started, for the rest of the log. One that has not is not
        waited for, or its launch would make the Job anew.

        :param who: who that is.
        :returns: 0 when the API has accepted the deletion.
        """
        _log.warning("stop_called", job=run.job_name, by=who)
        with anyio.move_on_after(STOP_PATIENCE):
            await self._store.synced()  # only then it is known whether it has started
        if run.claim is not None:
            if not run.observed.started:
                run.claim.revoke(LaunchFailed(f"{who} stopped it with k8s-builder stop"))
            elif run.deletion is None:
                self._store.begin(_tell_of_stop, run, run.claim, who)
        if not self._store.may_have_job(run):
            await audience.say("Stopped: the launch had no job yet")
            return 0
        return await self._tell_stopped(self._store.delete(run, Reason.STOPPED), run, audience)

    async def _tell_stopped(self, deletion: Deletion, run: Run, audience: Audience) -> int:
        job = f"{self._settings.namespace}/{run.job_name}"
        with anyio.move_on_after(STOP_PATIENCE):
            await deletion.settled.wait()
        if pod := deletion.orphaned_pod:
            await audience.say(
                f"Chaincode job {job} was deleted without its pod, and the chaincode keeps running. Delete the pod and"
                f" its Secret: kubectl -n {self._settings.namespace} delete pod/{pod} secret/{run.job_name}"
            )
            return 1
        if deletion.accepted_at is not None:
            await audience.say(f"Stopped: the Kubernetes API accepted the deletion of chaincode job {job}")
            return 0
        await audience.say(
            f"The Kubernetes API has not accepted the deletion of chaincode job {job} yet. The daemon keeps trying"
            + (f": {deletion.last_error}" if deletion.last_error else "")
        )
        return 1

    async def _withdrawn(self, deletion: Deletion) -> bool:
        """Say whether the container has started after all, before the API has accepted the deletion of its Job."""
        with anyio.move_on_after(WITHDRAWAL):
            await deletion.settled.wait()
        return deletion.withdrawn


async def _tell_of_stop(run: Run, claim: Claim, who: str) -> None:
    if claim.audience is not None and run.claim is claim:
        with suppress(ClientGone):
            await claim.audience.say(f"Stopping the chaincode because {who} ran k8s-builder stop")


def cannot_continue(why: str) -> str:
    """Return what the `run` of a chaincode that is running, or may be, is told before it comes again."""
    return f"k8s-builderd cannot continue this launch: {why}. Running chaincode goes on; retrying"
