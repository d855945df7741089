"""Inherits or ends earlier launches of a chaincode before a new one begins, by the rules of the peer's own registry.

When the stream of a stale chaincode closes, its peer drops whoever holds the chaincode's id, a launch in progress
included (Fabric's core/chaincode/handler_registry.go, Deregister). So nothing is created before that, and where that
peer is the one that asks now, the new launch is lost: it ends, and the next one succeeds.

It is lost as well when a dropped launch before it ends, because the peer drops the id once more then, whoever holds it
by now (runtime_launcher.go, Launch). So the two end in one moment, and a third begins with neither.

A launch whose container does not run yet has no stream. Its peer has given it up after chaincode.startuptimeout and
asks again. If we began anew too, a start slower than that would never succeed; so the new launch goes on with the old
one's Job.
"""

from datetime import UTC, datetime, timedelta
from typing import NoReturn

import anyio

from k8s_builderd.fabric import manifests
from k8s_builderd.fabric.objects import Meta, Pod
from k8s_builderd.fabric.plan import Plan
from k8s_builderd.kube.errors import ApiError
from k8s_builderd.runs.cursor import DROPPED
from k8s_builderd.runs.launch import Audience, LaunchFailed, TimedOut
from k8s_builderd.runs.observed import container_ended, container_started
from k8s_builderd.runs.store import Reason, Registry, Run, job_of

DEATH_NEWS = 2.0
"""Seconds in which a kubelet tells that a container has ended; 0.2 to 1.3 were measured."""

EXIT_TIME = timedelta(seconds=0.5)
"""What a process may take to end after its connection has closed."""

END_PATIENCE = manifests.GRACE_SECONDS + 5.0
"""Seconds that a launch waits for the containers of the one before it."""

LOOK = 2.0
"""Seconds that the API has to confirm what the watch has told of a pod, before a launch relies on it."""

INHERITABLE = 480.0
"""Seconds from a launch to the last one that may go on with its Job: a peer forgets a certificate after 600.

Without TLS it holds too: a pod that is stuck without a word is to be made anew some time.
"""


class Superseded(LaunchFailed):
    """Raised in a run when the peer has launched the same chaincode anew, or another client has taken its token."""


async def inherit(registry: Registry, plan: Plan, peer_patience: float) -> Plan:
    """Return the plan with the Job of an earlier launch whose pod is on its way, or unchanged where there is none.

    :param peer_patience: seconds that the peer waits for a launch at least.
    """
    earlier = registry.coming(plan)
    if (
        earlier is None
        or _is_waited_for(earlier, plan.peer, peer_patience)
        or anyio.current_time() > earlier.since + INHERITABLE
    ):
        return plan
    pod, made = earlier.sightings.pod, earlier.made
    if pod is None or made is None:
        return plan
    with anyio.move_on_after(LOOK):
        try:
            await registry.look_at(pod.metadata)
        except ApiError:
            return plan
        if registry.coming(plan) is earlier and not _is_waited_for(earlier, plan.peer, peer_patience):
            return plan.inherit(earlier.job_name, made.token, earlier.heir + 1)
    return plan


async def supersede(
    registry: Registry, run: Run, plan: Plan, audience: Audience, *, deadline: float, peer_patience: float
) -> None:
    """End earlier launches of the same chaincode, and wait until their containers have ended.

    :param peer_patience: seconds that the peer waits for a launch at least.
    :param deadline: until when the API must have shown that, by `anyio.current_time()`.
    :raises Superseded: if the peer has dropped this launch, or waits for a newer one.
    :raises TimedOut: if the API does not accept the deletions, or nobody can see whether the containers have ended.
    """
    earlier = _Earlier(registry, run, plan, audience)
    if doomed := [it for it in earlier.runs if it.since < run.since and _is_waited_for(it, plan.peer, peer_patience)]:
        for rival in doomed:
            rival.displace(launched_again())
        raise Superseded("the peer drops this launch with the one before it; the next request starts the chaincode")
    # A peer launches a chaincode again only after the old stream has closed. A container that still seems to run has
    # most likely just crashed: the kubelet is to say so first, for its own `run` to tell why, and for no launch to be
    # dropped.
    with anyio.move_on_after(DEATH_NEWS):
        while any(rival.sightings.started for rival in registry.rivals(run)):
            await registry.changed()
    # But one that has ended in this time, or been told to, has not crashed before.
    await earlier.note_drop_by_late()
    earlier = _Earlier(registry, run, plan, audience)
    if any(rival.attendance is not None and not rival.attempted and rival.since > run.since for rival in earlier.runs):
        raise launched_again()  # the peer waits for the newest only
    if earlier.runs or earlier.pods:
        await earlier.note_drop()
        await earlier.delete(deadline)
        await earlier.outlast(deadline)
    if run.dropped:
        raise _dropped()


async def leave(registry: Registry, run: Run, audience: Audience) -> NoReturn:
    """End a run whose launch was dropped before, once what its peer dropped it for has ended.

    It ends nothing itself: what runs by now may be a later launch's.

    :raises Superseded: always.
    """
    with anyio.move_on_after(END_PATIENCE):
        await registry.synced()
        while ending := [pod.metadata for pod in registry.pods_of_others(run) if _is_ending(pod)]:
            await _wait_for(", ".join(sorted({job_of(meta) for meta in ending})), run, audience)
            await registry.changed()
    raise _dropped()


class _Earlier:
    """The earlier launches of a run's chaincode, on their way out."""

    def __init__(self, registry: Registry, run: Run, plan: Plan, audience: Audience) -> None:
        self.runs = registry.rivals(run)
        self._registry = registry
        self._run = run
        self._plan = plan
        self._audience = audience
        self._over = {
            pod.metadata.uid
            for pod in registry.pods_of_others(run)
            if container_ended(pod) or registry.given_up(pod.metadata.uid)
        }
        self._connected = {it.job_name for it in self.runs if it.attendance is not None or it.ending is not None}
        self._since = datetime.now(UTC)
        self._running = [it for it in self.runs if it.sightings.started]
        self._told = [it for it in self._running if _was_told_to_end(it)]

    @property
    def pods(self) -> list[Pod]:
        """Their pods, but for those whose container had ended before."""
        return [pod for pod in self._registry.pods_of_others(self._run) if pod.metadata.uid not in self._over]

    async def note_drop(self) -> None:
        """Have the peer's word kept: where one of them is connected to it, its end drops the run."""
        await self._note_drop_by(self.pods + [run.sightings.pod for run in self.runs if run.sightings.pod is not None])

    async def note_drop_by_late(self) -> None:
        """The same for those that ran, and have ended since this was made, or been told to.

        Had the peer used them, it would not have launched before: it had given them up, and their connection was open.
        """
        late = [it for it in self._running if self._ended_since(it) or (_was_told_to_end(it) and it not in self._told)]
        self._connected |= {it.job_name for it in late}
        await self._note_drop_by([it.sightings.pod for it in late if it.sightings.pod is not None])

    def _ended_since(self, run: Run) -> bool:
        end = run.sightings.terminated
        return end is not None and end.finished_at is not None and end.finished_at > self._since + EXIT_TIME

    async def _note_drop_by(self, pods: list[Pod]) -> None:
        if not self._run.dropped and any(container_started(pod) and self._is_of_same_peer(pod) for pod in pods):
            self._run.dropped = True
            await self._audience.log(str(DROPPED))  # the next daemon, if this one dies now, has no other way to know

    def _is_of_same_peer(self, pod: Pod) -> bool:
        """Say whether the peer process that asks is the one that the pod is connected to.

        Each start of a peer makes a new CA, which tells. Without TLS it is the peer as long as its `run` is there, or
        was until just now.
        """
        if self._plan.chaincode.tls:
            return pod.metadata.peer == self._plan.peer
        return job_of(pod.metadata) in self._connected

    async def delete(self, deadline: float) -> None:
        """End their `run`s, and have the API accept the deletion of their Jobs.

        :raises TimedOut: if it does not.
        """
        for run in self.runs:
            run.displace(launched_again())
            if run.live:
                self._registry.begin_deletion(run, Reason.SUPERSEDED)
        names = sorted({run.job_name for run in self.runs} | {job_of(pod.metadata) for pod in self.pods})
        await _wait_for(", ".join(names), self._run, self._audience)
        with anyio.move_on_after(deadline - anyio.current_time()):
            for run in self.runs:
                if run.ending is not None:
                    await run.ending.wait()
        if any(run.ending is not None and not run.ending.is_set() for run in self.runs):
            raise TimedOut(self._plan, next((run.trouble for run in self.runs if run.trouble), ""))

    async def outlast(self, deadline: float) -> None:
        """Wait until their containers have ended, or have been told to and do not.

        :raises TimedOut: if nobody can see that.
        """
        patience = anyio.current_time() + END_PATIENCE
        while True:
            await self.note_drop()  # one that was pending may come up before its deletion does, and register
            unending = [pod.metadata for pod in self.pods if not container_ended(pod)]
            if not unending and not any(run.live for run in self.runs):
                return
            if (now := anyio.current_time()) < patience:
                with anyio.move_on_after(patience - now):
                    await self._registry.changed()
                continue
            held_up = await self._held_up(unending)
            if not held_up:
                self._registry.give_up([meta for meta in unending if meta.uid in self._registry.pods.objects])
                return
            if now >= deadline:
                raise TimedOut(self._plan, held_up)
            await _wait_for(held_up, self._run, self._audience)
            patience = min(now + END_PATIENCE, deadline)

    async def _held_up(self, unending: list[Meta]) -> str:
        """Say why the end of these pods cannot be seen, or will not come; empty where they just do not end."""
        if self._registry.blind:
            return self._registry.blind
        try:
            for meta in unending:
                await self._registry.look_at(meta)
        except ApiError as error:
            return str(error)
        there = {pod.metadata.uid: pod.metadata for pod in self.pods}
        return _not_deleted([there[meta.uid] for meta in unending if meta.uid in there])


async def _wait_for(what: str, run: Run, audience: Audience) -> None:
    if what not in run.told:
        run.told.add(what)
        await audience.say(f"Waiting for an earlier launch of this chaincode to end: {what}")


def _is_waited_for(run: Run, peer: str, patience: float) -> bool:
    """Say whether the peer process still waits for a launch, though it has launched again: it has dropped it.

    It waits for as long as the launch's `run` is there; only after its chaincode.startuptimeout it does not any more.
    """
    if run.attendance is None or run.sightings.started or run.peer != peer:
        return False
    return run.dropped or anyio.current_time() < run.attendance.since + patience


def _was_told_to_end(run: Run) -> bool:
    accepted = run.ending is not None and run.ending.is_set()
    return accepted or run.sightings.told_to_end is not None


def _is_ending(pod: Pod) -> bool:
    return pod.metadata.deletion_timestamp is not None and not container_ended(pod)


def _not_deleted(pods: list[Meta]) -> str:
    """Say which of these pods nobody has told to end, although their Jobs are gone; empty where all were."""
    names = ", ".join(meta.name for meta in pods if meta.deletion_timestamp is None)
    return f"nothing deletes pod {names}: delete it, or check that kube-controller-manager runs" if names else ""


def _dropped() -> Superseded:
    return Superseded(
        "the peer dropped this launch when the earlier chaincode's connection closed;"
        " the next request starts the chaincode"
    )


def launched_again() -> Superseded:
    """Return what the `run` of an earlier launch is told."""
    return Superseded(
        "the peer has launched this chaincode again; where it was still starting,"
        " raise the peer's chaincode.startuptimeout"
    )
