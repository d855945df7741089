"""What a launch puts into the cluster, and what an operator's pod template does to it."""

import base64
import json
from typing import Any

import pytest
from msgspec.structs import replace

from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.package import Image, decode_chaincode
from k8s_builderd.fabric.plan import LaunchSettings, Owner, Plan, PodSettings, SecurityProfile

DIGEST = "sha256:" + "5e" * 32
HASH = "6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45"
FIELD = "terminationGracePeriodSeconds"
PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


def plan(*, tls: bool = True, template: Any = None, **settings: Any) -> Plan:
    document = {
        "chaincode_id": f"basic_1.0:{HASH}",
        "peer_address": "peer0:7052",
        "client_cert": PEM.format("client") if tls else "",
        "client_key": PEM.format("key") if tls else "",
        "root_cert": PEM.format("root") if tls else "",
        "mspid": "Org1MSP",
    }
    return Plan(
        chaincode=decode_chaincode(json.dumps(document).encode()),
        image=Image("registry:5000/basic", DIGEST),
        settings=LaunchSettings("peer0", **settings),
        object_name="hlfcc-basic10-abc",
        job_name="hlfcc-basic10-abc-bcdfg",
        token=Token("0" * 32),
        peer="p" * 32,
        instance="peer0-0",
        namespace="fabric",
        template=(template,) if template else (),
    )


def pod(made: Plan) -> dict[str, Any]:
    spec: dict[str, Any] = manifests.job(made, None)["spec"]["template"]["spec"]
    return spec


def container(made: Plan) -> dict[str, Any]:
    [found] = pod(made)["containers"]
    return dict(found)


def test_a_job_is_tried_once_and_goes_some_time_after_its_end() -> None:
    job = manifests.job(plan(), None)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 300)
    assert (pod(plan())["restartPolicy"], pod(plan())["terminationGracePeriodSeconds"]) == ("Never", 2)
    assert container(plan())["image"] == f"registry:5000/basic@{DIGEST}"


def test_labels_and_annotations_are_the_same_on_job_pod_and_secret() -> None:
    made = plan()
    job, secret = manifests.job(made, None), manifests.secret(made, "uid")
    template = job["spec"]["template"]["metadata"]
    for kind in ("labels", "annotations"):
        assert job["metadata"][kind] == template[kind] == secret["metadata"][kind]
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/name": "hyperledger-fabric",
        "app.kubernetes.io/instance": "peer0-0",
        "app.kubernetes.io/component": "chaincode",
        "app.kubernetes.io/created-by": "fabric-builder-k8s",
        "app.kubernetes.io/managed-by": "fabric-builder-k8s",
        "fabric-builder-k8s-cclabel": "basic_1.0",
        "fabric-builder-k8s-cchash": base64.b32encode(bytes.fromhex(HASH)).decode().rstrip("="),
        "fabric-builder-k8s-object": "hlfcc-basic10-abc",
    }
    assert job["metadata"]["annotations"]["fabric-builder-k8s-ccid"] == f"basic_1.0:{HASH}"
    assert job["metadata"]["annotations"]["fabric-builder-k8s-mspid"] == "Org1MSP"
    assert job["metadata"]["annotations"]["fabric-builder-k8s-peeraddress"] == "peer0:7052"
    assert job["metadata"]["annotations"]["fabric-builder-k8s-peerid"] == "peer0"
    assert all(len(value) <= 63 for value in job["metadata"]["labels"].values())


def test_the_selector_chooses_what_this_instance_has_made() -> None:
    labels = manifests.job(plan(), None)["metadata"]["labels"]
    wanted = dict(term.split("=") for term in manifests.selector("peer0-0").split(","))
    assert wanted.items() <= labels.items()
    assert not dict(term.split("=") for term in manifests.selector("peer1-0").split(",")).items() <= labels.items()


@pytest.mark.parametrize("tls", [True, False])
def test_the_shims_find_their_settings(tls: bool) -> None:
    environment = {entry["name"]: entry["value"] for entry in container(plan(tls=tls))["env"]}
    assert environment == {
        "CORE_CHAINCODE_ID_NAME": f"basic_1.0:{HASH}",
        "CORE_PEER_ADDRESS": "peer0:7052",
        "CORE_PEER_LOCALMSPID": "Org1MSP",
        "CORE_PEER_TLS_ENABLED": "true" if tls else "false",
        "CORE_TLS_CLIENT_KEY_PATH": "/etc/hyperledger/fabric/client.key",
        "CORE_TLS_CLIENT_CERT_PATH": "/etc/hyperledger/fabric/client.crt",
        "CORE_TLS_CLIENT_KEY_FILE": "/etc/hyperledger/fabric/client_pem.key",
        "CORE_TLS_CLIENT_CERT_FILE": "/etc/hyperledger/fabric/client_pem.crt",
        "CORE_PEER_TLS_ROOTCERT_FILE": "/etc/hyperledger/fabric/peer.crt",
    }
    assert all(isinstance(value, str) for value in environment.values())


def test_the_secret_holds_pem_and_the_base64_of_it_for_the_shims_that_want_that() -> None:
    made = plan()
    files = {name: base64.b64decode(data).decode() for name, data in manifests.secret(made, "uid")["data"].items()}
    assert files == {
        "peer.crt": PEM.format("root"),
        "client_pem.crt": PEM.format("client"),
        "client_pem.key": PEM.format("key"),
        "client.crt": base64.b64encode(PEM.format("client").encode()).decode(),
        "client.key": base64.b64encode(PEM.format("key").encode()).decode(),
    }


def test_without_tls_the_secret_has_the_same_files_and_nothing_in_them() -> None:
    data = manifests.secret(plan(tls=False), "uid")["data"]
    assert data == dict.fromkeys(("peer.crt", "client_pem.crt", "client_pem.key", "client.crt", "client.key"), "")


def test_the_secret_belongs_to_the_job_and_never_changes() -> None:
    secret = manifests.secret(plan(), "the-uid")
    assert (secret["type"], secret["immutable"]) == ("Opaque", True)
    assert secret["metadata"]["name"] == "hlfcc-basic10-abc-bcdfg"
    assert secret["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "hlfcc-basic10-abc-bcdfg", "uid": "the-uid"}
    ]
    assert "blockOwnerDeletion" not in json.dumps([secret, manifests.job(plan(), Owner("p", "u"))])


def test_the_volume_of_the_pod_is_the_secret_of_this_launch() -> None:
    made = plan()
    assert pod(made)["volumes"] == [{"name": "certs", "secret": {"secretName": made.job_name}}]
    assert container(made)["volumeMounts"] == [
        {"name": "certs", "mountPath": "/etc/hyperledger/fabric", "readOnly": True}
    ]


def test_the_job_belongs_to_the_daemons_own_pod_where_that_is_known() -> None:
    assert "ownerReferences" not in manifests.job(plan(), None)["metadata"]
    job = manifests.job(plan(), Owner("peer0-0", "pod-uid"))
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "peer0-0", "uid": "pod-uid"}
    ]
    assert "ownerReferences" not in job["spec"]["template"]["metadata"]


def test_no_key_and_no_token_is_in_the_job() -> None:
    text = json.dumps(manifests.job(plan(), Owner("p", "u")))
    for secret in (PEM.format("key"), "BEGIN", base64.b64encode(PEM.format("key").encode()).decode()[:20]):
        assert secret not in text
    assert "KEY" not in repr(plan())
    assert PEM.format("key")[:20] not in repr(plan())


def test_chaincode_is_other_peoples_code() -> None:
    spec = pod(plan())
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert container(plan())["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
    }
    assert pod(replace(plan(), run_as_non_root=True))["securityContext"]["runAsNonRoot"] is True


def violations(spec: dict[str, Any]) -> list[str]:
    """Return what Pod Security 'restricted' has against a pod (kubernetes.io, Pod Security Standards, v1.36).

    As far as our pods have such fields at all: that they have no others is asserted as well.
    """
    pod_context = spec.get("securityContext", {})
    found = [f"spec.{key}" for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers") if key in spec]
    found += [f"volume {volume}" for volume in spec["volumes"] if volume.keys() != {"name", "secret"}]
    found += [f"pod {key}" for key in pod_context.keys() - {"runAsNonRoot", "seccompProfile"}]
    for each in spec["containers"]:
        context = each.get("securityContext", {})
        profile = context.get("seccompProfile", pod_context.get("seccompProfile", {}))
        known = {"allowPrivilegeEscalation", "capabilities", "privileged"}
        found += [f"container {key}" for key in context.keys() - known]
        found += [f"container {key}" for key in ("ports", "lifecycle", "livenessProbe") if key in each]
        found += ["privileged"] * bool(context.get("privileged"))
        found += ["allowPrivilegeEscalation"] * (context.get("allowPrivilegeEscalation") is not False)
        found += ["runAsNonRoot"] * (pod_context.get("runAsNonRoot") is not True)
        found += ["seccompProfile"] * (profile.get("type") not in {"RuntimeDefault", "Localhost"})
        found += ["capabilities"] * (context.get("capabilities") != {"drop": ["ALL"]})
    return found


def test_the_profiles_are_pod_securitys_levels() -> None:
    def of(profile: SecurityProfile) -> list[str]:
        return violations(pod(replace(plan(), security_profile=profile)))

    assert of(SecurityProfile.RESTRICTED) == []
    assert of(SecurityProfile.BASELINE) == ["runAsNonRoot"]
    assert violations(pod(replace(plan(), run_as_non_root=True))) == []


def test_the_compatible_profile_makes_the_go_builders_pod() -> None:
    made = replace(plan(), security_profile=SecurityProfile.COMPATIBLE)
    assert set(pod(made)) == {
        "serviceAccountName",
        "restartPolicy",
        "terminationGracePeriodSeconds",
        "containers",
        "volumes",
    }
    assert set(container(made)) == {"name", "image", "env", "volumeMounts"}
    assert pod(replace(made, run_as_non_root=True))["securityContext"] == {"runAsNonRoot": True}


def test_a_node_role_is_required_and_its_taint_tolerated() -> None:
    spec = pod(plan(node_role="chaincode"))
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "fabric-builder-k8s-role", "operator": "In", "values": ["chaincode"]}]}
    assert spec["tolerations"] == [
        {"key": "fabric-builder-k8s-role", "operator": "Equal", "value": "chaincode", "effect": "NoSchedule"}
    ]
    assert not {"affinity", "tolerations"} & pod(plan()).keys()


# The plain settings


@pytest.mark.parametrize(
    ("settings", "spec", "fields"),
    [
        (PodSettings(), {}, {}),
        (
            PodSettings(image_pull_secrets=("a", "b")),
            {"imagePullSecrets": [{"name": "a"}, {"name": "b"}]},
            {},
        ),
        (PodSettings(image_pull_policy="Always"), {}, {"imagePullPolicy": "Always"}),
        (PodSettings(requests={"cpu": "1"}), {}, {"resources": {"requests": {"cpu": "1"}}}),
        (
            PodSettings(requests={"memory": "1Gi"}, limits={"cpu": "2", "memory": "2Gi"}),
            {},
            {"resources": {"requests": {"memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}},
        ),
        (
            PodSettings(node_name="node-a"),
            {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [
                                {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]}
                            ]
                        }
                    }
                }
            },
            {},
        ),
    ],
)
def test_a_plain_setting_adds_its_fields_and_no_other(
    settings: PodSettings, spec: dict[str, Any], fields: dict[str, Any]
) -> None:
    plain, made = plan(), replace(plan(), pod=settings)
    assert container(made) == {**container(plain), **fields}
    assert {**pod(made), "containers": []} == {**pod(plain), **spec, "containers": []}


def test_a_node_role_and_the_same_node_must_both_hold() -> None:
    spec = pod(replace(plan(node_role="r"), pod=PodSettings(node_name="node-a")))
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term.keys() == {"matchExpressions", "matchFields"}


def test_the_template_is_laid_over_the_plain_settings() -> None:
    settings = PodSettings(("a", "b"), "Always", {"cpu": "1", "memory": "1Gi"}, {"memory": "1Gi"})
    template = {
        "spec": {
            "imagePullSecrets": [{"name": "b"}, {"name": "c"}],
            "containers": [
                {
                    "name": "chaincode",
                    "imagePullPolicy": "Never",
                    "resources": {"requests": {"cpu": "2"}, "limits": None},
                }
            ],
        }
    }
    made = replace(plan(template=template), pod=settings)
    assert pod(made)["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    assert container(made)["imagePullPolicy"] == "Never"
    assert container(made)["resources"] == {"requests": {"cpu": "2", "memory": "1Gi"}, "limits": None}


# The pod template


def test_a_template_shapes_the_chaincodes_container_and_keeps_the_rest() -> None:
    resources = {"limits": {"memory": "256Mi"}}
    template = {"spec": {"containers": [{"name": "chaincode", "resources": resources}], "priorityClassName": "low"}}
    plain, shaped = pod(plan()), pod(plan(template=template))
    assert shaped["priorityClassName"] == "low"
    [made] = shaped["containers"]
    assert made == {**plain["containers"][0], "resources": resources}
    assert {key: value for key, value in shaped.items() if key in plain and key != "containers"} == {
        key: value for key, value in plain.items() if key != "containers"
    }


def test_a_template_adds_to_lists_of_named_things() -> None:
    template = {
        "metadata": {"labels": {"team": "ledger"}, "annotations": {"a": "b"}},
        "spec": {
            "containers": [
                {
                    "name": "chaincode",
                    "env": [{"name": "CHAINCODE_LOG", "value": "debug"}],
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "tmp", "mountPath": "/cache"}],
                },
                {"name": "sidecar", "image": "x"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            "imagePullSecrets": [{"name": "registry"}],
        },
    }
    made = plan(template=template)
    spec = pod(made)
    chaincode, sidecar = spec["containers"]
    assert chaincode["env"][-1] == {"name": "CHAINCODE_LOG", "value": "debug"}
    assert len(chaincode["env"]) == 10
    mounts = [(mount["name"], mount["mountPath"]) for mount in chaincode["volumeMounts"]]
    assert mounts == [("certs", "/etc/hyperledger/fabric"), ("tmp", "/tmp"), ("tmp", "/cache")]
    assert sidecar == {"name": "sidecar", "image": "x"}
    assert [volume["name"] for volume in spec["volumes"]] == ["certs", "tmp"]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    metadata = manifests.job(made, None)["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "ledger"
    assert metadata["labels"]["app.kubernetes.io/instance"] == "peer0-0"
    assert metadata["annotations"]["a"] == "b"
    assert "team" not in manifests.job(made, None)["metadata"]["labels"]


def test_a_template_replaces_lists_of_other_things() -> None:
    template = {"spec": {"tolerations": [{"operator": "Exists"}], "containers": [{"name": "chaincode", "args": ["x"]}]}}
    spec = pod(plan(template=template, node_role="r"))
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["containers"][0]["args"] == ["x"]


def test_a_template_may_loosen_what_is_strict() -> None:
    context = {"capabilities": {"drop": [], "add": ["NET_RAW"]}}
    template = {"spec": {"containers": [{"name": "chaincode", "securityContext": context}]}}
    assert container(plan(template=template))["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": [], "add": ["NET_RAW"]},
        "privileged": False,
    }


def test_the_grace_of_the_pod_is_the_plans() -> None:
    for template, grace in (({}, 2), ({"spec": {}}, 2), *(({"spec": {FIELD: it}}, it or 2) for it in (30, None))):
        made = plan(template=template)
        assert (made.grace, pod(made)[FIELD]) == (grace, grace)
    assert pod(plan(template={"spec": {"restartPolicy": None}}))["restartPolicy"] == "Never"


def test_one_launchs_manifest_does_not_change_the_next_ones() -> None:
    template = {"spec": {"containers": [{"name": "chaincode", "env": [{"name": "A", "value": "1"}]}]}}
    before = json.dumps(template)
    first = manifests.job(plan(template=template), None)
    pod(plan(template=template))["containers"].clear()
    assert json.dumps(template) == before
    assert manifests.job(plan(template=template), None) == first
