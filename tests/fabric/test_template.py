"""A pod template is judged when the daemon starts: a mistake is told with the path of its field."""

from typing import Any

import pytest

from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.template import ANNOTATIONS, ENVIRONMENT, LABELS, fault
from tests.fabric.test_manifests import plan


def of(**fields: Any) -> dict[str, Any]:
    """Return a template with these fields of the pod's spec."""
    return {"spec": fields}


def chaincode(**fields: Any) -> dict[str, Any]:
    """Return a template with these fields of the chaincode's container."""
    return of(containers=[{"name": "chaincode", **fields}])


GOOD: list[dict[str, Any]] = [
    {},
    {"metadata": {}, "spec": {}},
    {"metadata": {"creationTimestamp": None, "labels": None, "annotations": {"a": ""}, "name": "x"}},
    {"metadata": {"labels": {"team": "ledger", "app.kubernetes.io/part-of": "x", "fabric-builder-k8s-own": "y"}}},
    of(restartPolicy="Never", terminationGracePeriodSeconds=1, unknownField=[{"a": 1}]),
    of(terminationGracePeriodSeconds=None, restartPolicy=None, securityContext=None, nodeSelector={"a": "b"}),
    of(volumes=[{"name": "tmp", "emptyDir": {}}], imagePullSecrets=[{"name": "registry"}], tolerations=[{}]),
    of(initContainers=[{"name": "wait", "image": "x", "volumeMounts": [{"name": "certs", "mountPath": "/c"}]}]),
    of(containers=[{"name": "sidecar", "image": "x", "env": [{"name": "CORE_PEER_ADDRESS", "value": "x"}]}]),
    chaincode(resources={"requests": {"cpu": 1, "memory": "64Mi"}, "limits": {"cpu": 0.5}}, command=["a"], args=[]),
    chaincode(env=[{"name": "CORE_CHAINCODE_LOGGING_LEVEL", "value": "debug"}, {"name": "A", "valueFrom": {}}]),
    chaincode(volumeMounts=[{"name": "tmp", "mountPath": "/etc/hyperledger"}], securityContext={"privileged": True}),
]

PODS = "spec.containers[0]"
BAD: list[tuple[dict[str, Any], str]] = [
    # What each launch sets.
    (
        {"metadata": {"labels": {"a": "b", "fabric-builder-k8s-object": "x"}}},
        "metadata.labels['fabric-builder-k8s-object'] cannot be set: each launch sets it",
    ),
    (
        {"metadata": {"labels": {"app.kubernetes.io/instance": "x"}}},
        "metadata.labels['app.kubernetes.io/instance'] cannot",
    ),
    (
        {"metadata": {"annotations": {"fabric-builder-k8s-run": "x"}}},
        "metadata.annotations['fabric-builder-k8s-run'] cannot",
    ),
    (chaincode(image="x"), f"{PODS}.image cannot be set: the chaincode's package names the image"),
    (
        chaincode(env=[{"name": "A"}, {"name": "CORE_PEER_ADDRESS", "value": "x"}]),
        f"{PODS}.env[1].name cannot be CORE_PEER_ADDRESS: each launch sets it",
    ),
    (
        chaincode(volumeMounts=[{"name": "x", "mountPath": "/etc/hyperledger/fabric/"}]),
        f"{PODS}.volumeMounts[0].mountPath cannot be /etc/hyperledger/fabric",
    ),
    (of(volumes=[{"name": "tmp"}, {"name": "certs", "emptyDir": {}}]), "spec.volumes[1].name cannot be certs"),
    (of(initContainers=[{"name": "chaincode", "image": "x"}]), "spec.initContainers[0].name cannot be chaincode"),
    (of(restartPolicy="OnFailure"), "spec.restartPolicy cannot be set: it is Never"),
    (of(terminationGracePeriodSeconds=0), "spec.terminationGracePeriodSeconds must be 1 or more"),
    (of(terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds must be 1 or more"),
    # Types.
    ({"metadata": {"labels": {"a": 1}}}, "metadata.labels[...]: expected a string, got a whole number"),
    ({"metadata": {"labels": ["a"]}}, "metadata.labels: expected an object, got an array"),
    (
        of(terminationGracePeriodSeconds="30"),
        "spec.terminationGracePeriodSeconds: expected a whole number, got a string",
    ),
    (
        of(terminationGracePeriodSeconds=1.5),
        "spec.terminationGracePeriodSeconds: expected a whole number, got a number",
    ),
    (of(containers={"name": "chaincode"}), "spec.containers: expected an array, got an object"),
    (of(containers=None), "spec.containers: expected an array, got null"),
    (of(containers=["chaincode"]), f"{PODS}: expected an object, got a string"),
    (of(containers=[{"resources": {}}]), f"{PODS}: expected an object with the field 'name'"),
    (chaincode(env=None), f"{PODS}.env: expected an array, got null"),
    (chaincode(env={"A": "b"}), f"{PODS}.env: expected an array, got an object"),
    (chaincode(env=[{"name": "A", "value": 5}]), f"{PODS}.env[0].value: expected a string, got a whole number"),
    (
        chaincode(volumeMounts=[{"name": "tmp"}]),
        f"{PODS}.volumeMounts[0]: expected an object with the field 'mountPath'",
    ),
    (chaincode(resources={"limits": {"memory": True}}), f"{PODS}.resources.limits[...]: expected a number or a string"),
    (chaincode(resources={"limits": "1Gi"}), f"{PODS}.resources.limits: expected an object, got a string"),
    (chaincode(securityContext=[]), f"{PODS}.securityContext: expected an object, got an array"),
    (chaincode(command="sleep"), f"{PODS}.command: expected an array, got a string"),
    (of(imagePullSecrets=["registry"]), "spec.imagePullSecrets[0]: expected an object, got a string"),
    (of(nodeSelector={"a": True}), "spec.nodeSelector[...]: expected a string, got true or false"),
    (of(volumes=[{}]), "spec.volumes[0]: expected an object with the field 'name'"),
    (of(tolerations={}), "spec.tolerations: expected an array, got an object"),
]


@pytest.mark.parametrize("template", GOOD)
def test_what_a_launch_leaves_open_can_be_set(template: dict[str, Any]) -> None:
    assert fault(template) is None
    manifests.job(plan(template=template), None)


@pytest.mark.parametrize(("template", "said"), BAD)
def test_what_cannot_be_used_is_told_with_its_path(template: dict[str, Any], said: str) -> None:
    assert (fault(template) or "").startswith(said)


def test_what_cannot_be_set_is_what_a_launch_sets() -> None:
    template = manifests.job(plan(node_role="r"), None)["spec"]["template"]
    assert set(template["metadata"]["labels"]) == LABELS
    assert set(template["metadata"]["annotations"]) == ANNOTATIONS
    assert {entry["name"] for entry in template["spec"]["containers"][0]["env"]} == ENVIRONMENT
