"""Inherits or ends earlier launches of a chaincode before a new one begins, by the rules of the peer's own registry.

When the stream of a stale chaincode closes, its peer drops whoever holds the chaincode's id, a launch in progress
included (Fabric's core/chaincode/handler_registry.go, Deregister). So nothing is created before that, and where that
peer is the one that asks now, the new launch is lost: it ends, and the next one succeeds.

One whose container does not run yet has no stream. The peer has given it up after chaincode.startuptimeout and waits
anew for the same chaincode; beginning anew as well would never bring a start to its end that takes longer than that.
So the new launch goes on with its Job.
"""

import anyio

from k8s_builderd import manifests
from k8s_builderd.cursor import DROPPED
from k8s_builderd.kube.objects import Pod
from k8s_builderd.kube.pods import container_ended, container_started
from k8s_builderd.launch import Audience, LaunchFailed, TimedOut
from k8s_builderd.manifests import Plan
from k8s_builderd.registry import Reason, Registry, Run, job_of

DEATH_NEWS = 2.0
"""Seconds in which a kubelet tells that a container has ended; 0.2 to 1.3 were measured."""

END_PATIENCE = manifests.GRACE_SECONDS + 5.0
"""Seconds that a launch waits for the containers of the one before it."""


INHERITABLE = 480.0
"""Seconds from a launch to the last one that may go on with its Job: a peer forgets a certificate after 600."""


class Superseded(LaunchFailed):
    """Raised in a run when the peer has launched the same chaincode anew, or another client has taken its token."""


def inherit(registry: Registry, plan: Plan) -> Plan:
    """Return the plan with the Job of an earlier launch whose pod is on its way, or unchanged where there is none."""
    earlier = registry.coming(plan)
    if earlier is None or (plan.chaincode.tls and anyio.current_time() > earlier.since + INHERITABLE):
        return plan
    return plan.inherit(earlier.job_name, earlier.token_sha256)


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
        raise launched_again()  # the peer waits for the newest only
    over = {
        pod.metadata.uid
        for pod in registry.pods_of_others(run)
        if container_ended(pod) or registry.given_up(pod.metadata.uid)
    }
    connected = {rival.job_name for rival in rivals if rival.attendance is not None or rival.ending is not None}

    def present() -> list[Pod]:
        return [pod for pod in registry.pods_of_others(run) if pod.metadata.uid not in over]

    async def note_drop() -> None:
        seen = present() + [rival.sightings.pod for rival in rivals if rival.sightings.pod is not None]
        if not run.dropped and any(container_started(pod) and _same_peer(pod, plan, connected) for pod in seen):
            run.dropped = True
            await audience.log(str(DROPPED))  # the next daemon, if this one dies now, has no other way to know

    if rivals or present():
        await note_drop()
        await _delete(registry, rivals, present(), plan, audience, deadline)
        with anyio.move_on_after(END_PATIENCE) as waiting:
            while True:
                await note_drop()  # one that was pending may come up before its deletion does, and register
                unending = [pod.metadata for pod in present() if not container_ended(pod)]
                if not unending and not any(rival.live for rival in rivals):
                    break
                await registry.changed()
        unending = [meta for meta in unending if meta.deletion_timestamp is not None]
        if waiting.cancelled_caught and unending:
            registry.give_up(unending)
    if run.dropped:
        raise Superseded(
            "the peer dropped this launch when the earlier chaincode's connection closed;"
            " the next request starts the chaincode"
        )


async def _delete(
    registry: Registry, rivals: list[Run], stale: list[Pod], plan: Plan, audience: Audience, deadline: float
) -> None:
    """End the `run`s of earlier launches, and have the API accept the deletion of their Jobs.

    :raises TimedOut: if it does not.
    """
    for rival in rivals:
        if rival.attendance is not None:
            rival.attendance.displace(launched_again())
        if rival.live:
            registry.begin_deletion(rival, Reason.SUPERSEDED)
    names = sorted({rival.job_name for rival in rivals} | {job_of(pod.metadata) for pod in stale})
    await audience.say(f"Waiting for an earlier launch of this chaincode to end: {', '.join(names)}")
    with anyio.move_on_after(deadline - anyio.current_time()):
        for rival in rivals:
            if rival.ending is not None:
                await rival.ending.wait()
    if any(rival.ending is not None and not rival.ending.is_set() for rival in rivals):
        raise TimedOut(plan, next((rival.trouble for rival in rivals if rival.trouble), ""))


def launched_again() -> Superseded:
    """Return what the `run` of an earlier launch is told."""
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
        return pod.metadata.peer == plan.peer
    return job_of(pod.metadata) in connected
