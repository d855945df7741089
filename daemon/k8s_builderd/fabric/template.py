"""Reads the operator's pod template, which `manifests` lays over the one of a launch. Pure.

It has `metadata` and `spec` for all chaincode, and `chaincodes`, sections with the same two for those whose label
matches. What the daemon works by cannot be set in it: what a launch is known by, what the chaincode finds its peer
with, and that a Job's pod is not restarted.
"""

import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Self

import msgspec
from msgspec import Struct

from k8s_builderd.fabric import document, names
from k8s_builderd.fabric.manifests import CERTS, CERTS_PATH, CONTAINER
from k8s_builderd.kube.quantity import parse_quantity

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
    restart_policy: str | None = None
    restart_policy_rules: list[dict[str, Any]] | None = None


class _Named(Struct):
    name: str


class _EmptyDir(Struct, rename="camel"):
    size_limit: str | float | None = None


class _Volume(Struct, rename="camel"):
    name: str
    empty_dir: _EmptyDir | None = None


class _PodSpec(Struct, rename="camel"):
    containers: list[_Container] = []
    init_containers: list[_Container] | None = None
    volumes: list[_Volume] = []
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


class _Layer(Struct, forbid_unknown_fields=True):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)


class _Section(_Layer, forbid_unknown_fields=True, kw_only=True):
    label: str


class _File(_Layer, forbid_unknown_fields=True):
    chaincodes: list[_Section] = []


class TemplateError(ValueError):
    """A template cannot be used; the text begins with the path of the field, where it is about one."""


class Section(Struct, frozen=True):
    """What is laid over the pods of those chaincodes whose label matches."""

    label: str
    """A label, or a glob with `*` for any characters and `?` for one."""
    layer: Mapping[str, Any]
    """`metadata`, `spec` or both."""
    path: str = ""
    """Where it is in the file, such as `chaincodes[0]`."""

    def matches(self, label: str) -> bool:
        """Say whether a chaincode has this section."""
        return fnmatchcase(label, self.label)

    @property
    def example(self) -> str:
        """A label that matches."""
        return self.label.replace("*", "x").replace("?", "x")

    @property
    def precision(self) -> tuple[bool, int, int]:
        """Grow with how much of a label it says: a whole one above all, then by its characters that are no wildcards.

        Of two with as many, the one with more `?` says more.
        """
        wild = self.label.count("*") + self.label.count("?")
        return not wild, len(self.label) - wild, self.label.count("?")


class PodTemplate(Struct, frozen=True):
    """A template that can be used."""

    common: Mapping[str, Any] = {}
    """`metadata`, `spec` or both, for all chaincode."""
    sections: tuple[Section, ...] = ()
    """From the least to the most precise; of two that are as precise, in the order of the file."""

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read a file, JSON or YAML.

        :raises TemplateError: if it cannot be used.
        """
        try:
            found = document.decode(content)
        except ValueError as error:
            raise TemplateError(str(error)) from None
        if not isinstance(found, dict):
            raise TemplateError("it must be an object with metadata and spec, and chaincodes for sections")
        if fault := _fault(found):
            raise TemplateError(fault)
        sections = [
            Section(part["label"], _without(part, "label"), f"chaincodes[{number}]")
            for number, part in enumerate(found.get("chaincodes", ()))
        ]
        return cls(_without(found, "chaincodes"), tuple(sorted(sections, key=lambda it: it.precision)))

    def layers(self, label: str) -> tuple[Mapping[str, Any], ...]:
        """Return what is laid over the pod of a chaincode with this label, in this order."""
        found = [self.common, *(section.layer for section in self.sections if section.matches(label))]
        return tuple(layer for layer in found if layer)


def _without(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


def _fault(template: Mapping[str, Any]) -> str | None:
    """Return the path of the first field of a template that cannot be used, and why; None if all can."""
    try:
        known = msgspec.convert(template, _File)
    except msgspec.ValidationError as error:
        return _told(str(error))
    for found in _of_layer(known):
        return found
    seen: set[str] = set()
    for number, section in enumerate(known.chaincodes):
        path = f"chaincodes[{number}]"
        if not section.label or names.label_value_fault(Section(section.label, {}).example):
            return (
                f"{path}.label must be a chaincode's label, in which * stands for any characters and ? for one; no"
                f" label is like {section.label!a}"
            )
        if section.label in seen:
            return f"{path}.label must not stand twice; it is {section.label!a}"
        seen.add(section.label)
        for found in _of_layer(section):
            return f"{path}.{found}"
    return None


_NEVER = "cannot be set: it is Never, because the peer starts its chaincode again itself"


def _of_layer(template: _Layer) -> Iterator[str]:
    for part, given, ours in (
        ("labels", template.metadata.labels, LABELS),
        ("annotations", template.metadata.annotations, ANNOTATIONS),
    ):
        yield from (
            f"metadata.{part}[{key!a}] cannot be set: each launch sets it" for key in given or () if key in ours
        )
    spec = template.spec
    if spec.restart_policy not in {None, "Never"}:
        yield f"spec.restartPolicy {_NEVER}"
    if spec.termination_grace_period_seconds is not None and spec.termination_grace_period_seconds < 1:
        yield (
            "spec.terminationGracePeriodSeconds must be 1 or more: with 0 the pod would go before its process, and"
            " nobody could see that end"
        )
    for index, volume in enumerate(spec.volumes):
        if volume.name == CERTS:
            yield f"spec.volumes[{index}].name cannot be {CERTS}: that volume holds the peer's certificates"
        if volume.empty_dir is not None and volume.empty_dir.size_limit is not None:
            yield from _no_quantity(volume.empty_dir.size_limit, f"spec.volumes[{index}].emptyDir.sizeLimit")
    for index, container in enumerate(spec.init_containers or ()):
        yield from _no_quantities(container, f"spec.initContainers[{index}]")
        if container.name == CONTAINER:
            yield f"spec.initContainers[{index}].name cannot be {CONTAINER}: that is the chaincode's own container"
    for index, container in enumerate(spec.containers):
        path = f"spec.containers[{index}]"
        yield from _no_quantities(container, path)
        if container.name != CONTAINER:
            continue
        if container.image is not None:
            yield f"{path}.image cannot be set: the chaincode's package names the image"
        if container.restart_policy not in {None, "Never"}:
            yield f"{path}.restartPolicy {_NEVER}"
        if container.restart_policy_rules:
            yield f"{path}.restartPolicyRules cannot be set: the peer starts its chaincode again itself"
        for number, variable in enumerate(container.env):
            if variable.name in ENVIRONMENT:
                yield f"{path}.env[{number}].name cannot be {variable.name}: each launch sets it"
        for number, mount in enumerate(container.volume_mounts):
            if mount.mount_path.rstrip("/") == CERTS_PATH:
                yield f"{path}.volumeMounts[{number}].mountPath cannot be {CERTS_PATH}: the certificates are there"


def _no_quantities(container: _Container, path: str) -> Iterator[str]:
    # The API server refuses these without saying which field it is about.
    resources = container.resources or _Resources()
    for kind, quantities in (("requests", resources.requests), ("limits", resources.limits)):
        for name, quantity in (quantities or {}).items():
            yield from _no_quantity(quantity, f"{path}.resources.{kind}[{name}]")


def _no_quantity(value: str | float, path: str) -> Iterator[str]:
    try:
        parse_quantity(str(value))
    except ValueError as error:
        yield f"{path} {error}"


def _told(error: str) -> str:
    """Return msgspec's words with the path first, written as in the file, and with JSON's names for the types."""
    words, _, path = error.partition(" - at `$.")
    if unknown := re.fullmatch("Object contains unknown field `(.*)`", words):
        place = f"{path.rstrip('`')}.{unknown[1]}".lstrip(".")
        return f"{place}: unknown field; there are metadata and spec, and chaincodes for sections, which have a label"
    words = words.replace("Object missing required field", "expected an object with the field")
    words = re.sub(r"`(\w+(?: \| \w+)*)`", lambda types: _kinds(types[1]), words)
    return f"{path.rstrip('`')}: {words[0].lower()}{words[1:]}"


def _kinds(types: str) -> str:
    kinds = [kind for kind in types.split(" | ") if kind != "null"] or ["null"]
    return " or ".join(_KINDS.get(kind, f"'{kind}'") for kind in kinds)
