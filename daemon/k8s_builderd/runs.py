"""The registry of runs: who is attended by a client, who has a grace, whose Job is to be deleted, and when.

A run outlives its connection. It is created by the first request with its token, or by a Job that a new daemon
finds, and it is forgotten when its container has ended and nobody attends it. Deleting a Job is a decision made here
and nowhere else, for one of the reasons of `Reason`; cancellation means that the daemon ends, and deletes nothing.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from random import Random
from typing import Protocol, Self

import anyio
import structlog
from anyio.abc import TaskGroup

from k8s_builderd import launch, manifests
from k8s_builderd.backoff import delays
from k8s_builderd.cursor import Cursor
from k8s_builderd.errors import BuilderError, ClientGone
from k8s_builderd.kube.api import JOBS, PODS, Api
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE, ApiError, NotFound
from k8s_builderd.kube.objects import Job, Meta, Pod
from k8s_builderd.kube.pods import Sightings, container_ended, container_started
from k8s_builderd.kube.watch import Applied, Deleted, Reflector
from k8s_builderd.launch import LaunchFailed, TimedOut
from k8s_builderd.manifests import Owner, Plan
from k8s_builderd.protocol import ProtocolError
from k8s_builderd.settings import Settings
from k8s_builderd.telemetry import Telemetry

STOP_PATIENCE = 2.0
"""Seconds that `run` waits for the API to accept a deletion; the peer kills it after 5."""

QUIET = FORBIDDEN_PATIENCE
"""Seconds for which a run waits for the API without a word."""

DEATH_NEWS = 2.0
"""Seconds in which a kubelet tells that a container has ended; 0.2 to 1.3 were measured."""

LATE = 15.0
"""Seconds for which a deleted Job may still turn up: a creation that was cut off can be carried out late."""

END_PATIENCE = manifests.GRACE_SECONDS + 5.0
"""Seconds that a launch waits for the containers of the one before it."""

_log = structlog.get_logger("k8s_builderd.runs")


class Reason(StrEnum):
    """Why a Job is deleted."""

    STOPPED = "stopped"
    CLIENT_GONE = "client gone"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ORPHAN = "orphan"


class Superseded(LaunchFailed):
    """Raised in a run when the peer has launched the same chaincode anew, or another client has taken its token."""


class Connection(launch.Audience, Protocol):
    """The connection of one `run`, as this room needs it."""

    async def stop_asked(self) -> bool:
        """Wait for the client's next word: True for stop, False when it is gone.

        :raises ProtocolError: if it says something else.
        """


class Attendance:
    """One connection's hold on a run. Ended from outside by `displace`."""

    def __init__(self) -> None:
        self.left = anyio.Event()
        self.displaced: BuilderError | None = None
        self.scope = anyio.CancelScope()

    def displace(self, error: BuilderError) -> None:
        """End it; its client is told the error."""
        self.displaced = error
        self.scope.cancel()


class Run:
    """One run: its names, what the watches say of it, and who attends it."""

    def __init__(self, job_name: str, object_name: str, token_sha256: str) -> None:
        self.job_name = job_name
        self.object_name = object_name
        self.token_sha256 = token_sha256
        self.sightings = Sightings()
        self.told: set[str] = set()
        self.attendance: Attendance | None = None
        self.absences = 0
        self.since = anyio.current_time()
        self.attempted = False
        """Whether a Job of this run may exist: one was asked for, found, or is named by a cursor."""
        self.ending: anyio.Event | None = None
        """Set while its Job is being deleted; the event tells that the API has accepted that."""
        self.reason: Reason | None = None
        """Why it is being deleted."""
        self.trouble = ""
        """Why the API has not accepted that yet."""

    @classmethod
    def of(cls, meta: Meta) -> Self:
        """Return the run that a Job found in the cluster belongs to."""
        return cls(meta.name, meta.label(manifests.OBJECT_LABEL), meta.annotation(manifests.TOKEN_ANNOTATION))

    @property
    def live(self) -> bool:
        """Say whether its container runs or may yet come to run."""
        return self.attempted and not self.sightings.ended


class Runs:
    """All runs of this daemon's instance, by the name of their Job."""

    def __init__(self, api: Api, settings: Settings, telemetry: Telemetry, *, rng: Random | None = None) -> None:
        self._api = api
        self._settings = settings
        self._telemetry = telemetry
        self._rng = rng
        self._by_job: dict[str, Run] = {}
        self._changed = anyio.Event()
        self._owner: Owner | None = None
        self.owner_known = anyio.Event()
        self._claims_count = False
        self._unending: set[str] = set()
        """The uids of pods that did not end when they were told to: their node is lost. Nobody waits for them twice."""
        self._tasks: TaskGroup
        label = manifests.selector(settings.instance)
        self.jobs = Reflector(api, JOBS, Job, label, self._job_changed, silence=settings.watch_silence, rng=rng)
        self.pods = Reflector(api, PODS, Pod, label, self._pod_changed, silence=settings.watch_silence, rng=rng)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Watch, and do what has to be done without a client, until the context is left."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self.jobs.run)
            self._tasks.start_soon(self.pods.run)
            yield
            self._tasks.cancel_scope.cancel()

    def set_owner(self, owner: Owner | None) -> None:
        """Say which pod is to own the Jobs; launches wait for this."""
        self._owner = owner
        self.owner_known.set()

    async def expire_orphans(self) -> None:
        """Start the grace of the Jobs that nobody claims, once the watches are synced. Call when the socket is open."""
        await self._synced()
        self._claims_count = True
        for run in list(self._by_job.values()):
            if run.attendance is None and run.ending is None:
                self._start_grace(run, self._settings.orphan_grace, Reason.ORPHAN)

    @property
    def count(self) -> int:
        """The number of runs."""
        return len(self._by_job)

    async def attend(self, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        """Serve one connection of a run until its chaincode ends, or it is stopped.

        :returns: the exit code of `run`.
        :raises BuilderError: what to tell the client before it exits with 1.
        :raises ClientGone: if the connection closed; the run has its grace now.
        """
        run = self._by_job.get(plan.job_name)
        if run is None:
            run = self._by_job[plan.job_name] = Run(plan.job_name, plan.object_name, plan.token_sha256)
            self._catch_up(run)
        if run.token_sha256 != plan.token_sha256:
            raise LaunchFailed(f"there is a job {plan.namespace}/{plan.job_name} of another run: try again")
        if run.reason is Reason.STOPPED:
            return await self._stop(run, connection)  # its client has not heard the answer
        if run.ending is not None:
            raise LaunchFailed(f"chaincode job {plan.namespace}/{plan.job_name} is being deleted")
        run.attempted = run.attempted or cursor is not None
        previous, attendance = run.attendance, Attendance()
        run.attendance = attendance
        try:
            if previous is not None:
                previous.displace(Superseded("another client has taken this run over"))
                await previous.left.wait()
            return await self._serve(run, attendance, plan, cursor, connection)
        finally:
            attendance.left.set()
            if run.attendance is attendance:
                run.attendance = None
                run.absences += 1
                self._forget_if_over(run)

    async def _serve(
        self, run: Run, attendance: Attendance, plan: Plan, cursor: Cursor | None, connection: Connection
    ) -> int:
        code: int | None = None
        failure: BuilderError | None = None
        breach: ProtocolError | None = None
        stop: bool | None = None

        async def listen() -> None:
            nonlocal stop, breach
            try:
                stop = await connection.stop_asked()
            except ProtocolError as error:
                breach = error
            attendance.scope.cancel()

        with attendance.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                try:
                    code = await self._launch(run, plan, cursor, connection)
                except BuilderError as error:
                    failure = error
                except ClientGone:
                    stop = False
                except Exception:  # noqa: BLE001 - one run that breaks takes no other along
                    _log.exception("launch_broke", job=run.job_name)
                    failure = LaunchFailed("the daemon made a mistake; its log says more")
                tasks.cancel_scope.cancel()
        if attendance.displaced is not None:
            raise attendance.displaced
        if stop:
            return await self._stop(run, connection)
        if failure is not None:
            await self._delete(run, Reason.FAILED)
            raise failure
        if code is not None:
            return code
        if stop is None and breach is None:
            # Cancelled from elsewhere: the daemon ends. The checkpoint lets that through.
            await anyio.lowlevel.checkpoint()
        self._start_grace(run, self._settings.reconnect_grace, Reason.CLIENT_GONE)
        raise breach or ClientGone

    async def _launch(self, run: Run, plan: Plan, cursor: Cursor | None, connection: Connection) -> int:
        deadline = anyio.current_time() + plan.settings.start_timeout
        await self._ready(plan, cursor, connection, deadline)
        if cursor is None and run.sightings.job is None:
            await self._supersede(run, plan, connection, deadline)
            run.attempted = True
        steps = launch.Launch(
            self._api,
            plan,
            run.sightings,
            connection,
            created=self.jobs.adopt,
            told=run.told,
            logged=self._telemetry.logged,
            blind=self._blind,
            rng=self._rng,
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
        why = self._blind() or "the daemon's own pod is not known yet"
        await connection.say(f"Waiting for the Kubernetes API: {why}")
        with anyio.move_on_after(math.inf if cursor is not None else deadline - anyio.current_time()) as waiting:
            await self._all_known(cursor)
        if waiting.cancelled_caught:
            raise TimedOut(plan, self._blind() or why)

    async def _all_known(self, cursor: Cursor | None) -> None:
        await self._synced()
        if cursor is None:
            await self.owner_known.wait()

    async def _synced(self) -> None:
        await self.jobs.ever_synced.wait()
        await self.pods.ever_synced.wait()

    def _blind(self) -> str | None:
        return self.jobs.trouble or self.pods.trouble

    # What is stale

    async def _supersede(self, run: Run, plan: Plan, connection: Connection, deadline: float) -> None:
        """End earlier launches of the same chaincode, and wait until their containers have ended.

        When the stream of a stale chaincode closes, its peer drops whoever holds the chaincode's id, a launch in
        progress included (Fabric's core/chaincode/handler_registry.go, Deregister). So nothing is created before that,
        and where that peer is the one that asks now, this launch is lost: it ends, and the next one succeeds.

        :raises Superseded: if the peer has dropped this launch.
        """
        # A peer launches what is registered and ready only after its connection has closed. So a container that runs
        # has most likely crashed just now, and nobody is dropped; its `run` is still to say why it ended.
        with anyio.move_on_after(DEATH_NEWS):
            while any(rival.sightings.started for rival in self._rivals(run)):
                await self._changed.wait()
        rivals = self._rivals(run)
        if any(rival.attendance is not None and not rival.attempted and rival.since > run.since for rival in rivals):
            raise _launched_again()  # the peer waits for the newest only
        over = {pod.metadata.uid for pod in self._pods_of_others(run) if container_ended(pod)} | self._unending
        stale = [pod for pod in self._pods_of_others(run) if pod.metadata.uid not in over]
        if not rivals and not stale:
            return
        names = sorted({rival.job_name for rival in rivals} | {_job_of(pod.metadata) for pod in stale})
        connected = {rival.job_name for rival in rivals if rival.attendance is not None or rival.ending is not None}
        for rival in rivals:
            if rival.attendance is not None:
                rival.attendance.displace(_launched_again())
            if rival.live:
                self._begin_deletion(rival, Reason.SUPERSEDED)
        await connection.say(f"Waiting for an earlier launch of this chaincode to end: {', '.join(names)}")
        with anyio.move_on_after(deadline - anyio.current_time()) as waiting:
            for rival in rivals:
                if rival.ending is not None:
                    await rival.ending.wait()
        if waiting.cancelled_caught:
            raise TimedOut(plan, next((rival.trouble for rival in rivals if rival.trouble), ""))
        dropped = False
        unending: list[Meta] = []
        with anyio.move_on_after(END_PATIENCE) as waiting:
            while True:
                # One that was pending may come up before its deletion does, and register.
                present = [pod for pod in self._pods_of_others(run) if pod.metadata.uid not in over]
                seen = present + [rival.sightings.pod for rival in rivals if rival.sightings.pod is not None]
                dropped = dropped or any(container_started(pod) and _same_peer(pod, plan, connected) for pod in seen)
                unending = [pod.metadata for pod in present if not container_ended(pod)]
                if not unending and not any(rival.live for rival in rivals):
                    break
                await self._changed.wait()
        unending = [meta for meta in unending if meta.deletion_timestamp is not None]
        if waiting.cancelled_caught and unending:
            self._unending |= {meta.uid for meta in unending}
            _log.warning("pods_do_not_end", pods=[meta.name for meta in unending])
        if dropped:
            raise Superseded(
                "the peer dropped this launch when the earlier chaincode's connection closed;"
                " the next request starts the chaincode"
            )

    def _rivals(self, run: Run) -> list[Run]:
        """Return the other launches of the same chaincode that are on their way, or have not ended."""
        return [
            rival
            for rival in self._by_job.values()
            if rival is not run
            and rival.object_name == run.object_name
            and (rival.live or (rival.attendance is not None and not rival.sightings.ended))
            and (rival.sightings.pod is None or rival.sightings.pod.metadata.uid not in self._unending)
        ]

    def _pods_of_others(self, run: Run) -> list[Pod]:
        """Return the pods of other launches of the same chaincode."""
        return [
            pod
            for pod in self.pods.objects.values()
            if pod.metadata.label(manifests.OBJECT_LABEL) == run.object_name and _job_of(pod.metadata) != run.job_name
        ]

    # How a run ends

    async def _stop(self, run: Run, connection: Connection) -> int:
        if not self._may_have_job(run):
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
        if not self._may_have_job(run):
            return True
        accepted = self._begin_deletion(run, reason)
        with anyio.move_on_after(STOP_PATIENCE):
            await accepted.wait()
        return accepted.is_set()

    def _may_have_job(self, run: Run) -> bool:
        # Before the watches have told, a Job may be there that an earlier daemon made for this token.
        return run.attempted or not self.jobs.ever_synced.is_set()

    def _begin_deletion(self, run: Run, reason: Reason) -> anyio.Event:
        if run.ending is None:
            run.ending, run.reason = anyio.Event(), reason
            run.attempted = True
            self._telemetry.deleted(reason)
            self._tasks.start_soon(self._see_deleted, run, run.ending, reason)
        return run.ending

    async def _see_deleted(self, run: Run, accepted: anyio.Event, reason: Reason) -> None:
        """Delete the Job until it is gone and its container has ended."""
        pauses = delays(0.1, 5.0, self._rng)
        sightings = run.sightings
        while True:
            absent = False
            try:
                await self._api.delete(JOBS, run.job_name)
                _log.info("job_deleted", job=run.job_name, reason=str(reason))
            except NotFound:
                absent = sightings.job is None
            except ApiError as error:
                run.trouble = str(error)
                _log.warning("job_not_deleted", job=run.job_name, reason=run.trouble)
                await anyio.sleep(error.pause(next(pauses)))
                continue
            run.trouble = ""
            accepted.set()
            with anyio.move_on_after(LATE):
                # What was absent and turns up now is a creation that had been cut off and was carried out late.
                while not (sightings.job_gone and sightings.ended) and not (absent and sightings.job is not None):
                    await sightings.changed()
            if sightings.job is None or sightings.job_gone or not self.jobs.synced:
                break
        self._forget(run)
        self._pulse()

    def _start_grace(self, run: Run, seconds: float, reason: Reason) -> None:
        self._tasks.start_soon(self._expire, run, seconds, reason, run.absences + (run.attendance is not None))

    async def _expire(self, run: Run, seconds: float, reason: Reason, absence: int) -> None:
        await anyio.sleep(seconds)
        if run.attendance is None and run.absences == absence and run.ending is None:
            if run.live:
                _log.warning("job_unclaimed", job=run.job_name, seconds=seconds, reason=str(reason))
                self._begin_deletion(run, reason)
            else:
                self._forget(run)

    # What the watches tell

    def _job_changed(self, change: Applied[Job] | Deleted[Job]) -> None:
        meta = change.object.metadata
        run = self._by_job.get(meta.name)
        if run is None:
            if isinstance(change, Deleted) or change.object.finished or not meta.annotation(manifests.TOKEN_ANNOTATION):
                return
            run = self._by_job[meta.name] = Run.of(meta)
            self._catch_up(run)
            if self._claims_count:
                self._start_grace(run, self._settings.orphan_grace, Reason.ORPHAN)
        run.attempted = True
        run.sightings.saw(change)
        self._settle(run)

    def _pod_changed(self, change: Applied[Pod] | Deleted[Pod]) -> None:
        meta = change.object.metadata
        if isinstance(change, Deleted):
            self._unending.discard(meta.uid)
        run = self._by_job.get(_job_of(meta))
        if run is not None:
            run.sightings.saw(change)
            self._settle(run)
        else:
            self._pulse()

    def _settle(self, run: Run) -> None:
        self._forget_if_over(run)
        self._pulse()

    def _catch_up(self, run: Run) -> None:
        """Tell a run what the watches have seen before it was known here."""
        for job in self.jobs.objects.values():
            if job.metadata.annotation(manifests.TOKEN_ANNOTATION) == run.token_sha256:
                run.attempted = True
                run.sightings.saw(Applied(job))
        for pod in self.pods.objects.values():
            if _job_of(pod.metadata) == run.job_name:
                run.sightings.saw(Applied(pod))

    def _forget_if_over(self, run: Run) -> None:
        if run.attendance is None and run.ending is None and not run.live:
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if self._by_job.get(run.job_name) is run:
            del self._by_job[run.job_name]

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def _job_of(meta: Meta) -> str:
    return next((owner.name for owner in meta.owner_references or () if owner.kind == "Job"), "")


def _launched_again() -> Superseded:
    return Superseded(
        "the peer has launched this chaincode again; where it was still starting,"
        " raise the peer's chaincode.startuptimeout"
    )


def _same_peer(pod: Pod, plan: Plan, connected: set[str]) -> bool:
    """Say whether the peer process that asks is the one that the pod is connected to.

    Each start of a peer makes a new CA, which tells. Without TLS it is the peer as long as its `run` is there, or was
    until just now: `connected` names the Jobs of these.
    """
    if plan.chaincode.tls:
        return pod.metadata.annotation(manifests.PEER_ANNOTATION) == plan.peer
    return _job_of(pod.metadata) in connected
