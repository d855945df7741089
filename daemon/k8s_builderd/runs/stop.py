"""Carries out the deletion of a Job, from the request to the end of its container. Decides nothing."""

from collections.abc import Callable

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.fabric.objects import Job
from k8s_builderd.kube.api import JOBS, Api
from k8s_builderd.kube.errors import ApiError, NotFound
from k8s_builderd.runs.record import Deletion, Reason, Run

LATE = 15.0
"""Seconds after which a deletion that is not over is told, and for which a Job that was not there is watched for: a
create request that was cut off may be carried out late."""

_log = structlog.get_logger("k8s_builderd.stop")


async def delete_job(
    api: Api,
    run: Run,
    deletion: Deletion,
    watch_error: Callable[[], str | None],
    retried: Callable[[str, str], None],
) -> bool:
    """Delete the run's Job until it is gone, and wait until its container has ended.

    :param watch_error: returns why the watches do not tell what there is, or None.
    :param retried: is told verb and resource of each request that is made again.
    :returns: False where the deletion came to nothing, because the container of a Job that was to be deleted for not
        starting has started.
    """
    pauses = delays(0.1, 5.0)
    seen = run.observed
    while True:
        if deletion.reason is Reason.NOT_STARTED and seen.started:
            return False
        try:
            absent = not await _ask(api, run)
        except ApiError as error:
            deletion.last_error = str(error)
            _log.warning("job_not_deleted", job=run.job_name, reason=deletion.last_error)
            await anyio.sleep(error.pause(next(pauses)))
            retried(error.verb, error.resource)
            continue
        if not absent:
            _log.info("job_deleted", job=run.job_name, reason=deletion.reason)
        elif seen.pod is not None and not seen.ended and not seen.told_to_end and not seen.pod.job_name:
            deletion.orphaned_pod = seen.pod.metadata.name
            _log.warning("pod_without_job", job=run.job_name, pod=deletion.orphaned_pod)
        deletion.accept()
        with anyio.move_on_after(LATE) as waiting:
            await _over(run, absent=absent)
        if not waiting.cancelled_caught:
            if seen.ended:
                return True
        elif seen.job is None and seen.pod is None and watch_error() is None:
            return True  # there never was one
        else:
            _log.warning("deletion_pending", job=run.job_name, job_gone=seen.job_gone, container_ended=seen.ended)
            # A Job that stays has a finalizer, or a controller that does not work: asking again does not help it.
            await _over(run, absent=absent)
            if seen.ended:
                _log.info("deletion_done", job=run.job_name)
                return True


async def _ask(api: Api, run: Run) -> bool:
    """Ask the API to delete the Job; return whether there was one.

    :raises ApiError: if it does not.
    """
    known = run.observed.job
    try:
        if known is None or run.observed.job_gone:
            # Not yet seen, or seen to go; a late creation is known by its token only.
            known = await api.get(JOBS, Job, run.job_name)
            if known.metadata.token_sha256 != run.token_sha256:
                return False
        await api.delete(JOBS, run.job_name, known.metadata.uid)
    except NotFound:
        return False
    return True


async def _over(run: Run, *, absent: bool) -> None:
    """Wait until Job and container are gone, or a Job that was absent is there.

    A creation that had been cut off may be carried out late.
    """
    await run.observed.until(
        lambda seen: (seen.job_gone and seen.ended) or (absent and seen.job is not None and not seen.job_gone)
    )
