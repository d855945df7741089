"""A real API server (KUBEBUILDER_ASSETS) takes what Kustomize and Helm make, field for field."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendered import CHART, CUSTOM, DEPLOY, chart, kustomize, overlay
from tests.embedded.realserver import TOKEN, RealServer, real_server

PATHS = {
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
}
ALL = ["../sidecar", "../openshift", "../namespace/sidecar", "../network-policy", "../monitoring"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("real")) as started:
        for name in ("fabric", "chaincode"):
            started.namespace(name)
        yield started


def refusal(server: RealServer, item: Any) -> str | None:
    """Return what the API server says against an object; None if it would create it."""
    path = PATHS[item["kind"]].format(item["metadata"]["namespace"])
    request = urllib.request.Request(
        f"{server.server}{path}?dryRun=All&fieldValidation=Strict",
        json.dumps(item).encode(),
        {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, context=server.tls, timeout=30):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return str(json.load(error)["message"])


def custom(item: Any) -> bool:
    return f"{item['apiVersion']}/{item['kind']}" in CUSTOM


@pytest.mark.parametrize(
    ("components", "resources"),
    [(["../sidecar"], ["../base"]), (ALL, ["../base"]), (["../sidecar", "../keep-service-account"], ["../role"])],
    ids=["sidecar", "all", "own account"],
)
def test_what_kustomize_makes_is_taken(
    server: RealServer, tmp_path: Path, components: list[str], resources: list[str]
) -> None:
    objects = [it for it in overlay(tmp_path, components, resources) if not custom(it)]
    assert objects
    assert [it for it in (refusal(server, it) for it in objects) if it] == []


def test_the_rights_in_the_namespace_of_the_chaincode_are_taken(server: RealServer) -> None:
    assert [refusal(server, it) for it in kustomize(DEPLOY / "namespace")] == [None, None]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"networkPolicy": True, "monitoring": {"dashboard": True}, "chaincode": {"podTemplate": {"spec": {}}}},
        {"chaincode": {"namespace": "chaincode"}, "networkPolicy": True},
    ],
    ids=["default", "all", "namespace"],
)
def test_what_helm_makes_is_taken(server: RealServer, values: dict[str, Any]) -> None:
    objects = [it for it in chart(CHART, values) if not custom(it)]
    assert objects
    assert [it for it in (refusal(server, it) for it in objects) if it] == []


def test_a_field_that_does_not_exist_is_refused(server: RealServer) -> None:
    """Otherwise these tests could not fail."""
    objects = kustomize(DEPLOY / "example")
    (peer,) = (it for it in objects if it["kind"] == "StatefulSet")
    peer["spec"]["template"]["spec"]["initContainers"][1]["restartPolice"] = "Always"
    assert "restartPolice" in (refusal(server, peer) or "")
