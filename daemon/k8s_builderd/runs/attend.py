"""Serves one connection of a `run`: follows the launch to its end, stops it, or, when it closes, starts the grace."""

import math
from typing import Protocol

import anyio
import structlog
from msgspec.structs import replace

from k8s_builderd.errors import BuilderError, ClientGone, ProtocolError
from k8s_builderd.fabric.plan import Owner, Plan
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE, ApiError
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs import launch
from k8s_builderd.runs.cursor import DROPPED, Cursor
from k8s_builderd.runs.launch import LaunchFailed, TimedOut, Vanished
from k8s_builderd.runs.store import Attendance, Reason, Registry, Run
from k8s_builderd.runs.superseding import Superseded, inherit, launched_again, leave, supersede
from k8s_builderd.settings import Settings

STOP_PATIENCE = 2.0
"""Seconds that `run` waits for the API to accept a deletion; the peer kills it after 5."""

QUIET = FORBIDDEN_PATIENCE
"""Seconds for which a run waits for the API without a word."""

_log = structlog.get_logger("k8s_builderd.runs.attend")


class Stopped(Exception):
    """Raised in a run when its client asks for the end of its chaincode."""


class Connection(launch.Audience, Protocol):
    """The connection of one `run`, as this room needs it."""

    async def stop_asked(self) -> bool:
        """Wait for the client's next word: True for stop, False when it is gone.

        :raises ProtocolError: if it says something else.
        """


class Runs:
    """Serves the connections of `run`, each for as long as it lasts."""

    def __init__(self, api: Api, registry: Registry, settings: Settings, metrics: Metrics) -> None:
        self._api = api
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._owner: Owner | None = None
        self._owner_known = anyio.Event()

    def set_owner(self, owner: Owner | None) -> None:
        """Say which pod is to own the Jobs; launches wait for this."""
        self._owner = owner
        self._owner_known.set()

    def knocked(self, token_sha256: str) -> None:
        """Keep the claim of a run whose client is there but cannot be served now."""
        self._registry.knocked(token_sha256)

    async def attend(self, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        """Serve one connection of a run until its chaincode ends, or it is stopped.

        :returns: the exit code of `run`.
        :raises BuilderError: what to tell the client before it exits with 1.
        :raises ClientGone: if the connection closed; the run has its grace now.
        """
        if cursor is None:
            plan = await inherit(self._registry, plan, self._settings.peer_patience)
        run = self._registry.claim(plan)
        if plan.heir < run.heir:
            raise launched_again()
        run.heir, run.peer = plan.heir, plan.peer
        if run.reason is Reason.STOPPED:
            return await self._stop(run, connection)  # its client has not heard the answer
        if run.ending is not None:
            raise LaunchFailed(f"chaincode job {plan.namespace}/{run.job_name} is being deleted ({run.reason})")
        if cursor == DROPPED:
            run.dropped, cursor = True, None
        run.attempted = run.attempted or cursor is not None
        previous, attendance = run.attendance, Attendance()
        run.attendance = attendance
        try:
            if previous is not None:
                taken = launched_again() if plan.heir else Superseded("this run goes on over a newer connection")
                previous.displace(taken)
                await previous.left.wait()
            if plan.heir and cursor is None:
                job = f"{plan.namespace}/{run.job_name}"
                await connection.say(
                    f"An earlier launch of this chaincode is starting, this one goes on with its job {job}"
                )
                run.told.clear()
            return await self._serve(run, attendance, plan, cursor, connection)
        except Exception:  # not cancellation: then the daemon ends, and the next one takes over
            if run.attendance is attendance:
                self._registry.start_grace(run, self._settings.reconnect_grace, Reason.CLIENT_GONE)
            raise
        finally:
            attendance.left.set()
            if run.attendance is attendance:
                run.attendance = None
                run.absences += 1
                self._registry.settle(run)

    async def _serve(
        self, run: Run, attendance: Attendance, plan: Plan, cursor: Cursor | None, connection: Connection
    ) -> int:
        try:
            return await self._attended(run, attendance, plan, cursor, connection)
        except Stopped:
            return await self._stop(run, connection)
        except Vanished:
            run.attempted = run.sightings.job is not None  # there is nothing of ours to delete, and will be nothing
            raise
        except BuilderError as error:
            # Whoever displaces a run sees to its Job; a client that breaks the protocol may come back.
            if attendance.displaced is None and not isinstance(error, ProtocolError):
                await self._delete(run, Reason.FAILED)
            raise

    async def _attended(
        self, run: Run, attendance: Attendance, plan: Plan, cursor: Cursor | None, connection: Connection
    ) -> int:
        """Take the run to its end, unless its client has another word first or it is displaced.

        :raises Stopped: if the client asks for the end.
        """
        end: int | Exception = ClientGone()

        async def listen() -> None:
            nonlocal end
            try:
                end = Stopped() if await connection.stop_asked() else ClientGone()
            except ProtocolError as breach:
                end = breach
            attendance.scope.cancel()

        with attendance.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                try:
                    outcome: int | Exception = await self._launch(run, plan, cursor, connection)
                except (BuilderError, ClientGone) as error:
                    outcome = error
                except Exception:  # noqa: BLE001 - one run that breaks takes no other along
                    _log.exception("launch_broke", job=run.job_name)
                    outcome = LaunchFailed("the daemon made a mistake; its log says more")
                if not isinstance(end, Stopped):  # where both came in one turn, the client's word counts
                    end = outcome
                tasks.cancel_scope.cancel()
        end = attendance.displaced or end
        if isinstance(end, Exception):
            raise end
        return end

    async def _launch(self, run: Run, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        deadline = anyio.current_time() + plan.settings.start_timeout
        if run.dropped:
            await leave(self._registry, run, connection)
        await self._ready(plan, cursor, connection, deadline)
        plan = replace(plan, job_name=run.job_name)
        if cursor is None and run.sightings.job is None:
            patience = self._settings.peer_patience
            await supersede(self._registry, run, plan, connection, deadline=deadline, peer_patience=patience)
            await anyio.lowlevel.checkpoint_if_cancelled()  # displaced meanwhile: then no Job is asked for
            run.attempted, run.made = True, plan
        steps = launch.Launch(
            self._api,
            plan,
            run.sightings,
            connection,
            created=self._registry.jobs.adopt,
            told=run.told,
            logged=self._metrics.logged,
            blind=lambda: self._registry.blind,
        )
        try:
            if cursor is not None:
                deadline = anyio.current_time() + plan.settings.start_timeout
            return await steps.run(self._owner, cursor, deadline)
        except ApiError:
            if run.sightings.job is None and not steps.uncertain:
                run.attempted = False  # a plain no: there is no Job, and none can come late
            raise

    async def _ready(self, plan: Plan, cursor: Cursor | None, connection: Connection, deadline: float) -> None:
        """Wait until it is known what there is. A chaincode that runs already has all the time in the world."""
        with anyio.move_on_after(QUIET):
            await self._all_known(cursor)
            return
        why = self._registry.blind or "the daemon's own pod is not known yet"
        await connection.say(f"Waiting for the Kubernetes API: {why}")
        with anyio.move_on_after(math.inf if cursor is not None else deadline - anyio.current_time()) as waiting:
            await self._all_known(cursor)
        if waiting.cancelled_caught:
            raise TimedOut(plan, self._registry.blind or why)

    async def _all_known(self, cursor: Cursor | None) -> None:
        await self._registry.synced()
        if cursor is None:
            await self._owner_known.wait()

    async def _stop(self, run: Run, connection: Connection) -> int:
        if not self._registry.may_have_job(run):
            return 0
        if await self._delete(run, Reason.STOPPED):
            await connection.say(f"Stopped: chaincode job {self._settings.namespace}/{run.job_name} is deleted")
            return 0
        await connection.say(
            f"The Kubernetes API has not yet accepted the deletion of chaincode job"
            f" {self._settings.namespace}/{run.job_name}; the daemon goes on trying"
            + (f": {run.trouble}" if run.trouble else "")
        )
        return 1

    async def _delete(self, run: Run, reason: Reason) -> bool:
        """Begin to delete a run's Job; return whether the API accepted that within `STOP_PATIENCE`."""
        if not self._registry.may_have_job(run):
            return True
        accepted = self._registry.begin_deletion(run, reason)
        with anyio.move_on_after(STOP_PATIENCE):
            await accepted.wait()
        return accepted.is_set()
