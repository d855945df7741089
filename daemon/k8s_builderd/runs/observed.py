"""What the watches have told about one Job and its pod, folded into what the launch has to know."""

from datetime import datetime, timedelta

import anyio

from k8s_builderd.fabric.manifests import CONTAINER, GRACE_SECONDS
from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.kube.objects import Terminated
from k8s_builderd.kube.watch import Applied, Deleted

COMING = {None, "", "ContainerCreating", "PodInitializing"}
"""Reasons for which a container waits while it starts normally."""


class Sightings:
    """The newest state of a Job and its pod, and what must not be forgotten once it was seen.

    A pod can end and vanish between two looks of whoever waits; so the changes are folded in as they come, in
    `saw`, and only the result is looked at.
    """

    def __init__(self) -> None:
        self.job: Job | None = None
        self.job_gone = False
        self.has_secret = False
        """Whether the Job's Secret is known to be there: no watch tells of it, only the answer to its creation."""
        self.pod: Pod | None = None
        self.pod_gone = False
        self.terminated: Terminated | None = None
        self.told_to_end: datetime | None = None
        """When somebody asked for the pod's end, by its first deletionTimestamp: the kubelet moves it at the end."""
        self.started = False
        self._changed = anyio.Event()

    def saw(self, change: Applied[Job] | Deleted[Job] | Applied[Pod] | Deleted[Pod]) -> None:
        """Fold in one change."""
        item = change.object
        deleted = isinstance(change, Deleted)
        if isinstance(item, Job):
            if not self.job_gone:
                self.job = item
                self.job_gone = deleted
        elif self.pod is None or self.pod.metadata.uid == item.metadata.uid:
            # One pod for each Job: with restartPolicy Never and backoffLimit 0 a second one would be Kubernetes'
            # mistake, and the first is the one whose chaincode the peer knows.
            if self.terminated is None:
                # Nobody's wish for the end of what has ended by itself. No clock is asked: the node has another one.
                self.told_to_end = self.told_to_end or _asked(item.metadata)
            self.pod = item
            self.pod_gone = self.pod_gone or deleted
            self.started = self.started or container_started(item)
            self.terminated = item.container(CONTAINER).terminated or self.terminated
        self._changed.set()
        self._changed = anyio.Event()

    def lost_job(self) -> None:
        """Note that the Job is gone, where no watch has seen it go."""
        self.job_gone = True

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

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
    def coming(self) -> bool:
        """Say whether the pod is there, and its container has neither started nor been refused."""
        if self.started or self.ended or self.job_gone or self.pod is None or self.told_to_end is not None:
            return False
        waiting = self.pod.container(CONTAINER).waiting
        return waiting is None or waiting.reason in COMING


def container_started(pod: Pod) -> bool:
    """Say whether the pod's chaincode runs or has run, by this state of it.

    A pod that was deleted before it ran is told as terminated, too, but without a start.
    """
    state = pod.container(CONTAINER)
    return state.running is not None or (state.terminated is not None and state.terminated.started_at is not None)


def container_ended(pod: Pod) -> bool:
    """Say whether the pod's chaincode has ended, or can never run, by this state of it."""
    return pod.container(CONTAINER).terminated is not None or pod.ended


def _asked(meta: Meta) -> datetime | None:
    if meta.deletion_timestamp is None:
        return None
    # deletionTimestamp lies the grace period after the request. A grace of 0 is the kubelet's own, when all is over.
    return meta.deletion_timestamp - timedelta(seconds=meta.deletion_grace_period_seconds or GRACE_SECONDS)
