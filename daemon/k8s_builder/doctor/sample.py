"""A launch as the daemon would make it, for admission to judge. Nothing of it is ever created."""

import json
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.imageref import split_reference
from k8s_builderd.fabric.package import CHAINCODE_FILE, IMAGE_FILE
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.gateway.stages.run import make_plan
from k8s_builderd.settings import PEER_ID, Settings

IMAGE = f"registry.example.com/k8s-builder-doctor@sha256:{'0' * 64}"
"""What stands for a chaincode's image where none is given."""


Body = dict[str, Any]


class Launch(Struct, frozen=True):
    """What a launch would create: there is no key in it."""

    job: Body
    secret: Body
    pod: Body
    """That the Job controller would make."""
    node_role: str


def launch(settings: Settings, image: str, forwarded: Mapping[str, str]) -> Launch:
    """Return what a launch would create.

    :param image: `NAME@DIGEST`.
    :param forwarded: what the peer's environment says, as far as that is known.
    :raises SettingsError: if a setting cannot be used.
    :raises PackageError: if the image cannot.
    """
    reference = split_reference(image)
    documents = {
        IMAGE_FILE: {"name": reference.name, "digest": reference.digest},
        CHAINCODE_FILE: {
            "chaincode_id": f"doctor:{'0' * 64}",
            "peer_address": "doctor.example.com:7052",
            "client_cert": "",
            "client_key": "",
            "root_cert": "",
            "mspid": "doctor",
        },
    }
    request = Request(
        stage="run",
        pid=0,
        environment={PEER_ID: "doctor", **forwarded},
        documents={name: json.dumps(document).encode() for name, document in documents.items()},
        unreadable={},
        paths=(),
        token=b"0" * 32,
        cursor="",
    )
    plan = make_plan(request, settings, None, settings.pod_template)
    job = manifests.job(plan, None)
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": plan.job_name, "namespace": plan.namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    secret = manifests.secret(plan, "00000000-0000-0000-0000-000000000000")
    return Launch(job, secret, pod, plan.settings.node_role)
