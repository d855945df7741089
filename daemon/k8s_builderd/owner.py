"""Finds out whether the daemon's own pod is what the downward API says, before Jobs are given to it.

A Job whose owner has a wrong name or uid is deleted by the cluster at birth, without an event (measured).
"""

from random import Random

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.kube.api import PODS, Api
from k8s_builderd.kube.errors import ApiError, NotFound
from k8s_builderd.kube.objects import Pod
from k8s_builderd.manifests import Owner
from k8s_builderd.settings import Settings

_log = structlog.get_logger("k8s_builderd.owner")


class OwnPod:
    """The daemon's own pod; `trouble` says why Jobs are not given to it although they should be."""

    def __init__(self) -> None:
        self.trouble: str | None = None

    async def confirm(self, api: Api, settings: Settings, rng: Random | None = None) -> Owner | None:
        """Ask until the API answers; return the owner for all Jobs, None where there is none to be had."""
        name, uid = settings.pod_name, settings.pod_uid
        if not name and not uid:
            return None
        pauses = delays(0.2, 10.0, rng)
        while True:
            try:
                found = await api.get(PODS, Pod, name) if name else None
            except NotFound:
                found = None
            except ApiError as error:
                self.trouble = f"the daemon's own pod cannot be looked up: {error}"
                _log.warning("own_pod_unknown", reason=str(error))
                if not error.transient:
                    return None
                await anyio.sleep(max(next(pauses), error.retry_after or 0))
                continue
            break
        if found is not None and found.metadata.uid == uid:
            self.trouble = None
            return Owner(name, uid)
        has = f"that pod's uid is {found.metadata.uid!a}" if found is not None else "there is no such pod"
        self.trouble = (
            f"FABRIC_K8S_BUILDER_POD_NAME={name} and FABRIC_K8S_BUILDER_POD_UID={uid} are not this daemon's pod in"
            f" namespace {settings.namespace}: {has}; jobs will stay when the peer's pod goes"
        )
        _log.error("own_pod_wrong", reason=self.trouble)
        return None
