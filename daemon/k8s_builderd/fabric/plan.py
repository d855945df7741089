"""All that one launch is made from. Pure."""

from collections.abc import Mapping
from typing import Any, Self

from msgspec import Struct
from msgspec.structs import replace

from k8s_builderd.fabric.names import LaunchKey, Token
from k8s_builderd.fabric.package import Chaincode, Image


class LaunchSettings(Struct, frozen=True):
    """What one launch is made with, from the daemon's environment and the client's. Times are in seconds."""

    peer_id: str
    node_role: str = ""
    object_name_prefix: str = "hlfcc"
    service_account: str = "default"
    start_timeout: float = 180.0
    debug: bool = False


class Owner(Struct, frozen=True):
    """The daemon's own pod: when it goes, Kubernetes removes the Jobs that it owns."""

    name: str
    uid: str


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
    run_as_non_root: bool = False
    template: Mapping[str, Any] = {}
    takeovers: int = 0
    """Where the Job is an earlier launch's: how many launches have gone on with it, this one included. `token` is that
    one's then."""

    @property
    def key(self) -> LaunchKey:
        """What is launched."""
        chaincode = self.chaincode
        return LaunchKey(chaincode.chaincode_id, chaincode.mspid, chaincode.peer_address, self.settings.peer_id)

    @property
    def reuse_key(self) -> tuple[LaunchKey, Image, LaunchSettings, str]:
        """What a launch must have in common with another one to go on with its Job, in one daemon."""
        return self.key, self.image, self.settings, self.peer

    def reuse(self, job_name: str, token: Token, takeovers: int) -> Self:
        """Return the plan of this launch with an earlier one's Job."""
        return replace(self, job_name=job_name, token=token, takeovers=takeovers)
