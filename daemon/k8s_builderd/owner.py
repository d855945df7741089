"""Finds out whether the daemon's own pod is what the downward API or its token says, before Jobs are given to it.

A Job whose owner has a wrong name or uid is deleted by the cluster at birth, without an event (measured).
"""

from collections.abc import Callable

import anyio
import structlog

from k8s_builderd.backoff import delays
from k8s_builderd.fabric.plan import Owner
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import ApiError, NotFound, Refusals
from k8s_builderd.kube.objects import Pod
from k8s_builderd.kube.resources import PODS
from k8s_builderd.settings import Settings

_UNNAMED = (
    "FABRIC_K8S_BUILDER_POD_NAME and FABRIC_K8S_BUILDER_POD_UID are not set, and the service account's token names no"
    " pod: jobs have no owner, and remain when the peer's pod is deleted"
)

_log = structlog.get_logger("k8s_builderd.owner")


class OwnPod:
    """The daemon's own pod; `error` says why Jobs are not given to it although they should be."""

    def __init__(self) -> None:
        self.error: str | None = None

    async def confirm(self, api: Api, settings: Settings, known: Callable[[Owner | None], None]) -> None:
        """Ask until the API answers.

        :param known: called with the owner of all Jobs, or None where there is none, which lets launches begin; called
            again with the owner if a later attempt finds it.
        """
        name, uid = settings.pod_name, settings.pod_uid
        if not name:
            if not settings.kubeconfig:
                _log.info("own_pod_unknown", reason=_UNNAMED)
            known(None)
            return
        if settings.pod_namespace not in {"", settings.namespace}:
            _log.info("own_pod_elsewhere", reason=_elsewhere(settings))
            known(None)
            return
        pauses = delays(0.2, 10.0)
        refusals = Refusals()
        while True:
            try:
                found: Pod | None = await api.get(PODS, Pod, name)
            except NotFound:
                found = None
            except ApiError as error:
                words = refusals.words(error, anyio.current_time())
                if self._is_news(f"the daemon's own pod cannot be looked up: {words}"):
                    _log.warning("own_pod_unknown", reason=self.error)
                if refusals.last(error, anyio.current_time()):
                    known(None)  # launches go on without; where the Role is mended, later ones have it
                await anyio.sleep(error.pause(next(pauses)))
                continue
            break
        if found is not None and found.metadata.uid == uid:
            self.error = None
            known(Owner(name, uid))
            return
        has = f"that pod's uid is {found.metadata.uid!a}" if found is not None else "there is no such pod"
        if settings.pod_from_token:  # nobody has set it, so nobody has set it wrongly
            self.error = None
            reason = f"the service account's token names pod {name} with uid {uid} in namespace {settings.namespace}"
            _log.info("own_pod_unknown", reason=f"{reason}: {has}; jobs have no owner")
        elif self._is_news(
            f"FABRIC_K8S_BUILDER_POD_NAME={name} and FABRIC_K8S_BUILDER_POD_UID={uid} are not this daemon's pod in"
            f" namespace {settings.namespace}: {has}; jobs will remain when the peer's pod is deleted"
        ):
            _log.error("own_pod_wrong", reason=self.error)
        known(None)

    def _is_news(self, error: str) -> bool:
        before, self.error = self.error, error
        return error != before


def _elsewhere(settings: Settings) -> str:
    return (
        f"this daemon's pod is in namespace {settings.pod_namespace}, chaincode in {settings.namespace}: owner"
        " references do not cross namespaces, so a job is not deleted with the peer's pod. It is deleted when its `run`"
        f" is told to stop, {settings.reconnect_grace:g} s after its `run` is gone, or {settings.orphan_grace:g} s"
        f" after the next start of a daemon with the instance name {settings.instance}"
    )
