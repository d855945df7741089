"""Whose a Job is, and what belongs to which run."""

from collections.abc import Callable
from typing import cast

import anyio
import pytest
from msgspec.structs import replace

from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.objects import Annotations, Job, Meta, Pod
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.objects import ContainerState, ContainerStatus, OwnerReference, PodStatus, Running
from k8s_builderd.metrics import Metrics
from k8s_builderd.runs.record import State
from k8s_builderd.runs.store import Store, is_mine
from k8s_builderd.settings import Settings
from tests.fabric.test_manifests import plan


def job(*owners: tuple[str, str], host: str = "") -> Meta:
    references = tuple(OwnerReference(kind, "name", uid) for kind, uid in owners)
    return Meta(name="j", owner_references=references or None, annotations=Annotations(host=host))


@pytest.mark.parametrize(
    ("meta", "pod_uid", "mine"),
    [
        (job(("Pod", "mine"), host="here"), "mine", True),
        (job(("Pod", "mine"), host="there"), "mine", True),
        (job(("Pod", "other"), host="here"), "mine", False),
        (job(("Pod", "other"), host="here"), "", False),
        (job(host="here"), "mine", True),
        (job(host="here"), "", True),
        (job(host="there"), "", False),
        (job(), "", True),
        (Meta(name="j"), "", True),
        (job(("CronJob", "other"), host="there"), "", False),
    ],
    ids=[
        "the own pod's",
        "the own pod's, made before it moved",
        "another pod's",
        "another pod's, without an own pod",
        "nobody's, made here before there was an own pod",
        "nobody's, made here",
        "nobody's, made there",
        "made before Jobs named their host",
        "without annotations",
        "of another kind's object, made there",
    ],
)
def test_a_job_is_mine_by_its_owner_or_by_its_host(meta: Meta, pod_uid: str, mine: bool) -> None:
    assert is_mine(meta, pod_uid=pod_uid, host="here") is mine


def pod_of(meta: Meta, name: str) -> Pod:
    owner = (OwnerReference("Job", name, "j"),)
    running = ContainerStatus("chaincode", ContainerState(running=Running()))
    return Pod(
        Meta(name=f"{name}-x", uid="p", resource_version="2", annotations=meta.annotations, owner_references=owner),
        PodStatus("Running", container_statuses=(running,)),
    )


@pytest.mark.anyio
@pytest.mark.parametrize("claimed", ["first", "between", "last"])
@pytest.mark.parametrize("first", ["job", "pod"])
async def test_job_and_pod_are_found_in_any_order(first: str, claimed: str) -> None:
    """Two watches tell of them, and an earlier daemon, with another prefix, has named them."""
    made = plan()
    annotations = Annotations(
        token_sha256=made.token.sha256,
        chaincode_id=made.key.chaincode_id,
        mspid=made.key.mspid,
        peer_address=made.key.peer_address,
        peer_id=made.key.peer_id,
    )
    meta = Meta(name="other-basic10-abc-bcdfg", uid="j", resource_version="1", annotations=annotations)
    store = Store(cast(Api, None), Settings.load({}), Metrics())
    steps: list[Callable[[], object]] = [
        lambda: store.jobs.adopt(Job(meta)),
        lambda: store.pods.adopt(pod_of(meta, meta.name)),
    ]
    if first == "pod":
        steps.reverse()
    steps.insert(["first", "between", "last"].index(claimed), lambda: store.take(store.get_or_make(made), made))
    for step in steps:
        step()
    run = store.find(made.token.sha256)
    assert run is not None
    assert run.job_name == meta.name
    assert run.state is State.RUNNING
    assert store.count == 1
    assert list(store.siblings(made.key).runs.values()) == [run]


def test_news_of_one_chaincode_wakes_nobody_who_waits_for_another() -> None:
    """What an event costs does not grow with the number of launches that wait."""
    store = Store(cast(Api, None), Settings.load({}), Metrics())
    made = plan()
    others = [replace(made, settings=replace(made.settings, peer_id=f"peer{n}")) for n in range(500)]
    tokens = [Token(f"{n:032x}") for n in range(500)]

    async def play() -> None:
        for other, token in zip(others, tokens, strict=True):
            mine = replace(other, token=token)
            store.take(store.get_or_make(mine), mine)
        before = [store.siblings(other.key).version for other in others]
        key = others[7].key
        annotations = Annotations(
            token_sha256=tokens[7].sha256,
            chaincode_id=key.chaincode_id,
            mspid=key.mspid,
            peer_address=key.peer_address,
            peer_id=key.peer_id,
        )
        store.jobs.adopt(Job(Meta(name="j", uid="j", resource_version="1", annotations=annotations)))
        after = [store.siblings(other.key).version for other in others]
        assert [n for n, (was, now) in enumerate(zip(before, after, strict=True)) if was != now] == [7]

    anyio.run(play)
