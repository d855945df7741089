"""All that one launch is made from. Pure."""

import os
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from k8s_builderd.fabric import logprefix
from k8s_builderd.fabric.names import LaunchKey, Token, package_id
from k8s_builderd.fabric.package import Chaincode, Image

GRACE_SECONDS = 2
"""What a process that ignores SIGTERM (Node.js as PID 1 for one) may go on for; Kubernetes' default is 30."""

TICKS = os.sysconf("SC_CLK_TCK")
"""Clock ticks in a second."""


class SecurityProfile(StrEnum):
    """How much the pods of chaincode may do: `restricted` and `baseline` are Pod Security's levels."""

    RESTRICTED = "restricted"
    BASELINE = "baseline"
    COMPATIBLE = "compatible"
    """The pods of the Go builder, which leaves everything about security to the cluster's defaults."""


class LaunchSettings(Struct, frozen=True):
    """What one launch is made with, from the daemon's environment and the client's. Times are in seconds."""

    peer_id: str
    node_role: str = ""
    object_name_prefix: str = "hlfcc"
    service_account: str = "default"
    start_timeout: float = 180.0
    """How long the container may take to run; infinite where there is no limit."""
    debug: bool = False


class PodSettings(Struct, frozen=True):
    """What the daemon's plain settings give to each pod of chaincode; the pod template is laid over it."""

    image_pull_secrets: tuple[str, ...] = ()
    image_pull_policy: str = ""
    """`Always`, `IfNotPresent` or `Never`; empty for the API server's default."""
    requests: Mapping[str, str] = {}
    """Quantities of `cpu` and `memory` for the chaincode's container."""
    limits: Mapping[str, str] = {}
    node_name: str = ""
    """The only node that the pod may go to; empty for any."""


class Owner(Struct, frozen=True):
    """The daemon's own pod: when it goes, Kubernetes removes the Jobs that it owns."""

    name: str
    uid: str


class Start(Struct, frozen=True):
    """When the kernel has started a `run`: of two of one boot it tells which one the peer has launched later."""

    boot: str
    ticks: int
    """Clock ticks since that boot."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what a client says; None where it says nothing, or something else."""
        found = re.fullmatch(r"([-0-9a-f]{1,64}) ([0-9]{1,19})", text)
        return cls(found[1], int(found[2])) if found else None

    def until(self, later: Self) -> float | None:
        """Return the seconds from this start to another one, below zero if that came before; None across boots."""
        return (later.ticks - self.ticks) / TICKS if self.boot == later.boot else None


class Plan(Struct, frozen=True):
    """All that one launch is made from. Its key material is in `chaincode`, whose repr hides it."""

    chaincode: Chaincode
    image: Image
    settings: LaunchSettings
    object_name: str
    job_name: str
    token: Token
    peer: str
    instance: str
    namespace: str
    host: str = ""
    """Which machine the daemon runs on (`names.HOST_ANNOTATION`)."""
    security_profile: SecurityProfile = SecurityProfile.BASELINE
    run_as_non_root: bool = False
    pod: PodSettings = PodSettings()
    template: tuple[Mapping[str, Any], ...] = ()
    """The operator's pod template for this chaincode: each is laid over what is there, in this order."""
    start: Start | None = None
    """When the `run` of this launch was started; None where it does not say."""
    log_prefix: str = ""
    """A template of what stands in front of each line of the log."""
    takeovers: int = 0
    """Where the Job is an earlier launch's: how many launches have gone on with it, this one included. `token` is that
    one's then."""

    @property
    def grace(self) -> int:
        """Seconds that the pod's processes have to end in after SIGTERM."""
        grace: int | None = None
        for layer in self.template:
            grace = layer.get("spec", {}).get("terminationGracePeriodSeconds", grace)
        return GRACE_SECONDS if grace is None else grace

    @property
    def key(self) -> LaunchKey:
        """What is launched."""
        chaincode = self.chaincode
        return LaunchKey(chaincode.chaincode_id, chaincode.mspid, chaincode.peer_address, self.settings.peer_id)

    @property
    def reuse_key(self) -> tuple[Any, ...]:
        """What a launch must have in common with another one to go on with its Job, in one daemon.

        All but the pod template stays as it is while a daemon runs.
        """
        return self.key, self.image, self.settings, self.peer, self.template

    def prefix(self, pod: str) -> bytes:
        """Return what stands in front of each line of this pod's log."""
        return logprefix.render(self.log_prefix, package_id(self.chaincode.chaincode_id), pod)

    def reuse(self, job_name: str, token: Token, takeovers: int) -> Self:
        """Return the plan of this launch with an earlier one's Job."""
        return replace(self, job_name=job_name, token=token, takeovers=takeovers)
