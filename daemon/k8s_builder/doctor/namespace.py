"""The namespace of the Jobs: what a launch needs there, what admission says to it, what the Go builder has left."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from k8s_builder.doctor.quota import demand, quota
from k8s_builder.doctor.result import Result, failure, ok, skipped, warning
from k8s_builder.doctor.sample import Launch
from k8s_builderd.fabric.manifests import MANAGED_BY, NODE_ROLE
from k8s_builderd.kube import review
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, Forbidden, Invalid, NotFound
from k8s_builderd.kube.resources import JOBS, NAMESPACES, NODES, PODS, QUOTAS, SECRETS, SERVICE_ACCOUNTS, Resource
from k8s_builderd.kube.review import Namespace, Node, Quota, ServiceAccount
from k8s_builderd.kube.rights import Right

POD_SECURITY = "pod-security.kubernetes.io/"
LEFT = f"app.kubernetes.io/created-by={MANAGED_BY},!app.kubernetes.io/instance"
"""What the Go builder has made: ours has the label `app.kubernetes.io/instance`."""

_VIOLATES = "would violate PodSecurity "
_LEVELS = ("privileged", "baseline", "restricted")
_DRY = "does not support dry run"

Check = Callable[[Api], Awaitable[list[Result]]]


def checks(launch: Launch) -> list[tuple[str, Check]]:
    """Return all checks of the namespace, each with the name under which it is told if it cannot look."""
    spec = launch.pod["spec"]
    secrets = [each["name"] for each in spec.get("imagePullSecrets") or ()]
    account = spec.get("serviceAccountName") or "default"
    return [
        ("namespace", there),
        ("service-account", partial(service_account, name=account, pod=secrets)),
        ("node-role", partial(node_role, role=launch.node_role)),
        ("job", partial(admission, launch=launch)),
        ("quota", partial(quotas, launch=launch)),
        ("leftovers", partial(leftovers, resource=JOBS)),
        ("leftovers", partial(leftovers, resource=SECRETS)),
    ]


async def there(api: Api) -> list[Result]:
    """Return whether the namespace is there."""
    try:
        found = await api.get(NAMESPACES, Namespace, api.namespace)
    except NotFound:
        remedy = "Create it with the daemon's Role and RoleBinding, or correct FABRIC_K8S_BUILDER_NAMESPACE"
        return [failure("namespace", f"namespace {api.namespace} does not exist", remedy)]
    if found.status.phase == "Terminating":
        remedy = "Create it again, with the daemon's Role and RoleBinding"
        return [failure("namespace", f"namespace {api.namespace} is being deleted", remedy)]
    return [ok("namespace", f"namespace {api.namespace} exists")]


async def service_account(api: Api, name: str, pod: Sequence[str]) -> list[Result]:
    """Return whether the service account of chaincode's pods is there, and the pull secrets that it names.

    :param pod: the pull secrets that chaincode's pods name: then those of the service account do not count.
    """
    named = [*pod]
    try:
        account = await api.get(SERVICE_ACCOUNTS, ServiceAccount, name)
    except Forbidden as error:
        seen = f"not allowed to look for service account {name}: cannot {error.verb} {error.resource}"
        results = [skipped("service-account", seen)]
        if not named:
            return [*results, skipped("pull-secret", "its pull secrets are not known")]
    except NotFound:
        remedy = "Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT: without it no pod is created"
        return [failure("service-account", f"service account {name} does not exist in {api.namespace}", remedy)]
    else:
        results = [ok("service-account", f"service account {name} exists")]
        named = named or [each.name for each in account.image_pull_secrets or ()]
    if not named:
        return [*results, ok("pull-secret", "no pull secret is named: images must be public, or the nodes log in")]
    return results + [await pull_secret(api, secret) for secret in dict.fromkeys(named)]


async def pull_secret(api: Api, name: str) -> Result:
    """Return whether a pull secret is there. Its content is not asked for."""
    try:
        await review.exists(api, SECRETS, name)
    except Forbidden:
        return skipped("pull-secret", f"not allowed to look for secret {name}, and the daemon need not be")
    except NotFound:
        remedy = "Create it, or images of a private registry cannot be pulled"
        return warning("pull-secret", f"pull secret {name} does not exist in {api.namespace}", remedy)
    return ok("pull-secret", f"pull secret {name} exists")


async def node_role(api: Api, role: str) -> list[Result]:
    """Return whether there are nodes of the role that chaincode's pods must go to."""
    if not role:
        return [ok("node-role", "FABRIC_K8S_BUILDER_NODE_ROLE is not set here: any node will do")]
    label = f"{NODE_ROLE}={role}"
    nodes = (await api.list(NODES, Node, labelSelector=label)).items
    if not nodes:
        remedy = f"Label a node {label}, or correct FABRIC_K8S_BUILDER_NODE_ROLE"
        return [failure("node-role", f"no node has the label {label}", remedy)]
    free = [node.metadata.name for node in nodes if not node.spec.unschedulable]
    if not free:
        return [failure("node-role", f"all nodes with the label {label} are cordoned", "Uncordon one of them")]
    return [ok("node-role", f"{len(free)} of {len(nodes)} nodes with the label {label} take pods")]


# Admission


async def admission(api: Api, launch: Launch) -> list[Result]:
    """Return what admission says to a launch: to its Job and Secret, and to the pod where we may ask for that."""
    told: list[Result] = []
    warnings = await _tried(api, JOBS, "job", launch.job, told)
    security = [each for each in warnings or () if each.startswith(_VIOLATES)]
    told += [
        warning("job", f"the API server warns: {each}", "Correct the pod template")
        for each in warnings or ()
        if each not in security
    ]
    await _tried(api, SECRETS, "secret", launch.secret, told)
    if (await review.may(api, Right("create", PODS))).allowed:
        await _tried(api, PODS, "pod", launch.pod, told)
    else:
        told.append(skipped("pod", "not allowed to try a pod, and the daemon need not be: the Job controller makes it"))
    labels: Mapping[str, str] | None = None
    with suppress(ApiError):  # told by the check of the namespace
        labels = (await api.get(NAMESPACES, Namespace, api.namespace)).metadata.labels or {}
    return [*told, pod_security(labels, None if warnings is None else security)]


async def _tried(
    api: Api, resource: Resource, name: str, body: Mapping[str, Any], told: list[Result]
) -> list[str] | None:
    """Have one object tried; add how that went, and return the warnings, or None if nobody knows."""
    try:
        warnings = await review.try_create(api, resource, body)
    except ApiError as error:
        told.append(refused(name, error))
        return None
    told.append(ok(name, f"a {name} of a launch would be accepted (dry run)"))
    return warnings


def refused(name: str, error: ApiError) -> Result:
    """Return what it means that the API server does not take an object of a launch."""
    words = str(error.args[0])
    if _DRY in words:
        return skipped(name, f"an admission webhook does not take part in dry runs: {words}")
    if isinstance(error, Forbidden) and error.lacks_right:
        return skipped(name, f"not allowed to try: cannot {error.verb} {error.resource}")
    if isinstance(error, Invalid):
        return failure(name, words, "Correct FABRIC_K8S_BUILDER_POD_TEMPLATE")
    if error.remedy:
        return failure(name, words, error.remedy)
    if "error looking up service account" in words:
        return failure(name, words, "Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT")
    if isinstance(error, Forbidden):
        remedy = (
            "Correct the pod template, FABRIC_K8S_BUILDER_SECURITY_PROFILE, or the cluster's policy. If it is about the"
            " image, try --image with one of yours"
        )
        return failure(name, words, remedy)
    return failure(name, words, "See the API server; try again")


def pod_security(labels: Mapping[str, str] | None, warnings: Sequence[str] | None) -> Result:
    """Return whether the namespace's Pod Security level lets chaincode's pods in. Pure.

    It is the pods that are refused; of the Job the API server only warns, at the namespace's level for warnings, which
    is the enforced one where no other is set (Kubernetes 1.26).

    :param labels: of the namespace; None where we may not look.
    :param warnings: what the API server says of the Job; None where it could not be asked.
    """
    name = "pod-security"
    level = None if labels is None else labels.get(f"{POD_SECURITY}enforce", "privileged")
    warned = labels.get(f"{POD_SECURITY}warn", level) if labels is not None else None
    if warnings is None:
        return skipped(name, "the dry run of the Job was refused, so nothing is known of its pods")
    if warnings:
        broken = warnings[0].partition('"')[2].partition(":")[0]
        remedy = "Set FABRIC_K8S_BUILDER_SECURITY_PROFILE=restricted, or correct the pod template"
        if broken == "baseline":  # which all of our profiles meet
            remedy = "Correct the pod template"
        if level is None:
            return warning(name, f"the API server warns, and may refuse the pods: {warnings[0]}", remedy)
        if _strictness(level) >= _strictness(broken):
            return failure(name, f"the namespace enforces {level}, and pods would be refused: {warnings[0]}", remedy)
        return warning(name, f"the namespace enforces {level} only, but warns: {warnings[0]}", remedy)
    if level is None:
        return ok(name, "the API server warns of nothing")
    if warned is not None and _strictness(warned) < _strictness(level):
        return skipped(name, f"the namespace enforces {level} but warns of {warned} only, so the dry run tells nothing")
    return ok(name, f"chaincode's pods meet the level that the namespace enforces: {level}")


def _strictness(level: str) -> int:
    return _LEVELS.index(level) if level in _LEVELS else len(_LEVELS) - 1


# Quota and leftovers


async def quotas(api: Api, launch: Launch) -> list[Result]:
    """Return whether the namespace's quotas have room for one more launch."""
    return quota((await api.list(QUOTAS, Quota)).items, demand(launch.pod["spec"]))


async def leftovers(api: Api, resource: Resource) -> list[Result]:
    """Return what the Go builder has left in the namespace."""
    found = await review.names(api, resource, LEFT)
    if not found:
        return [ok("leftovers", f"no {resource.plural} of the Go builder")]
    shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
    remedy = (
        f"If no peer of the namespace uses the Go builder any more: kubectl -n {api.namespace} delete {resource.plural}"
        f" -l '{LEFT}'"
    )
    return [warning("leftovers", f"{len(found)} {resource.plural} of the Go builder: {shown}", remedy)]
