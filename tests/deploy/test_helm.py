"""The Helm chart: what it makes is what Kustomize makes, and what the API takes."""

import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.rendered import CHART, DEPLOY, ROOT, chart, check, named, overlay, yaml

ALL = {"monitoring": {"podMonitor": True, "alerts": True, "dashboard": True}, "networkPolicy": True}
PEER = """
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: peer0-org1
  labels: &labels
    app.kubernetes.io/name: hyperledger-fabric
    app.kubernetes.io/component: peer
    app.kubernetes.io/instance: peer0-org1
spec:
  serviceName: peer0-org1
  selector:
    matchLabels: *labels
"""
POD = {"metadata": {"labels": {"team": "ledger"}}, "spec": {"priorityClassName": "chaincode"}}


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


@pytest.fixture
def peers_chart(tmp_path: Path) -> Path:
    """A peer's own chart with this one as its dependency, written as the chart's README.md says."""
    folder = tmp_path / "peer"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: peer\nversion: 1.0.0\n")
    shutil.copytree(CHART, folder / "charts/k8s-builderd")
    (block,) = (
        it for it in re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL) if "peerVol" in it
    )
    block = re.sub("^   ", "", block, flags=re.MULTILINE)
    first, _, rest = block.partition("spec:\n")
    labels = "app.kubernetes.io/component: peer\n"
    rest = rest.replace(
        labels,
        f"{labels}        app.kubernetes.io/name: hyperledger-fabric\n        app.kubernetes.io/instance: peer0-org1\n",
    )
    container = "- name: peer\n"
    rest = rest.replace(
        container,
        f"{container}          image: registry.example.com/fabric-peer\n"
        "          env: [{name: CORE_PEER_ID, value: peer0.org1.example.com}]\n",
    )
    (folder / "templates/peer.yaml").write_text(first + PEER + rest)
    return folder


def test_the_chart_is_well_formed() -> None:
    helm = pytest.importorskip("helm_python", reason="no Helm here (pip install '.[deploy]')")
    found = helm.lint(str(CHART))
    assert found["errors"] == []
    assert [it["error"] for it in found["messages"] if "icon" not in it["error"]] == []


def test_the_charts_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    described = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (described["version"], described["appVersion"]) == (project["version"], project["version"])
    assert f"version: {project['version']}\n" in (CHART / "README.md").read_text()


def test_what_it_shares_with_kustomize_is_the_same_file() -> None:
    for path in (CHART / "shared").iterdir():
        assert path.resolve().is_relative_to(DEPLOY)
        assert path.is_symlink()
        assert not path.resolve().is_relative_to(CHART)


@pytest.mark.parametrize(
    "values",
    [
        {},
        ALL,
        {**ALL, "chaincode": {"namespace": "chaincode", "podTemplate": POD}},
        {"serviceAccount": {"create": False, "name": "peer"}, "coreYaml": {"create": False}},
        {"serviceAccount": {"annotations": {"example.com/role": "x"}}},
    ],
    ids=["default", "all", "namespace", "own account", "annotated account"],
)
def test_what_it_makes_is_what_the_api_takes(values: dict[str, Any]) -> None:
    for it in chart(CHART, values):
        check(it)


def test_its_objects_are_those_of_kustomize() -> None:
    made = chart(CHART, ALL)
    assert named(made, "Role", "k8s-builderd")["rules"] == load("role/role.yaml")["rules"]
    binding = load("base/role-binding.yaml")
    for subject in binding["subjects"]:
        subject["namespace"] = "fabric"
    assert named(made, "RoleBinding", "k8s-builderd") | {"metadata": binding["metadata"]} == binding
    account = load("base/service-account.yaml")
    assert named(made, "ServiceAccount", "k8s-builderd") | {"metadata": account["metadata"]} == account
    for kind, name, path in (
        ("PodMonitor", "k8s-builderd", "monitoring/pod-monitor.yaml"),
        ("PrometheusRule", "k8s-builderd", "monitoring/prometheus-rule.yaml"),
        ("NetworkPolicy", "k8s-builderd-chaincode", "network-policy/network-policy.yaml"),
    ):
        assert named(made, kind, name)["spec"] == load(path)["spec"]
    core = named(made, "ConfigMap", "k8s-builderd-core")["data"]["core.yaml"]
    assert yaml.safe_load(core) == load("core.yaml")
    dashboard = named(made, "ConfigMap", "k8s-builderd-dashboard")
    assert dashboard["data"]["k8s-builderd.json"] == (DEPLOY / "monitoring/dashboard.json").read_text()
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(made) == 8


@pytest.mark.parametrize(
    ("values", "components", "resources"),
    [
        ({}, ["../sidecar"], ["../base"]),
        ({"sidecar": {"openshift": True}}, ["../sidecar", "../openshift"], ["../base"]),
        ({"chaincode": {"namespace": "chaincode"}}, ["../sidecar", "../namespace/sidecar"], ["../base"]),
        (
            {"serviceAccount": {"create": False, "name": "peer"}},
            ["../sidecar", "../keep-service-account"],
            ["../role"],
        ),
    ],
    ids=["default", "openshift", "namespace", "own account"],
)
def test_the_peers_pod_is_the_one_that_kustomize_makes(
    peers_chart: Path, tmp_path: Path, values: dict[str, Any], components: list[str], resources: list[str]
) -> None:
    ours = named(chart(peers_chart, {"k8s-builderd": values}), "StatefulSet", "peer0-org1")
    theirs = named(overlay(tmp_path / "kustomize", components, resources), "StatefulSet", "peer0-org1")
    check(ours)

    def pod(it: Any) -> Any:
        spec = it["spec"]["template"]["spec"]
        for each in spec["initContainers"]:
            each.pop("imagePullPolicy", None)
            each["image"] = each["image"].partition(":")[0]
            each.get("env", []).sort(key=lambda entry: entry["name"])
        for each in spec["containers"]:
            each["volumeMounts"].sort(key=lambda mount: mount["name"])
        spec["volumes"].sort(key=lambda volume: volume["name"])
        if not spec.get("securityContext"):
            spec.pop("securityContext", None)
        return spec

    assert pod(ours) == pod(theirs)
    assert ours["spec"]["template"]["metadata"]["labels"] == theirs["spec"]["template"]["metadata"]["labels"]


def test_settings_and_pod_template_reach_the_daemon(peers_chart: Path) -> None:
    values = {
        "image": {"digest": "sha256:" + "5e" * 32},
        "settings": {"FABRIC_K8S_BUILDER_NODE_ROLE": "chaincode", "FABRIC_K8S_BUILDER_MAX_CONNECTIONS": "100"},
        "chaincode": {"podTemplate": POD},
        "sidecar": {"fsGroup": 2000, "resources": {"requests": {"cpu": "50m"}}},
    }
    made = chart(peers_chart, {"k8s-builderd": values})
    for it in made:
        check(it)
    spec = named(made, "StatefulSet", "peer0-org1")["spec"]["template"]["spec"]
    copier, daemon = spec["initContainers"]
    assert copier["image"] == daemon["image"] == "registry.example.com/k8s-builderd@sha256:" + "5e" * 32
    env = {entry["name"]: entry.get("value") for entry in daemon["env"]}
    assert env["FABRIC_K8S_BUILDER_NODE_ROLE"] == "chaincode"
    assert env["FABRIC_K8S_BUILDER_MAX_CONNECTIONS"] == "100"
    (mount,) = (it for it in daemon["volumeMounts"] if it["name"] == "k8s-builder-pod-template")
    (volume,) = (it for it in spec["volumes"] if it["name"] == mount["name"])
    template = named(made, "ConfigMap", volume["configMap"]["name"])
    (file,) = template["data"]
    assert env["FABRIC_K8S_BUILDER_POD_TEMPLATE"] == f"{mount['mountPath']}/{file}"
    assert yaml.safe_load(template["data"][file]) == POD
    assert spec["securityContext"]["fsGroup"] == 2000
    assert daemon["resources"] == copier["resources"]
    assert daemon["resources"]["requests"]["cpu"] == "50m"


def test_chaincode_on_the_peers_node_needs_one_value(peers_chart: Path) -> None:
    def environment(**chaincode: Any) -> dict[str, Any]:
        made = chart(peers_chart, {"k8s-builderd": {"chaincode": chaincode}})
        for it in made:
            check(it)
        _, daemon = named(made, "StatefulSet", "peer0-org1")["spec"]["template"]["spec"]["initContainers"]
        return {entry["name"]: entry for entry in daemon["env"]}

    plain, made = environment(), environment(sameNode=True)
    added = {name: entry for name, entry in made.items() if name not in plain}
    assert added == {
        "FABRIC_K8S_BUILDER_SAME_NODE": {"name": "FABRIC_K8S_BUILDER_SAME_NODE", "value": "true"},
        "FABRIC_K8S_BUILDER_NODE_NAME": {
            "name": "FABRIC_K8S_BUILDER_NODE_NAME",
            "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}},
        },
    }


def test_the_network_policy_finds_a_peer_in_another_namespace() -> None:
    made = chart(CHART, {"networkPolicy": True, "chaincode": {"namespace": "chaincode"}})
    policy = named(made, "NetworkPolicy", "k8s-builderd-chaincode")
    assert policy["metadata"]["namespace"] == "chaincode"
    (to,) = policy["spec"]["egress"][0]["to"]
    assert to["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "fabric"}
    assert to["podSelector"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"imgae": {}},
        {"image": {"digest": "sha256:abc"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"serviceAccount": {"name": ""}},
        {"chaincode": {"namespace": "Upper"}},
        {"chaincode": {"podTemplate": {"containers": []}}},
        {"chaincode": {"podTemplate": {"chaincodes": [{"spec": {}}]}}},
        {"chaincode": {"sameNode": "yes"}},
        {"settings": {"FABRIC_K8S_BUILDER_SAME_NODE": "true"}},
        {"settings": {"NODE_ROLE": "x"}},
        {"settings": {"FABRIC_K8S_BUILDER_NAMESPACE": "x"}},
        {"settings": {"FABRIC_K8S_BUILDER_MAX_CONNECTIONS": 100}},
        {"sidecar": {"fsGroup": "2000"}},
        {"monitoring": {"podMonitor": "yes"}},
        {"networkPolicy": "on"},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    helm = pytest.importorskip("helm_python", reason="no Helm here (pip install '.[deploy]')")
    with pytest.raises(helm.HelmError):
        chart(CHART, wrong)
    chart(CHART, {})


def test_each_value_is_in_the_schema_and_explained() -> None:
    schema, values = (
        yaml.safe_load((CHART / "values.schema.json").read_text()),
        yaml.safe_load((CHART / "values.yaml").read_text()),
    )
    assert schema["properties"].keys() - {"global"} == values.keys()
    for name, value in values.items():
        if schema["properties"][name].get("additionalProperties") is False:
            assert schema["properties"][name]["properties"].keys() == value.keys(), name
