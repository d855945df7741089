"""The store without HTTP: history, slow readers, deletions."""

import anyio
import pytest

from k8s_builder_lab.embedded.objects import PODS, SECRETS, Object
from k8s_builder_lab.embedded.status import ApiError
from k8s_builder_lab.embedded.store import Store

pytestmark = pytest.mark.anyio


def secret(name: str) -> Object:
    return {"metadata": {"name": name}}


async def test_a_reader_that_is_too_far_behind_sees_the_end_and_others_do_not_notice() -> None:
    store = Store()
    with store.subscribe(3) as slow, store.subscribe() as other:
        for i in range(10):
            store.create(SECRETS, "default", secret(f"s{i}"))
        assert [change.object["metadata"]["name"] async for change in slow] == ["s0", "s1", "s2"]
        assert [other.receive_nowait().object["metadata"]["name"] for _ in range(10)] == [f"s{i}" for i in range(10)]
        with pytest.raises(anyio.WouldBlock):
            other.receive_nowait()


def test_what_is_older_than_the_history_is_a_410_and_not_a_gap() -> None:
    store = Store(history=5)
    begin = store.revision
    for i in range(5):
        store.create(SECRETS, "default", secret(f"s{i}"))
    assert len(store.changes(begin)) == 5
    store.create(SECRETS, "default", secret("s5"))
    with pytest.raises(ApiError, match="too old resource version"):
        store.changes(begin)
    assert len(store.changes(begin + 1)) == 5


def test_a_change_that_changes_nothing_is_no_write() -> None:
    store = Store()
    store.create(SECRETS, "default", secret("s1"))
    before = store.revision
    store.update(SECRETS, "default", "s1", lambda obj: None)
    assert store.revision == before


def test_an_object_that_was_handed_out_never_changes() -> None:
    store = Store()
    given = secret("s1")
    created = store.create(SECRETS, "default", given)
    store.update(SECRETS, "default", "s1", lambda obj: obj["metadata"].update(labels={"a": "b"}))
    assert "labels" not in created["metadata"]
    assert given == secret("s1")


def test_a_shorter_grace_shortens_a_deletion_and_a_longer_does_not_prolong_it() -> None:
    store = Store()
    store.create(PODS, "default", {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    store.update(PODS, "default", "p", lambda pod: pod["spec"].update(nodeName="node1"))
    pods = [store.delete(PODS, "default", "p", grace=grace) for grace in (None, 5, 10)]
    graces = [pod["metadata"]["deletionGracePeriodSeconds"] for pod in pods]
    assert graces == [30, 5, 5]
    store.delete(PODS, "default", "p", grace=0)
    assert store.find(PODS, "default", "p") is None
