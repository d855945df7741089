"""Takes one run from its request to the end of its chaincode. Never touches sockets, and never deletes.

Every step can be taken again: names follow from the run's token, a creation that meets its own first attempt
has succeeded, the log goes on after the cursor. So a run that comes back after its daemon has died, or after its
connection broke, goes the same way as a new one; it only finds more of it done.
"""

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.errors import BuilderError, ClientGone
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Job
from k8s_builderd.fabric.plan import Owner, Plan
from k8s_builderd.kube import logs
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import AlreadyExists, ApiError, Invalid, NotFound, Refusals
from k8s_builderd.kube.loglines import Batch, Position
from k8s_builderd.kube.objects import Event, ObjectOnly
from k8s_builderd.kube.resources import EVENTS, JOBS, SECRETS
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.cursor import Cursor
from k8s_builderd.runs.diagnosis import Diagnosis, degraded, diagnose, stage
from k8s_builderd.runs.failures import Audience, LaunchFailed, OtherInstance, TimedOut, Vanished
from k8s_builderd.runs.record import Run
from k8s_builderd.runs.store import Store
from k8s_builderd.runs.story import CONTROLLER
from k8s_builderd.runs.verdict import TAIL, left_behind, verdict
from k8s_builderd.tasks import beside

EVENTS_FIRST, EVENTS_CAP = 0.4, 5.0
"""Seconds between two looks at the events of a launch that does not come up."""

LAST_EVENTS, JOB_PATIENCE = 2.0, 10.0
"""Seconds for which an API that does not answer is asked for the events of a chaincode that has ended, and whether its
Job went with its pod. How it ended is told all the same."""

QUIET = 5.0
"""Seconds for which a run waits for the API without a word."""

STAGE_AFTER = 3.0
"""Seconds for which a launch stays where it is without a word."""

UNREADY_AFTER = 30.0
"""Seconds for which a running chaincode may be not ready without a word."""

_log = structlog.get_logger("k8s_builderd.launch")

T = TypeVar("T")


class Launch:
    """One run on its way: its plan, its record, and its audience."""

    def __init__(self, api: Api, store: Store, metrics: Metrics, plan: Plan, run: Run, audience: Audience) -> None:
        """Prepare; `to_end` takes the steps, in the order in which they stand here."""
        self.unstarted = False
        """Whether the API, asked last of all, has shown that the container has not started."""
        self.unseen = False
        """Whether it has refused to show that, though there is a Job."""
        self._api = api
        self._store = store
        self._metrics = metrics
        self._plan = plan
        self._run = run
        self._seen = run.observed
        self._had_started = run.observed.started
        self._audience = audience
        self._job_uid = ""
        self._last_error = ""
        self._refusal = ""
        self._may_exist = False
        self._held_up: Diagnosis | None = None
        self._events_error = ""
        self._last_lines = b""
        self._noticing: anyio.CancelScope | None = None
        self._followed = False

    async def to_end(self, owner: Owner | None, cursor: Cursor | None, deadline: float) -> int:
        """Create what is not there yet, wait until the container runs, pass on its log, and say how it ended.

        :param deadline: until when the container must run, by `anyio.current_time()`.
        :returns: the exit code of `run`.
        :raises LaunchFailed: if it never ran, or is gone without a trace.
        :raises ApiError: if the API server refuses what the launch needs.
        """
        if cursor is not None and cursor.pod:
            deadline = math.inf  # it has started: an earlier daemon has passed on its log
        try:
            # Not fail_after: from Python 3.12 on its error and the frames it has passed hold each other.
            with anyio.move_on_after(deadline - anyio.current_time()) as patience:
                await beside(lambda: self._start(owner, cursor), self._narrate)
        except OtherInstance:
            raise  # it may run, but no watch would tell of its end
        except BuilderError:
            if not await self._started_after_all():
                raise
        if patience.cancelled_caught and not await self._started_after_all():
            raise self._timed_out()
        knew_pod = cursor is not None and bool(cursor.pod)
        if not knew_pod:
            self._count_start()
        await self._find_pod()
        if self._seen.started or knew_pod:
            await self._pass_on_log(cursor)
        return await self._end(cursor, knew_pod=knew_pod)

    async def _pass_on_log(self, cursor: Cursor | None) -> None:
        self._seen.tell(self._look_for_faults)
        try:
            self._look_for_faults()
            await self._log(cursor)
        finally:
            self._seen.tell(None)
            if self._noticing is not None:
                self._noticing.cancel()

    async def _start(self, owner: Owner | None, cursor: Cursor | None) -> None:
        async with self._store.turns.turn():
            is_new = not self._job_uid
            self._job_uid = await self._job(owner, cursor)
            if is_new and cursor is None:
                await self._introduce()
            await beside(lambda: self._seen.until(lambda seen: not seen.needs_secret), self._secret)
        await self._seen.until(lambda seen: seen.started or seen.ended)

    def _count_start(self) -> None:
        if (started_at := self._seen.started_at) is not None and not self._had_started:
            self._had_started = True
            self._metrics.launched("started")
            self._store.story.running(self._run)
            if self._run.made is not None:  # else the request came to an earlier daemon
                self._metrics.running(started_at - self._run.since)

    async def _started_after_all(self) -> bool:
        """Ask the API once more before a launch is ended for not starting: what the watch has told may be old.

        Asked until it answers: that nothing is known of a Job that is there is no reason to end its launch.
        """
        self.unstarted = self.unseen = False
        pauses = delays(0.2, 5.0)
        refusals = Refusals()
        while self._run.state.may_run and not self._seen.started:
            try:
                await self._store.look(self._run)
                self.unstarted = not self._seen.started
                break
            except ApiError as error:
                _log.warning("pod_unknown", job=self._plan.job_name, reason=str(error))
                if not self._job_uid:
                    break
                if refusals.last(error, anyio.current_time()):
                    self.unseen = True
                    break
                await self._tell_once("pod unknown", f"Waiting for the Kubernetes API: {error}")
                with anyio.move_on_after(error.pause(next(pauses))):
                    await self._seen.until(lambda seen: seen.started or seen.ended)
        return self._seen.started

    # The Job and its Secret

    async def _job(self, owner: Owner | None, cursor: Cursor | None) -> str:
        """Return the uid of the run's Job, made now if this run has none yet."""
        if cursor is not None:
            return await self._adopt(cursor)
        if self._seen.job is None and self._seen.pod is not None:
            await self._look_for_job_of_pod()
        if self._seen.job is not None:
            return self._seen.job.metadata.uid
        self._run.ask(self._plan)
        body = manifests.job(self._plan, owner)
        try:
            job = await self._patiently(lambda: self._api.create(JOBS, Job, body))
            self._metrics.job_created(anyio.current_time() - self._run.since)
            self._store.story.launched(self._plan, job)
            _log.info("job_created", job=self._plan.job_name)
        except AlreadyExists:
            job = await self._patiently(lambda: self._api.get(JOBS, Job, self._plan.job_name))
            if job.metadata.token_sha256 != self._plan.token.sha256:
                self._run.refused()
                raise LaunchFailed(
                    f"job {self._plan.namespace}/{self._plan.job_name} exists and belongs to another run: delete it"
                ) from None
        except ApiError as error:
            if self._seen.job is None and not self._may_exist:
                self._run.refused()
            if isinstance(error, Invalid) and self._plan.template:
                raise LaunchFailed(f"{error}. Check FABRIC_K8S_BUILDER_POD_TEMPLATE") from error
            raise
        self._store.jobs.adopt(job)
        return job.metadata.uid

    async def _look_for_job_of_pod(self) -> None:
        """Ask for a Job whose pod is there, though no watch has told of it.

        :raises Vanished: if it is gone: it was deleted before this run's client had heard of it.
        """
        with suppress(NotFound):
            self._store.jobs.adopt(await self._patiently(lambda: self._api.get(JOBS, Job, self._plan.job_name)))
        if self._seen.job is None:
            self._run.lost_job()
            raise self._vanished()

    async def _adopt(self, cursor: Cursor) -> str:
        """Return the uid of the cursor's Job, which an earlier connection of this run was told of.

        :raises Vanished: if neither it nor its pod is there.
        """
        if self._has_nothing_of(cursor):
            with suppress(NotFound):
                # The watch may not have told yet.
                self._check_instance(
                    found := await self._patiently(lambda: self._api.get(JOBS, Job, self._plan.job_name))
                )
                self._store.jobs.adopt(found)
        job = self._seen.job
        if self._has_nothing_of(cursor):
            self._run.vanish()
            raise self._vanished()
        if job is None or job.metadata.uid != cursor.job:
            self._run.lost_job()
        return cursor.job

    def _check_instance(self, job: Job) -> None:
        """Check that a Job of this run is one of those that this daemon watches, or has nothing more to tell.

        :raises OtherInstance: if it is not.
        """
        meta = job.metadata
        is_mine = meta.token_sha256 == self._plan.token.sha256
        if is_mine and meta.instance != self._plan.instance and not job.finished:
            raise OtherInstance(
                f"its job {self._plan.namespace}/{meta.name} belongs to the instance {meta.instance}, but this daemon"
                f" is {self._plan.instance}. Set FABRIC_K8S_BUILDER_INSTANCE={meta.instance} on the daemon"
            )

    def _vanished(self) -> Vanished:
        return Vanished(
            f"chaincode job {self._plan.namespace}/{self._plan.job_name} is gone: the chaincode ended or its job"
            " was deleted while no daemon was watching. The next request starts it again"
        )

    def _has_nothing_of(self, cursor: Cursor) -> bool:
        job, pod = self._seen.job, self._seen.pod
        # The pod outlives its Job for a moment, and has the exit code and the rest of the log.
        return (job is None or job.metadata.uid != cursor.job) and (
            pod is None or (bool(cursor.pod) and pod.metadata.uid != cursor.pod)
        )

    async def _introduce(self) -> None:
        await self._audience.log(self._cursor())
        plan = self._plan
        await self._audience.say(
            f"Running chaincode ID {plan.chaincode.chaincode_id} with kubernetes job {plan.namespace}/{plan.job_name}"
        )

    def _cursor(self, pod: str = "", position: Position | None = None) -> str:
        plan = self._plan
        return str(Cursor(self._job_uid, pod, position, plan.token if plan.takeovers else None, plan.takeovers))

    async def _secret(self) -> None:
        body = manifests.secret(self._plan, self._job_uid)

        async def create() -> None:
            if not self._seen.needs_secret:
                return
            with suppress(AlreadyExists):  # of this run: no other has this name
                await self._api.create(SECRETS, ObjectOnly, body)
            self._run.has_secret()

        await self._patiently(create)

    # What holds it up

    async def _narrate(self) -> None:
        """Tell what holds the launch up, each thing once, until cancelled.

        The pod tells most of it at once. That it is refused or cannot mount its volumes is told by events only, so
        these are looked at now and then.

        :raises LaunchFailed: if no waiting will help.
        """
        pauses = delays(EVENTS_FIRST, EVENTS_CAP)
        events: list[Event] = []
        since = anyio.current_time()
        while True:
            version = self._seen.version
            found = diagnose(self._seen.pod, events)
            await self._tell(found)
            here = stage(self._seen.pod, events, created=bool(self._job_uid), refusal=self._refusal)
            held_up = found[-1] if found else here
            if self._held_up is None or self._held_up.cause != held_up.cause:
                since = anyio.current_time()
            elif not found and anyio.current_time() >= since + STAGE_AFTER:
                self._run.has_problem(here.text)
                await self._tell_once(here.cause, f"Waiting for chaincode to start: {here.text}")
            self._held_up = held_up
            with anyio.move_on_after(next(pauses)) as waiting:
                await self._seen.changed_since(version)
            if waiting.cancelled_caught and self._job_uid:
                events = await self._events()

    def _timed_out(self) -> TimedOut:
        if why := self._store.watch_error or self._last_error:
            return TimedOut(self._plan, why, Category.API_UNAVAILABLE)
        held_up = self._held_up or stage(self._seen.pod, created=bool(self._job_uid))
        return TimedOut(self._plan, held_up.text + self._events_error, held_up.category)

    async def _tell(self, diagnoses: list[Diagnosis]) -> None:
        for diagnosis in diagnoses:
            self._run.has_problem(diagnosis.text)
            if diagnosis.hopeless:
                raise LaunchFailed(diagnosis.text, diagnosis.category)
            await self._tell_once(diagnosis.cause, f"Waiting for chaincode to start: {diagnosis.text}")

    async def _tell_once(self, cause: str, text: str) -> None:
        if self._run.tells(cause):
            await self._audience.say(text)

    async def _events(self, patience: float = 0.0) -> list[Event]:
        """Return the events of the Job and its pod, or what is to be had of them.

        :param patience: seconds after which an API that does not answer is not asked again.
        """
        pod = self._seen.pod
        uids = [self._job_uid] if pod is None else [self._job_uid, pod.metadata.uid]
        found: dict[str, list[Event]] = {}
        self._events_error = ""

        async def look(uid: str) -> None:
            pauses = delays(0.2, 1.0)
            ask_until = anyio.current_time() + patience
            while uid not in found:
                try:
                    found[uid] = (await self._api.list(EVENTS, Event, fieldSelector=f"involvedObject.uid={uid}")).items
                except ApiError as error:
                    _log.warning("events_unavailable", reason=str(error))
                    self._events_error = f"; the events cannot be read: {error}"
                    pause = error.pause(next(pauses))
                    if not error.transient or anyio.current_time() + pause > ask_until:
                        return
                    await anyio.sleep(pause)

        async with anyio.create_task_group() as tasks:
            for uid in uids:
                tasks.start_soon(look, uid)
        # What the daemon itself has said of a Job is no news to it, and is no word of the cluster's.
        return [it for uid in uids for it in found.get(uid, ()) if it.reporting_component != CONTROLLER]

    # The log and the end

    async def _find_pod(self) -> None:
        """Ask for the pod of a Job that is over where the watch has told of none: unknown is not ended."""
        pauses = delays(0.2, 5.0)
        refusals = Refusals()
        while self._seen.ended and not self._seen.certain:
            try:
                await self._store.look(self._run)
            except ApiError as error:
                _log.info("pod_unknown", job=self._plan.job_name, reason=str(error))
                if refusals.last(error, anyio.current_time()):
                    return
                await self._tell_once("pod unknown", f"Waiting for the Kubernetes API: {error}")
                await anyio.sleep(error.pause(next(pauses)))

    async def _log(self, cursor: Cursor | None) -> None:
        pod = self._seen.pod
        if pod is None:
            return
        self._followed = True
        uid = pod.metadata.uid
        position = cursor.position if cursor is not None and cursor.pod == uid else None

        async def deliver(batch: Batch) -> None:
            await self._audience.log(self._cursor(uid, batch.position), batch.lines)
            self._metrics.logged(batch.count, len(batch.lines))
            self._run.passed_on(batch.count, len(batch.lines))
            self._last_lines = (self._last_lines + batch.lines[-TAIL:])[-TAIL:]

        def interrupted(error: ApiError) -> None:
            self._metrics.log_interrupted(error.kind)
            self._run.interrupted(str(error))

        async def gap() -> None:
            self._metrics.log_interrupted("rotated")
            self._run.has_problem("lines of its log are missing: the file was rotated before they were read")
            await self._audience.say(
                "Lines of the chaincode's log are missing here: the file was rotated before they were read"
            )

        async def refused(error: ApiError) -> None:
            self._run.has_problem(f"its log cannot be read: {error}")
            await self._audience.say(f"Cannot read the chaincode's log, retrying: {error}")

        try:
            await logs.follow(
                self._api,
                pod.metadata.name,
                CONTAINER,
                self._seen,
                position,
                deliver=deliver,
                gap=gap,
                refused=refused,
                interrupted=interrupted,
                prefix=self._plan.prefix(pod.metadata.name),
            )
        except logs.LogIncomplete as error:
            # The log is for people: how the chaincode ended is told all the same.
            self._metrics.log_interrupted("lost")
            _log.warning("log_lost", reason=str(error))
            self._run.interrupted(f"the end is missing: {error}")
            await self._audience.say(f"The end of the chaincode's log is missing: {error}")

    def _look_for_faults(self) -> None:
        """Have a task tell what is wrong with a chaincode that runs, where there is anything."""
        if self._noticing is None and self._wrong_while_running():
            self._noticing = anyio.CancelScope()
            self._store.begin(self._notice, self._run, self._noticing)

    async def _notice(self, _run: Run, scope: anyio.CancelScope) -> None:
        """Tell each thing once, until nothing is wrong: its Job is gone, its neighbour has failed."""
        with scope, suppress(ClientGone):
            await self._tell_faults()
        self._noticing = None

    async def _tell_faults(self) -> None:
        since: dict[str, float] = {}
        while found := self._wrong_while_running():
            version, now = self._seen.version, anyio.current_time()
            since = {each.cause: since.get(each.cause, now) for each in found}
            left = [since[each.cause] + UNREADY_AFTER - now for each in found if each.category is Category.NOT_READY]
            for each in found:
                if each.category is not Category.NOT_READY or left[0] <= 0:
                    await self._tell_degraded(each)
            with anyio.move_on_after(left[0] if left and left[0] > 0 else math.inf):
                await self._seen.changed_since(version)

    def _wrong_while_running(self) -> list[Diagnosis]:
        pod = self._seen.pod
        if self._seen.ended:
            return []
        if (orphaned := left_behind(self._seen)) is not None:
            return [orphaned]
        return degraded(pod) if pod is not None and not (self._seen.told_to_end or self._seen.job_gone) else []

    async def _tell_degraded(self, diagnosis: Diagnosis) -> None:
        self._run.has_problem(diagnosis.text)
        if self._run.tells(diagnosis.cause):
            self._store.story.degraded(self._run, diagnosis.category, diagnosis.text)
            _log.warning("chaincode_degraded", category=diagnosis.category, reason=diagnosis.text)
            await self._audience.say(f"Chaincode ID {self._plan.chaincode.chaincode_id}: {diagnosis.text}")

    async def _end(self, cursor: Cursor | None, *, knew_pod: bool) -> int:
        while True:
            await self._seen.until(lambda seen: seen.ended)
            await self._find_pod()
            if self._seen.started and self._seen.pod is not None and not self._followed:
                await self._pass_on_log(cursor)  # its pod was not to be found before
                continue
            if self._seen.terminated is None and not self._seen.job_gone:
                await self._look_for_job()
            version = self._seen.version
            how = verdict(
                self._seen,
                await self._events(LAST_EVENTS),
                pods_known=self._seen.certain,
                knew_pod=knew_pod,
                last_lines=self._last_lines,
            )
            if how is not None:
                break
            with anyio.move_on_after(EVENTS_CAP):
                await self._seen.changed_since(version)
        if self._seen.started or knew_pod:
            self._metrics.ended(how.category)
        else:
            self._metrics.launched("failed", how.category)
        self._run.has_problem(how.text)
        self._store.story.ended(self._run, how)
        _log.info("chaincode_ended", code=how.code, category=how.category, reason=how.text)
        await self._audience.say(f"Chaincode ID {self._plan.chaincode.chaincode_id}: {how.text}")
        return how.code

    async def _look_for_job(self) -> None:
        """Find out whether the Job went with its pod, where the watch of Jobs has not told yet."""
        pauses = delays(0.2, 5.0)
        with anyio.move_on_after(JOB_PATIENCE):
            while not self._seen.job_gone:
                try:
                    job = await self._api.get(JOBS, Job, self._plan.job_name)
                    is_ours = job.metadata.uid == self._job_uid
                except NotFound:
                    is_ours = False
                except ApiError as error:
                    _log.info("job_unknown", reason=str(error))
                    if not (error.transient or error.may_pass):
                        return
                    await anyio.sleep(error.pause(next(pauses)))
                    continue
                if not is_ours:
                    self._run.lost_job()
                return

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Ask the API until it answers; what time is left for that is the caller's.

        :raises ApiError: if asking again would not help.
        """
        pauses = delays(0.2, 5.0)
        refusals = Refusals()
        while True:
            try:
                answer = await attempt()
                self._last_error = self._refusal = ""
                return answer
            except ApiError as error:
                now = anyio.current_time()
                if refusals.last(error, now) or not (error.transient or error.may_pass):
                    raise
                self._last_error = str(error)
                self._refusal = "" if error.transient else refusals.words(error, now)
                self._run.has_problem(self._refusal or self._last_error)
                _log.info("api_retry", reason=self._refusal or self._last_error)
                if error.transient:
                    self._may_exist = True
                    await self._tell_once("api", f"Retrying: {error}")
                await anyio.sleep(error.pause(next(pauses)))
                self._metrics.retried(error.verb, error.resource)
