"""The record of a run: its states, its claim, its deletion, and every transition between them. Nobody else assigns.

    WAITING ---ask---> CREATING ---found---> PENDING ---found---> RUNNING ---found---> ENDED
       ^                  |
       +-----refused------+

A state is what is known, so what the watches tell may skip some: a Job of an earlier daemon is found PENDING or
RUNNING, and a container may be seen only when it has ended. From ENDED there is one way back: a pod that turns up after
its Job had gone.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Self

import anyio
import structlog
from msgspec import Struct

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.names import LaunchKey
from k8s_builderd.fabric.objects import Job, Pod
from k8s_builderd.fabric.plan import Plan, Start
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.failures import Audience
from k8s_builderd.runs.observed import Observed

_log = structlog.get_logger("k8s_builderd.runs")


class State(StrEnum):
    """How far a run has come."""

    WAITING = "waiting"
    """Nothing of it is in the cluster: it waits for the API, or for an earlier launch to end."""
    CREATING = "creating"
    """A Job may exist: one was asked for, or a client's cursor names one. None has been seen yet."""
    PENDING = "pending"
    """Its Job or pod is there; the container has not started."""
    RUNNING = "running"
    """The container runs."""
    ENDED = "ended"
    """The container has ended, or can never run."""

    @property
    def may_run(self) -> bool:
        """Say whether a container of the run runs, or may yet come to run."""
        return self in {State.CREATING, State.PENDING, State.RUNNING}


_MOVES = {
    State.WAITING: {State.CREATING, State.PENDING, State.RUNNING, State.ENDED},
    State.CREATING: {State.WAITING, State.PENDING, State.RUNNING, State.ENDED},
    State.PENDING: {State.RUNNING, State.ENDED},
    State.RUNNING: {State.ENDED},
    State.ENDED: {State.PENDING, State.RUNNING},
}


class Reason(StrEnum):
    """Why a Job is deleted. There is no other reason."""

    STOPPED = "stopped"
    """Its client asked."""
    REPLACED = "replaced"
    """The same peer has launched the chaincode again."""
    CLIENT_GONE = "client gone"
    """Its client has been gone for the grace, and has not knocked."""
    ORPHAN = "orphan"
    """An earlier daemon of this very pod or host made it, and no client has claimed it."""
    NOT_STARTED = "not started"
    """Its container has not started, and will not or not in time. Never a Job whose container has."""
    LEFT_OVER = "left over"
    """Its chaincode has ended, and another container of the pod keeps the Job from finishing."""


class Claim:
    """One connection's hold on a run. Ended from outside by `revoke`."""

    def __init__(self, client_pid: int = 0, audience: Audience | None = None) -> None:
        self.client_pid = client_pid
        """The pid by which the client calls itself, in its own PID namespace; 0 where it is not known."""
        self.audience = audience
        """The connection."""
        self.since = anyio.current_time()
        self.left = anyio.Event()
        self.revoked: BuilderError | None = None
        self.scope = anyio.CancelScope()

    def revoke(self, error: BuilderError) -> None:
        """End it; its client is told the error."""
        self.revoked = error
        self.scope.cancel()

    def leave(self) -> None:
        """Note that the connection has ended, with the error that it was told."""
        self.left.set()
        self.revoked = None  # or its traceback would hold this claim


class Problem(Struct, frozen=True):
    """What went wrong with a run last, and when that was last seen, by `anyio.current_time()`."""

    text: str
    at: float


class Absence:
    """The time without a client: until when the Job is left alone, and why it is deleted then."""

    def __init__(self, until: float, reason: Reason) -> None:
        self.until = until
        self.reason = reason
        self.over = anyio.Event()
        """Set when it counts no more: a client has come, or there is nothing left to wait for."""


class Deletion:
    """The deletion of a run's Job: decided, then accepted by the API, then carried out by the cluster."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        self.settled = anyio.Event()
        """Set when the API has accepted it, or when it is withdrawn."""
        self.accepted_at: float | None = None
        self.withdrawn = False
        """Whether it came to nothing: the container of a Job that was to be deleted for not starting has started, or
        the client for whose absence it was to be deleted has come back.
        """
        self.orphaned_pod = ""
        """The pod that goes on although its Job is gone, because somebody deleted the Job without it."""
        self.last_error = ""
        """Why the API has not accepted it yet."""
        self.is_late = False
        """Whether it was told that it is not over in time."""

    @property
    def is_for_absence(self) -> bool:
        """Say whether it waits for the API, and is for want of a client: one that comes back now has its run still."""
        return self.accepted_at is None and self.reason in {Reason.CLIENT_GONE, Reason.ORPHAN}

    def accept(self) -> None:
        """Note that the API has accepted it, or that there is nothing to delete."""
        if self.accepted_at is None:
            self.accepted_at = anyio.current_time()
        self.last_error = ""
        self.settled.set()

    def withdraw(self) -> None:
        """Note that it came to nothing."""
        self.withdrawn = True
        self.settled.set()


class Run:
    """One run. Whoever reads it may read all; whoever changes it calls a method."""

    def __init__(self, job_name: str, key: LaunchKey, token_sha256: str) -> None:
        self.key = key
        self.token_sha256 = token_sha256
        self.since = anyio.current_time()
        """When this daemon first heard of it."""
        self.observed = Observed()
        self._job_name = job_name
        self._peer = ""
        self._start: Start | None = None
        self._told: set[str] = set()
        self._made: Plan | None = None
        self._takeovers = 0
        self._asked = False
        self._vanished = False
        self._dropped = False
        self._given_up = False
        self._confirmed_at: float | None = None
        self._claim: Claim | None = None
        self._absence: Absence | None = None
        self._deletion: Deletion | None = None
        self._state_since = self.since
        self._log_lines = 0
        self._log_bytes = 0
        self._log_interruptions = 0
        self._problem: Problem | None = None

    @classmethod
    def past(cls, found: Iterable[Job | Pod]) -> Self:
        """Return what is known of a run that was forgotten, by its objects that are still there. Nobody attends it."""
        objects = sorted(found, key=lambda it: isinstance(it, Pod))
        run = cls.of(objects[0])
        for it in objects:
            change: Applied[Job] | Applied[Pod] = Applied(it)  # type: ignore[assignment] # one or the other
            run.observed.fold(change, run.since)
        return run

    @classmethod
    def of(cls, found: Job | Pod) -> Self:
        """Return the run that an object found in the cluster belongs to."""
        meta = found.metadata
        run = cls(found.job_name, meta.launch_key, meta.token_sha256)
        run._peer = meta.peer
        return run

    # What is known

    @property
    def state(self) -> State:
        """How far it has come."""
        seen = self.observed
        if seen.ended or self._vanished:
            return State.ENDED
        if seen.started:
            return State.RUNNING
        if seen.job is not None or seen.pod is not None:
            return State.PENDING
        return State.CREATING if self._asked else State.WAITING

    @property
    def job_name(self) -> str:
        """The name of its Job."""
        return self._job_name

    @property
    def peer(self) -> str:
        """The peer process that launched it (`Plan.peer`); empty where the peer runs without TLS."""
        return self._peer

    @property
    def start(self) -> Start | None:
        """When its `run` was started, or the one that has gone on with it; None where that is not known."""
        return self._start

    @property
    def made(self) -> Plan | None:
        """What its Job was made from, where this daemon has made it."""
        return self._made

    @property
    def takeovers(self) -> int:
        """How many later launches have gone on with its Job."""
        return self._takeovers

    @property
    def dropped(self) -> bool:
        """Whether its peer has dropped this launch, so that its chaincode would be refused."""
        return self._dropped

    @property
    def given_up(self) -> bool:
        """Whether its container did not end although it was told to: its node is lost, and nobody waits for it."""
        return self._given_up

    @property
    def confirmed_at(self) -> float | None:
        """When the API, asked, last said what there is of its pod."""
        return self._confirmed_at

    @property
    def claim(self) -> Claim | None:
        """Who attends it."""
        return self._claim

    @property
    def absence(self) -> Absence | None:
        """The time that its client has to come back, where it has none."""
        return self._absence

    @property
    def deletion(self) -> Deletion | None:
        """The deletion of its Job, where one was decided."""
        return self._deletion

    @property
    def state_since(self) -> float:
        """Since when this daemon knows that it is in its state."""
        return self._state_since

    @property
    def log_lines(self) -> int:
        """How many lines of its log this daemon has passed on; the pieces of a long one count each."""
        return self._log_lines

    @property
    def log_bytes(self) -> int:
        """How many bytes these were."""
        return self._log_bytes

    @property
    def log_interruptions(self) -> int:
        """How often its log broke off, or could not be read."""
        return self._log_interruptions

    @property
    def problem(self) -> Problem | None:
        """What went wrong last."""
        return self._problem

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do for it."""
        return self._claim is None and self._deletion is None and not self.state.may_run

    # Its client

    def take(self, plan: Plan, client_pid: int = 0, audience: Audience | None = None) -> Claim:
        """Give it to the connection that asks with this plan; return the claim, of which nobody else has one now."""
        assert plan.token.sha256 == self.token_sha256
        assert plan.takeovers >= self._takeovers
        self._takeovers, self._peer, self._start = plan.takeovers, plan.peer, plan.start
        self._claim = Claim(client_pid, audience)
        self.end_absence()
        return self._claim

    def release(self, claim: Claim) -> bool:
        """Take the claim back from a connection that has ended; return whether it had it still."""
        claim.leave()
        if self._claim is not claim:
            return False
        self._claim = None
        return True

    def miss(self, until: float, reason: Reason) -> Absence:
        """Give its client until then to come back."""
        assert self._claim is None
        self.end_absence()
        self._absence = Absence(until, reason)
        return self._absence

    def end_absence(self) -> None:
        """Note that nobody is waited for any more."""
        if self._absence is not None:
            self._absence.over.set()
            self._absence = None

    def knock(self, until: float) -> None:
        """Note that its client has tried to come back and was not served: it has until then at least."""
        if self._absence is not None:
            self._absence.until = max(self._absence.until, until)

    def tells(self, what: str) -> bool:
        """Say whether its client is still to be told something, and note that it is."""
        new = what not in self._told
        self._told.add(what)
        return new

    def tells_anew(self) -> None:
        """Note that there is a new client, which has been told nothing."""
        self._told.clear()

    # What is told of it

    def passed_on(self, lines: int, size: int) -> None:
        """Count lines of its log that its client has been sent, and their bytes."""
        self._log_lines += lines
        self._log_bytes += size

    def interrupted(self, why: str) -> None:
        """Count a break in its log."""
        self._log_interruptions += 1
        self.has_problem(f"its log broke off: {why}")

    def has_problem(self, text: str) -> None:
        """Note what is wrong, for who asks for the state of things."""
        self._problem = Problem(text, anyio.current_time())

    # Its Job

    def ask(self, plan: Plan) -> None:
        """Note that a Job is about to be asked for."""
        with _Move(self):
            # Asking again makes no second one: its name follows from the token.
            assert self.state in {State.WAITING, State.CREATING, State.PENDING}
            self._asked, self._made = True, plan

    def named(self) -> None:
        """Note that its client's cursor names a Job."""
        with _Move(self):
            self._asked = True

    def refused(self) -> None:
        """Note that the API has said a plain no: there is no Job, and none can come late."""
        with _Move(self):
            assert self.state is State.CREATING
            self._asked, self._made = False, None

    def vanish(self) -> None:
        """Note that the Job of its client's cursor is not there."""
        with _Move(self):
            self._vanished = self.observed.job is None and self.observed.pod is None

    def found(self, change: Applied[Job] | Deleted[Job] | Applied[Pod] | Deleted[Pod]) -> None:
        """Take in what a watch, or the answer to a request, has told of its Job or pod."""
        with _Move(self):
            found = change.object
            if self.observed.job is None and self.observed.pod is None:
                self._job_name = found.job_name or self._job_name  # an earlier daemon, with other settings, has made it
                self._peer = self._peer or found.metadata.peer
            self.observed.fold(change, anyio.current_time())
        if self.state is not State.ENDED and self._absence is not None and self._absence.reason is Reason.LEFT_OVER:
            self.end_absence()  # its pod has turned up late, and its container runs

    def lost_job(self) -> None:
        """Take in that its Job is gone."""
        with _Move(self):
            self.observed.lost_job(anyio.current_time())

    def lacks_pod(self) -> None:
        """Take in that its Job has no pod, by the API's word."""
        with _Move(self):
            self.observed.lacks_pod(anyio.current_time())

    def has_secret(self) -> None:
        """Note that its Secret is there, by the answer to its creation: no watch tells of it."""
        self.observed.got_secret()

    def confirm(self) -> None:
        """Note that the API, asked, has said what there is of its pod."""
        self._confirmed_at = anyio.current_time()

    def give_up(self) -> None:
        """Wait no more for the end of its container."""
        self._given_up = True

    def drop(self) -> None:
        """Note that its peer has dropped this launch."""
        self._dropped = True

    def delete(self, reason: Reason) -> Deletion:
        """Decide that its Job is deleted. The first decision counts, but for one that may still be withdrawn."""
        if self._deletion is not None and (
            self._deletion.reason is Reason.NOT_STARTED or self._deletion.is_for_absence
        ):
            self._deletion.reason = reason
        if self._deletion is None:
            assert reason is not Reason.NOT_STARTED or not self.observed.started
            assert reason is not Reason.LEFT_OVER or self.state is State.ENDED
            self._deletion = Deletion(reason)
            self.end_absence()
        return self._deletion

    def withdraw(self) -> None:
        """Take back the decision to delete a Job: its container has started after all, or its client has come back."""
        assert self._deletion is not None
        assert self._deletion.reason is Reason.NOT_STARTED or self._deletion.is_for_absence
        self._deletion.withdraw()
        self._deletion = None


class _Move:
    """Checks that a transition leads from one state to one that may follow, and tells it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._before = self._run.state

    def __exit__(self, *_: object) -> None:
        after = self._run.state
        if after is not self._before:
            assert after in _MOVES[self._before], f"{self._before} to {after}"
            self._run._state_since = anyio.current_time()
            _log.debug("run_state", job=self._run.job_name, was=self._before, now=after)
