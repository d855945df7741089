"""Knows every run: what the watches have seen of it, whether a client attends it, and whether its Job is to be deleted.

A run outlives its connection. It is created by the first request with its token, or by a Job that a new daemon
finds, and it is forgotten when its container has ended and nobody attends it. Deleting a Job is a decision made here
and nowhere else, for one of the reasons of `Reason`; cancellation means that the daemon ends, and deletes nothing.
"""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Self

import anyio
import structlog
from anyio.abc import TaskGroup

from k8s_builderd.backoff import delays
from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.names import Subject
from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.fabric.plan import Plan
from k8s_builderd.kube.api import JOBS, PODS, Api
from k8s_builderd.kube.errors import ApiError, NotFound
from k8s_builderd.kube.watch import Applied, Deleted, Reflector
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.observed import Sightings
from k8s_builderd.settings import Settings

LATE = 15.0
"""Seconds for which a deleted Job is watched for: a create request that was cut off may be carried out late."""

_log = structlog.get_logger("k8s_builderd.runs.store")


KNOCKED = 10.0
"""Seconds for which a run is left after its client was last turned away; it comes again within 5."""


class Reason(StrEnum):
    """Why a Job is deleted."""

    STOPPED = "stopped"
    CLIENT_GONE = "client gone"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    ORPHAN = "orphan"


class Attendance:
    """One connection's hold on a run. Ended from outside by `displace`."""

    def __init__(self) -> None:
        self.since = anyio.current_time()
        self.left = anyio.Event()
        self.displaced: BuilderError | None = None
        self.scope = anyio.CancelScope()

    def displace(self, error: BuilderError) -> None:
        """End it; its client is told the error."""
        self.displaced = error
        self.scope.cancel()


class Run:
    """One run: its names, what the watches say of it, and who attends it."""

    def __init__(self, job_name: str, subject: Subject, token_sha256: str) -> None:
        self.job_name = job_name
        self.subject = subject
        self.token_sha256 = token_sha256
        self.sightings = Sightings()
        self.told: set[str] = set()
        self.attendance: Attendance | None = None
        self.absences = 0
        self.since = anyio.current_time()
        self.knocked_at = -math.inf
        """When its client was last turned away, to come again."""
        self.made: Plan | None = None
        """What its Job was made from, where this daemon has made it."""
        self.peer = ""
        """The peer process that its newest client was called by (`Plan.peer`)."""
        self.heir = 0
        """How many later launches have gone on with its Job."""
        self.attempted = False
        """Whether a Job of this run may exist: one was asked for, found, or is named by a cursor."""
        self.dropped = False
        """Whether its peer has dropped this launch, so that its chaincode would be refused."""
        self.ending: anyio.Event | None = None
        """Set while its Job is being deleted; the event tells that the API has accepted that."""
        self.reason: Reason | None = None
        """Why it is being deleted."""
        self.trouble = ""
        """Why the API has not accepted that yet."""

    @classmethod
    def of(cls, meta: Meta) -> Self:
        """Return the run that a Job found in the cluster belongs to."""
        return cls(meta.name, meta.subject, meta.token_sha256)

    def displace(self, error: BuilderError) -> None:
        """End whoever attends it."""
        if self.attendance is not None:
            self.attendance.displace(error)

    @property
    def live(self) -> bool:
        """Say whether its container runs or may yet come to run."""
        return self.attempted and not self.sightings.ended


class Registry:
    """All runs of this daemon's instance, by the hash of their token, and the two watches that tell of them.

    Never by the name of the Job: its suffix is short enough to be found by trying, and would give one local process
    another's run.
    """

    def __init__(self, api: Api, settings: Settings, metrics: Metrics) -> None:
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._by_token: dict[str, Run] = {}
        self._changed = anyio.Event()
        self._claims_count = False
        self._unending: set[str] = set()
        """The uids of pods that did not end when they were told to: their node is lost. Nobody waits for them twice."""
        self._tasks: TaskGroup
        label = manifests.selector(settings.instance)
        self.jobs = Reflector(api, JOBS, Job, label, self._job_changed, silence=settings.watch_silence)
        self.pods = Reflector(api, PODS, Pod, label, self._pod_changed, silence=settings.watch_silence)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Watch, and do what has to be done without a client, until the context is left."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self.jobs.run)
            self._tasks.start_soon(self.pods.run)
            yield
            self._tasks.cancel_scope.cancel()

    @property
    def count(self) -> int:
        """The number of runs."""
        return len(self._by_token)

    @property
    def blind(self) -> str | None:
        """Why a watch is interrupted, or None."""
        return self.jobs.trouble or self.pods.trouble

    async def synced(self) -> None:
        """Wait until it is known what there is."""
        await self.jobs.ever_synced.wait()
        await self.pods.ever_synced.wait()

    async def changed(self) -> None:
        """Wait until a watch has told something, or a run has gone."""
        await self._changed.wait()

    async def expire_orphans(self) -> None:
        """Start the grace of the Jobs that nobody claims, once the watches are synced. Call when the socket is open."""
        await self.synced()
        self._claims_count = True
        for run in list(self._by_token.values()):
            if run.attendance is None and run.ending is None:
                self.start_grace(run, self._settings.orphan_grace, Reason.ORPHAN)

    def claim(self, plan: Plan) -> Run:
        """Return the run with the plan's token, made now if nothing is known of it."""
        token = plan.token.sha256
        run = self._by_token.get(token)
        if run is None:
            run = self._by_token[token] = Run(plan.job_name, plan.subject, token)
            self._catch_up(run)
        return run

    # Other launches of the same chaincode

    def coming(self, plan: Plan) -> Run | None:
        """Return an earlier launch on the same terms whose pod is there but whose container has not started, if any."""
        if plan.token.sha256 in self._by_token:
            return None
        return next(
            (
                run
                for run in self._by_token.values()
                if run.made is not None
                and run.made.terms == plan.terms
                and run.ending is None
                and run.sightings.job is not None
                and run.sightings.coming
            ),
            None,
        )

    def rivals(self, run: Run) -> list[Run]:
        """Return the other launches of the same chaincode that have not ended, those still without a Job included."""
        return [
            rival
            for rival in self._by_token.values()
            if rival is not run
            and rival.subject == run.subject
            and (rival.live or (rival.attendance is not None and not rival.sightings.ended))
            and (rival.sightings.pod is None or rival.sightings.pod.metadata.uid not in self._unending)
        ]

    def pods_of_others(self, run: Run) -> list[Pod]:
        """Return the pods of other launches of the same chaincode."""
        return [
            pod
            for pod in self.pods.objects.values()
            if pod.metadata.subject == run.subject and job_of(pod.metadata) != run.job_name
        ]

    async def look_at(self, pod: Meta) -> None:
        """Ask for a pod, because the watch may have fallen silent, and take in what the API says.

        :raises ApiError: if it says nothing.
        """
        try:
            found = await self._api.get(PODS, Pod, pod.name)
        except NotFound:
            self.pods.lose(pod.uid)
            return
        if found.metadata.uid == pod.uid:
            self.pods.adopt(found)
        else:
            self.pods.lose(pod.uid)

    def give_up(self, pods: list[Meta]) -> None:
        """Wait no more for the end of these pods."""
        if not pods:
            return
        _log.warning("pods_do_not_end", pods=[meta.name for meta in pods])
        self._unending |= {meta.uid for meta in pods}

    def given_up(self, uid: str) -> bool:
        """Say whether a pod's end is waited for no more."""
        return uid in self._unending

    # How a run ends without its client

    def may_have_job(self, run: Run) -> bool:
        """Say whether a Job of this run may exist."""
        # Before the watches have told, a Job may be there that an earlier daemon made for this token.
        return run.attempted or not self.jobs.ever_synced.is_set()

    def begin_deletion(self, run: Run, reason: Reason) -> anyio.Event:
        """Delete the run's Job, in the background; the event tells that the API has accepted that."""
        if run.ending is None:
            run.ending, run.reason = anyio.Event(), reason
            run.attempted = True
            self._metrics.deleted(reason)
            self._tasks.start_soon(self._see_deleted, run, run.ending, reason)
        return run.ending

    async def _see_deleted(self, run: Run, accepted: anyio.Event, reason: Reason) -> None:
        """Delete the Job until it is gone and its container has ended."""
        pauses = delays(0.1, 5.0)
        sightings = run.sightings
        while True:
            absent = False
            try:
                job = await self._api.get(JOBS, Job, run.job_name)
                if job.metadata.token_sha256 != run.token_sha256:
                    raise NotFound("the job of that name is another run's")
                await self._api.delete(JOBS, run.job_name, job.metadata.uid)
                _log.info("job_deleted", job=run.job_name, reason=reason)
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

    def start_grace(self, run: Run, seconds: float, reason: Reason) -> None:
        """Delete the run's Job unless a client attends it within so many seconds."""
        self._tasks.start_soon(self._expire, run, seconds, reason, run.absences + (run.attendance is not None))

    async def _expire(self, run: Run, seconds: float, reason: Reason, absence: int) -> None:
        rest = seconds
        while rest > 0:
            await anyio.sleep(rest)
            rest = run.knocked_at + KNOCKED - anyio.current_time()
        if run.attendance is None and run.absences == absence and run.ending is None:
            if run.live:
                _log.warning("job_unclaimed", job=run.job_name, seconds=seconds, reason=reason)
                self.begin_deletion(run, reason)
            else:
                self._forget(run)

    def knocked(self, token_sha256: str) -> None:
        """Put off the end of a run's grace: its client is there, but cannot be served now."""
        if (run := self._by_token.get(token_sha256)) is not None:
            run.knocked_at = anyio.current_time()

    def settle(self, run: Run) -> None:
        """Forget a run that is over and that nobody attends."""
        if run.attendance is None and run.ending is None and not run.live:
            self._forget(run)

    # What the watches tell

    def _job_changed(self, change: Applied[Job] | Deleted[Job]) -> None:
        meta = change.object.metadata
        token = meta.token_sha256
        run = self._by_token.get(token)
        if run is None:
            if isinstance(change, Deleted) or change.object.finished or not token:
                return
            run = self._by_token[token] = Run.of(meta)
            self._catch_up(run)
            if self._claims_count:
                self.start_grace(run, self._settings.orphan_grace, Reason.ORPHAN)
        elif run.sightings.job is None and run.job_name != meta.name:
            run.job_name = meta.name  # an earlier daemon, with other settings, has made it
            self._catch_up(run)
        run.attempted = True
        run.sightings.saw(change)
        self.settle(run)
        self._pulse()

    def _pod_changed(self, change: Applied[Pod] | Deleted[Pod]) -> None:
        meta = change.object.metadata
        if isinstance(change, Deleted):
            self._unending.discard(meta.uid)
        run = self._by_token.get(meta.token_sha256)
        if run is not None and job_of(meta) == run.job_name:
            run.sightings.saw(change)
            self.settle(run)
        self._pulse()

    def _catch_up(self, run: Run) -> None:
        """Tell a run what the watches have seen before it was known here."""
        for job in self.jobs.objects.values():
            if job.metadata.token_sha256 == run.token_sha256:
                run.attempted = True
                run.job_name = job.metadata.name
                run.sightings.saw(Applied(job))
        for pod in self.pods.objects.values():
            meta = pod.metadata
            if meta.token_sha256 == run.token_sha256 and job_of(meta) == run.job_name:
                run.sightings.saw(Applied(pod))

    def _forget(self, run: Run) -> None:
        if self._by_token.get(run.token_sha256) is run:
            del self._by_token[run.token_sha256]

    def _pulse(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


def job_of(meta: Meta) -> str:
    """Return the name of the Job that owns a pod, empty where none does."""
    return next((owner.name for owner in meta.owner_references or () if owner.kind == "Job"), "")
