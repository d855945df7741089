"""What one launch asks of a ResourceQuota, and whether there is room for it. Pure."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from k8s_builder.doctor.result import Result, failure, ok, warning
from k8s_builderd.kube.quantity import parse_quantity
from k8s_builderd.kube.review import Quota

_COUNTED = ("pods", "count/pods", "count/jobs.batch", "secrets", "count/secrets")
_COMPUTE = ("cpu", "memory", "ephemeral-storage")


def demand(pod: Mapping[str, Any]) -> dict[str, Decimal | None]:
    """Return what a launch with this pod spec counts for, by a quota's names; None where a container does not say.

    A request that is not set is its limit, as in Kubernetes.
    """
    wanted: dict[str, Decimal | None] = dict.fromkeys(_COUNTED, Decimal(1))
    resources = [container.get("resources") or {} for container in pod["containers"]]
    for name in _COMPUTE:
        limits = [(each.get("limits") or {}).get(name) for each in resources]
        requests = [
            (each.get("requests") or {}).get(name, limit) for each, limit in zip(resources, limits, strict=True)
        ]
        wanted[name] = wanted[f"requests.{name}"] = _sum(requests)
        wanted[f"limits.{name}"] = _sum(limits)
    return wanted


def _sum(quantities: list[Any]) -> Decimal | None:
    if None in quantities:
        return None
    return sum((parse_quantity(str(each)) for each in quantities), Decimal(0))


def quota(quotas: Iterable[Quota], wanted: Mapping[str, Decimal | None]) -> list[Result]:
    """Return what each quota says to a launch."""
    results: list[Result] = []
    for each in quotas:
        name = each.metadata.name
        if each.spec.scopes or each.spec.scope_selector:
            results.append(ok("quota", f"quota {name} counts some pods only (its scopes), and was not looked into"))
            continue
        results += [
            found for what, hard in each.status.hard.items() for found in _room(name, what, hard, each, wanted)
        ] or [ok("quota", f"quota {name} has room for a launch")]
    return results or [ok("quota", "the namespace has no quota")]


def _room(name: str, what: str, hard: str, each: Quota, wanted: Mapping[str, Decimal | None]) -> Iterable[Result]:
    if what not in wanted:
        return
    asked, used = wanted[what], each.status.used.get(what, "0")
    if asked is None:
        yield warning(
            "quota",
            f"quota {name} counts {what}, which chaincode's container does not set: its pod is refused",
            "Set it under resources in the pod template, unless a LimitRange of the namespace gives a default",
        )
    elif parse_quantity(used) + asked > parse_quantity(hard):
        yield failure(
            "quota",
            f"quota {name} has no room for a launch: {what} {used} used of {hard}",
            "Raise the quota, or stop what uses it up",
        )
