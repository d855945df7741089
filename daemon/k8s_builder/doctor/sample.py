"""A launch as the daemon would make it, for admission to judge. Nothing of it is ever created."""

import json
from typing import Any

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.imageref import split_reference
from k8s_builderd.fabric.package import CHAINCODE_FILE, IMAGE_FILE
from k8s_builderd.gateway.protocol import Request
from k8s_builderd.gateway.stages.run import make_plan
from k8s_builderd.settings import PEER_ID, Settings

IMAGE = f"registry.example.com/k8s-builder-doctor@sha256:{'0' * 64}"
"""What stands for a chaincode's image where none is given."""


def bodies(settings: Settings, image: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the bodies of the Job and Secret of a launch, and of the pod that the Job controller would make.

    There is no key in them.

    :param image: `NAME@DIGEST`.
    :raises SettingsError: if the settings cannot be used.
    :raises PackageError: if the image cannot.
    """
    reference = split_reference(image)
    if not reference.digest:
        raise PackageError("--image", "must be NAME@DIGEST, such as in image.json")
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
        environment={PEER_ID: "doctor"},
        documents={name: json.dumps(document).encode() for name, document in documents.items()},
        unreadable={},
        paths=(),
        token=b"0" * 32,
        cursor="",
    )
    plan = make_plan(request, settings, None)
    job = manifests.job(plan, None)
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": plan.job_name, "namespace": plan.namespace}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    return job, manifests.secret(plan, "00000000-0000-0000-0000-000000000000"), pod
