"""Ends earlier launches of a chaincode before a new one begins, by the rules of the peer's own registry.

When the stream of a stale chaincode closes, its peer drops whoever holds the chaincode's id, a launch in progress
included (Fabric's core/chaincode/handler_registry.go, Deregister). So nothing is created before that, and where that
peer is the one that asks now, the new launch is lost: it ends, and the next one succeeds.
"""

import anyio

from k8s_builderd import manifests
from k8s_builderd.kube.objects import Meta, Pod
from k8s_builderd.kube.pods import container_ended, container_started
from k8s_builderd.launch import Audience, LaunchFailed, TimedOut
from k8s_builderd.manifests import Plan
from k8s_builderd.registry import Reason, Registry, Run, job_of

DEATH_NEWS = 2.0
"""Seconds in which a kubelet tells that a container has ended; 0.2 to 1.3 were measured."""

END_PATIENCE = manifests.GRACE_SECONDS + 5.0
"""Seconds that a launch waits for the containers of the one before it."""


class Superseded(LaunchFailed):
    """Raised in a run when the peer has launched the same chaincode anew, or another client has taken its token."""


async def supersede(registry: Registry, run: Run, plan: Plan, audience: Audience, deadline: float) -> None:
    """End earlier launches of the same chaincode, and wait until their containers have ended.

    :param deadline: until when the API must have accepted the deletions, by `anyio.current_time()`.
    :raises Superseded: if the peer has dropped this launch, or waits for a newer one.
    :raises TimedOut: if the API does not accept the deletions.
    """
    # A peer launches what is registered and ready only after its connection has closed. So a container that runs
    # has most likely crashed just now, and nobody is dropped; its `run` is still to say why it ended.
    with anyio.move_on_after(DEATH_NEWS):
        while any(rival.sightings.started for rival in registry.rivals(run)):
            await registry.changed()
    rivals = registry.rivals(run)
    if any(rival.attendance is not None and not rival.attempted and rival.since > run.since for rival in rivals):
        raise _launched_again()  # the peer waits for the newest only
    over = {
        pod.metadata.uid
        for pod in registry.pods_of_others(run)
        if container_ended(pod) or registry.given_up(pod.metadata.uid)
    }
    stale = [pod for pod in registry.pods_of_others(run) if pod.metadata.uid not in over]
    if not rivals and not stale:
        return
    names = sorted({rival.job_name for rival in rivals} | {job_of(pod.metadata) for pod in stale})
    connected = {rival.job_name for rival in rivals if rival.attendance is not None or rival.ending is not None}
    for rival in rivals:
        if rival.attendance is not None:
            rival.attendance.displace(_launched_again())
        if rival.live:
            registry.begin_deletion(rival, Reason.SUPERSEDED)
    await audience.say(f"Waiting for an earlier launch of this chaincode to end: {', '.join(names)}")
    with anyio.move_on_after(deadline - anyio.current_time()):
        for rival in rivals:
            if rival.ending is not None:
                await rival.ending.wait()
    if any(rival.ending is not None and not rival.ending.is_set() for rival in rivals):
        raise TimedOut(plan, next((rival.trouble for rival in rivals if rival.trouble), ""))
    dropped = False
    unending: list[Meta] = []
    with anyio.move_on_after(END_PATIENCE) as waiting:
        while True:
            # One that was pending may come up before its deletion does, and register.
            present = [pod for pod in registry.pods_of_others(run) if pod.metadata.uid not in over]
            seen = present + [rival.sightings.pod for rival in rivals if rival.sightings.pod is not None]
            dropped = dropped or any(container_started(pod) and _same_peer(pod, plan, connected) for pod in seen)
            unending = [pod.metadata for pod in present if not container_ended(pod)]
            if not unending and not any(rival.live for rival in rivals):
                break
            await registry.changed()
    unending = [meta for meta in unending if meta.deletion_timestamp is not None]
    if waiting.cancelled_caught and unending:
        registry.give_up(unending)
    if dropped:
        raise Superseded(
            "the peer dropped this launch when the earlier chaincode's connection closed;"
            " the next request starts the chaincode"
        )


def _launched_again() -> Superseded:
    return Superseded(
        "the peer has launched this chaincode again; where it was still starting,"
        " raise the peer's chaincode.startuptimeout"
    )


def _same_peer(pod: Pod, plan: Plan, connected: set[str]) -> bool:
    """Say whether the peer process that asks is the one that the pod is connected to.

    Each start of a peer makes a new CA, which tells. Without TLS it is the peer as long as its `run` is there, or was
    until just now: `connected` names the Jobs of these.
    """
    if plan.chaincode.tls:
        return pod.metadata.annotation(manifests.PEER_ANNOTATION) == plan.peer
    return job_of(pod.metadata) in connected
