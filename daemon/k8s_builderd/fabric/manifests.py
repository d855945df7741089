"""The bodies of the Job and the Secret of one launch. Pure.

Everything that users of the Go builder rely on, and what docs/kubernetes-objects.md lists as added.
"""

import base64
from collections.abc import Mapping
from typing import Any

from k8s_builderd.fabric.names import (
    CHAINCODE_ANNOTATION,
    HOST_ANNOTATION,
    INSTANCE_LABEL,
    MSPID_ANNOTATION,
    OBJECT_LABEL,
    PEER_ADDRESS_ANNOTATION,
    PEER_ANNOTATION,
    PEER_ID_ANNOTATION,
    TOKEN_ANNOTATION,
    hash_label_value,
    package_id,
)
from k8s_builderd.fabric.plan import GRACE_SECONDS as GRACE_SECONDS
from k8s_builderd.fabric.plan import Owner, Plan, PodSettings, SecurityProfile

CONTAINER = "chaincode"
CERTS = "certs"
CERTS_PATH = "/etc/hyperledger/fabric"
NODE_ROLE = "fabric-builder-k8s-role"
TTL_SECONDS = 300
_MERGED_BY = {
    **dict.fromkeys(("containers", "initContainers", "env", "volumes", "imagePullSecrets"), "name"),
    "volumeMounts": "mountPath",
}
"""Which lists are merged, and by which field of their items, as in Kubernetes' API."""

MANAGED_BY = "fabric-builder-k8s"


def selector(instance: str) -> str:
    """Return the label selector of everything that a daemon of this instance makes."""
    return f"app.kubernetes.io/managed-by={MANAGED_BY},{INSTANCE_LABEL}={instance}"


def job(plan: Plan, owner: Owner | None) -> dict[str, Any]:
    """Return the body of the Job."""
    metadata = _metadata(plan)
    if owner is not None:
        # Never blockOwnerDeletion: it needs a right on pods/finalizers, and would hold up the peer's pod.
        metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": owner.name, "uid": owner.uid}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": TTL_SECONDS,
            "template": _shaped(plan),
        },
    }


def secret(plan: Plan, job_uid: str) -> dict[str, Any]:
    """Return the body of the Secret with the peer's TLS material, owned by the Job so that it goes with it."""
    chaincode = plan.chaincode
    metadata = _metadata(plan)
    metadata["ownerReferences"] = [
        {"apiVersion": "batch/v1", "kind": "Job", "name": plan.job_name, "uid": job_uid},
    ]
    files = {
        "peer.crt": chaincode.root_cert.encode(),
        "client_pem.crt": chaincode.client_cert.encode(),
        "client_pem.key": chaincode.client_key.encode(),
        # The shims of Go and Node.js want the base64 of the PEM in their files.
        "client.crt": base64.b64encode(chaincode.client_cert.encode()),
        "client.key": base64.b64encode(chaincode.client_key.encode()),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": metadata,
        "immutable": True,
        "data": {name: base64.b64encode(content).decode() for name, content in files.items()},
    }


def _shaped(plan: Plan) -> dict[str, Any]:
    """Return the pod template with the operator's laid over it, but for what the daemon works by."""
    template = _pod_template(plan)
    for layer in plan.template:
        template = _merge(template, layer)
    template["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": plan.grace}
    for part, ours in (("labels", _labels(plan)), ("annotations", _annotations(plan))):
        template["metadata"][part] = {**(template["metadata"].get(part) or {}), **ours}
    return template


def _metadata(plan: Plan) -> dict[str, Any]:
    return {
        "name": plan.job_name,
        "namespace": plan.namespace,
        "labels": _labels(plan),
        "annotations": _annotations(plan),
    }


def _labels(plan: Plan) -> dict[str, str]:
    package = package_id(plan.chaincode.chaincode_id)
    return {
        "app.kubernetes.io/name": "hyperledger-fabric",
        INSTANCE_LABEL: plan.instance,
        "app.kubernetes.io/component": "chaincode",
        "app.kubernetes.io/created-by": MANAGED_BY,
        "app.kubernetes.io/managed-by": MANAGED_BY,
        "fabric-builder-k8s-cclabel": package.label,
        "fabric-builder-k8s-cchash": hash_label_value(package.hash),
        OBJECT_LABEL: plan.object_name,
    }


def _annotations(plan: Plan) -> dict[str, str]:
    chaincode = plan.chaincode
    return {
        CHAINCODE_ANNOTATION: chaincode.chaincode_id,
        MSPID_ANNOTATION: chaincode.mspid,
        PEER_ADDRESS_ANNOTATION: chaincode.peer_address,
        PEER_ID_ANNOTATION: plan.settings.peer_id,
        TOKEN_ANNOTATION: plan.token.sha256,
        PEER_ANNOTATION: plan.peer,
        HOST_ANNOTATION: plan.host,
    }


def _pod_template(plan: Plan) -> dict[str, Any]:
    confined = plan.security_profile is not SecurityProfile.COMPATIBLE
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": plan.image.reference,
        "env": [{"name": name, "value": value} for name, value in _environment(plan).items()],
        "volumeMounts": [{"name": CERTS, "mountPath": CERTS_PATH, "readOnly": True}],
    }
    spec: dict[str, Any] = {"serviceAccountName": plan.settings.service_account}
    if confined:
        spec |= {"automountServiceAccountToken": False, "enableServiceLinks": False}
    spec |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": plan.grace}
    if confined:
        spec["securityContext"] = {"seccompProfile": {"type": "RuntimeDefault"}}
        container["securityContext"] = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
        }
    if plan.run_as_non_root or plan.security_profile is SecurityProfile.RESTRICTED:
        spec.setdefault("securityContext", {})["runAsNonRoot"] = True
    spec |= {
        "containers": [container],
        "volumes": [{"name": CERTS, "secret": {"secretName": plan.job_name}}],
    }
    _apply(plan.pod, spec, container)
    if term := _node_term(plan):
        spec["affinity"] = {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        }
    if role := plan.settings.node_role:
        spec["tolerations"] = [{"key": NODE_ROLE, "operator": "Equal", "value": role, "effect": "NoSchedule"}]
    return {"metadata": {"labels": _labels(plan), "annotations": _annotations(plan)}, "spec": spec}


def _apply(settings: PodSettings, spec: dict[str, Any], container: dict[str, Any]) -> None:
    """Write the daemon's plain settings into a pod's spec and its container."""
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.image_pull_policy:
        container["imagePullPolicy"] = settings.image_pull_policy
    resources = {"requests": dict(settings.requests), "limits": dict(settings.limits)}
    if any(resources.values()):
        container["resources"] = {kind: quantities for kind, quantities in resources.items() if quantities}


def _node_term(plan: Plan) -> dict[str, Any]:
    """Return what a node must have; all of it must hold."""
    term: dict[str, Any] = {}
    if role := plan.settings.node_role:
        term["matchExpressions"] = [{"key": NODE_ROLE, "operator": "In", "values": [role]}]
    if node := plan.pod.node_name:
        # As DaemonSets do it. The label kubernetes.io/hostname may differ from the name; with spec.nodeName nobody
        # would ask whether the pod fits there.
        term["matchFields"] = [{"key": "metadata.name", "operator": "In", "values": [node]}]
    return term


def _environment(plan: Plan) -> dict[str, str]:
    chaincode = plan.chaincode
    return {
        "CORE_CHAINCODE_ID_NAME": chaincode.chaincode_id,
        "CORE_PEER_ADDRESS": chaincode.peer_address,
        "CORE_PEER_LOCALMSPID": chaincode.mspid,
        "CORE_PEER_TLS_ENABLED": "true" if chaincode.tls else "false",
        "CORE_TLS_CLIENT_KEY_PATH": f"{CERTS_PATH}/client.key",
        "CORE_TLS_CLIENT_CERT_PATH": f"{CERTS_PATH}/client.crt",
        "CORE_TLS_CLIENT_KEY_FILE": f"{CERTS_PATH}/client_pem.key",
        "CORE_TLS_CLIENT_CERT_FILE": f"{CERTS_PATH}/client_pem.crt",
        "CORE_PEER_TLS_ROOTCERT_FILE": f"{CERTS_PATH}/peer.crt",
    }


def _merge(ours: Any, theirs: Any, field: str = "") -> Any:
    """Lay the operator's pod template over ours as a strategic merge patch does.

    Objects are merged; so are the lists of `_MERGED_BY`, by what tells their items apart. Anything else is replaced.

    :param ours: what the launch has made, with what was laid over it before.
    :param field: the name of the field that holds both.
    """
    if isinstance(ours, dict) and isinstance(theirs, Mapping):
        merged = {**ours}
        for key, value in theirs.items():
            merged[key] = _merge(ours[key], value, key) if key in ours else value
        return merged
    by = _MERGED_BY.get(field, "")
    if _are_named(ours, by) and _are_named(theirs, by):
        items = {item[by]: item for item in ours}
        for item in theirs:
            items[item[by]] = _merge(items[item[by]], item) if item[by] in items else item
        return list(items.values())
    return theirs


def _are_named(items: Any, by: str) -> bool:
    """Say whether this is a list whose items have that field; by the name of the list alone it could be a label."""
    return isinstance(items, list) and all(
        isinstance(item, Mapping) and isinstance(item.get(by), str) for item in items
    )
