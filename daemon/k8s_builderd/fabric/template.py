"""Checks the operator's pod template, which `manifests` lays over the one of a launch. Pure.

What the daemon works by cannot be set in it: what a launch is known by, what the chaincode finds its peer with, and
that a Job's pod is not restarted.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from k8s_builderd.fabric import names
from k8s_builderd.fabric.manifests import CERTS, CERTS_PATH, CONTAINER

LABELS = frozenset(
    {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
        "app.kubernetes.io/created-by",
        "app.kubernetes.io/managed-by",
        "fabric-builder-k8s-cclabel",
        "fabric-builder-k8s-cchash",
        names.OBJECT_LABEL,
    }
)
ANNOTATIONS = frozenset(
    {
        names.CHAINCODE_ANNOTATION,
        names.MSPID_ANNOTATION,
        names.PEER_ADDRESS_ANNOTATION,
        names.PEER_ID_ANNOTATION,
        names.TOKEN_ANNOTATION,
        names.PEER_ANNOTATION,
        names.HOST_ANNOTATION,
    }
)
ENVIRONMENT = frozenset(
    {
        "CORE_CHAINCODE_ID_NAME",
        "CORE_PEER_ADDRESS",
        "CORE_PEER_LOCALMSPID",
        "CORE_PEER_TLS_ENABLED",
        "CORE_TLS_CLIENT_KEY_PATH",
        "CORE_TLS_CLIENT_CERT_PATH",
        "CORE_TLS_CLIENT_KEY_FILE",
        "CORE_TLS_CLIENT_CERT_FILE",
        "CORE_PEER_TLS_ROOTCERT_FILE",
    }
)
"""What each launch sets: labels and annotations of the pod, and variables of the chaincode's container."""

_KINDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
_KINDS |= {"object": "an object", "array": "an array", "null": "null"}


class _EnvVar(Struct):
    name: str
    value: str | None = None


class _VolumeMount(Struct, rename="camel"):
    name: str
    mount_path: str


class _Resources(Struct):
    limits: dict[str, str | float] | None = None
    requests: dict[str, str | float] | None = None


class _Container(Struct, rename="camel"):
    """The fields of a container that are merged with ours, and those in which people make mistakes."""

    name: str
    image: str | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[_EnvVar] = []
    volume_mounts: list[_VolumeMount] = []
    resources: _Resources | None = None
    security_context: dict[str, Any] | None = None


class _Named(Struct):
    name: str


class _PodSpec(Struct, rename="camel"):
    containers: list[_Container] = []
    init_containers: list[_Container] | None = None
    volumes: list[_Named] = []
    image_pull_secrets: list[_Named] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[dict[str, Any]] | None = None
    affinity: dict[str, Any] | None = None
    security_context: dict[str, Any] | None = None
    service_account_name: str | None = None
    priority_class_name: str | None = None
    restart_policy: str | None = None
    termination_grace_period_seconds: int | None = None


class _Metadata(Struct):
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _PodTemplate(Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


def fault(template: Mapping[str, Any]) -> str | None:
    """Return the path of the first field of a pod template that cannot be used, and why; None if all can."""
    try:
        known = msgspec.convert(template, _PodTemplate)
    except msgspec.ValidationError as error:
        return _told(str(error))
    return next(_not_ours_to_give(known), None)


def _not_ours_to_give(template: _PodTemplate) -> Iterator[str]:
    for part, given, ours in (
        ("labels", template.metadata.labels, LABELS),
        ("annotations", template.metadata.annotations, ANNOTATIONS),
    ):
        yield from (
            f"metadata.{part}[{key!a}] cannot be set: each launch sets it" for key in given or () if key in ours
        )
    spec = template.spec
    if spec.restart_policy not in {None, "Never"}:
        yield "spec.restartPolicy cannot be set: it is Never, because the peer starts its chaincode again itself"
    if spec.termination_grace_period_seconds is not None and spec.termination_grace_period_seconds < 1:
        yield (
            "spec.terminationGracePeriodSeconds must be 1 or more: with 0 the pod would go before its process, and"
            " nobody could see that end"
        )
    for index, volume in enumerate(spec.volumes):
        if volume.name == CERTS:
            yield f"spec.volumes[{index}].name cannot be {CERTS}: that volume holds the peer's certificates"
    for index, container in enumerate(spec.init_containers or ()):
        if container.name == CONTAINER:
            yield f"spec.initContainers[{index}].name cannot be {CONTAINER}: that is the chaincode's own container"
    for index, container in enumerate(spec.containers):
        path = f"spec.containers[{index}]"
        if container.name != CONTAINER:
            continue
        if container.image is not None:
            yield f"{path}.image cannot be set: the chaincode's package names the image"
        for number, variable in enumerate(container.env):
            if variable.name in ENVIRONMENT:
                yield f"{path}.env[{number}].name cannot be {variable.name}: each launch sets it"
        for number, mount in enumerate(container.volume_mounts):
            if mount.mount_path.rstrip("/") == CERTS_PATH:
                yield f"{path}.volumeMounts[{number}].mountPath cannot be {CERTS_PATH}: the certificates are there"


def _told(error: str) -> str:
    """Return msgspec's words with the path first, written as in the file, and with JSON's names for the types."""
    words, _, path = error.partition(" - at `$.")
    words = words.replace("Object missing required field", "expected an object with the field")
    words = re.sub(r"`(\w+(?: \| \w+)*)`", lambda types: _kinds(types[1]), words)
    return f"{path.rstrip('`')}: {words[0].lower()}{words[1:]}"


def _kinds(types: str) -> str:
    kinds = [kind for kind in types.split(" | ") if kind != "null"] or ["null"]
    return " or ".join(_KINDS.get(kind, f"'{kind}'") for kind in kinds)
