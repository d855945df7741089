"""Which launches may go on with an earlier one's Job."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from tests.fabric.test_manifests import DIGEST, plan

from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.objects import Annotations, Job, Meta, Pod
from k8s_builderd.fabric.package import Image
from k8s_builderd.fabric.plan import LaunchSettings, Plan
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.objects import ContainerState, ContainerStatus, PodStatus, Running, Terminated, Waiting
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.store import Reason, Registry, Run
from k8s_builderd.runs.superseding import INHERITABLE, Superseded, supersede
from k8s_builderd.runs.superseding import inherit as inherit_within
from k8s_builderd.settings import Settings
from tests.kube.rogue import Reply, Request, rogue

pytestmark = pytest.mark.anyio

JOB = Job(Meta(name="hlfcc-basic10-abc-bcdfg", uid="j"))
POD = Pod(Meta(name="hlfcc-basic10-abc-bcdfg-x", uid="p"))


def waiting(reason: str) -> Pod:
    state = ContainerState(waiting=Waiting(reason))
    return Pod(POD.metadata, PodStatus(container_statuses=(ContainerStatus("chaincode", state),)))


def earlier(registry: Registry, made: Plan) -> Run:
    """Have an earlier launch wait for its container."""
    run = registry.claim(made)
    run.attempted, run.made = True, made
    run.sightings.saw(Applied(JOB))
    run.sightings.saw(Applied(POD))
    return run


async def inherit(registry: Registry, made: Plan) -> Plan:
    return await inherit_within(registry, made, 5.0)


def later(made: Plan) -> Plan:
    return replace(made, token=Token("1" * 32), job_name="hlfcc-basic10-abc-zzzzz")


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    kubeconfig = tmp_path / "kubeconfig"

    async def answer(request: Request, reply: Reply) -> None:
        if request.path.endswith(POD.metadata.name):
            await reply.whole(200, {"metadata": {"name": POD.metadata.name, "uid": POD.metadata.uid}})
        else:
            await reply.whole(404, {})

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "fabric") as api:
        yield Registry(api, Settings.load({}), Metrics())


@pytest.mark.parametrize("tls", [True, False], ids=["tls", "plain"])
@pytest.mark.parametrize("pod", [POD, waiting("ContainerCreating"), waiting("PodInitializing")])
async def test_a_later_launch_has_the_job_of_one_that_is_on_its_way(registry: Registry, tls: bool, pod: Pod) -> None:
    run = earlier(registry, plan(tls=tls))
    run.sightings.saw(Applied(pod))
    inherited = await inherit(registry, later(plan(tls=tls)))
    assert inherited.heir == 1
    assert registry.claim(inherited) is run


async def test_a_certificate_has_its_time(registry: Registry) -> None:
    run = earlier(registry, plan())
    run.since = anyio.current_time() - INHERITABLE - 1
    assert await inherit(registry, later(plan())) == later(plan())


@pytest.mark.parametrize(
    "other",
    [
        replace(plan(), peer="q" * 32),
        replace(plan(), settings=LaunchSettings("peer1")),
        replace(plan(), image=Image("registry:5000/other", DIGEST)),
        plan(service_account="other"),
    ],
    ids=["peer process", "peer", "image", "settings"],
)
async def test_other_terms_make_another_job(registry: Registry, other: Plan) -> None:
    earlier(registry, plan())
    assert await inherit(registry, later(other)) == later(other)


async def test_the_launch_itself_is_none_to_inherit(registry: Registry) -> None:
    earlier(registry, plan())
    assert await inherit(registry, plan()) == plan()


def _no_job(run: Run) -> None:
    run.sightings.job = None


def _no_pod(run: Run) -> None:
    run.sightings.pod = None


def _of_another_daemon(run: Run) -> None:
    run.made = None


def _being_deleted(run: Run) -> None:
    run.ending, run.reason = anyio.Event(), Reason.STOPPED


@pytest.mark.parametrize(
    "change",
    [
        _no_job,
        _no_pod,
        _of_another_daemon,
        _being_deleted,
        lambda run: run.sightings.saw(Deleted(JOB)),
        lambda run: run.sightings.saw(Deleted(POD)),
        lambda run: run.sightings.saw(Applied(waiting("ImagePullBackOff"))),
        lambda run: run.sightings.saw(Applied(waiting("CreateContainerConfigError"))),
    ],
    ids=["no job", "no pod", "another daemon", "being deleted", "job gone", "pod gone", "image", "container"],
)
async def test_what_is_not_on_its_way_is_not_inherited(registry: Registry, change: Callable[[Run], None]) -> None:
    change(earlier(registry, plan()))
    assert await inherit(registry, later(plan())) == later(plan())


# Whether an end drops the launch that waits


class Told:
    """An audience that keeps what it is told."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.cursors: list[str] = []

    async def say(self, text: str) -> None:
        self.words.append(text)

    async def log(self, cursor: str, lines: bytes = b"") -> None:
        self.cursors.append(cursor)


def pod_of(made: Plan, **state: Any) -> Pod:
    meta = replace(POD.metadata, annotations=Annotations(peer=made.peer))
    containers = (ContainerStatus("chaincode", ContainerState(**state)),)
    return Pod(meta, PodStatus(container_statuses=containers))


async def superseded(registry: Registry, made: Plan, ends: timedelta) -> Told:
    """Have a running rival end, by its node's clock so long after the launch, while the launch waits for that."""
    rival = earlier(registry, made)
    rival.sightings.saw(Applied(pod_of(made, running=Running(datetime.now(UTC)))))
    run = registry.claim(later(plan()))
    told = Told()
    begun = datetime.now(UTC)

    async def end() -> None:
        await anyio.wait_all_tasks_blocked()
        terminated = Terminated(started_at=begun, finished_at=(begun + ends).replace(microsecond=0))
        rival.sightings.saw(Applied(pod_of(made, terminated=terminated)))
        registry._pulse()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        deadline = anyio.current_time() + 60
        await supersede(registry, run, later(plan()), told, deadline=deadline, peer_patience=0.0)
    return told


async def test_a_crash_just_before_the_launch_drops_nobody(registry: Registry) -> None:
    """The peer has launched because of it; the kubelet tells it late, and in whole seconds."""
    told = await superseded(registry, plan(), timedelta(seconds=0.4))
    assert (told.words, told.cursors) == ([], [])


async def test_an_end_after_the_launch_drops_it(registry: Registry) -> None:
    """Had the peer used that chaincode, it would not have launched while it ran: it had given it up."""
    with pytest.raises(ExceptionGroup) as raised:
        await superseded(registry, plan(), timedelta(seconds=1.6))
    [error] = raised.value.exceptions
    assert isinstance(error, Superseded)
    assert "the next request starts the chaincode" in str(error)


async def test_an_end_after_the_launch_of_another_peer_process_drops_nobody(registry: Registry) -> None:
    told = await superseded(registry, replace(plan(), peer="q" * 32), timedelta(seconds=1.6))
    assert told.cursors == []
