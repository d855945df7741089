"""The token alone gives a run: who finds another's Job name, by trying tokens until one gives it, gets nothing."""

import hashlib
import json

import anyio
import pytest

from k8s_builderd.fabric.names import SAFE_ALPHABET, SUFFIX_LENGTH, job_name, object_name
from tests.daemon.scene import PEER_ID, Package, Running, Scene
from tests.daemon.test_socket import END, Raw, frame, hello

pytestmark = pytest.mark.anyio

TOKEN = b"5" * 32


def request(package: Package, cursor: bytes = b"") -> bytes:
    return b"".join(
        [
            hello("run"),
            frame("E", b"CORE_PEER_ID", PEER_ID.encode()),
            frame("D", b"image.json", (package.root / "output/image.json").read_bytes()),
            frame("D", b"chaincode.json", (package.root / "run/chaincode.json").read_bytes()),
            frame("T", TOKEN),
            *([frame("C", cursor)] if cursor else []),
            END,
        ]
    )


def name_of(package: Package) -> str:
    """Return the name of the Job that the request asks for."""
    chaincode = json.loads((package.root / "run/chaincode.json").read_bytes())
    name = object_name("hlfcc", PEER_ID, chaincode["peer_address"], chaincode["mspid"], chaincode["chaincode_id"])
    return job_name(name, hashlib.sha256(TOKEN).hexdigest())


async def victim(scene: Scene, package: Package) -> dict[str, object]:
    """Put a Job of that name into the cluster that belongs to another token, with its pod's log."""
    labels = {
        "app.kubernetes.io/managed-by": "fabric-builder-k8s",
        "app.kubernetes.io/instance": "scene",
        "fabric-builder-k8s-object": name_of(package)[: -SUFFIX_LENGTH - 1],
    }
    annotations = {"fabric-builder-k8s-run": "0" * 64}
    metadata = {"labels": labels, "annotations": annotations}
    container = {"name": "chaincode", "image": package.image_name, "command": ["sh", "-c", "echo secret"]}
    spec = {"restartPolicy": "Never", "containers": [container]}
    job = await scene.cluster.create(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": name_of(package), **metadata},
            "spec": {"backoffLimit": 0, "template": {"metadata": metadata, "spec": spec}},
        }
    )
    await scene.cluster.pod_when(name_of(package), lambda pod: pod["status"]["phase"] == "Succeeded")
    return job


async def test_a_name_has_too_few_suffixes_to_be_a_secret() -> None:
    assert len(SAFE_ALPHABET) ** SUFFIX_LENGTH < 20_000_000


@pytest.mark.parametrize("cursor", [b"", b"1 anything"])
async def test_a_job_name_that_was_found_gives_neither_log_nor_deletion(scene: Scene, cursor: bytes) -> None:
    package = await scene.package()
    job = await victim(scene, package)
    await scene.daemon()
    async with Raw.open(scene) as raw:
        await raw.send(request(package, cursor))
        said = await raw.rest()
    assert said[-1] == ("X", b"1")
    assert b"secret" not in b"".join(payload for _, payload in said)
    left = await scene.cluster.get("jobs", name_of(package))
    assert left["metadata"]["uid"] == job["metadata"]["uid"]  # type: ignore[index]


async def test_a_stop_before_the_daemon_knows_what_there_is_deletes_no_other_runs_job(scene: Scene) -> None:
    package = await scene.package()
    job = await victim(scene, package)
    await scene.fault(verb="list", times=None, action={"do": "hang"})
    daemon: Running = await scene.daemon()
    async with Raw.open(scene) as raw:
        await raw.send(request(package))
        await raw.send(frame("S"))
        with anyio.fail_after(60):
            await raw.rest()
    await scene.cluster.switch("DELETE", "faults")
    assert await daemon.terminate() == 0
    left = await scene.cluster.get("jobs", name_of(package))
    assert left["metadata"]["uid"] == job["metadata"]["uid"]  # type: ignore[index]
