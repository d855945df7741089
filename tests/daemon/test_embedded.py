"""`k8s-builderd --embedded`: the daemon with a cluster of its own, which ends with it."""

import json
from pathlib import Path

import pytest

from tests.daemon.chaincodes import ended, eventually
from tests.daemon.scene import Package, Scene

pytestmark = pytest.mark.anyio


async def test_chaincode_runs_in_a_cluster_of_the_daemons_own(scene: Scene, tmp_path: Path) -> None:
    images, pid = tmp_path / "images.json", tmp_path / "pid"
    command = ["/bin/sh", "-c", f"echo $$ > {pid}; echo here; exec sleep 3600"]
    images.write_text(json.dumps({"localhost/mine": {"command": command}}))
    daemon = await scene.daemon("--embedded", "--images", str(images))
    run = await scene.call("run", Package(tmp_path / "package", image="localhost/mine"))
    await run.line("here")
    assert await scene.count("jobs") == 0  # the cluster of KUBECONFIG_PATH has nothing of it
    assert await daemon.terminate() == 0
    await eventually(lambda: not Path(f"/proc/{pid.read_text().strip()}").exists())


async def test_a_cluster_that_does_not_start_is_told_in_one_line(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "images.json").write_text("[]")
    daemon = await scene.daemon("--embedded", "--images", str(tmp_path / "images.json"), ready=False)
    assert await ended(daemon) == 1
    await daemon.line("k8s-builderd: the embedded cluster did not start: ")
    assert len(daemon.lines) == 1
