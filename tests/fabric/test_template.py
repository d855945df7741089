"""A pod template is judged when it is read: a mistake is told with the path of its field."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.template import ANNOTATIONS, ENVIRONMENT, LABELS, PodTemplate, Section, TemplateError
from tests.fabric.test_manifests import plan


def parse(template: Any) -> PodTemplate:
    return PodTemplate.parse(json.dumps(template).encode())


def refused(template: Any) -> str:
    content = template if isinstance(template, bytes) else json.dumps(template).encode()
    with pytest.raises(TemplateError) as error:
        PodTemplate.parse(content)
    return str(error.value)


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
    of(volumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "b", "emptyDir": {"sizeLimit": 5}}]),
    {"chaincodes": []},
    {"chaincodes": [{"label": "basic_*"}, {"label": "?", "metadata": {"labels": {"a": "b"}}, "spec": {}}]},
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
    # Kubernetes 1.35: a container has its own, and two containers of one launch would be told as one.
    (chaincode(restartPolicy="OnFailure"), f"{PODS}.restartPolicy cannot be set: it is Never"),
    (
        chaincode(restartPolicy="Never", restartPolicyRules=[{"action": "Restart"}]),
        f"{PODS}.restartPolicyRules cannot be set: the peer starts its chaincode again itself",
    ),
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
    (
        chaincode(resources={"limits": {"memory": "64MB"}}),
        f"{PODS}.resources.limits[memory] must be a Kubernetes quantity",
    ),
    (
        chaincode(resources={"requests": {"cpu": "1 m"}}),
        f"{PODS}.resources.requests[cpu] must be a Kubernetes quantity",
    ),
    (
        of(initContainers=[{"name": "a", "resources": {"limits": {"x.com/gpu": ""}}}]),
        "spec.initContainers[0].resources.limits[x.com/gpu] must be a Kubernetes quantity",
    ),
    (
        of(volumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "1MB"}}]),
        "spec.volumes[0].emptyDir.sizeLimit must be a Kubernetes quantity",
    ),
    (chaincode(resources={"limits": {"memory": True}}), f"{PODS}.resources.limits[...]: expected a number or a string"),
    (chaincode(resources={"limits": "1Gi"}), f"{PODS}.resources.limits: expected an object, got a string"),
    (chaincode(securityContext=[]), f"{PODS}.securityContext: expected an object, got an array"),
    (chaincode(command="sleep"), f"{PODS}.command: expected an array, got a string"),
    (of(imagePullSecrets=["registry"]), "spec.imagePullSecrets[0]: expected an object, got a string"),
    (of(nodeSelector={"a": True}), "spec.nodeSelector[...]: expected a string, got true or false"),
    (of(volumes=[{}]), "spec.volumes[0]: expected an object with the field 'name'"),
    (of(tolerations={}), "spec.tolerations: expected an array, got an object"),
    ({"spec": None}, "spec: expected an object, got null"),
    ({"metadata": []}, "metadata: expected an object, got an array"),
    ({"template": {}}, "template: unknown field; there are metadata and spec, and chaincodes for sections"),
    ({"spec": {}, "status": {}}, "status: unknown field"),
    # Sections.
    ({"chaincodes": None}, "chaincodes: expected an array, got null"),
    ({"chaincodes": {"basic_*": {}}}, "chaincodes: expected an array, got an object"),
    ({"chaincodes": [{"spec": {}}]}, "chaincodes[0]: expected an object with the field 'label'"),
    ({"chaincodes": [{"label": 1}]}, "chaincodes[0].label: expected a string, got a whole number"),
    ({"chaincodes": [{"label": "a", "containers": []}]}, "chaincodes[0].containers: unknown field"),
    (
        {"chaincodes": [{"label": "a"}, {"label": "b*"}, {"label": "a"}]},
        "chaincodes[2].label must not stand twice; it is 'a'",
    ),
    *(
        (
            {"chaincodes": [{"label": label}]},
            "chaincodes[0].label must be a chaincode's label, in which * stands for any",
        )
        for label in ("", "a b", "-*", "*_", "[ab]", "a:*", "x" * 64, "a/b")
    ),
    (
        {"chaincodes": [{"label": "a"}, {"label": "b", **of(restartPolicy="Always")}]},
        "chaincodes[1].spec.restartPolicy cannot be set",
    ),
    (
        {"chaincodes": [{"label": "a", **chaincode(env=[{"name": "CORE_PEER_ADDRESS"}])}]},
        f"chaincodes[0].{PODS}.env[0].name cannot be CORE_PEER_ADDRESS",
    ),
    (
        {"chaincodes": [{"label": "a", **chaincode(env=[{"name": "A", "value": 5}])}]},
        f"chaincodes[0].{PODS}.env[0].value: expected a string, got a whole number",
    ),
]


@pytest.mark.parametrize("template", GOOD)
def test_what_a_launch_leaves_open_can_be_set(template: dict[str, Any]) -> None:
    read = parse(template)
    manifests.job(replace(plan(), template=read.layers("basic_1.0")), None)


@pytest.mark.parametrize(("template", "said"), BAD)
def test_what_cannot_be_used_is_told_with_its_path(template: dict[str, Any], said: str) -> None:
    assert refused(template).startswith(said)


@pytest.mark.parametrize("content", [b"[]", b"5", b"- a", b"text", b"null", b"~"])
def test_what_is_no_object_is_refused(content: bytes) -> None:
    assert refused(content) == "it must be an object with metadata and spec, and chaincodes for sections"


def test_what_is_nested_without_end_is_refused() -> None:
    assert refused(b'{"spec": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}") == "it is nested too deeply"
    assert refused(b"spec: {a: " + b"[" * 5_000 + b"]" * 5_000 + b"}") == "it is nested too deeply"


def test_what_cannot_be_set_is_what_a_launch_sets() -> None:
    template = manifests.job(plan(node_role="r"), None)["spec"]["template"]
    assert set(template["metadata"]["labels"]) == LABELS
    assert set(template["metadata"]["annotations"]) == ANNOTATIONS
    assert {entry["name"] for entry in template["spec"]["containers"][0]["env"]} == ENVIRONMENT


# Sections


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("basic_1.0", ["basic_1.0"], ["basic_1x0", "basic_1.0.1", "Basic_1.0", "xbasic_1.0"]),
        ("basic_*", ["basic_", "basic_1.0", "basic_1_2"], ["basic", "xbasic_1"]),
        ("*", ["", "a", "basic_1.0"], []),
        ("basic_?", ["basic_1"], ["basic_", "basic_10"]),
        ("*_1.?", ["basic_1.0", "_1.x"], ["basic_1.10", "basic_1.0.0"]),
    ],
)
def test_a_section_is_for_the_labels_that_match(pattern: str, matching: list[str], others: list[str]) -> None:
    section = Section(pattern, {})
    assert [label for label in (*matching, *others) if section.matches(label)] == matching
    assert section.matches(section.example)


def test_a_glob_of_many_stars_takes_no_time() -> None:
    assert not Section("*a" * 31, {}).matches("a" * 62 + "b")


def test_the_most_specific_section_comes_last_wherever_it_stands() -> None:
    labels = ["basic_1.0", "basic_*", "*", "?*", "basic_?.0", "*_1.0", "basic_1.*", "*.0", "*_*"]
    order = ["*", "?*", "*_*", "*.0", "*_1.0", "basic_*", "basic_1.*", "basic_?.0", "basic_1.0"]
    for start in range(len(labels)):
        turned = labels[start:] + labels[:start]
        sections = parse({"chaincodes": [{"label": label} for label in turned]}).sections
        assert [section.label for section in sections] == order


def test_of_two_sections_that_are_as_specific_the_later_one_comes_last() -> None:
    for labels in (["basic_*", "*_basic"], ["*_basic", "basic_*"]):
        sections = parse({"chaincodes": [{"label": label} for label in labels]}).sections
        assert [(it.label, it.path) for it in sections] == [(labels[0], "chaincodes[0]"), (labels[1], "chaincodes[1]")]


def test_a_chaincode_gets_the_common_part_and_its_sections_one_over_the_other() -> None:
    template = parse(
        {
            **chaincode(
                resources={"limits": {"memory": "1Gi"}, "requests": {"cpu": "100m"}},
                env=[{"name": "A", "value": "common"}, {"name": "B", "value": "common"}],
            ),
            "chaincodes": [
                {
                    "label": "basic_1.0",
                    "metadata": {"labels": {"size": "large"}},
                    **chaincode(resources={"limits": {"memory": "4Gi"}}, env=[{"name": "C", "value": "exact"}]),
                },
                {
                    "label": "basic_*",
                    "metadata": {"labels": {"size": "medium", "kind": "basic"}},
                    **chaincode(resources={"limits": {"memory": "2Gi"}}, env=[{"name": "A", "value": "glob"}]),
                },
                {"label": "other", **of(terminationGracePeriodSeconds=30)},
            ],
        }
    )

    def shaped(label: str) -> tuple[dict[str, str], dict[str, Any], dict[str, str], int]:
        body = manifests.job(replace(plan(), template=template.layers(label)), None)["spec"]["template"]
        [found] = body["spec"]["containers"]
        own = {item["name"]: item["value"] for item in found["env"] if item["name"] in {"A", "B", "C"}}
        labels = {key: value for key, value in body["metadata"]["labels"].items() if key in {"size", "kind"}}
        return labels, found["resources"], own, body["spec"]["terminationGracePeriodSeconds"]

    def resources(memory: str) -> dict[str, Any]:
        return {"limits": {"memory": memory}, "requests": {"cpu": "100m"}}

    assert shaped("basic_1.0") == (
        {"size": "large", "kind": "basic"},
        resources("4Gi"),
        {"A": "glob", "B": "common", "C": "exact"},
        2,
    )
    assert shaped("basic_2") == (
        {"size": "medium", "kind": "basic"},
        resources("2Gi"),
        {"A": "glob", "B": "common"},
        2,
    )
    assert shaped("other") == ({}, resources("1Gi"), {"A": "common", "B": "common"}, 30)
    assert shaped("third") == ({}, resources("1Gi"), {"A": "common", "B": "common"}, 2)
    assert replace(plan(), template=template.layers("other")).grace == 30


def test_sections_add_to_lists_of_named_things_and_replace_others() -> None:
    template = parse(
        {
            "spec": {
                "initContainers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}],
                "tolerations": [{"key": "common"}],
            },
            "chaincodes": [
                {
                    "label": "x",
                    "spec": {
                        "initContainers": [{"name": "b", "image": "2"}, {"name": "c"}],
                        "tolerations": [{"key": "x"}],
                    },
                }
            ],
        }
    )
    spec = manifests.job(replace(plan(), template=template.layers("x")), None)["spec"]["template"]["spec"]
    assert spec["initContainers"] == [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c"}]
    assert spec["tolerations"] == [{"key": "x"}]


def test_a_label_or_a_field_that_has_the_name_of_a_list_is_no_list() -> None:
    layer: dict[str, Any] = {
        "metadata": {"labels": {"env": "one"}, "annotations": {"volumes": "one"}},
        "spec": {"nodeSelector": {"env": "one"}, "unknown": {"env": [1, {"name": 2}], "volumes": ["a"]}},
    }
    template = parse({**layer, "chaincodes": [{"label": "x", **layer}]})
    body = manifests.job(replace(plan(), template=template.layers("x")), None)["spec"]["template"]
    assert body["spec"]["nodeSelector"] == {"env": "one"}
    assert body["spec"]["unknown"] == layer["spec"]["unknown"]
    assert body["metadata"]["labels"]["env"] == body["metadata"]["annotations"]["volumes"] == "one"


def test_null_takes_back_what_was_laid_before_and_the_next_begins_anew() -> None:
    template = parse(
        {
            "spec": {"securityContext": None, "terminationGracePeriodSeconds": 9},
            "chaincodes": [
                {"label": "*", "spec": {"terminationGracePeriodSeconds": None}},
                {"label": "x", "spec": {"securityContext": {"fsGroup": 5}}},
            ],
        }
    )
    made = replace(plan(), template=template.layers("x"))
    spec = manifests.job(made, None)["spec"]["template"]["spec"]
    assert spec["securityContext"] == {"fsGroup": 5}
    assert made.grace == spec["terminationGracePeriodSeconds"] == 2


def test_an_empty_part_is_no_layer() -> None:
    assert parse({}).layers("x") == ()
    assert parse({"chaincodes": [{"label": "x"}, {"label": "*", "spec": {}}]}).layers("x") == ({"spec": {}},)
