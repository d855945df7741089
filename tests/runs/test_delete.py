"""When a deletion that the API has accepted counts as late."""

from typing import cast

import anyio
import pytest
from structlog.testing import capture_logs

from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.objects import ContainerState, ContainerStatus, OwnerReference, PodSpec, PodStatus, Running
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs import stop
from k8s_builderd.runs.record import Reason, Run
from tests.fabric.test_manifests import plan

pytestmark = pytest.mark.anyio

NAME = "hlfcc-basic10-abc-bcdfg"
JOB = Job(Meta(name=NAME, uid="j"))


def running(grace: int) -> Pod:
    meta = Meta(name=f"{NAME}-x", uid="p", owner_references=(OwnerReference("Job", NAME, "j"),))
    statuses = (ContainerStatus("chaincode", ContainerState(running=Running())),)
    return Pod(meta, PodStatus("Running", container_statuses=statuses), PodSpec(termination_grace_period_seconds=grace))


class Accepting:
    """An API that accepts every deletion."""

    def __init__(self) -> None:
        self.asked = anyio.Event()

    async def delete(self, *_: object) -> None:
        self.asked.set()


async def test_a_deletion_is_late_only_when_the_pods_grace_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "LATE", 0.0)
    run = Run(NAME, plan().key, plan().token.sha256)
    run.found(Applied(JOB))
    run.found(Applied(running(grace=1)))
    api, deletion = Accepting(), run.delete(Reason.STOPPED)
    began = anyio.current_time()
    late = 0.0
    with anyio.fail_after(30), capture_logs() as lines:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop.delete_job, cast(Api, api), run, deletion, lambda: None)
            await api.asked.wait()
            run.found(Deleted(JOB))
            while not late:
                await anyio.sleep(0.01)
                if any(line["event"] == "deletion_pending" for line in lines):
                    late = anyio.current_time()
            run.found(Deleted(running(grace=1)))
    assert late >= began + 1
    assert [line["event"] for line in lines][-1] == "deletion_done"
