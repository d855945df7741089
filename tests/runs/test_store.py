"""Whose a Job is."""

import pytest

from k8s_builderd.fabric.objects import Annotations, Meta
from k8s_builderd.kube.objects import OwnerReference
from k8s_builderd.runs.store import is_mine


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
