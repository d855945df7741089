"""The peer's core.yaml, with what its environment overrides: the builder's entry, addresses and time-outs. Pure."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from k8s_builder.doctor.peerconfig import CoreYamlError, Found, PeerConfig, load_yaml
from k8s_builder.doctor.result import Result, failure, ok, skipped, warning
from k8s_builderd.errors import SettingsError
from k8s_builderd.fabric.package import Chaincode
from k8s_builderd.gateway.listener import CALL_TIMEOUT
from k8s_builderd.golang import parse_duration
from k8s_builderd.settings import FORWARDED, PEER_ID, Settings, launch_settings

PROPAGATED = (
    "CORE_PEER_ID",
    "FABRIC_K8S_BUILDER_AUTOSTART",
    "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT",
    "FABRIC_K8S_BUILDER_DEBUG",
    "FABRIC_K8S_BUILDER_LOG_FILE",
    "FABRIC_K8S_BUILDER_NAMESPACE",
    "FABRIC_K8S_BUILDER_NODE_ROLE",
    "FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX",
    "FABRIC_K8S_BUILDER_PYTHON",
    "FABRIC_K8S_BUILDER_SERVICE_ACCOUNT",
    "FABRIC_K8S_BUILDER_SOCKET",
    "FABRIC_K8S_BUILDER_START_TIMEOUT",
)
"""What the client programs read, and so what `propagateEnvironment` must list."""

BUILDERS = "chaincode.externalBuilders"
GO_BUILDER = Path("/opt/hyperledger/k8s_builder")
"""The path that the Go builder's documents give it."""
MINIMUM_STARTUP = 5.0
"""Seconds: a shorter `chaincode.startuptimeout` counts as this (Fabric, core/chaincode/config.go)."""
CHAINCODE_PORT = "7052"

_CONNECT_TIMEOUT = "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT"
_ADD = "Add the entry of deploy/core.yaml to chaincode.externalBuilders, or set CORE_CHAINCODE_EXTERNALBUILDERS"
_PEER_ENV = "kubectl exec POD -c peer -- env > peer.env, then give --peer-env peer.env"


class Builder(Struct, frozen=True):
    """One entry of `chaincode.externalBuilders`."""

    name: str
    path: str
    propagated: tuple[str, ...]


def check(config: PeerConfig, folder: Path, settings: Settings | None, *, autostart: bool = False) -> Iterator[Result]:
    """Check what k8s-builderd needs of the peer's configuration.

    :param folder: where the programs are in the peer's container.
    :param settings: those of the daemon, as far as they are known here.
    :param autostart: whether the programs start the daemon, which then has what they are given.
    """
    yield environment(config)
    found = config.get(BUILDERS)
    try:
        builders = entries(found)
    except ValueError as error:
        yield failure("builder", f"{BUILDERS} cannot be used: {error}", _ADD)
    else:
        yield from _builder(config, found, builders, folder, settings, autostart=autostart)
    yield docker(config)
    yield address(config)
    yield listen_address(config)
    yield from timeouts(config, settings)


def environment(config: PeerConfig) -> Result:
    """Return whose environment was used. Names only: a value may be a password."""
    names = sorted(name for name in config.environment if name.startswith("CORE_") and name != PEER_ID)
    if config.certain:
        return ok("peer-environment", f"{len(names)} CORE_ variables of --peer-env are used")
    if names:
        return ok("peer-environment", f"the environment of this process is used: {', '.join(names)}")
    seen = "this process has none of the peer's CORE_ variables, which override core.yaml"
    return skipped("peer-environment", seen, f"To have them counted: {_PEER_ENV}")


# The builder's entry


def entries(found: Found | None) -> list[Builder]:
    """Return the list of builders.

    :raises ValueError: saying what the peer would not take.
    """
    value = found.value if found is not None else None
    if isinstance(value, str):
        try:
            value = load_yaml(value)
        except CoreYamlError:
            raise ValueError("it is neither JSON nor YAML") from None
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, Mapping) for each in value):
        raise ValueError("it must be a list of objects with name, path and propagateEnvironment")
    return [_entry(number, each) for number, each in enumerate(value)]


def _entry(number: int, entry: Mapping[Any, Any]) -> Builder:
    fields = {str(name).lower(): value for name, value in entry.items()}
    name, path = str(fields.get("name") or ""), str(fields.get("path") or "")
    for field, value in (("path", path), ("name", name)):
        if not value:
            raise ValueError(f"entry {number + 1} has no {field}, so the peer does not start")
    # environmentWhitelist is what Fabric 2.0 called it, and is still read.
    names = fields.get("propagateenvironment") or fields.get("environmentwhitelist") or []
    if not isinstance(names, list):
        raise ValueError(f"propagateEnvironment of {name} must be a list of names")
    return Builder(name, path, tuple(str(each) for each in names))


def ours(builders: list[Builder], folder: Path) -> Builder | None:
    """Return which entry is meant for this builder: by its path, else by its name."""
    by_path = [each for each in builders if Path(each.path) == folder]
    by_name = [each for each in builders if "k8s" in each.name.lower() or Path(each.path) == GO_BUILDER]
    return next(iter(by_path or by_name), None)


def _builder(
    config: PeerConfig,
    found: Found | None,
    builders: list[Builder],
    folder: Path,
    settings: Settings | None,
    *,
    autostart: bool,
) -> Iterator[Result]:
    builder = ours(builders, folder)
    if builder is None:
        names = ", ".join(each.name for each in builders) or "none"
        seen = f"{BUILDERS} has no entry whose path is {folder} (there is: {names})"
        yield _surely(config, found, "builder", seen, _ADD)
        return
    source = found.source if found is not None else ""
    if Path(builder.path) == folder:
        yield ok("builder", f"{builder.name} at {builder.path} ({source})")
    else:
        seen = f"the path of {builder.name} is {builder.path} ({source}), and k8s-builderd's programs are in {folder}"
        remedy = f"Change its path to {folder} and keep its name; if the programs are at that path, give --programs"
        yield warning("go-builder" if Path(builder.path) == GO_BUILDER else "builder", seen, remedy)
    yield from propagated(config, builder, settings)
    if autostart:
        yield for_daemon(builder)
    yield order(builders, builder)


def propagated(config: PeerConfig, builder: Builder, settings: Settings | None) -> Iterator[Result]:
    """Return which variables the peer hides from the programs."""
    missing = [name for name in PROPAGATED if name not in builder.propagated]
    remedy = "Have propagateEnvironment list all names of deploy/core.yaml"
    if settings is None or PEER_ID not in settings.environment:
        if PEER_ID in missing:
            seen = f"propagateEnvironment of {builder.name} does not list CORE_PEER_ID, which each launch needs"
            yield failure("propagate", seen, f"{remedy}, or set CORE_PEER_ID on the daemon")
        elif config.certain and not config.environment.get(PEER_ID):
            seen = "the peer's environment has no CORE_PEER_ID, and its core.yaml does not reach the programs"
            yield failure("propagate", seen, "Set CORE_PEER_ID on the peer, even if peer.id is in core.yaml")
    hidden = [name for name in missing if name != PEER_ID and config.environment.get(name)]
    if hidden and config.certain:
        seen = (
            f"the peer sets {', '.join(hidden)}, which propagateEnvironment of {builder.name} hides from the programs"
        )
        yield failure("propagate", seen, remedy)
    elif rest := [name for name in missing if name != PEER_ID]:
        seen = (
            f"propagateEnvironment of {builder.name} hides from the programs, if the peer sets them: {', '.join(rest)}"
        )
        yield warning("propagate", seen, remedy)
    if not missing:
        yield ok("propagate", f"propagateEnvironment of {builder.name} is complete")


def for_daemon(builder: Builder) -> Result:
    """Return whether a daemon that the programs start finds the API server."""
    in_pod = {"KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"}
    if in_pod <= set(builder.propagated) or "KUBECONFIG_PATH" in builder.propagated:
        return ok(
            "propagate", f"propagateEnvironment of {builder.name} lets a daemon that the programs start find the API"
        )
    seen = f"the programs start the daemon, and propagateEnvironment of {builder.name} hides the API server from it"
    return failure(
        "propagate", seen, "Add KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, or KUBECONFIG_PATH, to it"
    )


def order(builders: list[Builder], builder: Builder) -> Result:
    """Return whether other builders are asked before ours."""
    before = [each.name for each in builders[: builders.index(builder)]]
    if not before:
        return ok("order", f"the peer asks {builder.name} first")
    seen = f"the peer asks {', '.join(before)} before {builder.name}: the first whose detect accepts a package gets it"
    return warning("order", seen, f"Put {builder.name} first")


# The rest


def docker(config: PeerConfig) -> Result:
    """Return whether the peer looks for Docker."""
    found = config.get("vm.endpoint")
    if found is None or not found.text.strip():
        return ok("vm-endpoint", "vm.endpoint is empty: the peer does not look for Docker")
    seen = f"vm.endpoint is {found.text} ({found.source}): without Docker there the peer's /healthz fails"
    return warning("vm-endpoint", seen, "Make vm.endpoint empty in core.yaml; an empty CORE_VM_ENDPOINT does nothing")


def address(config: PeerConfig) -> Result:
    """Return whether pods can reach the address that the peer gives to chaincode.

    The peer's rules (internal/peer/node/start.go): its chaincodeAddress, else its chaincodeListenAddress, with the
    host of its own address where that is 0.0.0.0; else its own address with port 7052.
    """
    remedy = "Set CORE_PEER_CHAINCODEADDRESS to an address of the peer that pods can reach, such as peer0-org1:7052"
    given = config.get("peer.chaincodeAddress")
    if given is not None and given.text:
        host, port = split(given.text)
        if not port:
            return failure("address", f"{given.text} ({given.source}) has no port, so the peer does not start", remedy)
        return _reachable(config, Found(given.text, given.source), remedy)
    listen, peer = config.get("peer.chaincodeListenAddress"), config.get("peer.address")
    if listen is not None and listen.text:
        host, port = split(listen.text)
        if host not in _UNSPECIFIED:
            return _reachable(config, listen, remedy)
    else:
        port = CHAINCODE_PORT
    if peer is None or not peer.text:
        return _surely(config, peer, "address", "peer.address is not set, so the peer does not start", remedy)
    host, _ = split(peer.text)
    if host in _UNSPECIFIED or config.flag("peer.addressAutoDetect"):
        return ok("address", f"chaincode connects to the address of the peer's own pod, port {port} ({peer.source})")
    return _reachable(config, Found(f"{host}:{port}", f"the host of {peer.source}"), remedy)


_UNSPECIFIED = ("0.0.0.0", "::")  # noqa: S104 - what the peer listens on


def _reachable(config: PeerConfig, found: Found, remedy: str) -> Result:
    if Chaincode("", found.text, "", "", "", "").reachable:
        return ok("address", f"chaincode connects to {found.text} ({found.source})")
    seen = f"chaincode is told to connect to {found.text} ({found.source}), which leads each pod to itself"
    return _surely(config, found, "address", seen, remedy)


def listen_address(config: PeerConfig) -> Result:
    """Return whether the peer listens for chaincode where pods can come."""
    found = config.get("peer.chaincodeListenAddress")
    if found is None or not found.text:
        return ok("listen-address", f"the peer listens for chaincode on its own address, port {CHAINCODE_PORT}")
    host, port = split(found.text)
    if not port:
        return failure(
            "listen-address",
            f"{found.text} ({found.source}) has no port, so the peer does not start",
            "Set CORE_PEER_CHAINCODELISTENADDRESS to 0.0.0.0:7052",
        )
    if host not in _UNSPECIFIED and not Chaincode("", found.text, "", "", "", "").reachable:
        seen = f"the peer listens for chaincode on {found.text} only ({found.source}), where no pod can come"
        return _surely(config, found, "listen-address", seen, "Set CORE_PEER_CHAINCODELISTENADDRESS to 0.0.0.0:7052")
    return ok("listen-address", f"the peer listens for chaincode on {found.text} ({found.source})")


def split(text: str) -> tuple[str, str]:
    """Return host and port of an address; the port is empty where there is none."""
    host, colon, port = text.rpartition(":")
    return (host.strip("[]"), port) if colon else (text, "")


def timeouts(config: PeerConfig, settings: Settings | None) -> Iterator[Result]:
    """Return whether the peer waits as long as a launch, and an installation, may take."""
    try:
        startup, source = config.duration("chaincode.startuptimeout", 300.0)
        install, install_source = config.duration("chaincode.installTimeout", 300.0)
        execute, _ = config.duration("chaincode.executetimeout", 30.0)
        connect = parse_duration(config.environment.get(_CONNECT_TIMEOUT) or "30s")
    except ValueError as error:
        seen = f"a time-out of the peer cannot be read: {error}"
        yield failure("startup-timeout", seen, "Write it as 300s or 5m")
        return
    forwarded = {name: config.environment[name] for name in FORWARDED if config.environment.get(name)}
    try:
        known = settings.environment if settings is not None else {}
        limit = launch_settings({**forwarded, **known, PEER_ID: "doctor"}).start_timeout
    except SettingsError as error:
        yield failure("startup-timeout", str(error), "Correct the variable on the peer")
        return
    startup = max(startup, MINIMUM_STARTUP)
    if startup < limit:
        has = "has no limit" if limit == math.inf else f"is {limit:g} s"
        yield warning(
            "startup-timeout",
            f"chaincode.startuptimeout is {startup:g} s ({source}), and FABRIC_K8S_BUILDER_START_TIMEOUT {has}: the"
            " peer gives up first, and does not tell why",
            "Raise chaincode.startuptimeout, or lower FABRIC_K8S_BUILDER_START_TIMEOUT",
        )
    else:
        yield ok(
            "startup-timeout",
            f"chaincode.startuptimeout is {startup:g} s ({source}), a launch takes {limit:g} s at most",
        )
    install, longest = max(install, execute), connect + CALL_TIMEOUT
    if install < longest:
        yield warning(
            "install-timeout",
            f"chaincode.installTimeout is {install:g} s ({install_source}), and a detect or build may take"
            f" {longest:g} s while the daemon is away",
            "Raise chaincode.installTimeout, or lower FABRIC_K8S_BUILDER_CONNECT_TIMEOUT",
        )
    else:
        yield ok("install-timeout", f"chaincode.installTimeout is {install:g} s ({install_source})")


def _surely(config: PeerConfig, found: Found | None, name: str, seen: str, remedy: str) -> Result:
    """Return a failure, or a warning where the peer's own environment may say something else."""
    if config.certain or (found is not None and found.source.startswith("CORE_")):
        return failure(name, seen, remedy)
    return warning(name, f"{seen}, unless the peer's environment sets it", f"{remedy}. To have it counted: {_PEER_ENV}")
