"""What `kubectl kustomize` and Helm make of deploy/, and Kubernetes' own word on whether its API takes it."""

import importlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "k8s-builderd"
KINDS = {
    "v1/ConfigMap": "V1ConfigMap",
    "v1/ServiceAccount": "V1ServiceAccount",
    "v1/Service": "V1Service",
    "apps/v1/Deployment": "V1Deployment",
    "apps/v1/StatefulSet": "V1StatefulSet",
    "networking.k8s.io/v1/NetworkPolicy": "V1NetworkPolicy",
    "rbac.authorization.k8s.io/v1/Role": "V1Role",
    "rbac.authorization.k8s.io/v1/RoleBinding": "V1RoleBinding",
}
CUSTOM = {"monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule"}
PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "bool": (bool,),
    "float": (int, float),
    "datetime": (str,),
    "object": (str, int, dict),
}


def overlay(scratch: Path, components: list[str], resources: list[str], peer: str | None = None) -> list[Any]:
    """Return what kubectl makes of an overlay like deploy/example, with these components and resources."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here, which renders Kustomize")
    tree = scratch / "deploy"
    shutil.copytree(DEPLOY, tree, symlinks=True)
    kustomization = yaml.safe_load((DEPLOY / "example/kustomization.yaml").read_text())
    kustomization |= {"components": components, "resources": [*resources, "peer.yaml"]}
    (tree / "example/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    if peer is not None:
        (tree / "example/peer.yaml").write_text(peer)
    return kustomize(tree / "example")


def kustomize(folder: Path) -> list[Any]:
    """Return the objects that kubectl makes of a kustomization."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl here, which renders Kustomize")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def chart(folder: Path, values: dict[str, Any], namespace: str = "fabric") -> list[Any]:
    """Return the objects that Helm makes of a chart."""
    helm = pytest.importorskip("helm_python", reason="no Helm here (pip install '.[deploy]')")
    with helm.Chart.load(str(folder)) as loaded:
        made = loaded.render(values, name="ledger", namespace=namespace)
    texts = [text for name, text in sorted(made.items()) if name.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def named(objects: list[Any], kind: str, name: str) -> Any:
    """Return the one object of that kind and name."""
    (found,) = (
        it for it in objects if (it["kind"], re.sub("-[0-9a-z]{10}$", "", it["metadata"]["name"])) == (kind, name)
    )
    return found


def check(item: Any) -> None:
    """Compare an object with the API's schema: every field exists and has the type that the API wants."""
    kind = f"{item['apiVersion']}/{item['kind']}"
    if kind not in CUSTOM:
        _check(item, KINDS[kind], kind)
    for subject in item.get("subjects", []):  # the API's validation says so, its schema does not
        assert (subject["kind"] == "ServiceAccount") == ("namespace" in subject), item


@cache
def _models() -> Any:
    return importlib.import_module("kubernetes_asyncio.client.models")


def _check(value: Any, kind: str, where: str) -> None:
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            _check(item, match[1], f"{where}[{index}]")
    elif match := re.fullmatch(r"dict\((\w+), (.*)\)", kind):
        assert isinstance(value, dict), where
        for key, item in value.items():
            _check(item, match[2], f"{where}.{key}")
    elif kind in PLAIN:
        assert isinstance(value, PLAIN[kind]), f"{where} is {value!r}, not {kind}"
        assert kind == "bool" or not isinstance(value, bool), f"{where} is {value!r}, not {kind}"
    else:
        model = getattr(_models(), kind)
        assert isinstance(value, dict), where
        fields = {name: model.openapi_types[attribute] for attribute, name in model.attribute_map.items()}
        for name, item in value.items():
            assert name in fields, f"{where} has no field {name}"
            _check(item, fields[name], f"{where}.{name}")
