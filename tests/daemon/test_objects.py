"""What stands in the cluster: names, labels, annotations, Job and Secret, as users of the Go builder rely on them."""

import base64
import json
import re

import pytest

from k8s_builder_lab.embedded.objects import Object
from k8s_builderd.fabric.names import object_name
from tests.daemon.scene import DIGEST, HASH, PEER_ID, Package, Running, Scene

pytestmark = pytest.mark.anyio

HASH_LABEL = "N6MMJOZJIFDXCMJO3XI2QE7O6WB56IJBYI24I6LXSLYUDJDNJNCQ"


async def launched(scene: Scene, package: Package, **environment: str) -> tuple[Object, Object, Object]:
    """Launch a chaincode and return its Job, pod and Secret."""
    run = await scene.call("run", package, read=True, **environment)
    await scene.running_pod()
    job = await scene.only("jobs")
    name = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
    line = await run.line("Running chaincode ID")
    assert line.decode().endswith(f"Running chaincode ID {package.chaincode_id} with kubernetes job {name}")
    return job, await scene.only("pods"), await scene.only("secrets")


async def test_the_objects_are_those_of_the_go_builder(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    job, pod, secret = await launched(scene, package)
    chaincode = json.loads((package.root / "run/chaincode.json").read_bytes())

    name = object_name("hlfcc", PEER_ID, "peer0.org1.example.com:7052", "Org1MSP", package.chaincode_id)
    assert re.fullmatch(re.escape(name) + "-[bcdfghjklmnpqrstvwxz2456789]{5}", job["metadata"]["name"])
    assert len(job["metadata"]["name"]) <= 63

    for found in (job, pod, secret):
        labels, annotations = found["metadata"]["labels"], found["metadata"]["annotations"]
        assert (
            labels.items()
            >= {
                "app.kubernetes.io/name": "hyperledger-fabric",
                "app.kubernetes.io/component": "chaincode",
                "app.kubernetes.io/created-by": "fabric-builder-k8s",
                "app.kubernetes.io/managed-by": "fabric-builder-k8s",
                "fabric-builder-k8s-cclabel": "basic_1.0",
                "fabric-builder-k8s-cchash": HASH_LABEL,
            }.items()
        )
        assert (
            annotations.items()
            >= {
                "fabric-builder-k8s-ccid": f"basic_1.0:{HASH}",
                "fabric-builder-k8s-mspid": "Org1MSP",
                "fabric-builder-k8s-peeraddress": "peer0.org1.example.com:7052",
                "fabric-builder-k8s-peerid": PEER_ID,
            }.items()
        )

    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 300)
    spec = job["spec"]["template"]["spec"]
    assert (spec["restartPolicy"], spec["serviceAccountName"]) == ("Never", "default")
    [container] = spec["containers"]
    assert (container["name"], container["image"]) == ("chaincode", f"{package.image_name}@{DIGEST}")
    certs = "/etc/hyperledger/fabric"
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "CORE_CHAINCODE_ID_NAME": f"basic_1.0:{HASH}",
        "CORE_PEER_ADDRESS": "peer0.org1.example.com:7052",
        "CORE_PEER_LOCALMSPID": "Org1MSP",
        "CORE_PEER_TLS_ENABLED": "true",
        "CORE_PEER_TLS_ROOTCERT_FILE": f"{certs}/peer.crt",
        "CORE_TLS_CLIENT_KEY_PATH": f"{certs}/client.key",
        "CORE_TLS_CLIENT_CERT_PATH": f"{certs}/client.crt",
        "CORE_TLS_CLIENT_KEY_FILE": f"{certs}/client_pem.key",
        "CORE_TLS_CLIENT_CERT_FILE": f"{certs}/client_pem.crt",
    }
    assert container["volumeMounts"] == [{"name": "certs", "mountPath": certs, "readOnly": True}]
    [volume] = spec["volumes"]
    assert (volume["name"], volume["secret"]["secretName"]) == ("certs", secret["metadata"]["name"])

    files = {name: base64.b64decode(content).decode() for name, content in secret["data"].items()}
    assert files == {
        "peer.crt": chaincode["root_cert"],
        "client_pem.crt": chaincode["client_cert"],
        "client_pem.key": chaincode["client_key"],
        "client.crt": base64.b64encode(chaincode["client_cert"].encode()).decode(),
        "client.key": base64.b64encode(chaincode["client_key"].encode()).decode(),
    }
    assert (secret["type"], secret["immutable"]) == ("Opaque", True)


async def test_what_is_added_keeps_chaincode_in_its_place(scene: Scene, daemon: Running) -> None:
    job, _, secret = await launched(scene, await scene.package())
    spec = job["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["terminationGracePeriodSeconds"] == 2
    assert spec["securityContext"] == {"seccompProfile": {"type": "RuntimeDefault"}}
    assert spec["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
    }
    assert job["metadata"]["labels"]["app.kubernetes.io/instance"] == "scene"
    [owner] = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("Job", job["metadata"]["uid"])
    assert "blockOwnerDeletion" not in owner
    assert secret["metadata"]["name"] == job["metadata"]["name"]
    assert len(job["metadata"]["annotations"]["fabric-builder-k8s-run"]) == 64


async def test_a_peer_without_tls_gives_a_chaincode_without_tls(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    package.connect(client_cert="", client_key="", root_cert="")
    job, _, secret = await launched(scene, package)
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert {"name": "CORE_PEER_TLS_ENABLED", "value": "false"} in container["env"]
    assert set(secret["data"].values()) == {""}


async def test_the_peers_environment_shapes_the_launch(scene: Scene, daemon: Running) -> None:
    await scene.cluster.switch(
        "PATCH",
        "environment",
        {"serviceAccounts": ["default", "chaincode"], "nodeLabels": {"fabric-builder-k8s-role": "endorser"}},
    )
    job, pod, _ = await launched(
        scene,
        await scene.package(),
        FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX="conga",
        FABRIC_K8S_BUILDER_SERVICE_ACCOUNT="chaincode",
        FABRIC_K8S_BUILDER_NODE_ROLE="endorser",
    )
    assert job["metadata"]["name"].startswith("conga-basic10-")
    spec = pod["spec"]
    assert spec["serviceAccountName"] == "chaincode"
    [term] = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    [expression] = term["matchExpressions"]
    assert expression == {"key": "fabric-builder-k8s-role", "operator": "In", "values": ["endorser"]}
    assert {
        "key": "fabric-builder-k8s-role",
        "operator": "Equal",
        "value": "endorser",
        "effect": "NoSchedule",
    } in spec["tolerations"]


BAD_VARIABLES = [
    (
        "NODE_ROLE",
        "a b",
        "must be a valid Kubernetes label value: a valid label must be an empty string or consist",
    ),
    ("OBJECT_NAME_PREFIX", "p" * 31, "must be a maximum of 30 characters"),
    ("OBJECT_NAME_PREFIX", "1x", "must be a valid DNS-1035 label: a DNS-1035 label must consist of lower case"),
    ("START_TIMEOUT", "3", 'must be a valid Go duration string, e.g. 3m40s: time: missing unit in duration "3"'),
    ("START_TIMEOUT", "three minutes", 'e.g. 3m40s: time: invalid duration "three minutes"'),
    ("SERVICE_ACCOUNT", "A_B", "must be the name of a Kubernetes service account"),
    ("NAMESPACE", "elsewhere", "set it on the daemon"),
]


async def test_a_bad_variable_of_the_peer_is_told_and_leaves_nothing(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    for name, value, words in BAD_VARIABLES:
        code, [line] = await scene.said("run", package, **{f"FABRIC_K8S_BUILDER_{name}": value})
        assert code == 1
        assert line.startswith(f"The FABRIC_K8S_BUILDER_{name} environment variable ")
        assert words in line
    assert await scene.count("jobs") == 0


async def test_what_the_operator_sets_on_the_daemon_wins_and_the_difference_is_told(scene: Scene) -> None:
    await scene.daemon(OBJECT_NAME_PREFIX="operator")
    run = await scene.call(
        "run",
        await scene.package(),
        FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX="peer",
        FABRIC_K8S_BUILDER_DEBUG="true",
    )
    await run.line("Running chaincode ID")
    job = await scene.only("jobs")
    assert job["metadata"]["name"].startswith("operator-")
    await run.line(f"run [{run.pid}] DEBUG: Using the daemon's FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX, not the peer's")


async def test_a_start_that_takes_too_long_is_told_in_the_go_builders_words(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {package.image_name: {"digests": ["sha256:" + "0" * 64]}}}
    )
    code, lines = await scene.said("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT="2s")
    assert code == 1
    assert re.search(
        "Error running chaincode: error waiting for chaincode job default/hlfcc-basic10-[a-z0-9]{13}-[a-z0-9]{5}"
        f" to start for chaincode ID basic_1.0:{HASH}: timed out waiting for the condition; the image cannot be pulled",
        lines[-1],
    )
    await scene.none("jobs", "pods", "secrets")


@pytest.mark.parametrize("duration", ["0", "-1s"])
async def test_a_start_timeout_of_zero_or_less_is_no_limit(scene: Scene, daemon: Running, duration: str) -> None:
    """As in the Go builder."""
    package = await scene.package(script="exit 0")
    images: dict[str, object] = {package.image_name: {"digests": ["sha256:" + "0" * 64]}}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    run = await scene.call("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT=duration)
    await run.line("Waiting for chaincode to start: the image cannot be pulled")
    images[package.image_name] = {"command": ["/bin/sh", "-c", "exit 0"]}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": images})
    assert await run.wait() == 0
    assert run.count("timed out") == 0


async def test_a_start_timeout_is_any_go_duration(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script="exit 0")
    for duration in ("3m40s", "1h", "5000ms", "1.5h", "+10s"):
        code, lines = await scene.said("run", package, FABRIC_K8S_BUILDER_START_TIMEOUT=duration)
        assert code == 0, lines


async def test_debug_is_any_go_bool_and_debug_lines_say_so(scene: Scene) -> None:
    await scene.daemon(SERVICE_ACCOUNT="default")
    package = await scene.package(script="exit 0")
    for value, wanted in [("1", True), ("t", True), ("TRUE", True), ("0", False), ("False", False), ("", False)]:
        run = await scene.call(
            "run", package, FABRIC_K8S_BUILDER_DEBUG=value, FABRIC_K8S_BUILDER_SERVICE_ACCOUNT="another"
        )
        assert await run.wait() == 0
        assert bool(run.count(f"run [{run.pid}] DEBUG: ")) is wanted
    code, [line] = await scene.said("run", package, FABRIC_K8S_BUILDER_DEBUG="yes")
    assert code == 1
    assert line.startswith("The FABRIC_K8S_BUILDER_DEBUG environment variable ")
    assert line.endswith('strconv.ParseBool: parsing "yes": invalid syntax')
