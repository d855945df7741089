"""The Kustomize components, as kubectl puts them into a peer."""

from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendered import DEPLOY, check, kustomize, named, overlay, yaml

BASE = ["../base"]


def pod(objects: list[Any]) -> Any:
    return named(objects, "StatefulSet", "peer0-org1")["spec"]["template"]["spec"]


def container(spec: Any, name: str) -> Any:
    (found,) = (it for it in [*spec["initContainers"], *spec["containers"]] if it["name"] == name)
    return found


def test_the_example_is_what_the_api_takes() -> None:
    objects = kustomize(DEPLOY / "example")
    assert {it["kind"] for it in objects} == {"ServiceAccount", "Role", "RoleBinding", "StatefulSet"}
    for it in objects:
        check(it)


@pytest.mark.parametrize(
    ("components", "kinds"),
    [
        (["../sidecar", "../openshift"], set()),
        (["../sidecar", "../namespace/sidecar"], set()),
        (["../sidecar", "../network-policy"], {"NetworkPolicy"}),
        (["../sidecar", "../monitoring"], {"PodMonitor", "PrometheusRule", "ConfigMap"}),
        (["../sidecar", "../openshift", "../network-policy", "../monitoring"], {"NetworkPolicy", "PodMonitor"}),
    ],
    ids=lambda it: "+".join(Path(one).name for one in it) if isinstance(it, list) else "",
)
def test_a_component_makes_what_the_api_takes(components: list[str], kinds: set[str], tmp_path: Path) -> None:
    objects = overlay(tmp_path, components, BASE)
    assert kinds <= {it["kind"] for it in objects}
    for it in objects:
        check(it)
    # The programs are there before the peer, and the order of sidecar and copy stays.
    assert [it["name"] for it in pod(objects)["initContainers"]] == ["k8s-builder-client", "k8s-builderd"]


def test_a_deployment_gets_the_sidecar_as_well(tmp_path: Path) -> None:
    peer = (DEPLOY / "example/peer.yaml").read_text().replace("StatefulSet", "Deployment")
    peer = "".join(line for line in peer.splitlines(keepends=True) if "serviceName" not in line)
    objects = overlay(tmp_path, ["../sidecar"], BASE, peer)
    found = named(objects, "Deployment", "peer0-org1")
    check(found)
    assert container(found["spec"]["template"]["spec"], "k8s-builderd")["restartPolicy"] == "Always"


def test_openshift_gets_no_fixed_user_or_group_and_loses_nothing_else(tmp_path: Path) -> None:
    plain, changed = (
        pod(overlay(tmp_path / name, components, BASE))
        for name, components in (("a", ["../sidecar"]), ("b", ["../sidecar", "../openshift"]))
    )
    removed = plain.pop("securityContext")
    assert removed.keys() == {"fsGroup", "fsGroupChangePolicy"}
    assert not changed.pop("securityContext", None)
    for each in plain["initContainers"]:
        assert each["securityContext"].pop("runAsUser") == each["securityContext"].pop("runAsGroup") == 65532
    assert changed == plain


def test_a_peer_that_keeps_its_account_keeps_its_token(tmp_path: Path) -> None:
    objects = overlay(tmp_path, ["../sidecar", "../keep-service-account"], ["../role"])
    for it in objects:
        check(it)
    spec = pod(objects)
    assert spec["serviceAccountName"] == "peer"
    assert "automountServiceAccountToken" not in spec
    binding = named(objects, "RoleBinding", "k8s-builderd")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "peer", "namespace": "fabric"}]
    assert binding["roleRef"]["name"] == named(objects, "Role", "k8s-builderd")["metadata"]["name"]
    assert "ServiceAccount" not in {it["kind"] for it in objects}


def test_chaincode_in_another_namespace_is_told_to_the_daemon_and_allowed_there(tmp_path: Path) -> None:
    there = kustomize(DEPLOY / "namespace")
    for it in there:
        check(it)
    role, binding = named(there, "Role", "k8s-builderd"), named(there, "RoleBinding", "k8s-builderd")
    assert role["metadata"]["namespace"] == binding["metadata"]["namespace"] == "chaincode"
    assert binding["subjects"][0]["namespace"] == "fabric"
    spec = pod(overlay(tmp_path, ["../sidecar", "../namespace/sidecar"], BASE))
    assert {"name": "FABRIC_K8S_BUILDER_NAMESPACE", "value": role["metadata"]["namespace"]} in container(
        spec, "k8s-builderd"
    )["env"]


def test_the_network_policy_chooses_the_pods_that_the_daemon_makes_and_the_peer_that_gets_the_sidecar() -> None:
    policy = yaml.safe_load((DEPLOY / "network-policy/network-policy.yaml").read_text())["spec"]
    example = (DEPLOY.parent / "docs/kubernetes-objects.md").read_text()
    for key, value in policy["podSelector"]["matchLabels"].items():
        assert f"{key}: {value}\n" in example
    peer = yaml.safe_load((DEPLOY / "example/peer.yaml").read_text())["spec"]["template"]["metadata"]["labels"]
    (to_the_peer,) = policy["egress"][0]["to"]
    assert to_the_peer["podSelector"]["matchLabels"].items() <= peer.items()
    assert policy["egress"][0]["ports"] == [{"protocol": "TCP", "port": 7052}]
    assert policy["ingress"] == []
