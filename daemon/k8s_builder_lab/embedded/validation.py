"""The rules for names, labels and annotations, and what is filled in at creation. Pure.

The rules are those of apimachinery's validation; the words are those that a real API server answered with.
"""

import base64
import binascii
import re
from typing import Any

from k8s_builder_lab.embedded.objects import EVENTS, JOBS, PODS, SECRETS, Object, Resource
from k8s_builder_lab.embedded.status import Cause, bad_request, invalid

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")

_SUBDOMAIN_RULE = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
_NAME_PART_RULE = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
_LABEL_VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

_NAME_LIMIT = 253
_LABEL_LIMIT = 63
_ANNOTATIONS_LIMIT = 256 * 1024


def accept(resource: Resource, obj: Object, namespace: str) -> Object:
    """Return `obj` as it may be created in `namespace`: checked, and with its kind and namespace filled in.

    :raises ApiError: 400, not an object of this resource or of another namespace; 422, a name, label, annotation
        or secret value that breaks a rule
    """
    if not isinstance(obj, dict) or not isinstance(obj.get("metadata"), dict):
        raise bad_request("the object provided is unrecognized (must be of type " + resource.kind + ")")
    given = (obj.get("apiVersion", resource.api_version), obj.get("kind", resource.kind))
    if given != (resource.api_version, resource.kind):
        raise bad_request(
            f"the API version in the data ({given[0]}) or the kind ({given[1]}) does not match the expected "
            f"{resource.kind} of {resource.api_version}"
        )
    metadata: dict[str, Any] = {**obj["metadata"]}
    if metadata.setdefault("namespace", namespace) != namespace:
        raise bad_request(
            f"the namespace of the provided object does not match the namespace sent on the request"
            f" ({metadata['namespace']} is not {namespace})"
        )
    for field in ("labels", "annotations"):
        if not all(isinstance(value, str) for value in (metadata.get(field) or {}).values()):
            raise bad_request(f"{resource.kind} cannot be handled: metadata.{field}: the values must be strings")
    causes = _name_causes(resource, metadata) + metadata_causes(metadata)
    if resource is SECRETS:
        obj = _with_data(obj, causes)
    if causes:
        raise invalid(resource, str(metadata.get("name", "")), causes)
    return {"kind": resource.kind, "apiVersion": resource.api_version, **obj, "metadata": metadata}


def _name_causes(resource: Resource, metadata: dict[str, Any]) -> list[Cause]:
    name = metadata.get("name", "")
    if not name:
        return [Cause("metadata.name", "Required value: name or generateName is required", "FieldValueRequired")]
    causes = []
    if len(name) > _NAME_LIMIT:
        causes.append(Cause("metadata.name", f'Invalid value: "{name}": must be no more than {_NAME_LIMIT} bytes'))
    if not _SUBDOMAIN.fullmatch(name):
        causes.append(Cause("metadata.name", f'Invalid value: "{name}": {_SUBDOMAIN_RULE}'))
    if resource is JOBS and _LABEL_LIMIT < len(name) <= _NAME_LIMIT:
        # The Job's name becomes a label of its pods.
        causes.append(
            Cause("spec.template.labels", f'Invalid value: "{name}": must be no more than {_LABEL_LIMIT} bytes')
        )
    return causes


def metadata_causes(metadata: dict[str, Any]) -> list[Cause]:
    """Return what is wrong with labels and annotations; nothing if they are fine."""
    causes = []
    for key, value in (metadata.get("labels") or {}).items():
        causes += _key_causes("metadata.labels", key)
        if len(value) > _LABEL_LIMIT:
            causes.append(
                Cause("metadata.labels", f'Invalid value: "{value}": must be no more than {_LABEL_LIMIT} bytes')
            )
        if not _LABEL_VALUE.fullmatch(value):
            causes.append(Cause("metadata.labels", f'Invalid value: "{value}": {_LABEL_VALUE_RULE}'))
    annotations = metadata.get("annotations") or {}
    for key in annotations:
        causes += _key_causes("metadata.annotations", key)
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > _ANNOTATIONS_LIMIT:
        causes.append(Cause("metadata.annotations", "Too long: may not be more than 262144 bytes", "FieldValueTooLong"))
    return causes


def _key_causes(field: str, key: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    causes = []
    if slash and (len(prefix) > _NAME_LIMIT or not _SUBDOMAIN.fullmatch(prefix)):
        causes.append(Cause(field, f'Invalid value: "{key}": prefix part {_SUBDOMAIN_RULE}'))
    if len(name) > _LABEL_LIMIT:
        causes.append(Cause(field, f'Invalid value: "{key}": name part must be no more than {_LABEL_LIMIT} bytes'))
    if not _NAME_PART.fullmatch(name):
        causes.append(Cause(field, f'Invalid value: "{key}": {_NAME_PART_RULE}'))
    return causes


def _with_data(secret: Object, causes: list[Cause]) -> Object:
    """Move `stringData` into `data`, as the API does on every write."""
    secret = {"type": "Opaque", **secret}
    data = {**(secret.get("data") or {})}
    for key, text in (secret.pop("stringData", None) or {}).items():
        data[key] = base64.b64encode(text.encode()).decode()
    for key, value in data.items():
        if not re.fullmatch(r"[-._a-zA-Z0-9]+", key):
            causes.append(
                Cause(
                    f"data[{key}]",
                    f'Invalid value: "{key}": a valid config key must consist of alphanumeric characters, '
                    "'-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is "
                    "'[-._a-zA-Z0-9]+')",
                )
            )
        try:
            base64.b64decode(value, validate=True)
        except binascii.Error:
            raise bad_request(
                'Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 0'
            ) from None
    if data:
        secret["data"] = data
    return secret


def check_replacement(resource: Resource, old: Object, new: Object) -> None:
    """Check what a patch made of an object.

    :raises ApiError: 422, an immutable secret's data or a job's pod template changed, or bad labels
    """
    name = old["metadata"]["name"]
    causes = metadata_causes(new["metadata"])
    if resource is SECRETS and old.get("immutable"):
        rule = "Forbidden: field is immutable when `immutable` is set"
        causes += [
            Cause(field, rule, "FieldValueForbidden")
            for field, before, after in (
                ("immutable", True, new.get("immutable")),
                ("data", old.get("data"), new.get("data")),
            )
            if before != after
        ]
    if resource is JOBS and old["spec"].get("template") != new["spec"].get("template"):
        causes.append(Cause("spec.template", "Invalid value: field is immutable"))
    if causes:
        raise invalid(resource, name, causes)


def with_defaults(resource: Resource, obj: Object) -> Object:
    """Return `obj` with the fields that the API fills in at creation, as far as anyone reads them."""
    if resource is JOBS:
        return _job_defaults(obj)
    if resource is PODS:
        return {
            **obj,
            "metadata": {**obj["metadata"], "generation": 1},
            "spec": _pod_defaults(obj.get("spec") or {}, admitted=True),
            "status": {"phase": "Pending", "qosClass": "BestEffort"},
        }
    if resource is EVENTS:
        return {"source": {}, "firstTimestamp": None, "lastTimestamp": None, "eventTime": None, **obj}
    return obj


def _job_defaults(job: Object) -> Object:
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
    spec: dict[str, Any] = job.get("spec") or {}
    template: dict[str, Any] = spec.get("template") or {}
    metadata: dict[str, Any] = template.get("metadata") or {}
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    return {
        **job,
        "metadata": {**job["metadata"], "generation": 1},
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 6,
            "selector": {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}},
            "manualSelector": False,
            "completionMode": "NonIndexed",
            "suspend": False,
            "podReplacementPolicy": "TerminatingOrFailed",
            **spec,
            "template": {
                **template,
                "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), **labels}},
                "spec": _pod_defaults(template.get("spec") or {}, admitted=False),
            },
        },
        "status": {},
    }


def _pod_defaults(spec: dict[str, Any], *, admitted: bool) -> dict[str, Any]:
    """Fill in a pod's spec; `admitted` also does what admission does to a pod but not to a template."""
    filled = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        **spec,
    }
    for field in ("initContainers", "containers"):
        if field in spec:
            filled[field] = [_container_defaults(container) for container in spec[field]]
    if "volumes" in spec:
        filled["volumes"] = [
            {**volume, "secret": {"defaultMode": 420, **volume["secret"]}} if "secret" in volume else volume
            for volume in spec["volumes"]
        ]
    if admitted:
        account = spec.get("serviceAccountName") or "default"
        filled |= {"serviceAccountName": account, "serviceAccount": account}
        filled = {"priority": 0, "enableServiceLinks": True, "preemptionPolicy": "PreemptLowerPriority", **filled}
    return filled


def _container_defaults(container: dict[str, Any]) -> dict[str, Any]:
    filled = {
        "resources": {},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
        **container,
    }
    for field in ("startupProbe", "readinessProbe", "livenessProbe"):
        if field in container:
            defaults = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
            filled[field] = {**defaults, **container[field]}
    return filled


def check_spec(resource: Resource, obj: Object) -> None:
    """Check the little of a Job's or pod's spec that the cluster itself relies on; this is no schema.

    :raises ApiError: 422
    """
    if resource is JOBS:
        path, spec = "spec.template.spec.", ((obj.get("spec") or {}).get("template") or {}).get("spec") or {}
    elif resource is PODS:
        path, spec = "spec.", obj.get("spec") or {}
    else:
        return
    causes = []
    if not spec.get("containers"):
        causes.append(Cause(f"{path}containers", "Required value", "FieldValueRequired"))
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or []):
            causes += [
                Cause(f"{path}{kind}[{index}].{field}", "Required value", "FieldValueRequired")
                for field in ("name", "image")
                if not container.get(field)
            ]
    if resource is JOBS and spec.get("restartPolicy") not in {"Never", "OnFailure"}:
        causes.append(
            Cause(
                f"{path}restartPolicy",
                'Required value: valid values: "OnFailure", "Never"',
                "FieldValueRequired",
            )
        )
    if causes:
        raise invalid(resource, obj["metadata"]["name"], causes)
