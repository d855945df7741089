"""What `decide` is told of a run, step by step through its life: `Known.of` of its record."""

import pytest
from msgspec.structs import replace

from k8s_builderd.errors import BuilderError
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.decide import Known
from k8s_builderd.runs.record import Reason, Run, State
from tests.fabric.test_manifests import plan
from tests.runs.test_record import ENDED, FAILED, JOB, NAME, PENDING, RUNNING, new

pytestmark = pytest.mark.anyio


def asked() -> Run:
    """Return a run whose Job this daemon has asked for and whose pod is on its way."""
    run = new()
    run.ask(plan())
    run.found(Applied(JOB))
    run.found(Applied(PENDING))
    return run


async def test_before_there_is_a_job() -> None:
    run = new()
    known = Known.of(run)
    assert (known.run, known.job, known.since) == (plan().token.sha256, NAME, run.since)
    assert (known.state, known.started, known.ended, known.claimed) == (State.WAITING, False, None, None)
    assert (known.has_job, known.pod, known.reuse_key, known.certain) == (True, "", None, False)
    run.ask(plan())
    assert Known.of(run).grace == plan().grace  # of the pod that may come


async def test_a_job_of_this_daemon_can_be_reused_until_it_is_deleted() -> None:
    run = asked()
    known = Known.of(run)
    assert (known.state, known.on_its_way, known.pod) == (State.PENDING, True, PENDING.metadata.name)
    assert known.reuse_key == plan().reuse_key
    run.delete(Reason.STOPPED)
    assert Known.of(run).reuse_key is None


async def test_a_job_of_another_daemon_cannot() -> None:
    run = Run.of(JOB)
    run.found(Applied(PENDING))
    assert Known.of(run).reuse_key is None


async def test_a_claim_counts_until_it_is_revoked_or_let_go() -> None:
    run = asked()
    claim = run.take(plan())
    assert Known.of(run).claimed == claim.since
    claim.revoke(BuilderError("launched again"))
    assert Known.of(run).claimed is None
    claim = run.take(plan())
    run.release(claim)
    assert Known.of(run).claimed is None


@pytest.mark.parametrize("reason", [Reason.STOPPED, Reason.REPLACED, Reason.ORPHAN])
async def test_a_deletion_counts_as_told_when_the_api_has_accepted_it(reason: Reason) -> None:
    run = asked()
    deletion = run.delete(reason)
    deletion.last_error = "HTTP 503"
    known = Known.of(run)
    assert (known.deleting, known.replaced) == (True, reason is Reason.REPLACED)
    assert (known.deletion_error, known.told, known.pod_told) == ("HTTP 503", None, False)
    deletion.accept()
    known = Known.of(run)
    assert (known.deletion_error, known.told, known.pod_told) == ("", deletion.accepted_at, False)


async def test_the_pods_word_that_it_was_told_to_end_counts_before_the_deletion() -> None:
    run = asked()
    run.found(Applied(RUNNING))
    metadata = replace(RUNNING.metadata, deletion_timestamp="2026-01-01T00:00:00Z", deletion_grace_period_seconds=7)
    run.found(Applied(replace(RUNNING, metadata=metadata)))
    told = run.observed.told_to_end_at
    run.delete(Reason.STOPPED).accept()
    known = Known.of(run)
    assert told is not None
    assert (known.told, known.pod_told, known.started) == (told, True, True)
    assert known.grace == run.observed.grace


async def test_an_end_is_certain_by_the_pods_word_or_the_apis() -> None:
    run = asked()
    run.found(Applied(ENDED))
    known = Known.of(run)
    assert (known.state, known.ended, known.certain) == (State.ENDED, run.observed.ended_at, True)
    run = new()
    run.found(Applied(FAILED))
    assert not Known.of(run).certain
    run.lacks_pod()
    assert Known.of(run).certain


async def test_what_is_left_to_delete() -> None:
    run = asked()
    assert Known.of(run).has_job
    run.found(Deleted(JOB))
    assert not Known.of(run).has_job
    run = Run.of(PENDING)  # a pod whose Job no watch has told of
    run.found(Applied(PENDING))
    assert not Known.of(run).has_job


async def test_what_the_launches_have_decided() -> None:
    run = asked()
    run.drop()
    run.give_up()
    run.confirm()
    known = Known.of(run)
    assert (known.dropped, known.given_up, known.confirmed) == (True, True, run.confirmed_at)
    assert known.confirmed is not None
