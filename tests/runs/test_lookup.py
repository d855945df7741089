"""Which run somebody means who names a label, a package id, a job or a pod."""

from datetime import UTC, datetime

import pytest

from k8s_builderd.fabric.names import LaunchKey
from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.kube.objects import ContainerState, ContainerStatus, PodStatus, Running, Terminated
from k8s_builderd.kube.watch import Applied
from k8s_builderd.runs.lookup import NotFoundHere, choose
from k8s_builderd.runs.record import Reason, Run

pytestmark = pytest.mark.anyio

HASH = "6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45"
RUNS = ContainerState(running=Running())


def run(
    job: str, *, label: str = "basic_1.0", peer: str = "peer0", digits: str = HASH, state: ContainerState | None = RUNS
) -> Run:
    made = Run(job, LaunchKey(f"{label}:{digits}", "Org1MSP", "peer0:7052", peer), job)
    made.found(Applied(Job(Meta(name=job, uid=f"{job}-j"))))
    if state is not None:
        status = PodStatus("Running", container_statuses=(ContainerStatus("chaincode", state),))
        made.found(Applied(Pod(Meta(name=f"{job}-pod", uid=f"{job}-p"), status)))
    return made


def ended(minute: int) -> ContainerState:
    at = datetime(2026, 11, 26, 3, minute, tzinfo=UTC)
    return ContainerState(terminated=Terminated(1, started_at=at, finished_at=at))


@pytest.mark.parametrize(
    "what",
    ["basic_1.0", f"basic_1.0:{HASH}", "basic_1.0:6f98c4b", "6f98c4bb2941", HASH, "job-a", "job-a-pod"],
)
async def test_it_is_named_in_several_ways(what: str) -> None:
    wanted = run("job-a")
    assert choose([run("job-b", label="other_1", digits="00" * 32), wanted], what) is wanted


@pytest.mark.parametrize(
    "what", ["", "basic", "basic_1.0:", "basic_1.0:6f98c4", "6f98c4", "other:6f98c4bb", "job", "-pod"]
)
async def test_what_names_none_is_told(what: str) -> None:
    with pytest.raises(NotFoundHere, match="there is no chaincode"):
        choose([run("job-a")], what)


async def test_of_several_launches_the_newest_that_goes_on_is_meant() -> None:
    crashed, older, newer = run("job-a", state=ended(1)), run("job-b"), run("job-c")
    assert choose([newer, crashed, older], "basic_1.0") is newer
    older.delete(Reason.REPLACED)
    assert choose([older, crashed], "basic_1.0") is older
    newer.delete(Reason.STOPPED)
    another = run("job-d", state=None)
    assert choose([older, another, newer], "basic_1.0") is another
    assert choose([older, newer, crashed], "job-a") is crashed


async def test_of_those_that_have_ended_the_last_one_is_meant() -> None:
    first, last = run("job-a", state=ended(1)), run("job-b", state=ended(2))
    assert choose([last, first], "basic_1.0") is last
    assert choose([first, last], "basic_1.0") is last


async def test_what_two_peers_run_is_not_guessed() -> None:
    mine, other = run("job-a"), run("job-b", peer="peer1")
    with pytest.raises(NotFoundHere, match=r"Give the name of a job: job-a, job-b$"):
        choose([other, mine], "basic_1.0")
    assert choose([run("job-b", peer="peer1", state=ended(1)), mine], "basic_1.0") is mine
