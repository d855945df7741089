"""What the documents say of the code is so: variables, defaults, constants, objects, lines, metrics, layers."""

import ast
import importlib
import itertools
import re
import runpy
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k8s_builder_client.call import Call
from k8s_builder_client.request import Request
from k8s_builderd.fabric import manifests, names
from k8s_builderd.fabric.names import Token
from k8s_builderd.fabric.package import DOCUMENT_SIZE, Chaincode, Image
from k8s_builderd.fabric.plan import LaunchSettings, Owner, Plan, SecurityProfile
from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.gateway.protocol import MAX_PATH_BYTES, MAX_PATHS
from k8s_builderd.kube.errors import ApiError
from k8s_builderd.metrics import LOG_LOSSES, OUTCOMES, REJECTIONS, UNCATEGORIZED
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.record import Reason, State
from k8s_builderd.settings import FORWARDED, PEER_ID, Settings, launch_settings

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CLIENT = ROOT / "client"
DAEMON = ROOT / "daemon" / "k8s_builderd"
# What a daemon beside a peer is made of.
SOURCES = [*DAEMON.rglob("*.py")]
# Those whose text a client prints; PackageError and SettingsError are explained as a whole.
SAYING = {
    "say",
    "words",
    "NotFoundHere",
    "DaemonError",
    "LaunchFailed",
    "TimedOut",
    "Vanished",
    "Superseded",
    "Verdict",
    "CallError",
    "CopyError",
}
GO_BUILDERS = {
    "CORE_PEER_ID",
    "KUBECONFIG_PATH",
    *(
        f"FABRIC_K8S_BUILDER_{name}"
        for name in ("NAMESPACE", "NODE_ROLE", "OBJECT_NAME_PREFIX", "SERVICE_ACCOUNT", "START_TIMEOUT", "DEBUG")
    ),
}


def read(name: str) -> str:
    return (DOCS / name).read_text()


def section(document: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", read(document), re.MULTILINE | re.DOTALL)
    assert found, f"{document} has no heading {heading}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text, without headings."""
    table = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [row for index, row in enumerate(table) if not _is_heading(table, index)]


def _is_heading(table: list[list[str]], index: int) -> bool:
    return _is_rule(table[index]) or (index + 1 < len(table) and _is_rule(table[index + 1]))


def _is_rule(row: list[str]) -> bool:
    return all(set(cell) <= {"-", " "} for cell in row)


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# Variables


class Recorder(Mapping[Any, Any]):
    """An environment in which nothing is set, and that knows what it was asked for."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def __getitem__(self, name: str | bytes) -> str | bytes:
        self.asked.add(name.decode() if isinstance(name, bytes) else name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_by_daemon() -> set[str]:
    recorder = Recorder()
    Settings.load(recorder)
    launch_settings({PEER_ID: "peer0"})
    return recorder.asked | set(FORWARDED)


def read_by_client(folder: Path) -> set[str]:
    recorder = Recorder()
    call = Call("run", [bytes(folder), bytes(folder)], recorder)
    for name, member in vars(Call).items():
        if isinstance(member, property):
            getattr(call, name)
    Request(call, 1)
    return recorder.asked | set(re.findall(r"\$(FABRIC_\w+)", (CLIENT / "bin" / "run").read_text()))


VARIABLES = {code(row[0])[0]: row[1:] for row in rows(read("configuration.md")) if code(row[0]) and len(row) == 5}


def test_every_variable_that_is_read_stands_in_the_table_and_no_other(tmp_path: Path) -> None:
    daemon, client = read_by_daemon(), read_by_client(tmp_path)
    readers = {name: "both" if name in daemon & client else "daemon" for name in daemon}
    readers |= dict.fromkeys(client - daemon, "client")
    assert {name: row[2] for name, row in VARIABLES.items()} == readers


def test_the_variables_of_the_go_builder_are_marked() -> None:
    assert {name for name, row in VARIABLES.items() if row[3] == "✓"} == GO_BUILDERS


@pytest.mark.parametrize("name", [name for name, row in VARIABLES.items() if re.fullmatch("`[^`]+`", row[0])])
def test_a_default_is_what_the_code_does_where_nothing_is_set(name: str) -> None:
    (default,) = code(VARIABLES[name][0])
    given = {name: default}

    def daemon(environment: dict[str, str]) -> tuple[Settings, LaunchSettings]:
        settings = msgspec.structs.replace(Settings.load(environment), environment={})
        return settings, launch_settings({PEER_ID: "peer0", **environment})

    def client(environment: dict[str, str]) -> tuple[object, ...]:
        encoded = {key.encode(): value.encode() for key, value in environment.items()}
        call = Call("run", [b"a", b"b"], encoded)
        return call.socket_path, call.connect_timeout, call.debug

    assert daemon(given) == daemon({})
    assert client(given) == client({})


def test_what_a_client_forwards_is_listed_under_who_wins() -> None:
    first = section("configuration.md", "Who wins").split("are forwarded by the client")[0]
    assert set(code(first)) == set(FORWARDED)


def test_the_pod_template_of_the_example_can_be_used(tmp_path: Path) -> None:
    file = tmp_path / "template.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", section("configuration.md", "The pod template"), re.DOTALL)[0])
    settings = Settings.load({"FABRIC_K8S_BUILDER_POD_TEMPLATE": str(file)})
    for label, limit in (("basic_1.0", "256Mi"), ("assets_1.0", "1Gi"), ("assets_2", "1Gi")):
        body = manifests.job(msgspec.structs.replace(plan(), template=settings.pod_template.layers(label)), None)
        (container,) = body["spec"]["template"]["spec"]["containers"]
        assert container["resources"] == {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"memory": limit},
        }
        assert container["image"] == plan().image.reference
        assert body["spec"]["template"]["metadata"]["labels"]["team"] == "ledger"


@pytest.mark.parametrize(
    "text", re.findall(r"```yaml\n(?:# template.yaml\n)(.*?)```", read("how-to/pod-template.md"), re.DOTALL)
)
def test_the_templates_of_the_how_to_can_be_used(text: str) -> None:
    template = PodTemplate.parse(text.encode())
    for section_ in template.sections:
        manifests.job(msgspec.structs.replace(plan(), template=template.layers(section_.example)), None)
    assert template != PodTemplate()


def test_the_template_that_gives_capabilities_back_gives_no_more(tmp_path: Path) -> None:
    file = tmp_path / "template.json"
    text = section("configuration.md", "The security profile")
    file.write_text(re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0])
    settings = Settings.load({"FABRIC_K8S_BUILDER_POD_TEMPLATE": str(file)})
    before, after = (
        manifests.job(msgspec.structs.replace(plan(), template=template), None)["spec"]["template"]["spec"]
        for template in ((), settings.pod_template.layers(""))
    )
    added = after["containers"][0]["securityContext"]["capabilities"].pop("add")
    assert (added, after) == (["SETUID", "SETGID"], before)
    assert [code(row[0])[0] for row in rows(text)] == list(SecurityProfile)


@pytest.mark.parametrize(
    "row", rows(section("configuration.md", "What is fixed")), ids=lambda row: code(row[2])[0] if row else ""
)
def test_a_constant_is_what_the_table_says(row: list[str]) -> None:
    room, _, name = code(row[2])[0].rpartition(".")
    package = "k8s_builder_client" if room.startswith("client.") else "k8s_builderd"
    module = importlib.import_module(f"{package}.{room.removeprefix('client.')}")
    assert float(row[1].split()[0]) == getattr(module, name)


def test_the_bounds_of_a_package_are_those_of_the_code() -> None:
    text = " ".join(section("packages.md", "The rules").split())
    assert f"of at most {DOCUMENT_SIZE:,} bytes" in text
    assert f"There can be {MAX_PATHS:,} paths at most, of {MAX_PATH_BYTES // 1024 // 1024} MiB together" in text


# Objects


def plan() -> Plan:
    chaincode = Chaincode(
        chaincode_id="basic_1.0:6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45",
        peer_address="peer0.org1.example.com:7052",
        client_cert="-----BEGIN CERTIFICATE-----\n...\n",
        client_key="-----BEGIN PRIVATE KEY-----\n...\n",
        root_cert="-----BEGIN CERTIFICATE-----\n...\n",
        mspid="Org1MSP",
    )
    settings = launch_settings({PEER_ID: "peer0.org1.example.com"})
    name = names.object_name(
        settings.object_name_prefix,
        settings.peer_id,
        chaincode.peer_address,
        chaincode.mspid,
        chaincode.chaincode_id,
    )
    token = Token("0" * 32)
    return Plan(
        chaincode=chaincode,
        image=Image("ghcr.io/example/basic", "sha256:" + "5e" * 32),
        settings=settings,
        object_name=name,
        job_name=names.job_name(name, token.sha256),
        token=token,
        peer="0123456789abcdef" * 2,
        instance="peer0-org1-0",
        namespace="fabric",
        host="0123456789abcdef",
    )


def example() -> tuple[str, str]:
    job = manifests.job(plan(), Owner("peer0-org1-0", "1f5c9551-59a3-4471-b891-551cc45783e3"))
    secret = manifests.secret(plan(), "0d072679-7b14-4e88-85c7-851b00065e0f")
    return tuple(yaml.safe_dump(body, sort_keys=False, width=200) for body in (job, secret))


def test_the_example_is_what_the_code_makes() -> None:
    assert tuple(re.findall(r"```yaml\n(.*?)```", read("kubernetes-objects.md"), re.DOTALL)) == example()


def test_what_is_added_stands_in_the_table() -> None:
    named = {word for row in rows(section("kubernetes-objects.md", "What is added")) for word in code(row[1])}
    job = manifests.job(plan(), None)
    for kind in ("labels", "annotations"):
        for key in job["metadata"][kind]:
            go_builders = key.startswith("app.kubernetes.io") or re.search("-cc|-mspid|-peeraddress|-peerid", key)
            assert (key in named) != bool(go_builders and key != names.INSTANCE_LABEL), key
    pod = job["spec"]["template"]["spec"]
    go_builders_pod = {"serviceAccountName", "restartPolicy", "containers", "volumes"}
    assert pod.keys() - go_builders_pod <= named
    assert pod["securityContext"].keys() == {"seccompProfile"}
    assert {"securityContext.seccompProfile", "securityContext.runAsNonRoot", "immutable"} <= named


# Lines of the peer's log, and of the daemon's


def literals(node: ast.AST) -> Iterator[str]:
    """Return the texts that stand in the code, cut where something is put into them."""
    for found in ast.walk(node):
        if isinstance(found, ast.Constant) and isinstance(found.value, str | bytes):
            text = found.value if isinstance(found.value, str) else found.value.decode("utf-8", "replace")
            yield from re.split(r"%\.?\d*[a-z]|\n", text)


def called(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in names:
                yield node


TREES = [
    ast.parse(path.read_text())
    for path in [*SOURCES, *CLIENT.glob("k8s_builder_client/*.py"), ROOT / "daemon/k8s_builder/call.py"]
]
SHELL = (CLIENT / "bin" / "run").read_text()
FROM_OUTSIDE = "No such file or directory\nConnection refused\nPermission denied\nOperation not permitted\n"  # strerror
# Where the code puts two texts together.
JOINTS = "…|: |because |CORE_PEER_ID|(?<=denied) |(?<=the chaincode) (?=ended)"
GERUNDS = ("detecting", "building", "releasing", "listing", "reading the log of", "stopping")
EXPLAINED = [
    line
    for heading in (
        "The daemon cannot be reached",
        "The daemon refuses the call",
        "The package",
        "The launch",
        "The end",
        "Chaincode's log",
        "What the command says",
    )
    for row in rows(section("operations.md", heading))
    for line in code(row[0])
]


def test_what_operations_explains_is_said_somewhere() -> None:
    said = "\n".join(text for tree in TREES for text in literals(tree)) + SHELL + FROM_OUTSIDE
    said += "".join(f"Error {gerund} chaincode:\n" for gerund in GERUNDS)
    parts = {part.strip(" .,;:()") for line in EXPLAINED for part in re.split(JOINTS, line)}
    assert [part for part in sorted(parts) if part not in said] == []


def test_every_line_that_is_said_is_explained() -> None:
    explained = "\n".join(EXPLAINED) + section("operations.md", "Chaincode's log")
    parts = {
        text.strip(" .,;:()")
        for tree in TREES
        for call in called(tree, SAYING)
        for argument in call.args
        for text in literals(argument)
    }
    assert [part for part in sorted(parts) if len(part.split()) > 2 and part not in explained] == []


def docstrings(tree: ast.AST) -> set[int]:
    """Return which constants are docstrings, of attributes too."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def test_every_word_of_a_diagnosis_and_of_a_verdict_is_explained() -> None:
    tree = ast.parse((DAEMON / "runs" / "diagnosis.py").read_text())
    silent = docstrings(tree)
    for call in called(tree, {"compile", "partition", "removeprefix"}):  # what is looked for in Kubernetes' words
        silent |= {id(node) for argument in call.args for node in ast.walk(argument)}
    explained = section("operations.md", "The launch") + section("operations.md", "The end")
    said = {
        sentence.strip(" .,;:()'")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent
        for sentence in node.value.split(". ")
    }
    assert [part for part in sorted(said) if len(part.split()) > 1 and part not in explained] == []


def test_every_category_is_explained_by_what_its_docstring_says() -> None:
    (kind,) = (
        node for node in ast.parse((DAEMON / "runs" / "category.py").read_text()).body if isinstance(node, ast.ClassDef)
    )
    members = [
        (ast.literal_eval(name.value), ast.literal_eval(words.value))
        for name, words in itertools.pairwise(kind.body)
        if isinstance(name, ast.Assign) and isinstance(words, ast.Expr)
    ]
    assert [name for name, _ in members] == list(Category)
    table = rows(section("operations.md", "Categories"))
    assert [(code(row[0])[0], row[1]) for row in table] == members
    assert all(row[2] for row in table)


def test_every_event_of_the_daemons_log_is_explained_and_no_other() -> None:
    logged = {found for path in SOURCES for found in re.findall(r"_log\.\w+\(\s*\"(\w+)\"", path.read_text())}
    assert {event for row in rows(section("operations.md", "The daemon's own log")) for event in code(row[0])} == logged


def test_the_metrics_and_their_reasons_are_those_of_the_code() -> None:
    found = {"k8s_builderd_build_info": ["version", "python"]}
    for file, adding in (("metrics.py", {"_counter", "_histogram"}), ("daemon.py", {"gauge", "gauges"})):
        for call in called(ast.parse((DAEMON / file).read_text()), adding):
            if not isinstance(call.args[0], ast.Constant):
                continue
            name, _, *labels = [ast.literal_eval(it) for it in call.args if isinstance(it, ast.Constant)]
            ending = "_total" if ast.unparse(call.func).endswith("_counter") else ""
            found[f"k8s_builderd_{name}{ending}"] = labels
    table = {code(row[0])[0]: row for row in rows(section("operations.md", "Metrics"))}
    assert metric_labels() == found

    def explained(name: str) -> list[str]:
        return [word for word in code(table[name][2]) if not word.startswith("FABRIC_")]

    assert explained("k8s_builderd_jobs_deleted_total") == list(Reason)
    assert explained("k8s_builderd_calls_rejected_total") == list(REJECTIONS)
    assert explained("k8s_builderd_chaincodes") == list(State)
    assert [word for word in explained("k8s_builderd_launches_total") if word != UNCATEGORIZED] == list(OUTCOMES)
    kinds = {kind.kind for kind in _and_subclasses(ApiError)}
    logs, watches = explained("k8s_builderd_log_interruptions_total"), explained("k8s_builderd_watch_restarts_total")
    assert set(logs) == kinds - {"not found"} | set(LOG_LOSSES)
    assert kinds | {"closed", "crashed"} == set(logs) - set(LOG_LOSSES) | set(watches)


def metric_labels() -> dict[str, list[str]]:
    """Return each metric's labels, as documented; a row without any has a cell less."""
    table = rows(section("operations.md", "Metrics"))
    return {code(row[0])[0]: code(row[1]) if len(row) == 3 else [] for row in table}


def _and_subclasses(kind: type[ApiError]) -> Iterator[type[ApiError]]:
    yield kind
    for found in kind.__subclasses__():
        yield from _and_subclasses(found)


def test_the_checks_of_readyz_are_those_of_the_code() -> None:
    source = (DAEMON / "daemon.py").read_text()
    failing, warning = (
        re.findall(r'"(\w+)":', found)
        for found in re.findall(r"(?:checks|warnings): dict\[.*?\{(.*?)\}", source, re.DOTALL)
    )
    documented = [word for row in rows(section("operations.md", "Health")) for word in code(row[0])]
    assert documented == failing + warning


# The command line


def test_the_page_of_the_command_line_is_what_the_commands_say() -> None:
    """If not, run docs/render_command_line.py."""
    script = runpy.run_path(str(DOCS / "render_command_line.py"))
    assert read("reference/command-line.md") == script["render"]()


# Rooms and links


def test_the_layers_are_those_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (one["layers"] for one in contracts if one.get("containers") == ["k8s_builderd"])
    documented = [code(row[0]) for row in rows(section("architecture.md", "The rooms"))]
    assert documented == [layer.split(" : ") for layer in layers]


@pytest.mark.parametrize(
    "document",
    sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "systemd/README.md"))]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = document.parent / path if path else document
        assert file.exists(), target
        if document.is_relative_to(DOCS):  # the site has nothing else
            assert file.resolve().is_relative_to(DOCS), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, target
