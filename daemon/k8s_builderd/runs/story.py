"""What becomes of a run, as Events on its Job and on the peer's pod: `kubectl describe` shows them. Decides nothing."""

from collections.abc import Callable

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.objects import Job
from k8s_builderd.fabric.plan import Owner, Plan
from k8s_builderd.kube.events import Happened, Reference
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.record import Reason, Run
from k8s_builderd.runs.verdict import Verdict

CONTROLLER = "k8s-builderd"
"""The `reportingController` of these Events."""

NORMAL, WARNING = "Normal", "Warning"

_DELETED = {
    Reason.STOPPED: (NORMAL, "Stopped", "The job is deleted: it was told to stop"),
    Reason.REPLACED: (NORMAL, "Replaced", "The job is deleted: the peer has launched this chaincode again"),
    Reason.CLIENT_GONE: (WARNING, "ClientGone", "The job is deleted: its `run` in the peer's container is gone"),
    Reason.ORPHAN: (WARNING, "Orphaned", "The job is deleted: no `run` has claimed it since the daemon's start"),
    Reason.LEFT_OVER: (
        NORMAL,
        "LeftOver",
        "The job is deleted: the chaincode has ended, and another container has not",
    ),
}
"""How the deletion of a Job is told. One that has not started has failed, and is told with its category."""


class Story:
    """Is told what happens to runs, and tells it on."""

    def __init__(self, record: Callable[[Happened], None] | None = None) -> None:
        """Take what writes the Events; None: nobody does."""
        self._record = record
        self._peer: Reference | None = None

    def set_owner(self, owner: Owner | None) -> None:
        """Say which pod is the daemon's own, and so the peer's."""
        self._peer = Reference("v1", "Pod", owner.name, owner.uid) if owner is not None else None

    def launched(self, plan: Plan, job: Job) -> None:
        """Tell that a Job was created."""
        chaincode = plan.chaincode.chaincode_id
        note = f"Launched chaincode {chaincode} of peer {plan.settings.peer_id} with image {plan.image.reference}"
        about = Reference("batch/v1", "Job", job.metadata.name, job.metadata.uid)
        self._tell(about, NORMAL, "Launched", "Launching", note, self._peer)
        if self._peer is not None:
            note = f"Launched chaincode {chaincode} with kubernetes job {job.metadata.name}"
            self._tell(self._peer, NORMAL, "Launched", "Launching", note, about, chaincode)

    def running(self, run: Run) -> None:
        """Tell that the container runs."""
        pod = run.observed.pod
        if pod is not None:
            note = f"The chaincode runs in pod {pod.metadata.name} on node {pod.spec.node_name}"
            self._tell(_job(run), NORMAL, "Running", "Launching", note, _pod(run))

    def degraded(self, run: Run, category: Category, text: str) -> None:
        """Tell what is wrong although the chaincode runs."""
        self._tell(_job(run), WARNING, category, "Running", text, _pod(run))

    def ended(self, run: Run, how: Verdict) -> None:
        """Tell how the chaincode has ended by itself, or by what others did."""
        if run.deletion is None:
            kind = NORMAL if how.category is Category.COMPLETED else WARNING
            self._tell_both(run, kind, how.category, "Ending", how.text)

    def failed(self, run: Run, failure: BuilderError) -> None:
        """Tell that a launch has failed."""
        self._tell_both(run, WARNING, failure.category or "LaunchFailed", "Launching", str(failure))

    def deleted(self, run: Run, reason: Reason) -> None:
        """Tell that the Job is deleted by decision of the daemon."""
        if (told := _DELETED.get(reason)) is not None:
            kind, word, note = told
            self._tell(_job(run), kind, word, "Stopping", note, _pod(run))

    def _tell_both(self, run: Run, kind: str, reason: str, action: str, note: str) -> None:
        """Tell it on the Job and on the peer's pod."""
        chaincode = run.key.chaincode_id
        self._tell(_job(run), kind, reason, action, note, _pod(run))
        self._tell(self._peer, kind, reason, action, f"Chaincode {chaincode}: {note}", _job(run), chaincode)

    def _tell(
        self,
        regarding: Reference | None,
        kind: str,
        reason: str,
        action: str,
        note: str,
        related: Reference | None,
        subject: str = "",
    ) -> None:
        if self._record is not None and regarding is not None:
            self._record(Happened(regarding, kind, str(reason), action, note, related, subject))


def _job(run: Run) -> Reference | None:
    job = run.observed.job
    return Reference("batch/v1", "Job", job.metadata.name, job.metadata.uid) if job is not None else None


def _pod(run: Run) -> Reference | None:
    pod = run.observed.pod
    return Reference("v1", "Pod", pod.metadata.name, pod.metadata.uid) if pod is not None else None
