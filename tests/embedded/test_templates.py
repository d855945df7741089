"""What the API server says to a pod template: the daemon's dry run, on an embedded cluster and a real API server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from msgspec.structs import replace

from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.kube.api import Api
from k8s_builderd.podtemplate import PodTemplates
from k8s_builderd.settings import Settings
from tests.daemon.scene import eventually

from .cluster import Cluster

pytestmark = pytest.mark.anyio

VERDICTS = {"pod_template_accepted", "pod_template_refused"}
ALL = {
    "FABRIC_K8S_BUILDER_IMAGE_PULL_SECRETS": "a,b",
    "FABRIC_K8S_BUILDER_IMAGE_PULL_POLICY": "Always",
    "FABRIC_K8S_BUILDER_CPU_REQUEST": "100m",
    "FABRIC_K8S_BUILDER_CPU_LIMIT": "1.5",
    "FABRIC_K8S_BUILDER_MEMORY_REQUEST": "64Mi",
    "FABRIC_K8S_BUILDER_MEMORY_LIMIT": "1e9",
    "FABRIC_K8S_BUILDER_SAME_NODE": "true",
    "FABRIC_K8S_BUILDER_NODE_NAME": "node-a",
    "FABRIC_K8S_BUILDER_NODE_ROLE": "chaincode",
}


@pytest.fixture
async def kube(api: Cluster, tmp_path: Path) -> AsyncIterator[Api]:
    """A daemon's way to that API server."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        f"""
apiVersion: v1
kind: Config
current-context: it
clusters: [{{name: it, cluster: {{server: "{api.server}", insecure-skip-tls-verify: true}}}}]
users: [{{name: it, user: {{token: "{api.token}"}}}}]
contexts: [{{name: it, context: {{cluster: it, user: it, namespace: "{api.namespace}"}}}}]
"""
    )
    async with Api.open(str(kubeconfig), api.namespace) as opened:
        yield opened


async def tried(kube: Api, template: str, **environment: str) -> list[Any]:
    """Try a template out, and return the verdicts that are logged."""
    settings = Settings.load({"FABRIC_K8S_BUILDER_NAMESPACE": kube.namespace, **environment})
    templates = PodTemplates(replace(settings, pod_template=PodTemplate.parse(template.encode())))
    with structlog.testing.capture_logs() as logged:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(templates.try_out, kube)
            await eventually(lambda: any(it["event"] in VERDICTS for it in logged))
            tasks.cancel_scope.cancel()
    verdicts = [it for it in logged if it["event"] in VERDICTS]  # each request is logged, too
    assert (templates.warning is None) == ([it["event"] for it in verdicts] == ["pod_template_accepted"])
    return verdicts


@pytest.mark.parametrize("profile", ["restricted", "baseline", "compatible"])
async def test_what_every_setting_makes_is_accepted(api: Cluster, kube: Api, profile: str) -> None:
    environment = {**ALL, "FABRIC_K8S_BUILDER_SECURITY_PROFILE": profile}
    template = "chaincodes: [{label: 'basic_*', metadata: {labels: {a: b}}}]"
    assert [it["event"] for it in await tried(kube, template, **environment)] == ["pod_template_accepted"]
    assert (await api.list("jobs"))["items"] == []


REFUSED = [
    (
        "spec: {containers: [{name: chaincode, resuorces: {}}]}",
        "the common part",
        'Job in version "v1" cannot be handled as a Job: strict decoding error: unknown field'
        ' "spec.template.spec.containers[0].resuorces"',
    ),
    (
        "chaincodes: [{label: a}, {label: 'b_*', spec: {hostnames: []}}]",
        "chaincodes[1] (b_*)",
        'Job in version "v1" cannot be handled as a Job: strict decoding error: unknown field'
        ' "spec.template.spec.hostnames"',
    ),
    (
        "spec: {initContainers: [{name: wait}]}",
        "the common part",
        "spec.template.spec.initContainers[0].image: Required value",
    ),
]


@pytest.mark.parametrize(("template", "where", "words"), REFUSED)
async def test_a_mistake_is_told_with_its_field(api: Cluster, kube: Api, template: str, where: str, words: str) -> None:
    [event] = await tried(kube, template)
    assert event["event"] == "pod_template_refused"
    assert event["reason"].startswith(f"the Kubernetes API refuses a job made with {where}: Job")
    assert words in event["reason"]
    assert (await api.list("jobs"))["items"] == []
