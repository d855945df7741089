"""A deletion, from the request to the end of the container, against an API that answers as it is told."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import anyio
import pytest
import structlog
from msgspec.structs import replace

from k8s_builderd.fabric.objects import Annotations, Job, Meta, Pod
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, NotFound, Unavailable
from k8s_builderd.kube.objects import (
    ContainerState,
    ContainerStatus,
    OwnerReference,
    PodStatus,
    Running,
    Terminated,
    Waiting,
)
from k8s_builderd.kube.resources import Resource
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.record import Deletion, Reason, Run
from k8s_builderd.runs.stop import LATE, delete_job
from tests.fabric.test_manifests import plan
from tests.simulation.loop import Simulation

NAME = "hlfcc-basic10-abc-bcdfg"
JOB = Job(Meta(name=NAME, uid="j", annotations=Annotations(token_sha256=plan().token.sha256)))
OTHERS_JOB = replace(JOB, metadata=replace(JOB.metadata, uid="o", annotations=Annotations(token_sha256="other")))
GONE = NotFound("not found", verb="get", resource="jobs.batch")
REFUSED = Unavailable("HTTP 503", verb="delete", resource="jobs.batch")


def pod(state: ContainerState, *, owned: bool = True) -> Pod:
    owner = (OwnerReference("Job", NAME, "j"),) if owned else None
    meta = Meta(name=f"{NAME}-x", uid="p", annotations=JOB.metadata.annotations, owner_references=owner)
    return Pod(meta, PodStatus(container_statuses=(ContainerStatus("chaincode", state),)))


PENDING = pod(ContainerState(waiting=Waiting("ImagePullBackOff")))
RUNNING = pod(ContainerState(running=Running()))
ENDED = pod(ContainerState(terminated=Terminated(exit_code=143)))


class Stub:
    """The API: what it has answers for, and what it was asked. The last answer is given for ever."""

    def __init__(self, *, get: list[Job | ApiError] | None = None, delete: list[ApiError | None] | None = None) -> None:
        self._get = get or []
        self._delete = delete or []
        self.asked: list[str] = []

    async def get(self, _: Resource, __: type[Job], name: str) -> Job:
        self.asked.append(f"get {name}")
        answer: Job = await self._answer(self._get)
        return answer

    async def delete(self, _: Resource, name: str, uid: str) -> None:
        self.asked.append(f"delete {name} {uid}")
        await self._answer(self._delete)

    async def _answer(self, answers: list[Any]) -> Any:
        await anyio.sleep(0.01)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ApiError):
            raise answer
        return answer


class Deleting:
    """A deletion under way, in virtual time."""

    def __init__(self, api: Stub, *found: Job | Pod, reason: Reason = Reason.STOPPED) -> None:
        self.api = api
        self.run = Run(NAME, plan().key, plan().token.sha256) if not found else Run.of(found[0])
        for item in found:
            self.run.found(Applied(item))  # type: ignore[arg-type] # one of the two
        self.deletion: Deletion = self.run.delete(reason)
        self.watch_error: str | None = None
        self.over: bool | None = None
        """What came of it, once it is over."""

    async def carry_out(self) -> None:
        self.over = await delete_job(cast(Api, self.api), self.run, self.deletion, lambda: self.watch_error)


Story = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def tell() -> Iterator[Callable[[Story], list[str]]]:
    """Play a story in virtual time, and return the events that were logged."""
    simulation = Simulation()

    def tell(story: Story) -> list[str]:
        with structlog.testing.capture_logs() as lines:
            simulation.run(story())
        assert simulation.errors == []
        return [line["event"] for line in lines if line["event"] != "run_state"]

    yield tell
    simulation.close()


Tell = Callable[[Story], list[str]]


def test_job_and_container_are_gone(tell: Tell) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(delete=[None]), JOB, RUNNING)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(1)
            assert deleting.deletion.accepted_at is not None
            deleting.run.found(Deleted(JOB))
            await anyio.sleep(1)
            assert deleting.over is None
            deleting.run.found(Applied(ENDED))
        assert deleting.over
        assert deleting.api.asked == [f"delete {NAME} j"]

    assert tell(story) == ["job_deleted"]


def test_a_job_that_is_gone_before_a_watch_tells(tell: Tell) -> None:
    """It is asked for once: the answer says that it is gone, and what is waited for is the container's end."""

    async def story() -> None:
        deleting = Deleting(Stub(get=[GONE], delete=[GONE]), JOB, RUNNING)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(LATE - 1)
            assert deleting.api.asked == [f"delete {NAME} j"]
            assert deleting.run.observed.job_gone
            deleting.run.found(Applied(ENDED))
        assert deleting.over

    assert tell(story) == []


def test_a_refusal_is_tried_again_and_remembered(tell: Tell) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(delete=[REFUSED, REFUSED, None]), JOB)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(0.05)
            assert "HTTP 503" in deleting.deletion.last_error
            assert not deleting.deletion.settled.is_set()
            await deleting.deletion.settled.wait()
            assert deleting.deletion.last_error == ""
            deleting.run.found(Deleted(JOB))
        assert deleting.over

    assert tell(story) == ["job_not_deleted"] * 2 + ["job_deleted"]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_container_that_starts_before_the_api_accepts(tell: Tell, stopped: bool) -> None:
    """A deletion for not starting comes to nothing then, but not if its client has asked for the end meanwhile."""

    async def story() -> None:
        deleting = Deleting(Stub(delete=[REFUSED, REFUSED, None]), JOB, PENDING, reason=Reason.NOT_STARTED)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(0.05)
            if stopped:
                deleting.run.delete(Reason.STOPPED)
            deleting.run.found(Applied(RUNNING))
            await anyio.sleep(5)
            if stopped:
                assert deleting.over is None
                deleting.run.found(Deleted(JOB))
                deleting.run.found(Applied(ENDED))
        assert deleting.over is stopped
        assert (deleting.deletion.accepted_at is not None) is stopped

    assert tell(story) == (["job_not_deleted"] * 2 + ["job_deleted"] if stopped else ["job_not_deleted"])


@pytest.mark.parametrize("reason", [Reason.NOT_STARTED, Reason.CLIENT_GONE])
def test_a_deletion_that_comes_to_nothing_while_its_job_is_looked_up(tell: Tell, reason: Reason) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(get=[JOB], delete=[None]), reason=reason)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(0.005)
            if reason is Reason.NOT_STARTED:
                deleting.run.found(Applied(RUNNING))
            else:
                deleting.run.withdraw()
        assert deleting.over is False
        assert deleting.deletion.accepted_at is None
        assert deleting.api.asked == [f"get {NAME}"]

    assert tell(story) == []


def test_nothing_is_there_and_nothing_comes_late(tell: Tell) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(get=[GONE]))
        begin = anyio.current_time()
        await deleting.carry_out()
        assert deleting.over
        assert anyio.current_time() == pytest.approx(begin + LATE, abs=1)

    assert tell(story) == []


def test_a_job_that_comes_late_is_deleted_though_its_chaincode_has_ended_already(tell: Tell) -> None:
    """With it goes the Secret, which has the key."""

    async def story() -> None:
        deleting = Deleting(Stub(get=[GONE], delete=[None]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(LATE / 2)
            deleting.run.found(Applied(ENDED))
            deleting.run.found(Applied(JOB))
            await anyio.sleep(1)
            assert deleting.over is None
            deleting.run.found(Deleted(JOB))
        assert deleting.over
        assert deleting.api.asked == [f"get {NAME}", f"delete {NAME} j"]

    assert tell(story) == ["job_deleted"]


def test_whether_something_has_come_cannot_be_told_without_a_watch(tell: Tell) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(get=[GONE]))
        deleting.watch_error = "connection refused"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(5 * LATE)
            assert deleting.over is None
            assert len(deleting.api.asked) <= 6
            deleting.watch_error = None
        assert deleting.over

    assert tell(story) == []


def test_a_job_that_comes_late(tell: Tell) -> None:
    """A create request that was cut off is carried out after all."""

    async def story() -> None:
        deleting = Deleting(Stub(get=[GONE], delete=[None]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(3)
            deleting.run.found(Applied(JOB))
            await anyio.sleep(1)
            assert deleting.api.asked == [f"get {NAME}", f"delete {NAME} j"]
            deleting.run.found(Deleted(JOB))
        assert deleting.over

    assert tell(story) == ["job_deleted"]


def test_a_job_of_the_name_that_is_anothers(tell: Tell) -> None:
    async def story() -> None:
        deleting = Deleting(Stub(get=[OTHERS_JOB]))
        await deleting.carry_out()
        assert deleting.over
        assert set(deleting.api.asked) == {f"get {NAME}"}

    assert tell(story) == []


def test_a_pod_that_no_job_owns(tell: Tell) -> None:
    """Its Job was deleted without it. Which Job that was is not known any more, so nothing can be asked for."""

    async def story() -> None:
        deleting = Deleting(Stub(), pod(ContainerState(running=Running()), owned=False))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(deleting.carry_out)
            await anyio.sleep(1)
            assert deleting.deletion.orphaned_pod == f"{NAME}-x"
            deleting.run.found(Applied(pod(ContainerState(terminated=Terminated(exit_code=143)), owned=False)))
        assert deleting.over
        assert deleting.api.asked == []

    assert tell(story) == ["pod_without_job"]


def test_a_job_that_stays_is_told_once_and_asked_for_again(tell: Tell) -> None:
    """It has a finalizer, or its controller is down; then it goes, and the watch does not tell."""

    async def story() -> None:
        deleting = Deleting(Stub(delete=[None, None, None, GONE]), JOB, ENDED)
        await deleting.carry_out()
        assert deleting.over
        assert deleting.api.asked == [f"delete {NAME} j"] * 4

    assert tell(story) == ["job_deleted", "deletion_pending", "deletion_done"]
