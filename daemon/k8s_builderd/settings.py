"""Reads the environment, once, into frozen Structs; every mistake is told with the variable's name.

The names without `FABRIC_K8S_BUILDER_` and those of the Go builder mean what they mean there
(docs/configuration.md has them all). What the operator sets on the daemon wins over what a client forwards.
"""

import base64
import hashlib
import math
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from k8s_builderd.errors import SettingsError
from k8s_builderd.fabric import logprefix, names
from k8s_builderd.fabric.names import Token, label_value_fault, name_prefix_fault
from k8s_builderd.fabric.package import Chaincode, Image
from k8s_builderd.fabric.plan import LaunchSettings, Owner, Plan, PodSettings, SecurityProfile, Start
from k8s_builderd.fabric.template import PodTemplate, TemplateError
from k8s_builderd.golang import parse_bool, parse_duration
from k8s_builderd.kube.quantity import parse_quantity

PREFIX = "FABRIC_K8S_BUILDER_"
PEER_ID = "CORE_PEER_ID"
NAMESPACE = PREFIX + "NAMESPACE"
FORWARDED = (
    PEER_ID,
    *(PREFIX + name for name in ("DEBUG", "NODE_ROLE", "OBJECT_NAME_PREFIX", "SERVICE_ACCOUNT", "START_TIMEOUT")),
)
"""What a client's environment may fill in where the daemon's leaves it unset."""

MAX_TEMPLATE_SIZE = 1024 * 1024
"""Bytes of the largest pod template, as of the largest ConfigMap."""

DEFAULT_SOCKET = "/run/k8s-builder/builder.sock"
_MACHINE_ID_FILE = Path("/etc/machine-id")
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_DNS_1123_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_1123_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

T = TypeVar("T")


class Settings(Struct, frozen=True):
    """What the daemon is run with. Times are in seconds."""

    environment: Mapping[str, str]
    """The forwarded names that the operator has set on the daemon."""
    kubeconfig: str
    namespace: str
    instance: str
    host: str = ""
    """A hash of the machine that the daemon runs on: a Job that no pod owns is this daemon's only with this."""
    socket: Path = Path(DEFAULT_SOCKET)
    socket_mode: int = 0o660
    allowed_uids: frozenset[int] | None = None
    health_address: tuple[str, int] = ("0.0.0.0", 9480)  # noqa: S104 - the kubelet's probes come from outside the pod
    log_format: str = "json"
    log_prefix: str = ""
    """A template of what stands in front of each line of chaincode's log (fabric.logprefix)."""
    debug: bool = False
    security_profile: SecurityProfile = SecurityProfile.BASELINE
    run_as_non_root: bool = False
    pod: PodSettings = PodSettings()
    pod_name: str = ""
    pod_uid: str = ""
    pod_from_token: bool = False
    """Whether the two are not set, and the service account's token names the pod."""
    pod_namespace: str = ""
    """The namespace of the daemon's own pod; empty where it is not known, and taken for `namespace` then."""
    pod_template: PodTemplate = PodTemplate()
    """What was in `pod_template_file` at the start."""
    pod_template_file: Path | None = None
    max_connections: int = 4096
    request_timeout: float = 10.0
    peer_patience: float = 5.0
    reconnect_grace: float = 10.0
    orphan_grace: float = 60.0
    watch_silence: float = 130.0
    access_interval: float = 60.0
    events: bool = True
    """Whether Events on the Jobs tell what becomes of them."""

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment.

        :raises SettingsError: for the first variable whose value cannot be used.
        """
        read = _Reader(os.environ if environ is None else environ)  # noqa: TID251 - the one place
        if bool(read.environ.get(PREFIX + "POD_NAME")) != bool(read.environ.get(PREFIX + "POD_UID")):
            raise SettingsError(
                f"The {PREFIX}POD_NAME and {PREFIX}POD_UID environment variables must both be set, or neither"
            )
        launch_settings(
            {**read.environ, PEER_ID: "checked for each run"}
        )  # a mistake is told at start, not at a launch
        pod_namespace = read("POD_NAMESPACE", _service_account_namespace(), _namespace)
        kubeconfig = read.environ.get("KUBECONFIG_PATH", "")
        pod_name = read("POD_NAME", "", str)
        # A kubeconfig may be for another cluster than that of the token.
        bound = None if pod_name or kubeconfig else read_bound_pod(_SERVICE_ACCOUNT / "token")
        return cls(
            environment={name: read.environ[name] for name in FORWARDED if read.environ.get(name)},
            kubeconfig=kubeconfig,
            namespace=read("NAMESPACE", _service_account_namespace() or "default", _namespace),
            instance=read("INSTANCE", _host_name(), _kubernetes_label_value),
            host=_host_id(pod_namespace),
            socket=read("SOCKET", Path(DEFAULT_SOCKET), _socket_path),
            socket_mode=read("SOCKET_MODE", 0o660, _mode),
            allowed_uids=read("ALLOWED_UIDS", None, _uids),
            health_address=read("HEALTH_ADDRESS", ("0.0.0.0", 9480), _address),  # noqa: S104 - as above
            log_format=read("LOG_FORMAT", "json", _one_of("json", "console")),
            log_prefix=read("LOG_PREFIX", "", _log_prefix),
            debug=read("DEBUG", False, parse_bool),
            security_profile=read("SECURITY_PROFILE", SecurityProfile.BASELINE, _security_profile),
            run_as_non_root=read("RUN_AS_NON_ROOT", False, parse_bool),
            pod=_pod_settings(read),
            pod_name=bound.name if bound else pod_name,
            pod_uid=bound.uid if bound else read("POD_UID", "", str),
            pod_from_token=bound is not None,
            pod_namespace=pod_namespace,
            pod_template=read("POD_TEMPLATE", PodTemplate(), _pod_template),
            pod_template_file=read("POD_TEMPLATE", None, Path),
            max_connections=read("MAX_CONNECTIONS", 4096, _positive),
            request_timeout=read("REQUEST_TIMEOUT", 10.0, _positive_duration),
            peer_patience=read("PEER_PATIENCE", 5.0, _duration),
            reconnect_grace=read("RECONNECT_GRACE", 10.0, _positive_duration),
            orphan_grace=read("ORPHAN_GRACE", 60.0, _positive_duration),
            watch_silence=read("WATCH_SILENCE", 130.0, _positive_duration),
            access_interval=read("ACCESS_INTERVAL", 60.0, _positive_duration),
            events=read("EVENTS", True, parse_bool),
        )

    def for_launch(self, forwarded: Mapping[str, str]) -> LaunchSettings:
        """Return what to launch with, where a client has forwarded this environment.

        :raises SettingsError: if a value cannot be used, CORE_PEER_ID is not set, or the client wants a namespace
            that is not the daemon's.
        """
        wanted = forwarded.get(NAMESPACE, "")
        if wanted and wanted != self.namespace:
            raise SettingsError(
                f"The {NAMESPACE} environment variable of the peer says {wanted!a}, but this daemon works in the"
                f" namespace {self.namespace!a}: set it on the daemon (the sidecar container), or unset it on the peer"
            )
        return launch_settings({**forwarded, **self.environment})

    def plan(
        self,
        launch: LaunchSettings,
        chaincode: Chaincode,
        image: Image,
        token: Token,
        template: tuple[Mapping[str, Any], ...],
        *,
        takeovers: int = 0,
        start: Start | None = None,
    ) -> Plan:
        """Return what to launch.

        :param template: the layers of the pod template for this chaincode.
        :param takeovers: `Plan.takeovers`.
        :param start: `Plan.start`.
        """
        object_name = names.object_name(
            launch.object_name_prefix, launch.peer_id, chaincode.peer_address, chaincode.mspid, chaincode.chaincode_id
        )
        return Plan(
            chaincode=chaincode,
            image=image,
            settings=launch,
            object_name=object_name,
            job_name=names.job_name(object_name, token.sha256),
            token=token,
            peer=hashlib.sha256(chaincode.root_cert.encode()).hexdigest()[:32] if chaincode.tls else "",
            instance=self.instance,
            namespace=self.namespace,
            host=self.host,
            security_profile=self.security_profile,
            run_as_non_root=self.run_as_non_root,
            pod=self.pod,
            template=template,
            log_prefix=self.log_prefix,
            takeovers=takeovers,
            start=start,
        )

    def overridden(self, forwarded: Mapping[str, str]) -> list[str]:
        """Return the names whose forwarded value differs from the daemon's, which wins."""
        return sorted(name for name, value in self.environment.items() if forwarded.get(name, value) != value)


def launch_settings(environ: Mapping[str, str]) -> LaunchSettings:
    """Read what one launch is made with.

    :raises SettingsError: in the Go builder's words.
    """
    read = _Reader(environ)
    if not environ.get(PEER_ID):
        raise SettingsError(f"Expected {PEER_ID} environment variable")
    if not environ[PEER_ID].isprintable():
        raise SettingsError(f"The {PEER_ID} environment variable must have printable characters only")
    return LaunchSettings(
        peer_id=environ[PEER_ID],
        node_role=read("NODE_ROLE", "", _kubernetes_label_value),
        object_name_prefix=read("OBJECT_NAME_PREFIX", "hlfcc", _name_prefix),
        service_account=read("SERVICE_ACCOUNT", "default", _service_account),
        start_timeout=read("START_TIMEOUT", 180.0, _time_limit),
        debug=read("DEBUG", False, parse_bool),
    )


def _pod_settings(read: "_Reader") -> PodSettings:
    node_name = read("NODE_NAME", "", _node_name)
    same_node = read("SAME_NODE", False, parse_bool)
    if same_node and not node_name:
        raise SettingsError(
            f"The {PREFIX}SAME_NODE environment variable needs {PREFIX}NODE_NAME, the name of this node (downward API,"
            " spec.nodeName)"
        )
    requests = {"cpu": read("CPU_REQUEST", "", _quantity), "memory": read("MEMORY_REQUEST", "", _quantity)}
    limits = {"cpu": read("CPU_LIMIT", "", _quantity), "memory": read("MEMORY_LIMIT", "", _quantity)}
    for name, request in requests.items():
        if request and limits[name] and parse_quantity(request) > parse_quantity(limits[name]):
            raise SettingsError(
                f"The {PREFIX}{name.upper()}_REQUEST environment variable must not be more than"
                f" {PREFIX}{name.upper()}_LIMIT; it is {request!a}, and the limit {limits[name]!a}"
            )
    return PodSettings(
        image_pull_secrets=read("IMAGE_PULL_SECRETS", (), _object_names),
        image_pull_policy=read("IMAGE_PULL_POLICY", "", _one_of("Always", "IfNotPresent", "Never")),
        requests={name: quantity for name, quantity in requests.items() if quantity},
        limits={name: quantity for name, quantity in limits.items() if quantity},
        node_name=node_name if same_node else "",
    )


class _Rule(ValueError):
    """A value breaks a rule whose text already goes on after 'environment variable '."""


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def __call__(self, name: str, default: T, parse: Callable[[str], T]) -> T:
        value = self.environ.get(PREFIX + name, "")
        if not value:
            return default
        try:
            return parse(value)
        except _Rule as rule:
            raise SettingsError(f"The {PREFIX}{name} environment variable {rule}") from None
        except ValueError as error:
            raise SettingsError(f"The {PREFIX}{name} environment variable cannot be used: {error}") from None


def _kubernetes_label_value(value: str) -> str:
    if fault := label_value_fault(value):
        raise _Rule(f"must be a valid Kubernetes label value: {fault}")
    return value


def _name_prefix(value: str) -> str:
    if fault := name_prefix_fault(value):
        raise _Rule(fault)
    return value


def _go_duration(value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise _Rule(f"must be a valid Go duration string, e.g. 3m40s: {error}") from None


def _time_limit(value: str) -> float:
    seconds = _go_duration(value)
    return seconds if seconds > 0 else math.inf  # as client-go's ContextWithOptionalTimeout, and so the Go builder


def _duration(value: str) -> float:
    seconds = _go_duration(value)
    if seconds < 0:
        raise _Rule(f"must be a duration of zero or more; it is {value!a}")
    return seconds


def _positive_duration(value: str) -> float:
    seconds = _go_duration(value)
    if seconds <= 0:
        raise _Rule(f"must be a duration above zero; it is {value!a}")
    return seconds


def _is_object_name(value: str) -> bool:
    return len(value) <= 253 and _DNS_1123_SUBDOMAIN.fullmatch(value) is not None


def _node_name(value: str) -> str:
    if not _is_object_name(value):
        raise _Rule(f"must be the name of a Kubernetes node (a DNS-1123 subdomain); it is {value!a}")
    return value


def _object_names(value: str) -> tuple[str, ...]:
    names = tuple(value.split(","))
    if not all(map(_is_object_name, names)):
        raise _Rule(
            f"must be names of Kubernetes secrets (DNS-1123 subdomains) separated by commas, such as a,b; it is"
            f" {value!a}"
        )
    return names


def _quantity(value: str) -> str:
    try:
        quantity = parse_quantity(value)
    except ValueError as error:
        raise _Rule(str(error)) from None
    if quantity <= 0:
        raise _Rule(f"must be a quantity above zero; it is {value!a}")
    return value


def _service_account(value: str) -> str:
    if not _is_object_name(value):
        raise _Rule(f"must be the name of a Kubernetes service account (a DNS-1123 subdomain); it is {value!a}")
    return value


def _namespace(value: str) -> str:
    if not _DNS_1123_LABEL.fullmatch(value):
        raise _Rule(f"must be the name of a Kubernetes namespace (a DNS-1123 label); it is {value!a}")
    return value


def _socket_path(value: str) -> Path:
    if len(os.fsencode(value)) > 107 or not value.startswith("/"):
        raise _Rule("must be an absolute path of at most 107 bytes (Linux: sun_path of a Unix socket)")
    return Path(value)


def _mode(value: str) -> int:
    if not re.fullmatch("0?o?[0-7]{3,4}", value):
        raise _Rule(f"must be an octal file mode such as 0660; it is {value!a}")
    return int(value.replace("o", ""), 8)


def _uids(value: str) -> frozenset[int] | None:
    if not re.fullmatch(r"\d+(,\d+)*", value):
        raise _Rule(f"must be user ids separated by commas, such as 0,1000; it is {value!a}")
    return frozenset(int(uid) for uid in value.split(","))


def _address(value: str) -> tuple[str, int]:
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise _Rule(f"must be an address and a port such as 0.0.0.0:9480 or [::]:9480; it is {value!a}")
    return host.strip("[]"), int(port)


def _positive(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise _Rule(f"must be a number above zero; it is {value!a}")
    return int(value)


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in choices:
            raise _Rule(f"must be one of {', '.join(choices)}; it is {value!a}")
        return value

    return parse


def _log_prefix(value: str) -> str:
    if fault := logprefix.fault(value):
        raise _Rule(fault)
    return value


def _security_profile(value: str) -> SecurityProfile:
    return SecurityProfile(_one_of(*SecurityProfile)(value))


def read_pod_template(path: Path) -> PodTemplate:
    """Read a pod template.

    :raises TemplateError: if the file cannot be read, or what is in it cannot be used.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEMPLATE_SIZE + 1)
    except OSError as error:
        raise TemplateError(f"it cannot be read: {error.strerror}") from None
    if len(content) > MAX_TEMPLATE_SIZE:
        raise TemplateError(f"it must be a maximum of {MAX_TEMPLATE_SIZE} bytes")
    return PodTemplate.parse(content)


def _pod_template(value: str) -> PodTemplate:
    try:
        return read_pod_template(Path(value))
    except TemplateError as error:
        raise _Rule(f"must name a file with a pod template that can be used: {value}: {error}") from None


def _host_name() -> str:
    # A pod's host name is its own name, and so a label value; another host's may have to be made one.
    return re.sub("[^-A-Za-z0-9_.]", "-", socket.gethostname())[:63].strip("-_.") or "k8s-builderd"


def _host_id(pod_namespace: str) -> str:
    # machine-id(5): a hash with a name of ours in it, never the id itself. In a container there is none; its host name
    # is its own, but a pod of another namespace may have the same.
    try:
        machine = _MACHINE_ID_FILE.read_text().strip()
    except OSError:
        machine = ""
    host = f"k8s-builderd {machine or socket.gethostname()} {pod_namespace}".strip()
    return hashlib.sha256(host.encode()).hexdigest()[:16]


def _service_account_namespace() -> str:
    try:
        return (_SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return ""


class _KubernetesClaims(Struct, frozen=True):
    pod: Owner


class _Claims(Struct, frozen=True):
    kubernetes: _KubernetesClaims = msgspec.field(name="kubernetes.io")


def read_bound_pod(token: Path) -> Owner | None:
    """Return the pod that a service account's token is bound to, or None if it names none.

    The kubelet gets a token for each pod, and the API server writes the pod's name and uid into it: no other pod has
    that token. One that was made for a Secret names no pod.
    """
    try:
        payload = token.read_text().split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=="), type=_Claims)
    except (OSError, ValueError, IndexError, msgspec.MsgspecError):
        return None
    pod = claims.kubernetes.pod
    return pod if pod.name and pod.uid else None
