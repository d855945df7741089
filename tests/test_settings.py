"""Every variable of the daemon: what it takes, what it refuses, and in which words."""

import base64
import json
import math
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from k8s_builderd import settings as settings_module
from k8s_builderd.errors import SettingsError
from k8s_builderd.fabric.plan import LaunchSettings, Owner, PodSettings, SecurityProfile
from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.settings import FORWARDED, PREFIX, Settings, launch_settings, read_bound_pod

ROOT = Path(__file__).parents[1]
PEER = {"CORE_PEER_ID": "peer0"}


def load(**variables: str) -> Settings:
    """Read an environment; names are without FABRIC_K8S_BUILDER_, those of no prefix excepted."""
    unprefixed = {"CORE_PEER_ID", "KUBECONFIG_PATH"}
    return Settings.load({name if name in unprefixed else PREFIX + name: value for name, value in variables.items()})


def refused(**variables: str) -> str:
    with pytest.raises(SettingsError) as error:
        load(**variables)
    text = str(error.value)
    assert "\n" not in text
    return text


# Defaults


def test_an_empty_environment_is_enough() -> None:
    found = load()
    assert found.socket == Path("/run/k8s-builder/builder.sock")
    assert found.socket_mode == 0o660
    assert found.allowed_uids is None
    assert found.health_address == ("0.0.0.0", 9480)
    assert (found.log_format, found.debug) == ("json", False)
    assert (found.kubeconfig, found.pod_name, found.pod_uid) == ("", "", "")
    assert (found.pod_template, found.pod_template_file) == (PodTemplate(), None)
    assert (found.security_profile, found.run_as_non_root) == (SecurityProfile.BASELINE, False)
    assert found.max_connections == 4096
    assert found.peer_patience == 5
    assert (found.request_timeout, found.reconnect_grace, found.orphan_grace, found.watch_silence) == (10, 10, 60, 130)
    assert found.instance == socket.gethostname()[:63]
    assert found.environment == {}


def test_a_launch_needs_the_peers_id_alone() -> None:
    assert launch_settings(PEER) == LaunchSettings("peer0", "", "hlfcc", "default", 180.0, False)


def test_a_variable_that_is_set_to_nothing_is_not_set() -> None:
    names = ["SOCKET", "SOCKET_MODE", "ALLOWED_UIDS", "HEALTH_ADDRESS", "LOG_FORMAT", "DEBUG", "POD_TEMPLATE"]
    names += ["NODE_ROLE", "OBJECT_NAME_PREFIX", "SERVICE_ACCOUNT", "START_TIMEOUT", "NAMESPACE", "INSTANCE"]
    assert load(**dict.fromkeys(names, "")) == load()


# What is taken

TAKEN: list[tuple[str, str, str, Any]] = [
    ("NAMESPACE", "fabric", "namespace", "fabric"),
    ("NAMESPACE", "a" * 63, "namespace", "a" * 63),
    ("NAMESPACE", "0-9", "namespace", "0-9"),
    ("POD_NAMESPACE", "peers", "pod_namespace", "peers"),
    ("INSTANCE", "peer0.org1_A", "instance", "peer0.org1_A"),
    ("INSTANCE", "x" * 63, "instance", "x" * 63),
    ("SOCKET", "/tmp/b.sock", "socket", Path("/tmp/b.sock")),
    ("SOCKET", "/" + "x" * 106, "socket", Path("/" + "x" * 106)),
    ("SOCKET_MODE", "0660", "socket_mode", 0o660),
    ("SOCKET_MODE", "600", "socket_mode", 0o600),
    ("SOCKET_MODE", "0o666", "socket_mode", 0o666),
    ("ALLOWED_UIDS", "0", "allowed_uids", frozenset({0})),
    ("ALLOWED_UIDS", "1000,0,7051", "allowed_uids", frozenset({0, 1000, 7051})),
    ("HEALTH_ADDRESS", "127.0.0.1:0", "health_address", ("127.0.0.1", 0)),
    ("HEALTH_ADDRESS", "[::]:9480", "health_address", ("::", 9480)),
    ("HEALTH_ADDRESS", "[::1]:65535", "health_address", ("::1", 65535)),
    ("HEALTH_ADDRESS", "localhost:80", "health_address", ("localhost", 80)),
    ("LOG_FORMAT", "json", "log_format", "json"),
    ("LOG_FORMAT", "console", "log_format", "console"),
    ("LOG_PREFIX", "{label}@{pod} ", "log_prefix", "{label}@{pod} "),
    ("LOG_PREFIX", "{{{hash:.12}}} ", "log_prefix", "{{{hash:.12}}} "),
    ("DEBUG", "T", "debug", True),
    ("DEBUG", "0", "debug", False),
    ("RUN_AS_NON_ROOT", "true", "run_as_non_root", True),
    ("RUN_AS_NON_ROOT", "FALSE", "run_as_non_root", False),
    ("SECURITY_PROFILE", "restricted", "security_profile", SecurityProfile.RESTRICTED),
    ("SECURITY_PROFILE", "baseline", "security_profile", SecurityProfile.BASELINE),
    ("SECURITY_PROFILE", "compatible", "security_profile", SecurityProfile.COMPATIBLE),
    ("IMAGE_PULL_SECRETS", "registry", "pod", PodSettings(image_pull_secrets=("registry",))),
    ("IMAGE_PULL_SECRETS", "b.c,a-1", "pod", PodSettings(image_pull_secrets=("b.c", "a-1"))),
    *(
        ("IMAGE_PULL_POLICY", policy, "pod", PodSettings(image_pull_policy=policy))
        for policy in ("Always", "IfNotPresent", "Never")
    ),
    ("CPU_REQUEST", "100m", "pod", PodSettings(requests={"cpu": "100m"})),
    ("CPU_LIMIT", "1.5", "pod", PodSettings(limits={"cpu": "1.5"})),
    ("MEMORY_REQUEST", "64Mi", "pod", PodSettings(requests={"memory": "64Mi"})),
    ("MEMORY_LIMIT", "1e9", "pod", PodSettings(limits={"memory": "1e9"})),
    ("NODE_NAME", "node-a.example", "pod", PodSettings()),
    ("MAX_CONNECTIONS", "1", "max_connections", 1),
    ("REQUEST_TIMEOUT", "500ms", "request_timeout", 0.5),
    ("RECONNECT_GRACE", "1m30s", "reconnect_grace", 90.0),
    ("PEER_PATIENCE", "0s", "peer_patience", 0.0),
    ("ORPHAN_GRACE", "1.5h", "orphan_grace", 5400.0),
    ("WATCH_SILENCE", "2m", "watch_silence", 120.0),
    ("ACCESS_INTERVAL", "30s", "access_interval", 30.0),
    ("EVENTS", "false", "events", False),
]


@pytest.mark.parametrize(("name", "value", "field", "read"), TAKEN)
def test_a_value_is_taken(name: str, value: str, field: str, read: Any) -> None:
    assert getattr(load(**{name: value}), field) == read


LAUNCH_TAKEN: list[tuple[str, str, str, Any]] = [
    ("NODE_ROLE", "chaincode", "node_role", "chaincode"),
    ("NODE_ROLE", "A_b.c-9", "node_role", "A_b.c-9"),
    ("OBJECT_NAME_PREFIX", "a" * 30, "object_name_prefix", "a" * 30),
    ("SERVICE_ACCOUNT", "chaincode.builder-1", "service_account", "chaincode.builder-1"),
    ("START_TIMEOUT", "3m40s", "start_timeout", 220.0),
    ("START_TIMEOUT", "1h", "start_timeout", 3600.0),
    ("START_TIMEOUT", "500ms", "start_timeout", 0.5),
    ("START_TIMEOUT", "1.5h", "start_timeout", 5400.0),
    ("START_TIMEOUT", "1ns", "start_timeout", 1e-9),
    # As in the Go builder: no limit.
    ("START_TIMEOUT", "0", "start_timeout", math.inf),
    ("START_TIMEOUT", "0s", "start_timeout", math.inf),
    ("START_TIMEOUT", "-1s", "start_timeout", math.inf),
    ("DEBUG", "True", "debug", True),
]


@pytest.mark.parametrize(("name", "value", "field", "read"), LAUNCH_TAKEN)
def test_a_value_of_a_launch_is_taken(name: str, value: str, field: str, read: Any) -> None:
    assert getattr(launch_settings({**PEER, PREFIX + name: value}), field) == read
    load(**{name: value})


# What is refused

LABEL_RULE = (
    "must be a valid Kubernetes label value: a valid label must be an empty string or consist of alphanumeric"
    " characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or"
    " 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
DURATION_RULE = "must be a valid Go duration string, e.g. 3m40s: "
ADDRESS_RULE = "must be an address and a port such as 0.0.0.0:9480 or [::]:9480; it is "
SOCKET_RULE = "must be an absolute path of at most 107 bytes (Linux: sun_path of a Unix socket)"

REFUSED: list[tuple[str, str, str]] = [
    ("NAMESPACE", "Fabric", "must be the name of a Kubernetes namespace (a DNS-1123 label); it is 'Fabric'"),
    ("NAMESPACE", "a.b", "must be the name of a Kubernetes namespace (a DNS-1123 label); it is 'a.b'"),
    ("NAMESPACE", "-a", "must be the name of a Kubernetes namespace (a DNS-1123 label); it is '-a'"),
    ("NAMESPACE", "a/b", "must be the name of a Kubernetes namespace (a DNS-1123 label); it is 'a/b'"),
    ("NAMESPACE", "a\n", r"must be the name of a Kubernetes namespace (a DNS-1123 label); it is 'a\n'"),
    (
        "NAMESPACE",
        "a" * 64,
        f"must be the name of a Kubernetes namespace (a DNS-1123 label); it is '{'a' * 64}'",
    ),
    ("INSTANCE", "a,b=c", LABEL_RULE),
    ("INSTANCE", "x" * 64, "must be a valid Kubernetes label value: must be no more than 63 bytes"),
    ("NODE_ROLE", "-x", LABEL_RULE),
    (
        "OBJECT_NAME_PREFIX",
        "a" * 31,
        "must be a maximum of 30 characters",
    ),
    ("SERVICE_ACCOUNT", "A", "must be the name of a Kubernetes service account (a DNS-1123 subdomain); it is 'A'"),
    (
        "SERVICE_ACCOUNT",
        "a..b",
        "must be the name of a Kubernetes service account (a DNS-1123 subdomain); it is 'a..b'",
    ),
    ("START_TIMEOUT", "3", DURATION_RULE + 'time: missing unit in duration "3"'),
    ("START_TIMEOUT", "three minutes", DURATION_RULE + 'time: invalid duration "three minutes"'),
    ("START_TIMEOUT", "3 m", DURATION_RULE + 'time: unknown unit " m" in duration "3 m"'),
    ("DEBUG", "yes", 'cannot be used: strconv.ParseBool: parsing "yes": invalid syntax'),
    ("RUN_AS_NON_ROOT", "on", 'cannot be used: strconv.ParseBool: parsing "on": invalid syntax'),
    ("SOCKET", "b.sock", SOCKET_RULE),
    ("SOCKET", "/" + "x" * 107, SOCKET_RULE),
    ("SOCKET", "/" + "\N{SNOWMAN}" * 36, SOCKET_RULE),
    ("SOCKET_MODE", "rw-rw----", "must be an octal file mode such as 0660; it is 'rw-rw----'"),
    ("SOCKET_MODE", "0680", "must be an octal file mode such as 0660; it is '0680'"),
    ("SOCKET_MODE", "66", "must be an octal file mode such as 0660; it is '66'"),
    ("SOCKET_MODE", "0x1b0", "must be an octal file mode such as 0660; it is '0x1b0'"),
    ("ALLOWED_UIDS", "root", "must be user ids separated by commas, such as 0,1000; it is 'root'"),
    ("ALLOWED_UIDS", "0, 1000", "must be user ids separated by commas, such as 0,1000; it is '0, 1000'"),
    ("ALLOWED_UIDS", "-1", "must be user ids separated by commas, such as 0,1000; it is '-1'"),
    ("HEALTH_ADDRESS", "9480", ADDRESS_RULE + "'9480'"),
    ("HEALTH_ADDRESS", "0.0.0.0", ADDRESS_RULE + "'0.0.0.0'"),
    ("HEALTH_ADDRESS", "0.0.0.0:http", ADDRESS_RULE + "'0.0.0.0:http'"),
    ("HEALTH_ADDRESS", "0.0.0.0:65536", ADDRESS_RULE + "'0.0.0.0:65536'"),
    ("HEALTH_ADDRESS", "0.0.0.0:-1", ADDRESS_RULE + "'0.0.0.0:-1'"),
    ("LOG_FORMAT", "JSON", "must be one of json, console; it is 'JSON'"),
    ("LOG_PREFIX", "{name} ", "must be text with {label}, {hash} or {pod} in it, not {name}; it is '{name} '"),
    ("LOG_PREFIX", "{}", "must be text with {label}, {hash} or {pod} in it, not {}; it is '{}'"),
    ("LOG_PREFIX", "{pod.a}", "must be text with {label}, {hash} or {pod} in it, not {pod.a}; it is '{pod.a}'"),
    ("LOG_PREFIX", "{pod[0]}", "must be text with {label}, {hash} or {pod} in it, not {pod[0]}; it is '{pod[0]}'"),
    *(
        ("LOG_PREFIX", value, f"must be text with {{label}}, {{hash}} or {{pod}} in it ({why}); it is {value!a}")
        for value, why in (
            ("{label", "expected '}' before end of string"),
            ("label} ", "Single '}' encountered in format string"),
        )
    ),
    *(
        ("LOG_PREFIX", value, f"must have nothing after a name but a length such as {{hash:.12}}; it is {value!a}")
        for value in ("{label!r}", "{label:>99999}", "{label:{pod}}", "{label:.99999}")
    ),
    ("LOG_PREFIX", "a\nb", "must hold printable characters only; it is 'a\\nb'"),
    ("LOG_PREFIX", "\x1b[1m", "must hold printable characters only; it is '\\x1b[1m'"),
    ("LOG_PREFIX", "x" * 257, "must be a maximum of 256 bytes"),
    ("SECURITY_PROFILE", "Restricted", "must be one of restricted, baseline, compatible; it is 'Restricted'"),
    ("SECURITY_PROFILE", "privileged", "must be one of restricted, baseline, compatible; it is 'privileged'"),
    *(
        (
            "IMAGE_PULL_SECRETS",
            value,
            "must be names of Kubernetes secrets (DNS-1123 subdomains) separated by commas, such as a,b; it is"
            f" {value!a}",
        )
        for value in ("a, b", "a,", ",", "A", "a/b", "x" * 254)
    ),
    ("IMAGE_PULL_POLICY", "always", "must be one of Always, IfNotPresent, Never; it is 'always'"),
    *(
        (name, value, f"must be a Kubernetes quantity such as 250m, 0.5, 64Mi or 1Gi; it is {value!a}")
        for name in ("CPU_REQUEST", "CPU_LIMIT", "MEMORY_REQUEST", "MEMORY_LIMIT")
        for value in ("64MB", "one", "1 Gi")
    ),
    *(("MEMORY_LIMIT", value, f"must be a quantity above zero; it is {value!a}") for value in ("0", "-1Gi")),
    ("NODE_NAME", "Node_A", "must be the name of a Kubernetes node (a DNS-1123 subdomain); it is 'Node_A'"),
    ("SAME_NODE", "yes", 'cannot be used: strconv.ParseBool: parsing "yes": invalid syntax'),
    ("MAX_CONNECTIONS", "0", "must be a number above zero; it is '0'"),
    ("MAX_CONNECTIONS", "-5", "must be a number above zero; it is '-5'"),
    ("MAX_CONNECTIONS", "many", "must be a number above zero; it is 'many'"),
    *(
        (name, value, rule)
        for name in ("REQUEST_TIMEOUT", "RECONNECT_GRACE", "ORPHAN_GRACE", "WATCH_SILENCE", "ACCESS_INTERVAL")
        for value, rule in (
            ("10", DURATION_RULE + 'time: missing unit in duration "10"'),
            ("0s", "must be a duration above zero; it is '0s'"),
            ("-1s", "must be a duration above zero; it is '-1s'"),
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "rule"), REFUSED)
def test_a_value_is_refused_with_the_variables_name_and_the_rule(name: str, value: str, rule: str) -> None:
    assert refused(**{name: value}) == f"The {PREFIX}{name} environment variable {rule}"


def test_every_variable_of_the_code_is_tried_here_and_stands_in_the_table() -> None:
    source = Path(settings_module.__file__).read_text()
    names = {PREFIX + name for name in re.findall(r'read\("([A-Z_]+)"', source)}
    apart = {"POD_NAME", "POD_UID", "POD_TEMPLATE", "SAME_NODE"}
    tried = {PREFIX + name for name in {name for name, *_ in (*TAKEN, *LAUNCH_TAKEN)} | apart}
    assert names == tried
    table = (ROOT / "docs" / "configuration.md").read_text()
    listed = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| .* \| (daemon|client|both) \|", table, re.MULTILINE))
    assert {*names, "CORE_PEER_ID", "KUBECONFIG_PATH"} == {name for name, who in listed.items() if who != "client"}


# The daemon's own pod


def test_the_daemons_own_pod_has_a_name_and_a_uid() -> None:
    found = load(POD_NAME="peer0-0", POD_UID="8a7d0ed9-a868-40bb-8ec3-b30001f984b1")
    assert (found.pod_name, found.pod_uid) == ("peer0-0", "8a7d0ed9-a868-40bb-8ec3-b30001f984b1")
    for half in ({"POD_NAME": "peer0-0"}, {"POD_UID": "8a7d"}):
        assert refused(**half) == (
            f"The {PREFIX}POD_NAME and {PREFIX}POD_UID environment variables must both be set, or neither"
        )


POD = {"name": "peer0-0", "uid": "8a7d0ed9-a868-40bb-8ec3-b30001f984b1"}


def jwt(claims: Any) -> str:
    """Return a token as the API server makes them."""
    parts = ({"alg": "RS256", "kid": "k"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join((*encoded, "c2lnbmF0dXJl"))


@pytest.mark.parametrize("namespace", ["f", "fa", "fab"])  # of each length of base64's padding
def test_the_service_accounts_token_names_the_pod(tmp_path: Path, namespace: str) -> None:
    token = tmp_path / "token"
    token.write_text(jwt({"aud": ["a"], "exp": 1, "kubernetes.io": {"namespace": namespace, "pod": POD}}) + "\n")
    assert read_bound_pod(token) == Owner(POD["name"], POD["uid"])


@pytest.mark.parametrize(
    "content",
    [
        jwt({"kubernetes.io/serviceaccount/namespace": "fabric", "sub": "system:serviceaccount:fabric:peer"}),
        jwt({"kubernetes.io": {"namespace": "fabric", "serviceaccount": POD, "secret": POD}}),
        jwt({"kubernetes.io": {"pod": {"name": "peer0-0"}}}),
        jwt({"kubernetes.io": {"pod": {"name": "peer0-0", "uid": ""}}}),
        jwt({"kubernetes.io": {"pod": None}}),
        jwt(["kubernetes.io"]),
        "opaque",
        "not.base64\u00e4.at-all",
        "one.b.more",
        "no.anNvbg.here",
        "",
    ],
    ids=["legacy", "a Secret's", "no uid", "empty", "null", "list", "opaque", "text", "length", "no JSON", "nothing"],
)
def test_a_token_that_names_no_pod(tmp_path: Path, content: str) -> None:
    token = tmp_path / "token"
    token.write_text(content)
    assert read_bound_pod(token) is None
    assert read_bound_pod(tmp_path / "none") is None


def test_what_is_set_wins_over_the_token_and_a_kubeconfig_is_not_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings_module, "_SERVICE_ACCOUNT", tmp_path)
    (tmp_path / "token").write_text(jwt({"kubernetes.io": {"pod": POD}}))
    (tmp_path / "namespace").write_text("fabric")
    for found, expected in (
        (load(), (POD["name"], POD["uid"], True)),
        (load(POD_NAME="other", POD_UID="uid"), ("other", "uid", False)),
        (load(KUBECONFIG_PATH="/kubeconfig"), ("", "", False)),
    ):
        assert (found.pod_name, found.pod_uid, found.pod_from_token) == expected
        assert (found.namespace, found.pod_namespace) == ("fabric", "fabric")


# The pods of chaincode


def test_chaincode_on_the_same_node_needs_the_name_of_that_node() -> None:
    assert load(SAME_NODE="true", NODE_NAME="node-a").pod == PodSettings(node_name="node-a")
    assert load(SAME_NODE="false", NODE_NAME="node-a").pod == PodSettings()
    assert refused(SAME_NODE="true") == (
        f"The {PREFIX}SAME_NODE environment variable needs {PREFIX}NODE_NAME, the name of this node (downward API,"
        " spec.nodeName)"
    )


@pytest.mark.parametrize(("request_", "limit"), [("1", "1000m"), ("1Gi", "1.1G"), ("100m", "")])
def test_a_request_is_no_more_than_its_limit(request_: str, limit: str) -> None:
    expected = {"cpu": limit} if limit else {}
    assert load(CPU_REQUEST=request_, CPU_LIMIT=limit).pod == PodSettings(requests={"cpu": request_}, limits=expected)
    assert load(MEMORY_REQUEST=request_, MEMORY_LIMIT=limit).pod.requests == {"memory": request_}


def test_a_request_above_its_limit_is_refused_with_both_names() -> None:
    assert refused(MEMORY_REQUEST="1.1Gi", MEMORY_LIMIT="1Gi") == (
        f"The {PREFIX}MEMORY_REQUEST environment variable must not be more than {PREFIX}MEMORY_LIMIT; it is '1.1Gi',"
        " and the limit '1Gi'"
    )
    assert refused(CPU_REQUEST="2", CPU_LIMIT="500m").startswith(f"The {PREFIX}CPU_REQUEST environment variable must")


# The pod template


def template(tmp_path: Path, content: bytes) -> str:
    file = tmp_path / "template.json"
    file.write_bytes(content)
    return str(file)


def test_a_pod_template_is_read_in_json_and_in_yaml(tmp_path: Path) -> None:
    body = {"metadata": {"labels": {"a": "b"}}, "spec": {"nodeSelector": {"c": "d"}}}
    for content in (json.dumps(body), "metadata: {labels: {a: b}}\nspec:\n  nodeSelector:\n    c: d\n"):
        file = template(tmp_path, content.encode())
        found = load(POD_TEMPLATE=file)
        assert (found.pod_template, found.pod_template_file) == (PodTemplate(body), Path(file))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "it is empty"),
        (b"{", "Input data was truncated"),
        (b"spec: a: b", "line 1, column 8: mapping values are not allowed here"),
        (b"[]", "it must be an object with metadata and spec, and chaincodes for sections"),
        (b'{"spec": {"restartPolicy": "Always"}}', "spec.restartPolicy cannot be set: it is Never"),
        (b"spec: {restartPolicy: Always}", "spec.restartPolicy cannot be set: it is Never"),
        (b"spec: {a: " + b"x" * 1024 * 1024 + b"}", "it must be a maximum of 1048576 bytes"),
    ],
)
def test_a_pod_template_that_cannot_be_used_is_refused_at_start(tmp_path: Path, content: bytes, fault: str) -> None:
    """Not at the first launch, when nobody looks."""
    file = template(tmp_path, content)
    assert refused(POD_TEMPLATE=file).startswith(
        f"The {PREFIX}POD_TEMPLATE environment variable must name a file with a pod template that can be used: {file}:"
        f" {fault}"
    )


def test_a_pod_template_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused(POD_TEMPLATE=str(missing)) == (
        f"The {PREFIX}POD_TEMPLATE environment variable must name a file with a pod template that can be used:"
        f" {missing}: it cannot be read: No such file or directory"
    )
    assert "Is a directory" in refused(POD_TEMPLATE=str(tmp_path))


# The instance


@pytest.mark.parametrize("name", ["host_", "-host", "x" * 62 + ".y", "h\u00f6st"])
def test_a_hosts_name_that_is_no_label_value_is_refused_or_made_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody has set it, but each request would fail with it."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    found = instance_or_refusal()
    assert re.fullmatch("[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", found) or f"{PREFIX}INSTANCE" in found


def instance_or_refusal() -> str:
    try:
        return load().instance
    except SettingsError as error:
        return str(error)


# Who wins


def test_what_the_operator_sets_on_the_daemon_wins_over_what_a_client_forwards() -> None:
    daemon = load(CORE_PEER_ID="daemon", NODE_ROLE="daemon", START_TIMEOUT="1s")
    client = {"CORE_PEER_ID": "client", f"{PREFIX}NODE_ROLE": "client", f"{PREFIX}SERVICE_ACCOUNT": "client"}
    found = daemon.for_launch(client)
    assert (found.peer_id, found.node_role, found.service_account, found.start_timeout) == (
        "daemon",
        "daemon",
        "client",
        1.0,
    )
    assert daemon.overridden(client) == ["CORE_PEER_ID", f"{PREFIX}NODE_ROLE"]


def test_what_is_the_same_on_both_sides_is_not_overridden() -> None:
    daemon = load(NODE_ROLE="same", START_TIMEOUT="1s")
    assert daemon.overridden({f"{PREFIX}NODE_ROLE": "same"}) == []


def test_nothing_else_of_a_clients_environment_counts() -> None:
    forwarded = {**PEER, "KUBECONFIG_PATH": "/x", f"{PREFIX}RUN_AS_NON_ROOT": "nonsense", f"{PREFIX}SOCKET": "x"}
    assert load().for_launch(forwarded) == launch_settings(PEER)


def test_a_clients_bad_value_does_not_count_where_the_daemon_has_a_good_one() -> None:
    assert load(START_TIMEOUT="1s").for_launch({**PEER, f"{PREFIX}START_TIMEOUT": "3"}).start_timeout == 1.0
    with pytest.raises(SettingsError, match="START_TIMEOUT environment variable must be a valid Go duration"):
        load().for_launch({**PEER, f"{PREFIX}START_TIMEOUT": "3"})


def test_a_client_without_a_peers_id_is_told_so_in_the_go_builders_words() -> None:
    for forwarded in ({}, {"CORE_PEER_ID": ""}):
        with pytest.raises(SettingsError) as error:
            load().for_launch(forwarded)
        assert str(error.value) == "Expected CORE_PEER_ID environment variable"
    assert load(CORE_PEER_ID="peer0").for_launch({}).peer_id == "peer0"


def test_a_client_of_another_namespace_is_told_where_to_set_it() -> None:
    with pytest.raises(SettingsError) as error:
        load(NAMESPACE="ours").for_launch({**PEER, f"{PREFIX}NAMESPACE": "theirs"})
    assert str(error.value) == (
        f"The {PREFIX}NAMESPACE environment variable of the peer says 'theirs', but this daemon works in the namespace"
        " 'ours': set it on the daemon (the sidecar container), or unset it on the peer"
    )
    for same in ("ours", ""):
        load(NAMESPACE="ours").for_launch({**PEER, f"{PREFIX}NAMESPACE": same})


def test_a_mistake_in_what_clients_may_forward_is_told_at_start() -> None:
    for name in FORWARDED[1:]:
        assert name in refused(**{name.removeprefix(PREFIX): "\x00 -"})


# The process


@pytest.mark.anyio
async def test_the_daemon_ends_with_one_line_and_1_for_a_bad_setting() -> None:
    environment = {"PATH": os.environ["PATH"], f"{PREFIX}SOCKET_MODE": "rw"}
    ended = await anyio.run_process([sys.executable, "-m", "k8s_builderd"], env=environment, check=False)
    assert ended.returncode == 1
    assert ended.stdout == b""
    assert ended.stderr.decode() == (
        f"k8s-builderd: The {PREFIX}SOCKET_MODE environment variable must be an octal file mode such as 0660; it is"
        " 'rw'\n"
    )


def test_pods_of_the_same_name_in_two_namespaces_are_two_hosts() -> None:
    """Both may have their chaincode in a third one, where no pod owns the Jobs: neither's are the other's orphans."""
    org1, again, org2 = (
        Settings.load({"FABRIC_K8S_BUILDER_POD_NAMESPACE": namespace}).host for namespace in ("org1", "org1", "org2")
    )
    assert org1 == again
    assert org1 != org2
