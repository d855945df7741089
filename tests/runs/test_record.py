"""The states of a run and the ways between them, and that nobody else changes one."""

import ast
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.objects import Annotations, Job, Meta, Pod
from k8s_builderd.kube.objects import (
    Condition,
    ContainerState,
    ContainerStatus,
    JobStatus,
    OwnerReference,
    PodStatus,
    Running,
    Terminated,
    Waiting,
)
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.record import Reason, Run, State
from tests.fabric.test_manifests import plan

pytestmark = pytest.mark.anyio

RUNS = Path(__file__).parents[2] / "daemon" / "k8s_builderd" / "runs"
NAME = "hlfcc-basic10-abc-bcdfg"
JOB = Job(Meta(name=NAME, uid="j"))
FAILED = Job(JOB.metadata, JobStatus(conditions=(Condition("Failed", "True", "BackoffLimitExceeded"),)))


def pod(state: ContainerState | None = None, phase: str = "Pending", uid: str = "p") -> Pod:
    meta = Meta(name=f"{NAME}-x", uid=uid, owner_references=(OwnerReference("Job", NAME, "j"),))
    statuses = (ContainerStatus("chaincode", state),) if state is not None else None
    return Pod(meta, PodStatus(phase=phase, container_statuses=statuses))


PENDING = pod(ContainerState(waiting=Waiting("ContainerCreating")))
RUNNING = pod(ContainerState(running=Running()), "Running")
ENDED = pod(ContainerState(terminated=Terminated(exit_code=3)), "Failed")


def state(run: Run) -> State:
    return run.state  # a call: that a transition changes it is what mypy cannot know


def new() -> Run:
    return Run(NAME, plan().key, plan().token.sha256)


async def test_the_way_of_a_launch() -> None:
    run = new()
    assert state(run) is State.WAITING
    run.ask(plan())
    assert state(run) is State.CREATING
    run.found(Applied(JOB))
    assert state(run) is State.PENDING
    run.found(Applied(PENDING))
    assert state(run) is State.PENDING
    run.found(Applied(RUNNING))
    assert state(run) is State.RUNNING
    run.found(Applied(ENDED))
    assert state(run) is State.ENDED
    assert run.over


async def test_a_plain_no_leaves_nothing_to_delete() -> None:
    run = new()
    run.ask(plan())
    run.refused()
    assert state(run) is State.WAITING
    assert run.over


async def test_what_is_found_may_have_come_any_way() -> None:
    for seen, expected in ((PENDING, State.PENDING), (RUNNING, State.RUNNING), (ENDED, State.ENDED)):
        run = Run.of(JOB)
        assert run.job_name == NAME
        run.found(Applied(seen))
        assert state(run) is expected


async def test_its_job_has_the_name_and_the_peer_that_an_earlier_daemon_gave_it() -> None:
    job = Job(Meta(name="hlf-older-prefix", uid="j", annotations=Annotations(peer="p1")))
    assert (Run.of(job).job_name, Run.of(job).peer) == ("hlf-older-prefix", "p1")
    run = new()
    run.found(Applied(job))
    assert (run.job_name, run.peer) == ("hlf-older-prefix", "p1")
    run.found(Applied(PENDING))  # what comes second does not name it anew
    assert (run.job_name, run.peer) == ("hlf-older-prefix", "p1")


async def test_a_pod_that_turns_up_after_its_job_has_gone() -> None:
    run = new()
    run.ask(plan())
    run.found(Applied(JOB))
    run.found(Deleted(JOB))
    assert state(run) is State.ENDED
    run.found(Applied(RUNNING))
    assert state(run) is State.RUNNING
    assert run.observed.ended_at is None


async def test_an_exit_code_is_not_forgotten() -> None:
    run = new()
    for found in (PENDING, RUNNING, ENDED, pod(phase="Failed")):  # a node that is lost takes the statuses along
        run.found(Applied(found))
    assert run.observed.terminated == Terminated(exit_code=3)


async def test_a_failed_job_says_nothing_of_a_pod_that_nobody_has_seen() -> None:
    run = new()
    run.found(Applied(FAILED))
    assert state(run) is State.ENDED
    assert not run.observed.certain
    run.lacks_pod()
    assert run.observed.certain


async def test_the_first_decision_to_delete_counts() -> None:
    run = new()
    run.found(Applied(JOB))
    deletion = run.delete(Reason.STOPPED)
    assert run.delete(Reason.CLIENT_GONE) is deletion
    assert deletion.reason is Reason.STOPPED


@pytest.mark.parametrize("reason", [Reason.STOPPED, Reason.REPLACED])
async def test_a_decision_that_may_be_withdrawn_gives_way_to_one_that_may_not(reason: Reason) -> None:
    run = new()
    run.found(Applied(JOB))
    deletion = run.delete(Reason.NOT_STARTED)
    assert run.delete(Reason.NOT_STARTED) is deletion
    assert deletion.reason is Reason.NOT_STARTED
    run.found(Applied(RUNNING))
    assert run.delete(reason) is deletion
    assert deletion.reason is reason
    assert run.delete(Reason.ORPHAN) is deletion
    assert deletion.reason is reason
    with pytest.raises(AssertionError):
        run.withdraw()


async def test_a_deletion_that_is_withdrawn_is_settled_and_over() -> None:
    run = new()
    run.found(Applied(JOB))
    deletion = run.delete(Reason.NOT_STARTED)
    run.found(Applied(RUNNING))
    run.withdraw()
    assert run.deletion is None
    assert deletion.settled.is_set()
    assert deletion.withdrawn
    assert deletion.accepted_at is None


async def test_no_clock_ends_a_container_that_has_started() -> None:
    run = new()
    run.found(Applied(RUNNING))
    with pytest.raises(AssertionError):
        run.delete(Reason.NOT_STARTED)
    with pytest.raises(AssertionError):
        run.delete(Reason.LEFT_OVER)
    assert run.deletion is None


async def test_a_claim_is_of_one_connection() -> None:
    run = new()
    first = run.take(plan())
    second = run.take(plan())
    assert not run.release(first)
    assert run.claim is second
    assert run.release(second)
    assert run.claim is None


async def test_a_revoked_claim_knows_why() -> None:
    claim = new().take(plan())
    claim.revoke(BuilderError("why"))
    assert claim.scope.cancel_called
    assert str(claim.revoked) == "why"


async def test_who_knocks_is_waited_for() -> None:
    run = new()
    absence = run.miss(anyio.current_time() + 3, Reason.ORPHAN)
    run.knock(anyio.current_time() + 15)
    assert absence.until > anyio.current_time() + 10
    run.knock(anyio.current_time() + 1)
    assert absence.until > anyio.current_time() + 10  # a knock never makes it shorter


async def test_its_client_comes_back_and_the_grace_is_over() -> None:
    run = new()
    absence = run.miss(anyio.current_time() + 3, Reason.CLIENT_GONE)
    run.take(plan())
    assert run.absence is None
    assert absence.over.is_set()


async def test_what_is_left_over_is_no_more_when_a_pod_turns_up_that_runs() -> None:
    """The TTL of a Job whose chaincode has ended must not end the one that turns out to run."""
    run = new()
    run.found(Applied(FAILED))
    absence = run.miss(anyio.current_time() + 300, Reason.LEFT_OVER)
    run.found(Applied(RUNNING))
    assert state(run) is State.RUNNING
    assert run.absence is None
    assert absence.over.is_set()


@pytest.mark.parametrize("reason", [Reason.CLIENT_GONE, Reason.ORPHAN])
async def test_a_client_is_waited_for_whatever_turns_up(reason: Reason) -> None:
    run = new()
    run.found(Applied(FAILED))
    absence = run.miss(anyio.current_time() + 10, reason)
    run.found(Applied(RUNNING))
    assert run.absence is absence
    assert not absence.over.is_set()


async def test_a_decision_to_delete_ends_the_wait_for_a_client() -> None:
    run = new()
    run.found(Applied(JOB))
    absence = run.miss(anyio.current_time() + 10, Reason.CLIENT_GONE)
    run.delete(Reason.REPLACED)
    assert run.absence is None
    assert absence.over.is_set()


async def test_the_end_is_told_by_the_order_in_which_it_was_seen() -> None:
    """Not by the clocks of API server and node: who ended by itself and was deleted then was not told to end."""
    run = new()
    run.found(Applied(RUNNING))
    run.found(Applied(ENDED))
    deleted = replace(ENDED, metadata=replace(ENDED.metadata, deletion_timestamp=datetime.now(UTC)))
    run.found(Applied(deleted))
    assert not run.observed.told_to_end


def test_nobody_else_assigns() -> None:
    """A run's fields, and those of what it has seen, are assigned in record.py and observed.py alone."""
    fields = {name.lstrip("_") for cls in (Run,) for name in vars(new_without_loop())}
    fields |= {"started_at", "ended_at", "told_to_end_at", "has_secret", "job_gone", "pod_gone", "no_pod"}
    for path in RUNS.glob("*.py"):
        if path.name in {"record.py", "observed.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = ast.unparse(node.value)
                assert owner == "self" or node.attr.lstrip("_") not in fields, f"{path.name}: {ast.unparse(node)}"


def new_without_loop() -> Run:
    return anyio.run(_new)


async def _new() -> Run:
    return new()


async def test_what_is_told_of_a_run_is_counted() -> None:
    run = new()
    run.passed_on(2, 8)
    run.passed_on(1, 6)
    assert (run.log_lines, run.log_bytes, run.log_interruptions) == (3, 14, 0)
    assert run.problem is None
    run.interrupted("why")
    assert run.log_interruptions == 1
    assert run.problem is not None
    assert run.problem.text == "its log broke off: why"
    run.has_problem("another")
    assert run.problem.text == "another"


async def test_since_when_it_is_in_its_state_changes_with_the_state_alone() -> None:
    run = new()
    assert run.state_since == run.since
    run.found(Applied(JOB))
    pending = run.state_since
    assert pending > run.since
    run.found(Applied(PENDING))
    assert run.state_since == pending
    run.found(Applied(RUNNING))
    assert run.state_since > pending


async def test_a_claim_knows_its_client() -> None:
    claim = new().take(plan(), 4242)
    assert claim.client_pid == 4242


async def test_of_a_run_that_was_forgotten_its_objects_tell() -> None:
    run = Run.past([ENDED, FAILED])
    assert (run.state, run.job_name) == (State.ENDED, NAME)
    assert run.observed.terminated is not None
    assert Run.past([ENDED]).state is State.ENDED
