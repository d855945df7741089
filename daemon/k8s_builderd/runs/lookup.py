"""Finds the run that somebody means who knows no token: by label, package id, job or pod. Pure."""

from collections.abc import Iterable
from datetime import UTC, datetime

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.names import package_id
from k8s_builderd.runs.record import Run, State

SHORTEST = 7
"""Characters of the package's hash that are enough to name it, as of a commit."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class NotFoundHere(BuilderError):
    """Raised when no run is what somebody has named, or more than one is."""


def choose(runs: Iterable[Run], what: str) -> Run:
    """Return the run that is meant: of several launches of one chaincode by one peer, the newest that goes on.

    :param what: a label, a package id or its beginning, the beginning of its hash, or the name of a job or pod.
    :raises NotFoundHere: if it is none of these, or those of several peers.
    """
    known = list(runs)
    found = [run for run in known if what and what in _names(run)] or [run for run in known if _begins(run, what)]
    if not found:
        raise NotFoundHere(f"there is no chaincode {what!a} here. Run k8s-builder status to see all")
    going_on = [run for run in found if run.state is not State.ENDED] or found
    if len({run.key for run in going_on}) > 1:
        jobs = ", ".join(sorted(run.job_name for run in going_on))
        raise NotFoundHere(f"{what!a} matches more than one chaincode. Give the name of a job: {jobs}")
    return max(going_on, key=_newness)


def _names(run: Run) -> set[str]:
    pod = run.observed.pod
    chaincode_id = run.key.chaincode_id
    names = {chaincode_id, package_id(chaincode_id).label, run.job_name, pod.metadata.name if pod is not None else ""}
    return names - {""}


def _begins(run: Run, what: str) -> bool:
    package = package_id(run.key.chaincode_id)
    label, colon, digits = what.rpartition(":")
    return len(digits) >= SHORTEST and package.hash.startswith(digits) and (not colon or label == package.label)


def _newness(run: Run) -> tuple[bool, datetime, float]:
    ended = run.observed.terminated
    return run.deletion is None, (ended and ended.finished_at) or _NEVER, run.since
