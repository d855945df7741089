"""Carries out the deletion of a Job, from the request to the end of its container. Decides nothing."""

from collections.abc import Awaitable, Callable

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.fabric.objects import Job
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, NotFound
from k8s_builderd.kube.resources import JOBS
from k8s_builderd.kube.watch import Applied
from k8s_builderd.runs.observed import Observed
from k8s_builderd.runs.record import Deletion, Reason, Run

LATE = 15.0
"""Seconds beyond the pod's grace after which a deletion that is not over is told, and for which a Job that was absent
is watched for: a create request that was cut off may be carried out late."""

_log = structlog.get_logger("k8s_builderd.stop")


def _unnoticed(*_: str) -> None:
    """Take no notice of it."""


async def delete_job(
    api: Api,
    run: Run,
    deletion: Deletion,
    watch_error: Callable[[], str | None],
    retried: Callable[[str, str], None] = _unnoticed,
    accepted: Callable[[], None] = _unnoticed,
    look: Callable[[], Awaitable[None]] | None = None,
) -> bool:
    """Delete the run's Job until it is gone, and wait until its container has ended.

    :param watch_error: returns why the watches do not tell what there is, or None.
    :param retried: is told verb and resource of each request that is made again.
    :param accepted: is told when the API has accepted the deletion.
    :param look: asks the API for the run's pod, because a watch may not have told of it.
    :returns: False where the deletion came to nothing, because the container of a Job that was to be deleted for not
        starting has started, or because it was withdrawn.
    """
    pauses = delays(0.1, 5.0)
    seen = run.observed
    logged = retrying = False
    while True:
        if _came_to_nothing(run, deletion):
            return False
        try:
            if look is not None and retrying and deletion.reason is Reason.NOT_STARTED:
                await look()  # that it has not started is old news by now
                if _came_to_nothing(run, deletion):
                    return False
            retrying = True
            there = await _ask(api, run, deletion)
        except ApiError as error:
            deletion.last_error = str(error)
            _log.warning("job_not_deleted", job=run.job_name, reason=deletion.last_error)
            await anyio.sleep(error.pause(next(pauses)))
            retried(error.verb, error.resource)
            continue
        if there and not logged:
            logged = True
            _log.info("job_deleted", job=run.job_name, reason=deletion.reason)
        if deletion.withdrawn or (not there and _came_to_nothing(run, deletion)):
            return False  # too late, where the Job was there: its run is told by the watch
        if not there and seen.pod is not None and not seen.ended and not seen.told_to_end and not seen.pod.job_uid:
            deletion.orphaned_pod = seen.pod.metadata.name
            _log.warning("pod_without_job", job=run.job_name, pod=deletion.orphaned_pod)
        deletion.accept()
        accepted()
        if await _is_over(run, deletion, watch_error, there=there) and await _is_certain(run, look):
            if deletion.is_late:
                _log.info("deletion_done", job=run.job_name)
            return True
        await anyio.sleep(next(pauses))


def _came_to_nothing(run: Run, deletion: Deletion) -> bool:
    return deletion.withdrawn or (deletion.reason is Reason.NOT_STARTED and run.observed.started)


async def _ask(api: Api, run: Run, deletion: Deletion) -> bool:
    """Ask the API to delete the Job, unless the deletion comes to nothing meanwhile; return whether it was deleted.

    :raises ApiError: if it does not.
    """
    seen = run.observed
    known = None if seen.job_gone else seen.job
    if not run.job_name:
        run.lost_job()  # a pod that no Job owns is all that is known
        return False
    try:
        if known is None:
            # Not seen yet, or seen to go. A late creation is known by its token only.
            found = await api.get(JOBS, Job, run.job_name)
            if found.metadata.token_sha256 != run.token_sha256:
                return False
            known = found
            run.found(Applied(found))
            if _came_to_nothing(run, deletion):
                return False
        await api.delete(JOBS, run.job_name, known.metadata.uid)
    except NotFound:
        if known is not None or seen.pod is not None:
            run.lost_job()
        return False
    return True


async def _is_over(run: Run, deletion: Deletion, watch_error: Callable[[], str | None], *, there: bool) -> bool:
    """Wait until Job and container are gone; return False where the Job has to be asked for again.

    A creation that had been cut off may be carried out late. A Job that stays has a finalizer, or a controller that
    does not work.
    """
    seen = run.observed
    while True:
        with anyio.move_on_after(LATE + seen.grace):
            await seen.until(lambda seen: (seen.job_gone and seen.ended) or (not there and _has_job(seen)))
            return seen.ended and seen.job_gone
        if seen.job is None and seen.pod is None:
            return watch_error() is None  # there never was one, if the watches would have told
        if not deletion.is_late:
            deletion.is_late = True
            _log.warning("deletion_pending", job=run.job_name, job_gone=seen.job_gone, container_ended=seen.ended)
        if not seen.job_gone:
            return False


async def _is_certain(run: Run, look: Callable[[], Awaitable[None]] | None) -> bool:
    """Say whether its container has ended, and not only its Job: a pod may be there that no watch has told of."""
    seen = run.observed
    if look is None or seen.certain or seen.job is None:
        return True
    try:
        await look()
    except ApiError:
        return False
    return seen.ended


def _has_job(seen: Observed) -> bool:
    return seen.job is not None and not seen.job_gone
