"""The daemon's plain settings reach the pod, and the cluster does with it what they ask for."""

from typing import Any

import pytest

from k8s_builder_lab.embedded.podstatus import NODE
from tests.daemon.scene import Scene

pytestmark = pytest.mark.anyio

OF_EACH: Any = {
    "IMAGE_PULL_SECRETS": "registry",
    "IMAGE_PULL_POLICY": "Always",
    "CPU_REQUEST": "100m",
    "MEMORY_LIMIT": "256Mi",
    "SAME_NODE": "true",
    "NODE_NAME": NODE,
}


async def test_a_chaincode_runs_with_each_of_them(scene: Scene) -> None:
    await scene.daemon(**OF_EACH)
    run = await scene.call("run", await scene.package())
    await run.line("Running chaincode")
    spec = (await scene.running_pod())["spec"]
    assert spec["nodeName"] == NODE
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    [container] = spec["containers"]
    assert container["imagePullPolicy"] == "Always"
    assert container["resources"] == {"requests": {"cpu": "100m"}, "limits": {"memory": "256Mi"}}
    assert await run.terminate() == 0


async def test_a_chaincode_that_cannot_go_to_the_same_node_waits_and_says_what_to_correct(scene: Scene) -> None:
    await scene.daemon(SAME_NODE="true", NODE_NAME="another-node")
    run = await scene.call("run", await scene.package())
    line = await run.line("the pod cannot be scheduled")
    assert b"didn't match Pod's node affinity/selector" in line
    assert line.endswith(b"FABRIC_K8S_BUILDER_NODE_ROLE or FABRIC_K8S_BUILDER_NODE_NAME")
    assert await run.terminate() == 0


async def test_a_role_and_the_same_node_must_both_hold(scene: Scene) -> None:
    await scene.daemon(SAME_NODE="true", NODE_NAME=NODE, NODE_ROLE="chaincode")
    run = await scene.call("run", await scene.package(script="echo here"))
    await run.line("the pod cannot be scheduled")
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})
    await run.line("here")
    assert await run.wait() == 0
