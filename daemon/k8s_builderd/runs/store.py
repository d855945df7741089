"""All runs of this daemon, by their token and by what they launch, and the two watches that tell of them.

A run outlives its connection. It is made by the first request with its token, or by a Job or pod that a new daemon
finds, and it is forgotten when its container has ended and nobody attends it. Cancellation means that the daemon ends,
and deletes nothing.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import structlog
from anyio.abc import TaskGroup

from k8s_builderd.backoff import delays
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.names import LaunchKey
from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.fabric.plan import Plan
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, NotFound
from k8s_builderd.kube.resources import JOBS, PODS
from k8s_builderd.kube.watch import Applied, Deleted, Reflector
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.failures import Audience
from k8s_builderd.runs.record import Absence, Claim, Deletion, Reason, Run, State
from k8s_builderd.runs.stop import delete_job
from k8s_builderd.runs.story import Story
from k8s_builderd.runs.turns import Turns
from k8s_builderd.settings import Settings
from k8s_builderd.tasks import Bell

FIRST_LISTS = 1.0
"""Seconds for which the first deletions of a daemon wait until it knows what there is; `run` waits for 2."""

AFTER_CRASH = 5.0
"""Seconds after which a deletion is tried again that a mistake of ours has broken."""

LOST_LABEL = 15.0
"""Seconds between two looks at a pod that no watch tells of any more."""

KNOCK = 15.0
"""Seconds that a client which has knocked is waited for: it sleeps for 5 between two attempts at most."""

PIECE = 1.0
"""Seconds of an absence that are waited for at once. Where that takes twice as long, this daemon has stood still."""

_log = structlog.get_logger("k8s_builderd.runs")


class Siblings:
    """The runs of one launch key, and a bell that rings for whoever waits for one of them."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.version = 0
        self._changed = Bell()

    def ring(self) -> None:
        """Wake who waits."""
        self.version += 1
        self._changed.ring()

    async def changed_since(self, version: int) -> None:
        """Wait until one of the runs has changed, come or gone since there was this version."""
        while self.version == version:
            await self._changed.wait()


class Store:
    """All runs of this daemon's instance.

    Found by the hash of their token, never by the name of the Job: its suffix is short enough to be found by trying,
    and would give one local process another's run.
    """

    def __init__(self, api: Api, settings: Settings, metrics: Metrics, story: Story | None = None) -> None:
        self.story = story or Story()
        """What becomes of the runs is told to it."""
        self.turns = Turns()
        """What the launches take to ask for what they need."""
        self._api = api
        self._settings = settings
        self._metrics = metrics
        self._by_token: dict[str, Run] = {}
        self._by_key: dict[LaunchKey, Siblings] = {}
        self._objects: dict[str, dict[str, Job | Pod]] = {}
        """Every Job and pod that is there, by token and uid: what is known of a run before the run is."""
        self._token_of: dict[str, str] = {}
        """By uid, the token of each: a Job's own, or that of the Job which owns a pod. Whoever overwrites an annotation
        takes no chaincode from its run."""
        self._early_pods: list[Applied[Pod] | Deleted[Pod]] | None = None
        """What is told of pods before it is known which Jobs there are: a pod is that of the Job which owns it."""
        self._jobs_known = anyio.Event()
        self.forgotten = 0
        """How many runs are over and forgotten."""
        self._claims_count = False
        self._open = False
        self._tasks: TaskGroup
        label = manifests.selector(settings.instance)
        silence, restarted = settings.watch_silence, metrics.watch_restarted
        self.jobs = Reflector(api, JOBS, Job, label, self._job_changed, silence=silence, restarted=restarted)
        self.pods = Reflector(api, PODS, Pod, label, self._pod_changed, silence=silence, restarted=restarted)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Watch, and do what has to be done without a client, until the context is left."""
        self._early_pods = []
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self.jobs.run)
            self._tasks.start_soon(self.pods.run)
            self._tasks.start_soon(self._take_in_early_pods)
            self._open = True
            try:
                yield
            finally:
                self._open = False
            self._tasks.cancel_scope.cancel()

    async def _take_in_early_pods(self) -> None:
        await self.jobs.ever_synced.wait()
        early, self._early_pods = self._early_pods or [], None
        for change in early:
            self._pod_changed(change)
        self._jobs_known.set()

    @property
    def count(self) -> int:
        """The number of runs."""
        return len(self._by_token)

    @property
    def unfinished(self) -> bool:
        """Whether a run has not ended, nor has the API accepted its Job's deletion."""
        return any(
            run.state is not State.ENDED and not (run.deletion and run.deletion.accepted_at is not None)
            for run in self._by_token.values()
        )

    @property
    def states(self) -> dict[str, int]:
        """The number of runs in each state."""
        found = Counter(run.state for run in self._by_token.values())
        return {state.value: found[state] for state in State}

    @property
    def watch_error(self) -> str | None:
        """Why a watch is interrupted, or None."""
        return self.jobs.error or self.pods.error

    async def synced(self) -> None:
        """Wait until it is known what there is."""
        await self._jobs_known.wait()
        await self.pods.ever_synced.wait()

    # Finding runs

    def find(self, token_sha256: str) -> Run | None:
        """Return the run with this token, where one is known."""
        return self._by_token.get(token_sha256)

    def get_or_make(self, plan: Plan) -> Run:
        """Return the run with the plan's token, made now if nothing is known of it."""
        run = self._by_token.get(plan.token.sha256)
        return run or self._add(Run(plan.job_name, plan.key, plan.token.sha256))

    def siblings(self, key: LaunchKey) -> Siblings:
        """Return the runs of a launch key. Those that are looked for again and again are looked for here once."""
        return self._by_key.get(key) or Siblings()

    def _add(self, run: Run) -> Run:
        self._by_token[run.token_sha256] = run
        self._by_key.setdefault(run.key, Siblings()).runs[run.token_sha256] = run
        for job in (it for it in self._known(run) if isinstance(it, Job)):
            run.found(Applied(job))
        self._find_pods(run)
        return run

    def _find_pods(self, run: Run) -> None:
        for pod in (it for it in self._known(run) if isinstance(it, Pod) and it.job_name == run.job_name):
            run.found(Applied(pod))

    def _known(self, run: Run) -> list[Job | Pod]:
        return list(self._objects.get(run.token_sha256, {}).values())

    def _forget(self, run: Run) -> None:
        if self._by_token.get(run.token_sha256) is run:
            run.end_absence()
            self.forgotten += 1
            del self._by_token[run.token_sha256]
            siblings = self._by_key[run.key]
            del siblings.runs[run.token_sha256]
            siblings.ring()
            if not siblings.runs:
                del self._by_key[run.key]

    def _ring(self, run: Run) -> None:
        if (siblings := self._by_key.get(run.key)) is not None:
            siblings.ring()

    # Clients that come and go

    def take(self, run: Run, plan: Plan, client_pid: int = 0, audience: Audience | None = None) -> Claim:
        """Give a run to the connection that asks with this plan."""
        claim = run.take(plan, client_pid, audience)
        self._ring(run)
        return claim

    def release(self, run: Run, claim: Claim) -> None:
        """Take a run back from a connection that has ended. Its client has its grace, where there is a Job to lose."""
        if run.release(claim) and self._open:  # else the daemon ends: nothing is begun any more
            if run.state.may_run and run.deletion is None:
                self._miss(run, self._settings.reconnect_grace, Reason.CLIENT_GONE)
            self._settle(run)
        self._ring(run)

    def knocked(self, token_sha256: str) -> None:
        """Note that the client of a run has tried to come back and was not served."""
        if (run := self._by_token.get(token_sha256)) is not None:
            if self.keep(run):
                self._miss(run, self._settings.reconnect_grace, Reason.CLIENT_GONE)
            self._may_knock(run)

    def deaf(self) -> None:
        """Note that nobody can be heard now: whoever is missed may be knocking."""
        for run in self._by_token.values():
            self._may_knock(run)

    def _may_knock(self, run: Run) -> None:
        run.knock(anyio.current_time() + max(KNOCK, self._settings.reconnect_grace))

    async def expire_orphans(self) -> None:
        """Start the grace of the Jobs that nobody claims, once the watches are synced. Call when the socket is open."""
        await self.synced()
        self._claims_count = True
        for run in list(self._by_token.values()):
            self._count_as_orphan(run)

    def _count_as_orphan(self, run: Run) -> None:
        if run.claim is not None or run.absence is not None or run.deletion is not None or not run.state.may_run:
            return
        job = run.observed.job
        if job is not None and self._is_mine(job.metadata):
            self._miss(run, self._settings.orphan_grace, Reason.ORPHAN)
        elif job is not None and run.tells("job_of_another_daemon"):
            _log.info("job_of_another_daemon", job=run.job_name)

    def _is_mine(self, job: Meta) -> bool:
        return is_mine(job, pod_uid=self._settings.pod_uid, host=self._settings.host)

    def _miss(self, run: Run, seconds: float, reason: Reason) -> None:
        absence = run.miss(anyio.current_time() + seconds, reason)
        self.begin(self._expire, run, absence)

    async def _expire(self, run: Run, absence: Absence) -> None:
        while not absence.over.is_set() and (left := absence.until - anyio.current_time()) > 0:
            before = anyio.current_time()
            with anyio.move_on_after(min(left, PIECE)):  # a knock may put it off meanwhile
                await absence.over.wait()
            if anyio.current_time() > before + 2 * PIECE:
                self._may_knock(run)  # who has knocked while the daemon stood still is heard only now
        if absence.over.is_set():
            return
        if absence.reason is Reason.LEFT_OVER or run.state.may_run:
            _log.warning("job_unclaimed", job=run.job_name, reason=absence.reason)
            self.delete(run, absence.reason)
        else:
            self._forget(run)

    # Deletion

    def may_have_job(self, run: Run) -> bool:
        """Say whether a Job of this run may exist."""
        # Before the watches have told, a Job may be there that an earlier daemon made for this token.
        return run.state.may_run or (run.state is State.WAITING and not self.jobs.ever_synced.is_set())

    def delete(self, run: Run, reason: Reason) -> Deletion:
        """Delete the run's Job, in the background."""
        known = run.deletion
        deletion = run.delete(reason)
        if deletion is not known:
            self._metrics.deleted(reason)
            self.story.deleted(run, reason)
            self.begin(self._carry_out, run, deletion)
            self._ring(run)
        return deletion

    async def _carry_out(self, run: Run, deletion: Deletion) -> None:
        with anyio.move_on_after(FIRST_LISTS):
            await self.synced()
        while True:
            try:
                over = await delete_job(
                    self._api,
                    run,
                    deletion,
                    lambda: self.watch_error,
                    self._metrics.retried,
                    lambda: self._ring(run),
                    lambda: self.look(run),
                )
                break
            except Exception:  # noqa: BLE001 - a mistake of ours keeps no Job
                _log.exception("run_crashed", job=run.job_name)
                await anyio.sleep(AFTER_CRASH)
        if over:
            self._forget(run)
        elif not deletion.withdrawn:
            self._withdraw(run, deletion)
            if run.claim is None:
                self._miss(run, self._settings.reconnect_grace, Reason.CLIENT_GONE)

    def keep(self, run: Run) -> bool:
        """Take back the deletion of a run's Job because its client has come back; return whether that can be done.

        It can where the Job was to be deleted for want of that client, and the API has not accepted it yet.
        """
        if run.deletion is None or not run.deletion.is_for_absence:
            return False
        self._withdraw(run, run.deletion)
        return True

    def _withdraw(self, run: Run, deletion: Deletion) -> None:
        _log.info("deletion_withdrawn", job=run.job_name, reason=deletion.reason)
        run.withdraw()
        self._ring(run)

    def begin(self, work: Callable[..., Awaitable[None]], run: Run, *arguments: Any) -> None:
        """Do something for a run beside everything else. A mistake in it harms that run only."""

        async def guarded() -> None:
            try:
                await work(run, *arguments)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("run_crashed", job=run.job_name)

        self._tasks.start_soon(guarded)

    def _settle(self, run: Run) -> None:
        """Forget a run that is over and that nobody attends, once its Job finishes by itself."""
        if not run.over:
            return
        job = run.observed.job
        unfinished = job is not None and not job.finished and not run.observed.job_gone
        if job is not None and unfinished and run.observed.terminated is not None:
            # Another container of the pod may go on, and then nothing finishes the Job (recorded: second-container).
            if (run.absence is None or run.absence.reason is not Reason.LEFT_OVER) and self._is_mine(job.metadata):
                self._miss(run, manifests.TTL_SECONDS, Reason.LEFT_OVER)
            return
        self._forget(run)

    # What the watches tell

    async def look(self, run: Run) -> None:
        """Ask the API for the run's pod, because the watch may not have told, and take in what it says.

        :raises ApiError: if it says nothing.
        """
        pod, had_ended = run.observed.pod, run.observed.ended
        if pod is None:
            listed = await self._api.list(PODS, Pod, labelSelector=f"job-name={run.job_name}")
            mine = [found for found in listed.items if _is_of(found, run)]
            for found in mine:
                self.pods.adopt(found)  # so that the next list tells if it has gone
                if run.observed.pod is None:
                    run.found(Applied(found))
                if found.metadata.instance != self._settings.instance:
                    self.begin(self._follow_up, run, found)
            if not mine and had_ended:  # else one may still come
                run.lacks_pod()
        else:
            await self._look_at(run, pod)
        run.confirm()
        self._settle(run)
        self._ring(run)

    async def _look_at(self, run: Run, pod: Pod) -> None:
        try:
            found = await self._api.get(PODS, Pod, pod.metadata.name)
        except NotFound:
            run.found(Deleted(pod))
            return
        run.found(Applied(found) if found.metadata.uid == pod.metadata.uid else Deleted(pod))

    async def _follow_up(self, run: Run, pod: Pod) -> None:
        """Ask for a pod that the watch tells of no more, though nobody was seen to end it.

        Somebody may have taken its label away: then it goes on, and no watch tells of it.
        """
        pauses = delays(0.2, LOST_LABEL)
        while run.state.may_run:
            with suppress(ApiError):
                await self._look_at(run, pod)
                if run.state.may_run and run.tells("pod_lost_label"):
                    _log.warning("pod_lost_label", job=run.job_name, pod=pod.metadata.name)
            self._settle(run)
            self._ring(run)
            await anyio.sleep(next(pauses))

    def _job_changed(self, change: Applied[Job] | Deleted[Job]) -> None:
        job = change.object
        token = self._remember(change)
        run = self._by_token.get(token)
        if run is None:
            if isinstance(change, Deleted) or job.finished or not token or token != job.metadata.token_sha256:
                return
            run = self._add(Run.of(job))
        is_new = run.observed.job is None or run.made is None
        name = run.job_name
        run.found(change)
        if run.job_name != name:
            self._find_pods(run)  # they may have been told of before their Job, which has another name than expected
        if is_new and self._claims_count:
            self._count_as_orphan(run)
        self._settle(run)
        self._ring(run)

    def _pod_changed(self, change: Applied[Pod] | Deleted[Pod]) -> None:
        if self._early_pods is not None:
            self._early_pods.append(change)
            return
        pod = change.object
        token = self._remember(change)
        run = self._by_token.get(token)
        if run is None:
            if isinstance(change, Deleted) or not _may_run(pod) or not token or token != pod.metadata.token_sha256:
                return
            run = self._add(Run.of(pod))  # its Job is gone, or the watch of Jobs has not told yet
        known = run.observed.pod
        is_known = known is not None and known.metadata.uid == pod.metadata.uid
        if pod.job_name != run.job_name and not is_known:
            return
        told = run.observed.told_to_end or pod.metadata.deletion_timestamp is not None
        if isinstance(change, Deleted) and is_known and _may_run(pod) and not told:
            self.begin(self._follow_up, run, pod)
            return
        run.found(change)
        self._settle(run)
        self._ring(run)

    def _remember(self, change: Applied[Job] | Deleted[Job] | Applied[Pod] | Deleted[Pod]) -> str:
        """Note what is there, and return the token of its run."""
        item, meta = change.object, change.object.metadata
        of_job = self._token_of.get(item.job_uid) if isinstance(item, Pod) else None
        token = self._token_of.setdefault(meta.uid, of_job or meta.token_sha256)
        of_token = self._objects.setdefault(token, {})
        if isinstance(change, Applied):
            of_token[meta.uid] = change.object
        else:
            of_token.pop(meta.uid, None)
            del self._token_of[meta.uid]
        if not of_token:
            del self._objects[token]
        return token

    def past(self) -> Iterator[Run]:
        """Yield what is known of runs that are over and forgotten, and whose Job or pod is still there."""
        for token, objects in self._objects.items():
            if token and token not in self._by_token:
                yield Run.past(objects.values())

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._by_token.values()))


def is_mine(job: Meta, *, pod_uid: str, host: str) -> bool:
    """Say whether an earlier daemon of this very pod or host has made a Job.

    Names and labels alone never say so: a copied values file gives them to two daemons.

    :param pod_uid: the uid of the daemon's own pod; empty where it has none.
    :param host: the daemon's `Settings.host`.
    """
    owners = [owner.uid for owner in job.owner_references or () if owner.kind == "Pod"]
    if owners:
        return pod_uid in owners
    return job.host in {"", host}  # none: made before there was this annotation


def _is_of(pod: Pod, run: Run) -> bool:
    """Say whether a pod is that of a run: by its owner, which nobody can overwrite, or else by its annotation."""
    job = run.observed.job
    if job is not None and pod.job_uid:
        return pod.job_uid == job.metadata.uid
    return pod.metadata.token_sha256 == run.token_sha256


def _may_run(pod: Pod) -> bool:
    return pod.container(manifests.CONTAINER).terminated is None and not pod.ended
