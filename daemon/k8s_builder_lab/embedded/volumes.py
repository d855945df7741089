"""A pod's volumes as private directories, and the environment that points into them."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from k8s_builder_lab.embedded.objects import SECRETS, Object
from k8s_builder_lab.embedded.store import Store


def missing_secret(store: Store, pod: Object) -> tuple[str, str] | None:
    """Return the volume and the name of the first Secret that the pod wants and that is not there."""
    for volume in pod["spec"].get("volumes") or []:
        secret = volume.get("secret")
        if secret is None or secret.get("optional"):
            continue
        if store.find(SECRETS, pod["metadata"]["namespace"], secret["secretName"]) is None:
            return volume["name"], secret["secretName"]
    return None


def make(store: Store, pod: Object, root: Path) -> dict[str, Path]:
    """Make a directory for each volume under `root`, private to this user, and return them by volume name.

    A Secret's keys become files as they are at this moment; any other kind of volume is an empty directory.
    """
    made = {}
    for number, volume in enumerate(pod["spec"].get("volumes") or []):
        directory = made[volume["name"]] = root / f"volume-{number}"
        directory.mkdir(mode=0o700)
        if "secret" in volume:
            secret = store.find(SECRETS, pod["metadata"]["namespace"], volume["secret"]["secretName"])
            for path, value in _files(secret or {}, volume["secret"].get("items")):
                file = directory / path
                file.touch(mode=0o600)
                file.write_bytes(base64.b64decode(value))
    return made


def _files(secret: Object, items: list[dict[str, str]] | None) -> Iterator[tuple[str, str]]:
    data = secret.get("data") or {}
    if items is None:
        yield from data.items()
    else:
        for item in items:
            if item["key"] in data:
                yield Path(item["path"]).name, data[item["key"]]


class ConfigError(Exception):
    """A container cannot be made of what there is; the text is what the kubelet says."""


def environment(
    store: Store, pod: Object, container: Object, image_env: Mapping[str, str], volumes: Mapping[str, Path]
) -> dict[str, str]:
    """Return the container's environment: the image's, then its own, paths below a mount rewritten to the directory.

    Of `valueFrom` a Secret's key and a fieldRef to the pod's name, namespace, uid, node or service account are known.

    :raises ConfigError: a Secret or its key is not there; of ConfigMaps there is none
    """
    mounts = {
        mount["mountPath"].rstrip("/"): volumes[mount["name"]]
        for mount in container.get("volumeMounts") or []
        if mount["name"] in volumes
    }
    env = dict(image_env)
    for source in container.get("envFrom") or []:
        found = _data(store, pod, source)
        env |= {f"{source.get('prefix', '')}{key}": value for key, value in (found or {}).items()}
    for entry in container.get("env") or []:
        value = entry.get("value") or _value(store, pod, entry.get("valueFrom") or {})
        if value is None:
            continue
        for path, directory in mounts.items():
            if value == path or value.startswith(f"{path}/"):
                value = f"{directory}{value.removeprefix(path)}"
        env[entry["name"]] = value
    return env


def _value(store: Store, pod: Object, source: Object) -> str | None:
    """Return what a `valueFrom` means; None if it is optional and not there."""
    for kind in ("secretKeyRef", "configMapKeyRef"):
        if kind in source:
            data = _data(store, pod, {kind.replace("KeyRef", "Ref"): source[kind]})
            if data is None:
                return None
            key: str = source[kind]["key"]
            if key not in data and not source[kind].get("optional"):
                namespace = pod["metadata"]["namespace"]
                raise ConfigError(f"couldn't find key {key} in Secret {namespace}/{source[kind]['name']}")
            return data.get(key)
    return _field(pod, source)


def _data(store: Store, pod: Object, source: Object) -> dict[str, str] | None:
    """Return the decoded data that a `secretRef` or `configMapRef` means; None if it is optional and not there."""
    kind, reference = (
        ("secret", source["secretRef"]) if "secretRef" in source else ("configmap", source["configMapRef"])
    )
    found = store.find(SECRETS, pod["metadata"]["namespace"], reference["name"]) if kind == "secret" else None
    if found is None:
        if reference.get("optional"):
            return None
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    return {key: base64.b64decode(value).decode() for key, value in (found.get("data") or {}).items()}


def _field(pod: Object, source: dict[str, Any]) -> str:
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"].get("nodeName", ""),
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
    }
    return str(known.get((source.get("fieldRef") or {}).get("fieldPath", ""), ""))


def mount_statuses(container: Object) -> list[dict[str, Any]]:
    """Return the mounts as a container's status lists them."""
    return [
        {
            "name": mount["name"],
            "mountPath": mount["mountPath"],
            **({"readOnly": True, "recursiveReadOnly": "Disabled"} if mount.get("readOnly") else {}),
        }
        for mount in container.get("volumeMounts") or []
    ]
