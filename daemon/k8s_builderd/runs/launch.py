"""Takes one run from its request to the end of its chaincode. Never touches sockets, and never deletes.

Every step can be taken again: names follow from the run's token, a creation that meets its own first attempt
has succeeded, the log goes on after the cursor. So a run that comes back after its daemon has died, or after its
connection broke, goes the same way as a new one; it only finds more of it done.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Job
from k8s_builderd.fabric.plan import Owner, Plan
from k8s_builderd.kube import logs
from k8s_builderd.kube.api import EVENTS, JOBS, SECRETS, Api
from k8s_builderd.kube.errors import AlreadyExists, ApiError, Forbidden, Invalid, NotFound, Refusals
from k8s_builderd.kube.loglines import Batch, Position
from k8s_builderd.kube.objects import Event, ObjectOnly
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.cursor import Cursor
from k8s_builderd.runs.diagnosis import TAIL, Diagnosis, Verdict, diagnose, stage, verdict
from k8s_builderd.runs.observed import Sightings

EVENTS_FIRST, EVENTS_CAP = 0.4, 5.0
"""Seconds between two looks at the events of a launch that does not come up."""

STAGE_AFTER = 3.0
"""Seconds for which a launch stays where it is without a word."""

_log = structlog.get_logger("k8s_builderd.runs.launch")

T = TypeVar("T")


class LaunchFailed(BuilderError):
    """Raised when the chaincode does not run and will not; the text says what to change."""

    def __init__(self, text: str, category: Category | None = None) -> None:
        """Take the line, and its category where it has one."""
        super().__init__(text)
        self.category = category


class TimedOut(LaunchFailed):
    """Raised when the container did not run within START_TIMEOUT."""

    def __init__(self, plan: Plan, why: str, category: Category | None = None) -> None:
        """Take what has held the launch up, as far as it is known; the rest is in the Go builder's words."""
        super().__init__(
            f"error waiting for chaincode job {plan.namespace}/{plan.job_name} to start for chaincode ID"
            f" {plan.chaincode.chaincode_id}: timed out waiting for the condition" + (f"; {why}" if why else ""),
            category,
        )


class Vanished(LaunchFailed):
    """Raised when the cursor's Job is no longer there; the chaincode is not launched a second time."""


class Audience(Protocol):
    """Who is told how the launch goes: the connection of one `run`."""

    async def say(self, text: str) -> None:
        """Tell one line of the builder's own."""

    async def log(self, cursor: str, lines: bytes = b"") -> None:
        """Pass on lines of the chaincode, and the cursor after them."""


class Launch:
    """One run on its way: its plan, what the watches say of it, and its audience."""

    def __init__(
        self,
        api: Api,
        plan: Plan,
        sightings: Sightings,
        audience: Audience,
        *,
        created: Callable[[Job], None],
        told: set[str],
        logged: Callable[[int], None],
        blind: Callable[[], str | None],
    ) -> None:
        """Prepare; `run` takes the steps, in the order in which they stand here.

        :param created: is told of the Job as soon as a request of ours has returned it.
        :param told: what this run has been told already; what is in it is not told again.
        :param logged: is told the bytes of log that have been passed on.
        :param blind: returns why a watch is interrupted, or None.
        """
        self._api = api
        self._plan = plan
        self._sightings = sightings
        self._audience = audience
        self._created = created
        self._told = told
        self._logged = logged
        self._blind = blind
        self._trouble = ""
        self._held_up: Diagnosis | None = None
        self._unread = ""
        self._last_lines = b""
        self.uncertain = False
        """Whether a request was cut off, so that it may have been carried out."""

    async def run(self, owner: Owner | None, cursor: Cursor | None, deadline: float) -> int:
        """Create what is not there yet, wait until the container runs, pass on its log, and say how it ended.

        :param deadline: until when the container must run, by `anyio.current_time()`.
        :returns: the exit code of `run`.
        :raises LaunchFailed: if it never ran, or is gone without a trace.
        :raises ApiError: if the API server refuses what the launch needs.
        """
        job_uid = ""
        try:
            with anyio.fail_after(deadline - anyio.current_time()):
                job_uid = await self._job(owner, cursor)
                await self._introduce(job_uid, cursor)
                await self._secret(job_uid)
                await self._started(job_uid)
        except TimeoutError:
            raise self._timed_out(created=bool(job_uid)) from None
        await self._log(job_uid, cursor)
        return await self._end(job_uid, knew_pod=cursor is not None and bool(cursor.pod))

    @property
    def _never_starts(self) -> bool:
        pod = self._sightings.pod
        return not self._sightings.started and pod is not None and pod.never_starts(CONTAINER)

    def _timed_out(self, *, created: bool) -> TimedOut:
        if why := self._blind() or self._trouble:
            return TimedOut(self._plan, why, Category.API_UNAVAILABLE)
        held_up = self._held_up or stage(self._sightings.pod, created=created)
        return TimedOut(self._plan, held_up.text + self._unread, held_up.category)

    async def _job(self, owner: Owner | None, cursor: Cursor | None) -> str:
        """Return the uid of the run's Job, made now if this run has none yet."""
        sightings = self._sightings
        if cursor is not None:
            return self._adopt(cursor)
        if sightings.job is not None:
            return sightings.job.metadata.uid
        body = manifests.job(self._plan, owner)
        try:
            job = await self._patiently(lambda: self._api.create(JOBS, Job, body))
            _log.info("job_created", job=self._plan.job_name)
        except Invalid as error:
            if self._plan.template:
                raise LaunchFailed(f"{error}. Check FABRIC_K8S_BUILDER_POD_TEMPLATE") from error
            raise
        except AlreadyExists:
            job = await self._patiently(lambda: self._api.get(JOBS, Job, self._plan.job_name))
            if job.metadata.token_sha256 != self._plan.token.sha256:
                raise LaunchFailed(
                    f"there is a job {self._plan.namespace}/{self._plan.job_name} of another run: delete it"
                ) from None
        self._created(job)
        return job.metadata.uid

    def _adopt(self, cursor: Cursor) -> str:
        job, pod = self._sightings.job, self._sightings.pod
        if job is not None and job.metadata.uid != cursor.job:
            job = None
        # The pod outlives its Job for a moment, and has the exit code and the rest of the log.
        if job is None and (pod is None or (cursor.pod and pod.metadata.uid != cursor.pod)):
            raise Vanished(
                f"chaincode job {self._plan.namespace}/{self._plan.job_name} is gone: the chaincode ended or its job"
                " was deleted while no daemon watched it; the next request starts it anew"
            )
        if job is None:
            self._sightings.lost_job()
        return cursor.job

    async def _secret(self, job_uid: str) -> None:
        sightings = self._sightings
        body = manifests.secret(self._plan, job_uid)

        async def create() -> None:
            if sightings.has_secret or sightings.started or sightings.job_gone:
                return  # it is known to be there: its volume is mounted; or it will never be needed
            with suppress(AlreadyExists):  # of this run: no other has this name
                await self._api.create(SECRETS, ObjectOnly, body)
            sightings.has_secret = True

        await self._patiently(create)

    async def _introduce(self, job_uid: str, cursor: Cursor | None) -> None:
        if cursor is not None:
            return
        await self._audience.log(self._cursor(job_uid))
        plan = self._plan
        await self._audience.say(
            f"Running chaincode ID {plan.chaincode.chaincode_id} with kubernetes job {plan.namespace}/{plan.job_name}"
        )

    def _cursor(self, job: str, pod: str = "", position: Position | None = None) -> str:
        plan = self._plan
        return str(Cursor(job, pod, position, plan.token if plan.heir else None, plan.heir))

    async def _started(self, job_uid: str) -> None:
        """Wait until the container runs or has ended; meanwhile tell what holds it up, each thing once.

        The pod tells most of it at once. That it is refused or cannot mount its volumes is told by events only, so
        these are looked at now and then.
        """
        sightings = self._sightings
        pauses = delays(EVENTS_FIRST, EVENTS_CAP)
        events: list[Event] = []
        pause = next(pauses)
        since = anyio.current_time()
        while not (sightings.started or sightings.ended or self._never_starts):
            diagnoses = diagnose(sightings.pod, events)
            await self._tell(diagnoses)
            here = stage(sightings.pod, events)
            held_up = diagnoses[-1] if diagnoses else here
            if self._held_up is None or self._held_up.cause != held_up.cause:
                since = anyio.current_time()
            elif not diagnoses and anyio.current_time() - since >= STAGE_AFTER:
                await self._tell_once(here.cause, f"Waiting for chaincode to start: {here.text}")
            self._held_up = held_up
            with anyio.move_on_after(pause) as waiting:
                await sightings.changed()
            if waiting.cancelled_caught:
                pause = next(pauses)
                events = await self._events(job_uid)
                if blind := self._blind():
                    await self._tell_once(blind, f"Waiting for chaincode to start: {blind}")

    async def _tell(self, diagnoses: list[Diagnosis]) -> None:
        for diagnosis in diagnoses:
            if diagnosis.hopeless:
                raise LaunchFailed(diagnosis.text, diagnosis.category)
            await self._tell_once(diagnosis.cause, f"Waiting for chaincode to start: {diagnosis.text}")

    async def _tell_once(self, cause: str, text: str) -> None:
        if cause not in self._told:
            self._told.add(cause)
            await self._audience.say(text)

    async def _events(self, job_uid: str) -> list[Event]:
        """Return the events of the Job and its pod, or what is to be had of them."""
        pod = self._sightings.pod
        uids = [job_uid] if pod is None else [job_uid, pod.metadata.uid]
        found: list[Event] = []
        for uid in uids:
            try:
                found += (await self._api.list(EVENTS, Event, fieldSelector=f"involvedObject.uid={uid}")).items
            except ApiError as error:
                _log.warning("events_unavailable", reason=str(error))
                self._unread = f"; the events cannot be read: {error}"
                return found
        self._unread = ""
        return found

    async def _log(self, job_uid: str, cursor: Cursor | None) -> None:
        sightings = self._sightings
        pod = sightings.pod
        if pod is None or self._never_starts:
            return
        uid = pod.metadata.uid
        position = cursor.position if cursor is not None and cursor.pod == uid else None

        async def deliver(batch: Batch) -> None:
            await self._audience.log(self._cursor(job_uid, uid, batch.position), batch.lines)
            self._logged(len(batch.lines))
            self._last_lines = (self._last_lines + batch.lines)[-TAIL:]

        async def gap() -> None:
            await self._audience.say("Some lines of the chaincode's log are missing here: its file was rotated away")

        async def trouble(error: ApiError) -> None:
            await self._audience.say(f"The chaincode's log cannot be read, trying again: {error}")

        try:
            await logs.follow(
                self._api,
                pod.metadata.name,
                CONTAINER,
                sightings,
                position,
                deliver=deliver,
                gap=gap,
                trouble=trouble,
            )
        except logs.LogIncomplete as error:
            # The log is for people: how the chaincode ended is told all the same.
            _log.warning("log_lost", reason=str(error))
            await self._audience.say(f"The end of the chaincode's log is missing: {error}")

    async def _end(self, job_uid: str, *, knew_pod: bool) -> int:
        sightings = self._sightings
        while not (sightings.ended or self._never_starts):
            await sightings.changed()
        if sightings.terminated is None and not sightings.job_gone:
            await self._look_for_job(job_uid)
        while (how := await self._verdict(job_uid, knew_pod=knew_pod)) is None:
            with anyio.move_on_after(EVENTS_CAP):
                await sightings.changed()
        _log.info("chaincode_ended", code=how.code, category=how.category, reason=how.text)
        await self._audience.say(f"Chaincode ID {self._plan.chaincode.chaincode_id}: {how.text}")
        return how.code

    async def _verdict(self, job_uid: str, *, knew_pod: bool) -> Verdict | None:
        return verdict(
            self._sightings,
            await self._events(job_uid),
            pods_known=self._blind() is None,
            knew_pod=knew_pod,
            last_lines=self._last_lines,
        )

    async def _look_for_job(self, job_uid: str) -> None:
        """Find out whether the Job went with its pod, where the watch of Jobs has not told yet."""
        try:
            job = await self._api.get(JOBS, Job, self._plan.job_name)
        except NotFound:
            self._sightings.lost_job()
        except ApiError as error:
            _log.info("job_unknown", reason=str(error))
        else:
            if job.metadata.uid != job_uid:
                self._sightings.lost_job()

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Ask the API until it answers; what time is left for that is the caller's.

        :raises ApiError: if asking again would not help.
        """
        pauses = delays(0.2, 5.0)
        refusals = Refusals()
        while True:
            try:
                answer = await attempt()
                self._trouble = ""
                return answer
            except ApiError as error:
                last = refusals.last(error, anyio.current_time())
                if last or not (error.transient or isinstance(error, Forbidden)):
                    raise
                self._trouble = str(error)
                _log.info("api_retry", reason=str(error))
                if error.transient:
                    self.uncertain = True
                    await self._tell_once("api", f"Trying again: {error}")
                await anyio.sleep(error.pause(next(pauses)))
