"""What the watches have told of one Job and its pod, folded into what a launch has to know."""

from collections.abc import Callable

from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.objects import Job, Pod
from k8s_builderd.kube.objects import Terminated
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.tasks import Bell


class Observed:
    """The newest state of a Job and its pod, and what must not be forgotten once it was seen.

    A pod can end and vanish between two looks of whoever waits. So changes are folded in as they come, in `fold`, and
    only the result is looked at. Times are those of this daemon's clock (`anyio.current_time()`), taken when it learnt
    of a thing: the clocks of the API server and of the nodes are compared with no other.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.job_gone = False
        self.has_secret = False
        """Whether the Job's Secret is known to be there: no watch tells of it, only the answer to its creation."""
        self.pod: Pod | None = None
        self.pod_gone = False
        self.no_pod = False
        """Whether the API has said, asked for it, that the finished Job has no pod."""
        self.terminated: Terminated | None = None
        self.started_at: float | None = None
        self.told_to_end_at: float | None = None
        """When somebody was seen to have asked for the pod's end, while its container was not known to have ended."""
        self.ended_at: float | None = None
        self.version = 0
        self._changed = Bell()
        self._attentive: Callable[[], None] | None = None

    def tell(self, changed: Callable[[], None] | None) -> None:
        """Have somebody told each change, as it comes, and nobody else; None: nobody any more."""
        self._attentive = changed

    def fold(self, change: Applied[Job] | Deleted[Job] | Applied[Pod] | Deleted[Pod], now: float) -> None:
        """Take in one change, learnt of at `now`."""
        item = change.object
        deleted = isinstance(change, Deleted)
        if isinstance(item, Job):
            if not self.job_gone:
                self.job = item
                self.job_gone = deleted
        elif self.pod is None or self.pod.metadata.uid == item.metadata.uid:
            # One pod for each Job: with restartPolicy Never and backoffLimit 0 a second one would be Kubernetes'
            # mistake, and the first is the one whose chaincode the peer knows.
            told = item.metadata.deletion_timestamp is not None
            if told and self.told_to_end_at is None and self.terminated is None:
                self.told_to_end_at = now
            self.pod = item
            self.pod_gone = self.pod_gone or deleted
            self.terminated = item.container(CONTAINER).terminated or self.terminated
            if self.started_at is None and container_started(item):
                self.started_at = now
        self._note(now)

    def got_secret(self) -> None:
        """Note that the Job's Secret is there."""
        self.has_secret = True
        self._tell()

    def lost_job(self, now: float) -> None:
        """Note that the Job is gone, where no watch has seen it go."""
        self.job_gone = True
        self._note(now)

    def lacks_pod(self, now: float) -> None:
        """Note that the API, asked for it, knows no pod of the Job."""
        self.no_pod = True
        self._note(now)

    def _note(self, now: float) -> None:
        if not self.ended:
            self.ended_at = None  # its pod has turned up late
        elif self.ended_at is None:
            self.ended_at = now
        self._tell()

    def _tell(self) -> None:
        self.version += 1
        self._changed.ring()
        if self._attentive is not None:
            self._attentive()

    async def until(self, holds: Callable[["Observed"], bool]) -> None:
        """Wait until something holds of this. No wake-up can be missed: it is looked at before each wait."""
        while not holds(self):
            await self._changed.wait()

    async def changed_since(self, version: int) -> None:
        """Wait until something has changed since there was this version."""
        while self.version == version:
            await self._changed.wait()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    @property
    def started(self) -> bool:
        """Say whether the container runs or has run."""
        return self.started_at is not None

    @property
    def gone(self) -> bool:
        """Say whether the pod's object is gone, or can never come because its Job is."""
        return self.pod_gone or (self.pod is None and self.job_gone)

    @property
    def ended(self) -> bool:
        """Say whether the container has ended, or can never run. The phase Running says neither."""
        if self.terminated is not None or self.gone:
            return True
        if self.pod is not None:
            return container_ended(self.pod)
        return self.job is not None and self.job.finished

    @property
    def needs_secret(self) -> bool:
        """Say whether its Secret may be missing: it has not mounted it yet, and may come to do so."""
        return not (self.has_secret or self.started or self.ended or self.job_gone)

    @property
    def certain(self) -> bool:
        """Say whether there is enough to tell how it ended: the pod, or the API's word that there is none."""
        return self.pod is not None or self.no_pod

    @property
    def on_its_way(self) -> bool:
        """Say whether the pod is there, and its container has neither started nor been refused."""
        if self.job is None or self.job_gone or self.pod is None or self.started or self.ended:
            return False
        waiting = self.pod.container(CONTAINER).waiting
        return self.pod.metadata.deletion_timestamp is None and (waiting is None or waiting.normal)

    @property
    def grace(self) -> float:
        """The seconds that the pod's containers may take to end."""
        return self.pod.grace if self.pod is not None else 0.0

    @property
    def told_to_end(self) -> bool:
        """Say whether somebody asked for the pod's end before its container had ended."""
        return self.told_to_end_at is not None


def container_started(pod: Pod) -> bool:
    """Say whether the pod's chaincode runs or has run, by this state of it.

    A pod that was deleted before it ran is told as terminated, too, but without a start.
    """
    state = pod.container(CONTAINER)
    return state.running is not None or (state.terminated is not None and state.terminated.started_at is not None)


def container_ended(pod: Pod) -> bool:
    """Say whether the pod's chaincode has ended, or can never run, by this state of it."""
    return pod.container(CONTAINER).terminated is not None or pod.ended or pod.never_starts(CONTAINER)
