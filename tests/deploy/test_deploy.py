"""The files that people deploy: they parse, and ask for what the code needs and for no more."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from k8s_builderd.access import NEEDED
from k8s_builderd.kube.rights import RIGHTS
from k8s_builderd.settings import DEFAULT_SOCKET, Settings
from tests.test_docs import code, read_by_client, rows, section

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DAEMON = ROOT / "daemon" / "k8s_builderd"

# Which verbs of RBAC a call of kube.api.Api asks for, and on what, where that is not its first argument. The reflector
# lists and watches what it is made for.
VERBS = {
    "create": ("create",),
    "try_create": ("create",),
    "get": ("get",),
    "delete": ("delete",),
    "patch": ("patch",),
    "list": ("list",),
    "Reflector": ("list", "watch"),
}
RESOURCES = {
    "JOBS": ("batch", "jobs"),
    "PODS": ("", "pods"),
    "SECRETS": ("", "secrets"),
    "EVENTS": ("", "events"),
    "NEW_EVENTS": ("events.k8s.io", "events"),
}
LOG = ("", "pods/log", "get")


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def used() -> set[tuple[str, str, str]]:
    """Return group, resource and verb of every request that the daemon makes."""
    found = set()
    for path in DAEMON.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name == "log" and isinstance(node.func, ast.Attribute) and "api" in ast.unparse(node.func.value):
                found.add(LOG)
            for argument in node.args:
                if name in VERBS and isinstance(argument, ast.Name) and argument.id in RESOURCES:
                    found |= {(*RESOURCES[argument.id], verb) for verb in VERBS[name]}
    return found


def granted() -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in load("role/role.yaml")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_role_holds_the_verbs_that_the_code_uses_and_no_other() -> None:
    assert used() == granted()


def test_the_rights_that_are_asked_for_are_those_of_the_role() -> None:
    """By `k8s-builder doctor`, and by /readyz but for events, without which a launch works."""
    named = {(verb, f"{resource}.{group}" if group else resource) for group, resource, verb in granted()}
    assert {(right.verb, right.what) for right in RIGHTS} == named
    assert len(RIGHTS) == len(named)
    assert set(NEEDED) == {(verb, resource) for verb, resource in named if not resource.startswith("events")}


def test_operations_gives_a_reason_for_each_right() -> None:
    table = {(code(row[0])[0], verb) for row in rows(section("operations.md", "Rights")) for verb in code(row[1])}
    assert table == {(resource, verb) for _, resource, verb in granted()}


def test_the_binding_binds_the_service_account_to_the_role() -> None:
    binding = load("base/role-binding.yaml")
    assert binding["roleRef"]["name"] == load("role/role.yaml")["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [
        load("base/service-account.yaml")["metadata"]["name"]
    ]
    assert pod()["serviceAccountName"] == binding["subjects"][0]["name"]


def test_chaincode_in_another_namespace_has_the_same_role_there() -> None:
    """The binding is in the chaincode's namespace, its subject in the peer's."""
    kustomization, binding = load("namespace/kustomization.yaml"), load("namespace/role-binding.yaml")
    assert "../role" in kustomization["resources"]
    assert "../role" in load("base/kustomization.yaml")["resources"]
    assert "namespace" not in load("role/role.yaml")["metadata"]
    assert binding["roleRef"] == load("base/role-binding.yaml")["roleRef"]
    [subject] = binding["subjects"]
    assert subject == {
        "kind": "ServiceAccount",
        "name": load("base/service-account.yaml")["metadata"]["name"],
        "namespace": load("example/kustomization.yaml")["namespace"],
    }
    assert kustomization["namespace"] != subject["namespace"]
    # The daemon reads where its own pod is from what the sidecar mounts.
    [volume] = [volume for volume in pod()["volumes"] if volume["name"] == "k8s-builder-token"]
    [downward] = [source["downwardAPI"] for source in volume["projected"]["sources"] if "downwardAPI" in source]
    assert downward["items"] == [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]


@pytest.mark.parametrize("folder", ["role", "base", "namespace", "sidecar", "example", "monitoring"])
def test_a_kustomization_names_files_that_are_there(folder: str) -> None:
    kustomization = load(f"{folder}/kustomization.yaml")
    named = kustomization.get("resources", []) + kustomization.get("components", [])
    named += [patch["path"] for patch in kustomization.get("patches", [])]
    assert named
    for name in named:
        assert (DEPLOY / folder / name).exists(), name


def pod() -> Any:
    return load("sidecar/patch.yaml")["spec"]["template"]["spec"]


def named(items: list[Any], name: str) -> Any:
    (found,) = (item for item in items if item["name"] == name)
    return found


def test_the_daemon_is_a_native_sidecar_that_never_unreadies_the_peer() -> None:
    daemon = named(pod()["initContainers"], "k8s-builderd")
    assert daemon["restartPolicy"] == "Always"
    assert "readinessProbe" not in daemon
    assert DEFAULT_SOCKET in daemon["startupProbe"]["exec"]["command"][-1]
    assert daemon["livenessProbe"]["httpGet"] == {"path": "/livez", "port": daemon["ports"][0]["name"]}
    assert daemon["ports"][0]["containerPort"] == Settings.load({}).health_address[1]


def test_the_sidecars_containers_have_no_power() -> None:
    for container in pod()["initContainers"]:
        assert container["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_only_the_sidecar_gets_a_token() -> None:
    assert pod()["automountServiceAccountToken"] is False
    mounted = {
        container["name"]
        for kind in ("initContainers", "containers")
        for container in pod()[kind]
        if "k8s-builder-token" in [mount["name"] for mount in container["volumeMounts"]]
    }
    assert mounted == {"k8s-builderd"}


def test_peer_and_daemon_share_the_sockets_directory_and_its_group() -> None:
    daemon, peer = named(pod()["initContainers"], "k8s-builderd"), named(pod()["containers"], "peer")
    mounts = [named(container["volumeMounts"], "k8s-builder-socket") for container in (daemon, peer)]
    assert [mount["mountPath"] for mount in mounts] == [str(Path(DEFAULT_SOCKET).parent)] * 2
    assert "emptyDir" in named(pod()["volumes"], "k8s-builder-socket")
    assert pod()["securityContext"]["fsGroup"]


def test_the_daemon_is_told_its_own_pod() -> None:
    daemon = named(pod()["initContainers"], "k8s-builderd")
    told = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in daemon["env"]}
    assert told == {"FABRIC_K8S_BUILDER_POD_NAME": "metadata.name", "FABRIC_K8S_BUILDER_POD_UID": "metadata.uid"}


def test_core_yaml_finds_the_programs_where_the_pod_has_them_and_propagates_all_they_read(tmp_path: Path) -> None:
    (builder,) = load("core.yaml")["chaincode"]["externalBuilders"]
    copier, peer = named(pod()["initContainers"], "k8s-builder-client"), named(pod()["containers"], "peer")
    assert builder["path"] == named(peer["volumeMounts"], "k8s-builder-client")["mountPath"]
    assert copier["command"][:2] == ["cp", "-R"]
    assert copier["command"][-1].rstrip("/") == named(copier["volumeMounts"], "k8s-builder-client")["mountPath"]
    assert set(builder["propagateEnvironment"]) == read_by_client(tmp_path)


def test_the_image_is_built_in_stages_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    instructions = re.findall(r"^([A-Z]+) (.*)", text.replace("\\\n", " "), re.MULTILINE)
    bases = [argument.split(" AS ") for instruction, argument in instructions if instruction == "FROM"]
    assert [base[0] for base in bases] == ["${PYTHON_IMAGE}"] * 3
    last = instructions[max(i for i, (instruction, _) in enumerate(instructions) if instruction == "FROM") :]
    assert ("USER", "65532:65532") in last
    assert not [argument for instruction, argument in last if instruction in {"RUN", "ADD"}]
    entry = named(pod()["initContainers"], "k8s-builderd")["startupProbe"]["exec"]["command"][0]
    assert Path(entry).parent == Path(re.findall(r'ENTRYPOINT \["([^"]+)"\]', text)[0]).parent
    sources = [Path(word) for _, words in instructions if _ == "COPY" for word in words.split()[:-1] if word[0] != "-"]
    for source in sources:
        assert source.is_absolute() or (ROOT / source).exists(), source
