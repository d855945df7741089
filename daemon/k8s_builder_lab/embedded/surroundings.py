"""What is around the pods, as the API shows it: nodes, service accounts, quotas. Made from the Environment.

These can be read, not written: the switches change them (control.py).
"""

from k8s_builder_lab.embedded.admission import used_pods
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import NAMESPACES, NODES, QUOTAS, SERVICE_ACCOUNTS, Object, Resource
from k8s_builder_lab.embedded.podstatus import NODE
from k8s_builder_lab.embedded.store import Store

READ_ONLY = (NODES, SERVICE_ACCOUNTS, QUOTAS)


def every(resource: Resource, store: Store, environment: Environment, namespace: str) -> list[Object]:
    """Return all objects of a kind, in the order of their names. Nodes are in no namespace."""
    if resource is NODES:
        spec: Object = {"unschedulable": True} if environment.node_cordoned else {}
        if taints := [_taint(taint) for taint in environment.node_taints]:
            spec["taints"] = taints
        return [
            _object(
                resource,
                NODE,
                labels={"kubernetes.io/hostname": NODE, **environment.node_labels},
                more={"spec": spec, "status": {}},
            )
        ]
    if store.find(NAMESPACES, "", namespace) is None:
        return []
    if resource is SERVICE_ACCOUNTS:
        secrets = [{"name": name} for name in environment.image_pull_secrets]
        more: Object = {"imagePullSecrets": secrets} if secrets else {}
        return [_object(resource, name, namespace, more=more) for name in sorted(environment.service_accounts)]
    if environment.pod_quota is None:
        return []
    hard = {"pods": str(environment.pod_quota)}
    used = {"pods": str(used_pods(store, namespace))}
    return [_object(resource, "none", namespace, more={"spec": {"hard": hard}, "status": {"hard": hard, "used": used}})]


def _object(
    resource: Resource, name: str, namespace: str = "", *, labels: dict[str, str] | None = None, more: Object
) -> Object:
    metadata: Object = {"name": name, "uid": f"embedded-{resource.plural}-{namespace}-{name}", "resourceVersion": "1"}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata, **more}


def _taint(text: str) -> Object:
    assignment, _, effect = text.rpartition(":")
    key, _, value = assignment.partition("=")
    return {"key": key, **({"value": value} if value else {}), "effect": effect}
