"""What is read of Kubernetes' objects."""

import msgspec
import pytest

from k8s_builderd.kube.objects import Pod


@pytest.mark.parametrize(
    ("pod", "grace"),
    [
        ({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 2}}, 2),
        ({"metadata": {}, "spec": {}}, 30),
        ({"metadata": {}}, 30),
        ({"metadata": {"deletionGracePeriodSeconds": 5}, "spec": {"terminationGracePeriodSeconds": 60}}, 5),
        ({"metadata": {"deletionGracePeriodSeconds": 0}, "spec": {"terminationGracePeriodSeconds": 60}}, 0),
    ],
)
def test_the_grace_of_a_pod_is_its_own_or_that_of_its_deletion(pod: object, grace: int) -> None:
    assert msgspec.convert(pod, Pod).grace == grace
