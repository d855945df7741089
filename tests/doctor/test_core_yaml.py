"""core.yaml, and the environment over it, by the rules of the peer."""

from pathlib import Path
from typing import Any

import pytest

from k8s_builder.doctor import coreyaml
from k8s_builder.doctor.coreyaml import PROPAGATED, check
from k8s_builder.doctor.peerconfig import CoreYamlError, PeerConfig, read_core_yaml, read_environment
from k8s_builder.doctor.result import Result
from k8s_builderd.settings import Settings
from tests.doctor.results import told
from tests.test_docs import ROOT, read_by_client

FOLDER = Path("/opt/k8s-builder")
ENTRY: dict[str, Any] = {"name": "k8s_builder", "path": str(FOLDER), "propagateEnvironment": [*PROPAGATED]}
CCAAS: dict[str, Any] = {"name": "ccaas_builder", "path": "/opt/hyperledger/ccaas_builder"}


def document(*builders: Any, peer: Any = None, vm: Any = None, **chaincode: Any) -> dict[str, Any]:
    peer = {"address": "peer0-org1:7051", "chaincodeListenAddress": "0.0.0.0:7052"} if peer is None else peer
    return {"peer": peer, "vm": vm or {"endpoint": None}, "chaincode": {"externalBuilders": [*builders], **chaincode}}


def found(
    core: dict[str, Any], *, certain: bool = True, settings: Settings | None = None, **environment: str
) -> list[Result]:
    peer = {"CORE_PEER_ID": "peer0", **environment}
    return [*check(PeerConfig(core, peer, certain=certain), FOLDER, settings)]


def one(core: dict[str, Any], name: str, **options: Any) -> tuple[str, str, str]:
    [result] = told(found(core, **options), name)
    return result


def test_what_the_client_reads_is_what_must_be_propagated(tmp_path: Path) -> None:
    assert set(PROPAGATED) == read_by_client(tmp_path)


def test_the_core_yaml_that_we_deploy_is_well_once_the_peer_has_its_address() -> None:
    core = read_core_yaml((ROOT / "deploy" / "core.yaml").read_bytes())
    results = found(core, CORE_PEER_CHAINCODEADDRESS="peer0-org1:7052", CORE_PEER_ADDRESS="peer0-org1:7051")
    assert {result.status.value for result in results} == {"ok"}
    assert len({result.check for result in results}) == len(results) == 9


# The entry


def test_without_an_entry_nothing_is_launched() -> None:
    status, seen, remedy = one(document(CCAAS), "builder")
    assert (status, seen) == (
        "failure",
        "chaincode.externalBuilders has no entry whose path is /opt/k8s-builder (there is: ccaas_builder)",
    )
    assert remedy.startswith("Add the entry of deploy/core.yaml to chaincode.externalBuilders")
    assert "(there is: none)" in one(document(), "builder")[1]


def test_without_the_peers_environment_a_missing_entry_may_still_be_there() -> None:
    status, seen, remedy = one(document(CCAAS), "builder", certain=False)
    assert (status, seen.endswith("unless the peer's environment sets it")) == ("warning", True)
    assert "--peer-env" in remedy


def test_the_environment_replaces_the_list() -> None:
    entry = '[{"name": "k8s_builder", "path": "/opt/k8s-builder", "propagateEnvironment": ["CORE_PEER_ID"]}]'
    results = found(document(CCAAS), CORE_CHAINCODE_EXTERNALBUILDERS=entry)
    assert told(results, "builder") == [("ok", "k8s_builder at /opt/k8s-builder (CORE_CHAINCODE_EXTERNALBUILDERS)", "")]
    assert [status for status, _, _ in told(results, "propagate")] == ["warning"]


@pytest.mark.parametrize(
    ("builders", "words"),
    [
        ("[{", "it is neither JSON nor YAML"),
        ("[2026-02-30]", "it is neither JSON nor YAML"),
        ("a word", "it must be a list of objects"),
        ('["k8s"]', "it must be a list of objects"),
        ('[{"path": "/x"}]', "entry 1 has no name, so the peer does not start"),
        ('[{"name": "x"}]', "entry 1 has no path, so the peer does not start"),
        ('[{"name": "x", "path": "/x", "propagateEnvironment": "CORE_PEER_ID"}]', "propagateEnvironment of x must be"),
    ],
)
def test_a_list_that_the_peer_does_not_take(builders: str, words: str) -> None:
    status, seen, remedy = one(document(ENTRY), "builder", CORE_CHAINCODE_EXTERNALBUILDERS=builders)
    assert (status, words in seen, bool(remedy)) == ("failure", True, True)


def test_the_go_builders_path_is_told_as_that() -> None:
    status, seen, remedy = one(document({**ENTRY, "path": "/opt/hyperledger/k8s_builder"}), "go-builder")
    assert (status, "/opt/hyperledger/k8s_builder" in seen) == ("warning", True)
    assert remedy.startswith("Change its path to /opt/k8s-builder and keep its name")


def test_an_entry_of_another_path_is_known_by_its_name() -> None:
    status, seen, _ = one(document({**ENTRY, "path": "/builders/k8s"}), "builder")
    assert (status, "the path of k8s_builder is /builders/k8s" in seen) == ("warning", True)


def test_keys_match_in_any_case() -> None:
    core = {"Chaincode": {"EXTERNALBUILDERS": [{key.upper(): value for key, value in ENTRY.items()}]}}
    assert [one(core, name)[0] for name in ("builder", "propagate", "order")] == ["ok", "ok", "ok"]


def test_the_old_name_of_propagate_environment_counts() -> None:
    entry = {"name": "k8s_builder", "path": str(FOLDER), "environmentWhitelist": [*PROPAGATED]}
    assert one(document(entry), "propagate")[0] == "ok"


# propagateEnvironment


def without(*names: str) -> dict[str, Any]:
    return {**ENTRY, "propagateEnvironment": [name for name in PROPAGATED if name not in names]}


def test_the_peers_id_must_be_propagated_or_be_set_on_the_daemon() -> None:
    core = document(without("CORE_PEER_ID"))
    status, seen, remedy = one(core, "propagate")
    assert (status, "does not list CORE_PEER_ID" in seen) == ("failure", True)
    assert remedy.endswith("or set CORE_PEER_ID on the daemon")
    daemon = Settings.load({"CORE_PEER_ID": "peer0"})
    assert told(found(core, settings=daemon), "propagate") == []


def test_the_id_in_core_yaml_does_not_reach_the_programs() -> None:
    core = document(ENTRY, peer={"id": "peer0", "address": "peer0-org1:7051"})
    results = told(found(core, CORE_PEER_ID=""), "propagate")
    assert [status for status, _, _ in results] == ["failure", "ok"]
    assert results[0][1].startswith("the peer's environment has no CORE_PEER_ID")
    assert results[0][2] == "Set CORE_PEER_ID on the peer, even if peer.id is in core.yaml"
    daemon = Settings.load({"CORE_PEER_ID": "peer0"})
    assert one(core, "propagate", settings=daemon, CORE_PEER_ID="")[0] == "ok"
    assert one(core, "propagate", certain=False, CORE_PEER_ID="")[0] == "ok"


def test_what_the_peer_sets_and_hides_is_a_failure_and_what_it_may_set_a_warning() -> None:
    core = document(without("FABRIC_K8S_BUILDER_SOCKET", "FABRIC_K8S_BUILDER_DEBUG"))
    status, seen, _ = one(core, "propagate", FABRIC_K8S_BUILDER_SOCKET="/x")
    assert (status, "the peer sets FABRIC_K8S_BUILDER_SOCKET, which" in seen) == ("failure", True)
    for certain in (True, False):
        status, seen, remedy = one(core, "propagate", certain=certain)
        assert (status, "FABRIC_K8S_BUILDER_DEBUG, FABRIC_K8S_BUILDER_SOCKET" in seen) == ("warning", True)
        assert remedy == "Have propagateEnvironment list all names of deploy/core.yaml"


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"], "ok"),
        (["KUBECONFIG_PATH"], "ok"),
        (["KUBERNETES_SERVICE_HOST"], "failure"),
        ([], "failure"),
    ],
)
def test_a_daemon_that_the_programs_start_must_find_the_api(more: list[str], status: str) -> None:
    core = document({**ENTRY, "propagateEnvironment": [*PROPAGATED, *more]})
    results = check(PeerConfig(core, {"CORE_PEER_ID": "peer0"}, certain=True), FOLDER, None, autostart=True)
    last, complete = reversed(told(results, "propagate"))
    assert (last[0], bool(last[2]), complete[0]) == (status, status == "failure", "ok")


# Order and Docker


def test_other_builders_come_after_ours() -> None:
    assert one(document(ENTRY, CCAAS), "order")[0] == "ok"
    status, seen, remedy = one(document(CCAAS, ENTRY), "order")
    assert (status, seen.startswith("the peer asks ccaas_builder before k8s_builder")) == ("warning", True)
    assert remedy == "Put k8s_builder first"


@pytest.mark.parametrize("endpoint", ["", "  ", None])
def test_an_empty_endpoint_is_well(endpoint: Any) -> None:
    assert one(document(ENTRY, vm={"endpoint": endpoint}), "vm-endpoint")[0] == "ok"


def test_fabrics_endpoint_is_told_and_an_empty_variable_does_not_empty_it() -> None:
    core = document(ENTRY, vm={"endpoint": "unix:///var/run/docker.sock"})
    for environment in ({}, {"CORE_VM_ENDPOINT": ""}):
        status, seen, remedy = one(core, "vm-endpoint", **environment)
        assert (status, "unix:///var/run/docker.sock (vm.endpoint in core.yaml)" in seen) == ("warning", True)
        assert remedy.startswith("Make vm.endpoint empty")
    assert "(CORE_VM_ENDPOINT)" in one(document(ENTRY), "vm-endpoint", CORE_VM_ENDPOINT="tcp://docker:2375")[1]


# The address


@pytest.mark.parametrize(
    ("peer", "status", "words"),
    [
        ({"chaincodeAddress": "peer0-org1:7052"}, "ok", "peer0-org1:7052"),
        ({"chaincodeAddress": "peer0-org1"}, "failure", "has no port"),
        ({"chaincodeAddress": "0.0.0.0:7052"}, "failure", "leads each pod to itself"),
        ({"chaincodeAddress": "127.0.0.1:7052"}, "failure", "leads each pod to itself"),
        ({"chaincodeAddress": "localhost:7052"}, "failure", "leads each pod to itself"),
        ({"chaincodeAddress": "[::1]:7052"}, "failure", "leads each pod to itself"),
        ({"chaincodeListenAddress": "10.0.0.7:7052"}, "ok", "10.0.0.7:7052 (peer.chaincodeListenAddress"),
        ({"chaincodeListenAddress": "127.0.0.1:7052"}, "failure", "127.0.0.1:7052"),
        (
            {"chaincodeListenAddress": "0.0.0.0:7060", "address": "peer0-org1:7051"},
            "ok",
            "peer0-org1:7060 (the host of peer.address in core.yaml)",
        ),
        ({"address": "peer0-org1:7051"}, "ok", "peer0-org1:7052"),
        ({"address": "127.0.0.1:7051"}, "failure", "127.0.0.1:7052"),
        ({"address": "127.0.0.1:7051", "addressAutoDetect": True}, "ok", "the peer's own pod, port 7052"),
        ({"address": "127.0.0.1:7051", "addressAutoDetect": "maybe"}, "failure", "127.0.0.1:7052"),
        ({"address": "0.0.0.0:7051"}, "ok", "the peer's own pod, port 7052"),
        ({"address": "0.0.0.0:7051", "chaincodeListenAddress": "[::]:7060"}, "ok", "the peer's own pod, port 7060"),
        ({}, "failure", "peer.address is not set"),
    ],
)
def test_pods_must_be_able_to_reach_the_address(peer: Any, status: str, words: str) -> None:
    came, seen, remedy = one(document(ENTRY, peer=peer), "address")
    assert (came, words in seen, seen) == (status, True, seen)
    assert ("CORE_PEER_CHAINCODEADDRESS" in remedy) == (status == "failure")


def test_an_address_of_core_yaml_that_the_peer_may_override_is_a_warning() -> None:
    core = document(ENTRY, peer={"address": "127.0.0.1:7051"})
    assert one(core, "address", certain=False)[0] == "warning"
    assert one(core, "address", certain=False, CORE_PEER_CHAINCODEADDRESS="localhost:7052")[0] == "failure"
    assert one(core, "address", certain=False, CORE_PEER_CHAINCODEADDRESS="peer0:7052")[0] == "ok"


@pytest.mark.parametrize(
    ("listen", "status"),
    [
        (None, "ok"),
        ("0.0.0.0:7052", "ok"),
        ("peer0-org1:7052", "ok"),
        ("127.0.0.1:7052", "failure"),
        ("0.0.0.0", "failure"),
    ],
)
def test_the_peer_must_listen_where_pods_can_come(listen: str | None, status: str) -> None:
    peer = {"address": "peer0-org1:7051", "chaincodeAddress": "peer0-org1:7052", "chaincodeListenAddress": listen}
    came, _, remedy = one(document(ENTRY, peer=peer), "listen-address")
    assert (came, "CORE_PEER_CHAINCODELISTENADDRESS" in remedy) == (status, status == "failure")


# Time-outs


@pytest.mark.parametrize(
    ("startup", "environment", "status", "words"),
    [
        (None, {}, "ok", "300 s (Fabric's default), a launch takes 180 s at most"),
        ("60s", {}, "warning", "is 60 s (chaincode.startuptimeout in core.yaml)"),
        (60, {}, "warning", "is 5 s"),  # 60 ns, which counts as Fabric's minimum
        ("3m", {}, "ok", "is 180 s"),
        ("1m", {"FABRIC_K8S_BUILDER_START_TIMEOUT": "30s"}, "ok", "takes 30 s"),
        ("1m", {"CORE_CHAINCODE_STARTUPTIMEOUT": "10m"}, "ok", "600 s (CORE_CHAINCODE_STARTUPTIMEOUT)"),
        ("5m", {"FABRIC_K8S_BUILDER_START_TIMEOUT": "0"}, "warning", "has no limit"),
        ("soon", {}, "failure", "a time-out of the peer cannot be read: time: invalid duration"),
        ("5m", {"FABRIC_K8S_BUILDER_START_TIMEOUT": "soon"}, "failure", "FABRIC_K8S_BUILDER_START_TIMEOUT"),
    ],
)
def test_the_peer_must_wait_as_long_as_a_launch(
    startup: Any, environment: dict[str, str], status: str, words: str
) -> None:
    core = document(ENTRY, **({} if startup is None else {"startuptimeout": startup}))
    came, seen, remedy = one(core, "startup-timeout", **environment)
    assert (came, words in seen, seen) == (status, True, seen)
    assert bool(remedy) == (status != "ok")


def test_the_daemons_own_limit_wins() -> None:
    daemon = Settings.load({"FABRIC_K8S_BUILDER_START_TIMEOUT": "10m"})
    result = one(document(ENTRY), "startup-timeout", settings=daemon, FABRIC_K8S_BUILDER_START_TIMEOUT="30s")
    assert (result[0], "START_TIMEOUT is 600 s" in result[1]) == ("warning", True)


@pytest.mark.parametrize(
    ("chaincode", "environment", "status"),
    [
        ({}, {}, "ok"),
        ({"installTimeout": "30s"}, {}, "warning"),
        ({"installTimeout": "90s"}, {}, "ok"),  # 30 s for a connection, and 60 s for the call
        ({"installTimeout": "30s", "executetimeout": "120s"}, {}, "ok"),  # the longer one counts
        ({"installTimeout": "300s"}, {"FABRIC_K8S_BUILDER_CONNECT_TIMEOUT": "5m"}, "warning"),
    ],
)
def test_an_installation_must_have_time_for_a_daemon_that_restarts(
    chaincode: Any, environment: dict[str, str], status: str
) -> None:
    came, seen, remedy = one(document(ENTRY, **chaincode), "install-timeout", **environment)
    assert (came, "chaincode.installTimeout" in seen, bool(remedy)) == (status, True, status != "ok")


# The files, and whose environment it is


def test_the_environment_that_was_used_is_told_by_names_alone() -> None:
    core = document(ENTRY)
    password = {"CORE_LEDGER_STATE_COUCHDBCONFIG_PASSWORD": "s3cret"}
    assert one(core, "peer-environment", **password) == ("ok", "1 CORE_ variables of --peer-env are used", "")
    status, seen, _ = one(core, "peer-environment", certain=False, **password)
    assert (status, seen.endswith("is used: CORE_LEDGER_STATE_COUCHDBCONFIG_PASSWORD")) == ("ok", True)
    status, _, remedy = one(core, "peer-environment", certain=False, CORE_PEER_ID="peer0")
    assert (status, "--peer-env peer.env" in remedy) == ("skipped", True)


@pytest.mark.parametrize("text", ["password: *s3cret", "a: [s3cret", "s3cret", "- s3cret", "password: !s3cret x"])
def test_nothing_of_a_file_that_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(CoreYamlError) as error:
        read_core_yaml(text.encode())
    assert "s3cret" not in str(error.value)
    assert str(error.value).startswith(("it is not valid YAML at line 1, column ", "it holds no object"))


@pytest.mark.parametrize(
    "text", ["password: !!bool s3cret", "password: !!int s3cret", "a: 2026-02-30", "? [s3cret]\n: a", "[" * 5000]
)
def test_nor_of_one_that_is_yaml_and_holds_what_it_cannot(text: str) -> None:
    with pytest.raises(CoreYamlError) as error:
        read_core_yaml(text.encode())
    assert "s3cret" not in str(error.value)
    assert str(error.value).startswith("it is not valid YAML")


def test_what_env_prints_is_read_with_values_of_several_lines() -> None:
    text = "A=1\nCERT=-----BEGIN\nabc=\n-----END\nCORE_PEER_ID=peer0=x\n=odd\n"
    assert read_environment(text) == {
        "A": "1",
        "CERT": "-----BEGIN",
        "abc": "\n-----END",
        "CORE_PEER_ID": "peer0=x\n=odd",
    }
    assert read_environment("no name\nA=") == {"A": ""}


def test_a_key_below_what_is_no_object_is_not_set() -> None:
    config = PeerConfig({"vm": "docker", "chaincode": {"startuptimeout": None}}, {}, certain=True)
    assert (config.get("vm.endpoint"), config.get("chaincode.startuptimeout")) == (None, None)
    assert coreyaml.entries(None) == []
