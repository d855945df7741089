"""What admission says to a pod or Job before it is stored. Pure but for its look at the store."""

from k8s_builder_lab.embedded import podsecurity
from k8s_builder_lab.embedded.environment import Environment
from k8s_builder_lab.embedded.objects import FINISHED, NAMESPACES, PODS, Object
from k8s_builder_lab.embedded.store import Store


def refusal(store: Store, environment: Environment, namespace: str, pod: Object, generated: str = "") -> str | None:
    """Return why admission does not let a pod in, or None.

    :param generated: what its name was generated from; as the service account is looked up, that is all there is.
    """
    name = pod["metadata"]["name"]
    account = pod["spec"].get("serviceAccountName") or "default"
    if account not in environment.service_accounts:
        return (
            f'pods "{generated or name}" is forbidden: error looking up service account '
            f'{namespace}/{account}: serviceaccount "{account}" not found'
        )
    if environment.refuse_pods:
        return f'pods "{name}" is forbidden: {environment.refuse_pods}'
    policy = podsecurity.enforced(_labels(store, namespace))
    if broken := podsecurity.violations(policy, pod["spec"]):
        return f'pods "{name}" is forbidden: violates PodSecurity "{policy}": {broken}'
    if environment.pod_quota is not None:
        used = used_pods(store, namespace)
        if used >= environment.pod_quota:
            return (
                f'pods "{name}" is forbidden: exceeded quota: none, requested: pods=1, used: pods={used}, '
                f"limited: pods={environment.pod_quota}"
            )
    return None


def warnings(store: Store, namespace: str, job: Object) -> list[str]:
    """Return what the API server warns of when a Job is created."""
    policy = podsecurity.warned(_labels(store, namespace))
    broken = podsecurity.violations(policy, job["spec"]["template"]["spec"])
    return [f'would violate PodSecurity "{policy}": {broken}'] if broken else []


def used_pods(store: Store, namespace: str) -> int:
    """Return how many pods of a namespace a quota counts."""
    return sum(
        pod["metadata"]["namespace"] == namespace and pod["status"]["phase"] not in FINISHED
        for pod in store.everything(PODS)
    )


def _labels(store: Store, namespace: str) -> dict[str, str]:
    found = store.find(NAMESPACES, "", namespace)
    labels: dict[str, str] = (found or {"metadata": {}})["metadata"].get("labels") or {}
    return labels
