"""The tutorials can be followed: what can run here runs, and the rest is at least a program that names what is there.

With FABRIC_SAMPLES (a folder with bin/, config/ and test-network-nano-bash/, as install-fabric.sh writes it) the
tutorial for a laptop runs with a real peer; without, the demo's stand-in calls the programs. With KUBEBUILDER_ASSETS
what is applied to a cluster is applied to a real API server.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio.to_thread
import pytest
import yaml

from k8s_builder_lab.demo.builder import open_builder
from k8s_builder_lab.demo.peer import open_peer
from k8s_builder_lab.demo.session import Line
from k8s_builder_lab.demo.unpack import read_package
from tests.embedded.realserver import TOKEN, RealServer, real_server
from tests.tutorials.page import NEEDS, PAGES, ROOT, Block, BlockFailed, Shell, blocks, shell

TUTORIALS = sorted(page for page in PAGES.glob("*.md") if page.name != "index.md")
PATIENCE = 180.0
"""Seconds after which a block counts as one that does not end; nothing measures by it."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the daemon's socket lies in it."""
    with TemporaryDirectory(prefix="kb-") as directory:
        yield Path(directory)


def environment(**more: str) -> dict[str, str]:
    """What a terminal has, with this project installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CORE_", "FABRIC_", "KUBE"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return {**kept, "PATH": path, "SOURCE": str(ROOT), **more}


def follow(opened: Shell, page: list[Block], have: set[str]) -> str:
    return "".join(opened.run(block.text, PATIENCE) for block in page if block.needs <= have)


# All pages


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_block_is_a_program_and_names_what_it_needs(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    assert len(found) == page.read_text().count("```sh\n")
    for block in found:
        assert block.needs <= NEEDS.keys()
        file = tmp_path / "block"
        file.write_text(block.text)
        done = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_files_of_the_project_that_a_page_names_are_there(page: Path) -> None:
    for name in re.findall(r"(?<![\w/-])deploy/[\w./-]*\w", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_page_is_in_the_list_and_in_the_sites_menu(page: Path) -> None:
    assert f"({page.name})" in (PAGES / "index.md").read_text()
    assert f"tutorials/{page.name}" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_documents_of_a_page_are_well_formed(page: Path) -> None:
    text = page.read_text()
    for kind, document in re.findall(r"```(json|yaml)\n(.*?)```", text, re.DOTALL):
        json.loads(document) if kind == "json" else list(yaml.safe_load_all(document))
    for command in re.findall(r"`(\[\"[^`]*\])`", text):
        assert all(isinstance(word, str) for word in json.loads(" ".join(command.split())))


def test_a_block_that_fails_ends_the_page(folder: Path) -> None:
    with shell(folder, environment()) as opened:
        assert opened.run("x=1; cd /; printf no-line-feed\n", PATIENCE) == "no-line-feed"
        assert opened.run('echo "$x $PWD"\n', PATIENCE) == "1 /\n"
        with pytest.raises(BlockFailed, match="before"):
            opened.run("echo before\nfalse | true\necho after\n", PATIENCE)


# One by one


def test_the_first_chaincode(folder: Path) -> None:
    with shell(folder, environment()) as opened:
        printed = follow(opened, blocks(PAGES / "first-chaincode.md"), set())
    assert "All of it happened" in printed
    assert re.search(r"^basic_1\.0:[0-9a-f]{64}$", printed, re.MULTILINE)


@pytest.mark.anyio
async def test_the_laptop_with_a_stand_in_for_the_peer(folder: Path) -> None:
    page = blocks(PAGES / "laptop.md")
    use = next(index for index, block in enumerate(page) if "peer chaincode invoke" in block.text)
    (names,) = re.findall(r'propagateEnvironment\\": \[(.*?)\]', "".join(block.text for block in page))
    propagated = tuple(re.findall(r'"([A-Z0-9_]+)\\', names))
    said: list[str] = []

    async def say(line: Line) -> None:
        said.append(line.text.decode())

    with shell(folder, environment()) as opened:
        await anyio.to_thread.run_sync(follow, opened, page[:use], set[str]())
        content = (folder / "basic_1.0.tgz").read_bytes()
        peer_sees = {
            "PATH": os.environ["PATH"],
            "CORE_PEER_ID": "peer0.org1.example.com",
            "FABRIC_K8S_BUILDER_SOCKET": str(folder / "builder.sock"),
        }
        data = folder / "peer"
        data.mkdir()
        async with open_builder(folder / "k8s-builder", peer_sees, data, say, propagated) as builder:
            package = read_package(content)
            await builder.install(package)
            async with open_peer(builder, startup_timeout=PATIENCE, log=lambda words: None) as peer:
                await peer.launch(package.package_id)
                await peer.invoke(package.package_id, ["put", "asset1", "blue"])
                assert await peer.query(package.package_id, ["get", "asset1"]) == b"blue"
                printed = await anyio.to_thread.run_sync(follow, opened, page[use:], set[str]())
    assert re.search(r"^basic_1\.0 +[0-9a-f]{12} +running ", printed, re.MULTILINE)
    assert "put asset1 blue" in printed
    assert re.search("^Stopped: ", printed, re.MULTILINE)


def test_the_laptop_with_a_real_peer(folder: Path) -> None:
    samples = os.environ.get("FABRIC_SAMPLES")
    if not samples:
        pytest.skip("FABRIC_SAMPLES does not name a folder with bin, config and test-network-nano-bash")
    for name in ("bin", "config"):
        (folder / name).symlink_to(Path(samples, name).resolve())
    network = folder / "test-network-nano-bash"
    shutil.copytree(Path(samples, network.name), network)
    with shell(network, environment()) as opened:
        printed = follow(opened, blocks(PAGES / "laptop.md"), {"fabric"})
    assert re.search(r"^basic_1\.0 +[0-9a-f]{12} +running ", printed, re.MULTILINE)
    assert re.search(r"^blue$", printed, re.MULTILINE)


def test_the_statefulset_is_rendered(folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl here")
    shutil.copytree(ROOT / "deploy", folder / "deploy", symlinks=True)
    with shell(folder, environment()) as opened:
        printed = follow(opened, blocks(PAGES / "statefulset.md"), set())
    objects = list(yaml.safe_load_all(printed))
    assert {it["kind"] for it in objects} == {"ServiceAccount", "Role", "RoleBinding", "StatefulSet"}


def test_the_builder_of_hlf_operator_passes_on_what_the_daemon_needs(folder: Path) -> None:
    with shell(folder, environment()) as opened:
        follow(opened, blocks(PAGES / "hlf-operator.md"), set())
    spec = json.loads((folder / "builder.json").read_text())["spec"]
    (builder,) = spec["externalBuilders"]
    assert builder["propagateEnvironment"] == ["CORE_PEER_ID", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"]


# With a real API server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("real")) as started:
        yield started


@pytest.fixture
def cluster(server: RealServer, folder: Path) -> dict[str, str]:
    """A terminal whose kubectl talks to that server."""
    user, context = {"name": "it", "user": {"token": TOKEN}}, {"name": "it", "context": {"cluster": "it", "user": "it"}}
    at = {"name": "it", "cluster": {"server": server.server, "insecure-skip-tls-verify": True}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [at], "users": [user], "contexts": [context]}
    (folder / "kubeconfig").write_text(json.dumps({**config, "current-context": "it"}))
    return environment(KUBECONFIG=str(folder / "kubeconfig"))


def test_the_statefulset_is_applied(cluster: dict[str, str], folder: Path) -> None:
    shutil.copytree(ROOT / "deploy", folder / "deploy", symlinks=True)
    with shell(folder, cluster) as opened:
        printed = follow(opened, blocks(PAGES / "statefulset.md"), {"api"})
    assert "statefulset.apps/peer0-org1 created" in printed
    assert "serviceaccount/k8s-builderd" in printed


@pytest.mark.parametrize(
    ("page", "namespace", "account"),
    [
        ("kubernetes-test-network.md", "test-network", "default"),
        ("fabric-operator.md", "test-network", "org2-peer1"),
        ("hlf-operator.md", "default", "org1-peer0"),
    ],
)
def test_a_page_gives_the_peer_the_rights_that_the_daemon_uses(
    server: RealServer, cluster: dict[str, str], folder: Path, page: str, namespace: str, account: str
) -> None:
    role = yaml.safe_load((ROOT / "deploy/role/role.yaml").read_text())
    asked = [
        f"{verb} {resource}{f'.{group}' if group else ''}"
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    who = f"--as=system:serviceaccount:{namespace}:{account} --namespace={namespace}"
    with shell(folder, cluster) as opened:
        fresh = f"kubectl create namespace {namespace} || true\n"
        opened.run(f"{fresh}kubectl -n {namespace} delete rolebinding --all\n", PATIENCE)
        question = "".join(
            f"kubectl auth can-i {what.replace('pods/log', 'pods --subresource=log')} {who} || true\n" for what in asked
        )
        assert opened.run(question, PATIENCE).split() == ["no"] * len(asked)
        follow(opened, [block for block in blocks(PAGES / page) if "api" in block.needs], {"api"})
        assert opened.run(question, PATIENCE).split() == ["yes"] * len(asked)
