"""What people are told of a run: `k8s-builder status` shows it. No key and no token is in it."""

from datetime import UTC, datetime, timedelta

import anyio
from msgspec import Struct

from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.names import package_id
from k8s_builderd.runs.record import Run, State
from k8s_builderd.runs.verdict import verdict


class Problem(Struct, frozen=True):
    """What went wrong last, and when that was last seen."""

    at: datetime
    text: str


class Deletion(Struct, frozen=True):
    """The deletion of a Job: why, whether the API has accepted it, and else why not."""

    reason: str
    accepted: bool
    error: str


class Unclaimed(Struct, frozen=True):
    """A Job without a client: why it is deleted, and in how many seconds if none comes."""

    reason: str
    seconds: float


class Chaincode(Struct, frozen=True, kw_only=True):
    """One launch of a chaincode. Times are UTC."""

    label: str
    package_id: str
    state: State
    since: datetime
    """Since when it is in that state: for `running` and `ended` by the clock of its node, else by the daemon's."""
    peer_id: str
    job: str
    pod: str | None
    node: str | None
    client_pid: int | None
    """The pid of its `run`, as in the peer's log; null where none is connected."""
    log_lines: int | None
    """Lines of its log passed on by this daemon; null where it has been forgotten."""
    log_bytes: int | None
    log_interruptions: int | None
    last_problem: Problem | None
    deletion: Deletion | None
    unclaimed: Unclaimed | None


def tell(run: Run, *, past: bool = False) -> Chaincode:
    """Return what is told of a run.

    :param past: whether it has been forgotten, so that only what is in the cluster is known of it.
    """
    now, clock = anyio.current_time(), datetime.now(UTC)

    def at(moment: float) -> datetime:
        return clock - timedelta(seconds=now - moment)

    pod, deletion, absence = run.observed.pod, run.deletion, run.absence
    package = package_id(run.key.chaincode_id)
    since = _by_the_node(run) or at(run.state_since)
    problem = Problem(at(run.problem.at), run.problem.text) if run.problem is not None else None
    if past and (how := verdict(run.observed, pods_known=True)) is not None:
        problem = Problem(since, how.text)
    return Chaincode(
        label=package.label,
        package_id=run.key.chaincode_id,
        state=run.state,
        since=since,
        peer_id=run.key.peer_id,
        job=run.job_name,
        pod=pod.metadata.name if pod is not None else None,
        node=pod.spec.node_name if pod is not None else None,
        client_pid=run.claim.client_pid if run.claim is not None else None,
        log_lines=None if past else run.log_lines,
        log_bytes=None if past else run.log_bytes,
        log_interruptions=None if past else run.log_interruptions,
        last_problem=problem,
        deletion=Deletion(deletion.reason, deletion.accepted_at is not None, deletion.last_error) if deletion else None,
        unclaimed=Unclaimed(absence.reason, round(max(0.0, absence.until - now), 1)) if absence else None,
    )


def _by_the_node(run: Run) -> datetime | None:
    """Return since when the container is as it is, by its node: this daemon may be younger than the chaincode."""
    if run.state is State.RUNNING and run.observed.pod is not None:
        running = run.observed.pod.container(CONTAINER).running
        return running.started_at if running is not None else None
    if run.state is State.ENDED and run.observed.terminated is not None:
        return run.observed.terminated.finished_at
    return None
