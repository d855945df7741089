"""Pod Security admission: what a namespace's labels say of a pod, in the words of a real API server. Pure.

Of the standards' checks those are here that people meet with chaincode: host namespaces, hostPath volumes and
privileged containers (baseline); privilege escalation, capabilities, root and seccomp (restricted).
"""

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "pod-security.kubernetes.io/"
_HOST = ("hostNetwork", "hostPID", "hostIPC")


def enforced(labels: Mapping[str, str]) -> str:
    """Return the level and version that pods must meet, such as `restricted:latest`; empty for none."""
    return _policy(labels, "enforce")


def warned(labels: Mapping[str, str]) -> str:
    """Return the level and version that is warned of: where none is set, the one that is enforced."""
    return _policy(labels, "warn") if f"{PREFIX}warn" in labels else enforced(labels)


def _policy(labels: Mapping[str, str], mode: str) -> str:
    level = labels.get(PREFIX + mode, "privileged")
    return "" if level == "privileged" else f"{level}:{labels.get(f'{PREFIX}{mode}-version', 'latest')}"


def violations(policy: str, spec: Mapping[str, Any]) -> str:
    """Return which rules of a level a pod's spec breaks; empty if none."""
    level = policy.partition(":")[0]
    found: list[str] = []
    if level in {"baseline", "restricted"}:
        found += _baseline(spec)
    if level == "restricted":
        found += _restricted(spec)
    return ", ".join(found)


def _containers(spec: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    every = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    return [(each["name"], each.get("securityContext") or {}) for each in every]


def _named(names: list[str]) -> str:
    """Return how containers are named: `container "a"`, `containers "a", "b"`."""
    return _counted("container", names)


def _counted(kind: str, names: list[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"{kind}{'s' if len(names) > 1 else ''} {quoted}"


def _baseline(spec: Mapping[str, Any]) -> Iterator[str]:
    host = [f"{field}=true" for field in _HOST if spec.get(field)]
    if host:
        yield f"host namespaces ({', '.join(host)})"
    volumes = [volume["name"] for volume in spec.get("volumes") or [] if "hostPath" in volume]
    if volumes:
        yield f"hostPath volumes ({_counted('volume', volumes)})"
    privileged = [name for name, context in _containers(spec) if context.get("privileged")]
    if privileged:
        yield f"privileged ({_named(privileged)} must not set securityContext.privileged=true)"


def _restricted(spec: Mapping[str, Any]) -> Iterator[str]:
    pod: dict[str, Any] = spec.get("securityContext") or {}
    containers = _containers(spec)
    if bad := [name for name, context in containers if context.get("allowPrivilegeEscalation") is not False]:
        yield (
            f"allowPrivilegeEscalation != false ({_named(bad)} must set securityContext.allowPrivilegeEscalation=false)"
        )
    capabilities = [(name, context.get("capabilities") or {}) for name, context in containers]
    if bad := [name for name, given in capabilities if "ALL" not in (given.get("drop") or [])]:
        yield f'unrestricted capabilities ({_named(bad)} must set securityContext.capabilities.drop=["ALL"])'
    if not pod.get("runAsNonRoot") and (
        bad := [name for name, context in containers if not context.get("runAsNonRoot")]
    ):
        yield f"runAsNonRoot != true (pod or {_named(bad)} must set securityContext.runAsNonRoot=true)"
    profiles = {"RuntimeDefault", "Localhost"}
    if (pod.get("seccompProfile") or {}).get("type") not in profiles and (
        bad := [
            name for name, context in containers if (context.get("seccompProfile") or {}).get("type") not in profiles
        ]
    ):
        yield (
            f"seccompProfile (pod or {_named(bad)} must set securityContext.seccompProfile.type to"
            ' "RuntimeDefault" or "Localhost")'
        )
