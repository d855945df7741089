"""The folder of the peer's image, in containers as the networks make them."""

import fcntl
import json
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.daemon.scene import Scene, open_scene
from tests.daemon.test_owner import peer_pod
from tests.deploy import wheel
from tests.deploy.assembled import assemble
from tests.deploy.container import NETWORKS, container, needs_namespaces
from tests.embedded.cluster import PATIENCE
from tests.test_settings import jwt

DETECTED = "Detected k8s chaincode: basic_1.0"


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, which another user may read. Made once for all workers of this run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "k8s_builder"
    with (shared / "k8s_builder.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            assemble(shared / "k8s_builder.unfinished", tmp_path_factory.mktemp("scratch")).rename(folder)
    return folder


@pytest.fixture
async def scene(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as scene:
        await scene.package()  # localhost/chaincode1
        yield scene


@needs_namespaces()
@pytest.mark.parametrize(
    ("network", "run_is_writable"), [*((name, False) for name in NETWORKS), ("hlf-operator", True)]
)
async def test_a_chaincode_runs_with_the_environment_of_a_network(
    network: str, run_is_writable: bool, builder: Path, scene: Scene, tmp_path: Path
) -> None:
    given = NETWORKS[network]
    async with container(given, builder, scene, tmp_path, run_is_writable=run_is_writable) as inside:
        code, lines = await inside.call("detect", "source", "metadata")
        assert (code, lines[-1]) == (0, DETECTED), lines
        assert lines[0].startswith("Started k8s-builderd, process ")
        assert lines[0].endswith("Its log: this container's standard output")
        assert await inside.call("build", "source", "metadata", "output") == (0, [])
        assert await inside.call("release", "output", "release") == (0, [])
        await inside.do("run output run")
        await inside.sees(program="run", line="Running chaincode ID basic_1.0:")
        pod = await scene.running_pod()
        assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == given.hostname
        events = [json.loads(line) for line in inside.log]
        directory = "/run/k8s-builder" if run_is_writable else f"/tmp/k8s-builder-{given.uid}"
        assert [event["path"] for event in events if event["event"] == "socket_open"] == [f"{directory}/builder.sock"]
        [unknown] = [event for event in events if event["event"] == "own_pod_unknown"]
        assert "token names no pod" in unknown["reason"]
        assert "ownerReferences" not in (await scene.only("jobs"))["metadata"]
        await inside.do("processes")
        processes = (await inside.sees(processes=...))["processes"]
        [(uid, command)] = [
            (words[0], words) for words in processes.values() if given.path + "/bin/k8s-builderd" in words
        ]
        assert uid == given.uid
        assert "--peer-process" in command
        await inside.do("stop")
        assert (await inside.sees(program="run", code=...))["code"] == 0
        await scene.none("jobs", "secrets")


@needs_namespaces()
async def test_the_container_takes_the_daemon_along(builder: Path, scene: Scene, tmp_path: Path) -> None:
    async with container(NETWORKS["fabric operator"], builder, scene, tmp_path) as inside:
        assert (await inside.call("detect", "source", "metadata"))[0] == 0
        await inside.end()
        with anyio.fail_after(PATIENCE):
            await inside.all_ended.wait()


@needs_namespaces()
async def test_people_ask_the_daemon_out_of_the_peers_container(builder: Path, scene: Scene, tmp_path: Path) -> None:
    async with container(NETWORKS["fabric operator"], builder, scene, tmp_path) as inside:
        assert (await inside.call("build", "source", "metadata", "output"))[0] == 0
        await inside.do("run output run")
        await inside.sees(program="run", line="Running chaincode ID basic_1.0:")
        await inside.do("exec k8s-builder status --json")
        answer = await inside.sees(executed="k8s-builder")
        assert (answer["code"], answer["stderr"]) == (0, "")
        assert [found["label"] for found in json.loads(answer["stdout"])["chaincodes"]] == ["basic_1.0"]


@needs_namespaces()
async def test_root_finds_a_daemon_of_the_peers_user(builder: Path, scene: Scene, tmp_path: Path) -> None:
    given = NETWORKS["fabric operator"]
    async with container(given, builder, scene, tmp_path) as inside:
        assert (await inside.call("detect", "source", "metadata"))[0] == 0
        code, answer, errors = await inside.execute(0, f"{given.path}/bin/k8s-builder", "status", "--json")
        assert (code, errors) == (0, "")
        assert json.loads(answer)["daemon"]["instance"] == given.hostname


@needs_namespaces()
@pytest.mark.parametrize("run_is_writable", [False, True])
async def test_another_user_is_told_that_the_daemon_is_not_for_him(
    run_is_writable: bool, builder: Path, scene: Scene, tmp_path: Path
) -> None:
    given = NETWORKS["hlf-operator"]  # as root
    async with container(given, builder, scene, tmp_path, run_is_writable=run_is_writable) as inside:
        assert (await inside.call("detect", "source", "metadata"))[0] == 0
        directory = "/run/k8s-builder" if run_is_writable else "/tmp/k8s-builder-0"
        code, answer, errors = await inside.execute(7051, f"{given.path}/bin/k8s-builder", "status")
        assert (code, answer) == (1, "")
        assert errors == (
            f"Error: cannot reach k8s-builderd at {directory}/builder.sock: Permission denied."
            " Run this as the daemon's user or group\n"
        )


@needs_namespaces()
async def test_the_peers_pod_owns_the_jobs_and_takes_them_along(builder: Path, scene: Scene, tmp_path: Path) -> None:
    """No setting says which pod it is, nor need it have the host's name; its service account's token names it."""
    metadata = (await peer_pod(scene))["metadata"]
    pod = {"name": metadata["name"], "uid": metadata["uid"]}
    token = jwt({"kubernetes.io": {"namespace": scene.cluster.namespace, "pod": pod}})
    await scene.cluster.switch("POST", "tokens", {"tokens": [token, scene.cluster.token]})
    async with container(NETWORKS["fabric operator"], builder, scene, tmp_path, token=token) as inside:
        assert (await inside.call("build", "source", "metadata", "output"))[0] == 0
        await inside.do("run output run")
        await inside.sees(program="run", line="Running chaincode ID basic_1.0:")
        [owner] = (await scene.only("jobs"))["metadata"]["ownerReferences"]
        assert owner == {"apiVersion": "v1", "kind": "Pod", **pod}
        await scene.cluster.delete("pods", pod["name"])
        assert (await inside.sees(program="run", code=...))["code"] == 1
        await scene.none("jobs", "pods", "secrets")


def test_the_build_copies_what_its_context_has_and_nothing_else(tmp_path: Path) -> None:
    copied = {
        word
        for instruction, words in instructions()
        for word in words.split()[:-1]
        if instruction == "COPY" and "--from" not in words
    }
    context = wheel.context(tmp_path, "peer.Containerfile")
    found = {str(file.relative_to(context)) for file in context.rglob("*") if file.is_file()}
    assert {"/".join(Path(file).parts[: 2 if file.startswith("deploy/") else 1]) for file in found} == copied
    assert not [file for file in found if "k8s_builder_lab" in file]


def test_the_image_is_the_peers_but_for_the_builder() -> None:
    """No user, no entry point, no environment: the networks' settings stay what they are."""
    last = instructions()[max(i for i, (name, _) in enumerate(instructions()) if name == "FROM") :]
    assert last[0] == ("FROM", "peer")
    assert {name for name, _ in last} == {"FROM", "ARG", "LABEL", "COPY", "RUN"}
    copies = [words.split()[-1] for name, words in last if name == "COPY"]
    assert copies == ["/etc/hyperledger/fabric/core.yaml", "/opt/hyperledger/k8s_builder"]


def instructions() -> list[tuple[str, str]]:
    text = (wheel.ROOT / "deploy/peer.Containerfile").read_text().replace("\\\n", " ")
    return re.findall(r"^([A-Z]+) (.*)", text, re.MULTILINE)
