"""Whether the only node takes a pod. Pure."""

from collections.abc import Mapping, Sequence

from k8s_builder_lab.embedded.objects import Object

_TAIL = " no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."


def refusal(pod: Object, labels: Mapping[str, str], taints: Sequence[str]) -> str | None:
    """Return the scheduler's sentence if the node does not take the pod, else None.

    Looks at nodeSelector, required node affinity and tolerations of `key=value:NoSchedule` taints.
    """
    spec = pod["spec"]
    if not _selected(spec, labels):
        return f"0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.{_TAIL}"
    for taint in taints:
        assignment, _, effect = taint.rpartition(":")
        key, _, value = assignment.partition("=")
        if effect != "PreferNoSchedule" and not any(
            _tolerates(toleration, key, value, effect) for toleration in spec.get("tolerations") or []
        ):
            return f"0/1 nodes are available: 1 node(s) had untolerated taint {{{key}: {value}}}.{_TAIL}"
    return None


def _selected(spec: Object, labels: Mapping[str, str]) -> bool:
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if not affinity:
        return True
    # Terms are alternatives; the expressions of one term must all hold.
    return any(
        all(_holds(expression, labels) for expression in term.get("matchExpressions") or [])
        for term in affinity.get("nodeSelectorTerms") or []
    )


def _holds(expression: Object, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or []
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False


def _tolerates(toleration: Object, key: str, value: str, effect: str) -> bool:
    if toleration.get("effect") not in {None, "", effect}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", key}
    return bool(toleration.get("key") == key and toleration.get("value", "") == value)
