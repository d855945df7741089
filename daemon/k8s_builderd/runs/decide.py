"""What is done about earlier launches of the same chaincode before a new one begins. Pure: facts in, a decision out.

The rules are the peer's own (Fabric's core/chaincode):

- A peer launches a chaincode only when none is registered. When *any* stream that has sent REGISTER for its id closes,
  the peer drops whoever holds that id, a launch in progress included (handler_registry.go, Deregister). So nothing new
  begins before an earlier container has ended; and where that one was connected to the very process that launches, its
  end has dropped the new launch, which then ends as well. The next request succeeds.
- A launch that fails drops its id once more, whoever holds it by then (runtime_launcher.go, Launch). So a dropped
  launch and the one after it end in one moment.
- A peer waits for its newest launch only. Which that is, the start of the `run`s tells. Where it is not known, the
  launch whose first request has come last counts as the newest.
- A peer that has waited for chaincode.startuptimeout forgets the launch and stops nothing. If each launch began anew, a
  start slower than that would never succeed. So a new launch goes on with a Job whose pod is still on its way.
"""

import math
from collections.abc import Collection
from typing import Any

from msgspec import Struct

from k8s_builderd.fabric.plan import Start
from k8s_builderd.runs.record import Reason, Run, State

END_NEWS = 2.0
"""Seconds in which a node tells that a container has ended; 0.2 to 1.3 were measured."""

CRASH_NEWS = 1.5
"""Seconds after a launch in which the news of an end may still be of one before the launch."""

LATE_CREATION = 15.0
"""Seconds after which a creation that was cut off is not carried out any more."""

END_MARGIN = 5.0
"""Seconds beyond its pod's grace in which a container must have ended."""

REUSABLE = 480.0
"""Seconds from a launch to the last one that may go on with its Job: a peer forgets a certificate after 600.

Without TLS it holds too: a pod that is stuck without a word is to be made anew some time.
"""


class Known(Struct, frozen=True, kw_only=True):
    """A launch as this daemon knows it at one moment. Times are of the daemon's own clock."""

    run: str
    """What identifies it: the hash of its token."""
    job: str
    since: float
    """When this daemon first heard of it."""
    start: Start | None = None
    """When its `run` was started; None where that is not known."""
    peer: str = ""
    """The peer process that launched it; empty where the peer runs without TLS."""
    reuse_key: Any = None
    """What its Job was made from, where this daemon has made it; for the launch that asks, what it would make."""
    state: State = State.WAITING
    on_its_way: bool = False
    """Whether its pod starts, and nothing is wrong with that."""
    claimed: float | None = None
    """Since when a client is connected."""
    started: bool = False
    ended: float | None = None
    """When its container was seen to have ended."""
    deleting: bool = False
    """Whether the deletion of its Job was decided."""
    replaced: bool = False
    """Whether that was because the peer has launched again."""
    deletion_error: str = ""
    """Why the API has not accepted that yet."""
    told: float | None = None
    """Since when it is known that it was told to end: its pod says so, or else the API accepted the deletion."""
    has_job: bool = True
    """Whether there is a Job that can be deleted."""
    pod: str = ""
    pod_told: bool = False
    """Whether its pod says that it was told to end."""
    certain: bool = True
    """Whether its end, where it has ended, was the pod's word, and not taken from the Job alone."""
    confirmed: float | None = None
    """When the API, asked, last said what there is of its pod."""
    grace: float = 2.0
    """Seconds that its pod may take to end."""
    given_up: bool = False
    dropped: bool = False

    @property
    def in_short(self) -> str:
        """Return its state and what is about to change it, for a line of the log."""
        marks = {
            "claimed": self.claimed is not None,
            "told to end": self.told is not None,
            "deleting": self.deleting,
            "dropped": self.dropped,
            "given up": self.given_up,
        }
        return ", ".join([str(self.state), *(mark for mark, holds in marks.items() if holds)])

    @classmethod
    def of(cls, run: Run) -> "Known":
        """Return what is known of a run."""
        seen, deletion = run.observed, run.deletion
        # The pod's word first: a Job can be deleted long before anything tells its pod.
        told = seen.told_to_end_at
        if told is None and deletion is not None:
            told = deletion.accepted_at
        reusable = run.made is not None and deletion is None
        return cls(
            run=run.token_sha256,
            job=run.job_name,
            since=run.since,
            start=run.start,
            peer=run.peer,
            reuse_key=run.made.reuse_key if reusable and run.made is not None else None,
            state=run.state,
            on_its_way=seen.on_its_way,
            claimed=run.claim.since if run.claim is not None and run.claim.revoked is None else None,
            started=seen.started,
            ended=seen.ended_at,
            deleting=deletion is not None,
            replaced=deletion is not None and deletion.reason is Reason.REPLACED,
            deletion_error=deletion.last_error if deletion is not None else "",
            told=told,
            has_job=not seen.job_gone and (seen.job is not None or seen.pod is None),
            pod=seen.pod.metadata.name if seen.pod is not None else "",
            pod_told=seen.told_to_end,
            certain=seen.certain,
            confirmed=run.confirmed_at,
            grace=seen.grace if seen.pod is not None or run.made is None else run.made.grace,
            given_up=run.given_up,
            dropped=run.dropped,
        )


class Create(Struct, frozen=True):
    """Nothing is in the way: make a Job."""


class Reuse(Struct, frozen=True):
    """Go on with the Job of this run, whose pod is still on its way."""

    run: str


class Wait(Struct, frozen=True):
    """Look again when something has changed, or at `until` at the latest. `why` is empty while nobody need know."""

    until: float
    why: str = ""


class Replace(Struct, frozen=True):
    """Tell the clients of these that the peer has launched again, and delete what they have in the cluster."""

    runs: frozenset[str]


class Look(Struct, frozen=True):
    """Ask the API for the pods of these: by what is known they should have ended."""

    runs: frozenset[str]


class GiveUp(Struct, frozen=True):
    """Wait no more for these: they were told to end, the API still has their pods, and their time is over."""

    runs: frozenset[str]


class Yield(Struct, frozen=True):
    """End this launch, and with it those whose clients are named."""

    why: str
    together_with: frozenset[str] = frozenset()


Decision = Create | Reuse | Wait | Replace | Look | GiveUp | Yield

DROPPED = "the peer cancelled this launch because the previous chaincode disconnected: retry the request"
DROPPED_TOGETHER = "the peer cancelled this launch together with the one before it: retry the request"
LAUNCHED_AGAIN = (
    "the peer has launched this chaincode again. If it was still starting, raise the peer's chaincode.startuptimeout"
)


def decide(
    me: Known,
    others: Collection[Known],
    now: float,
    *,
    peer_patience: float,
    may_reuse: bool = False,
    came_dropped: bool = False,
    watch_error: str = "",
) -> Decision:
    """Say what to do next for a launch that has no Job yet.

    :param others: all other launches of the chaincode that were known at any time since this one came.
    :param peer_patience: seconds that the peer waits for a launch at least.
    :param may_reuse: whether this launch is new, so that it may go on with another's Job.
    :param came_dropped: whether its client says that the peer has dropped it before. Such a launch ends nothing itself:
        what runs by now may be a later launch's.
    :param watch_error: why the watches do not tell what there is; empty while they do.
    """
    alive = [it for it in others if it.state.may_run and not it.given_up]
    if came_dropped:
        ending = [it for it in alive if it.told is not None and now < _due(it, me)]
        return Wait(max(_due(it, me) for it in ending), _names(ending)) if ending else Yield(DROPPED)
    if doomed := [it.run for it in others if _drop_each_other(it, me, now, peer_patience)]:
        return Yield(DROPPED_TOGETHER, frozenset(doomed))
    if any(_is_newer(it, me) for it in others):
        return Yield(LAUNCHED_AGAIN)
    if may_reuse and (reusable := [it.run for it in alive if _is_reusable(it, me, now)]):
        return Reuse(reusable[0])
    # A peer launches again only after the old stream has closed. A container that still seems to run has most likely
    # just crashed: its node is to say so first, for its own `run` to tell why, and for no launch to be dropped.
    if any(_may_have_crashed(it, me, now) for it in alive):
        return Wait(me.since + END_NEWS)
    if standing := [it.run for it in others if _stands(it)]:
        return Replace(frozenset(standing))
    if alive:
        return _outlast(alive, me, now, watch_error)
    if unknown := [it.run for it in others if it.state is State.ENDED and not it.certain]:
        return Look(frozenset(unknown))  # a Job may be gone before its pod was told of
    return Yield(DROPPED) if me.dropped or is_dropped(me, others, now) else Create()


def _is_reusable(it: Known, me: Known, now: float) -> bool:
    """Say whether the pod of another launch is on its way still, and made from what this one would make it from."""
    is_same = it.reuse_key is not None and it.reuse_key == me.reuse_key
    return it.on_its_way and is_same and now <= it.since + REUSABLE


def _stands(it: Known) -> bool:
    """Say whether another launch goes on, and nobody has told it to end yet."""
    has_job = it.state.may_run and it.has_job and not it.deleting and not it.given_up
    return has_job or (it.claimed is not None and it.state is not State.ENDED)


def is_dropped(me: Known, others: Collection[Known], now: float) -> bool:
    """Say whether the peer drops, or has dropped, this launch because of the end of another."""
    return any(_drops(it, me, now) for it in others)


def _drops(it: Known, me: Known, now: float) -> bool:
    """Say whether the end of a launch costs a later one of the same peer process its registration.

    Each start of a peer makes a new CA, which tells its processes apart. Without TLS it is the same process as long as
    the old launch's `run` is there, or was until just now.
    """
    ended_since = it.ended is not None and it.ended > me.since
    if it.given_up or not it.started or not (it.state.may_run or ended_since):
        return False
    was_connected = it.claimed is not None or ((it.deleting or ended_since) and not it.replaced)
    if it.peer != me.peer or not (me.peer or was_connected):
        return False
    if it.ended is None:
        return not _may_have_crashed(it, me, now)
    # It was told to end and so had not crashed before; or it ended too late for that.
    return it.told is not None or it.ended > me.since + CRASH_NEWS


def _may_have_crashed(it: Known, me: Known, now: float) -> bool:
    """Say whether a container that seems to run may have ended before this launch came."""
    return it.started and it.told is None and not it.deleting and now < me.since + END_NEWS


def _lead(it: Known, other: Known) -> float | None:
    """Return by how many seconds the peer has launched one before the other; None where the two do not tell."""
    lead = it.start.until(other.start) if it.start is not None and other.start is not None else None
    return lead or None


def _is_newer(it: Known, me: Known) -> bool:
    """Say whether the peer waits for another launch, because it has launched that one later."""
    lead = _lead(me, it)
    if lead is not None:
        return lead > 0
    return it.since > me.since and it.claimed is not None and it.state is not State.ENDED


def _drop_each_other(one: Known, other: Known, now: float, patience: float) -> bool:
    """Say whether the peer process still waits for the first of two launches, though it has launched again.

    Then it has dropped the first, and the end of that one drops the second. It waits for as long as the first one's
    `run` is there; only after its chaincode.startuptimeout it does not any more.
    """
    lead = _lead(one, other)
    first, second = (one, other) if (lead or other.since - one.since) > 0 else (other, one)
    if first.peer != second.peer or first.claimed is None or second.claimed is None:
        return False
    if {first.state, second.state} & {State.RUNNING, State.ENDED}:
        return False
    return first.dropped or (now - first.claimed if lead is None else abs(lead)) < patience


def _outlast(alive: list[Known], me: Known, now: float, watch_error: str) -> Decision:
    """Wait for the end of containers that have been told to end, as long as that can be seen."""
    if refused := [it for it in alive if it.deleting and it.told is None]:
        errors = [it.deletion_error for it in refused if it.deletion_error]
        return Wait(math.inf, errors[0] if errors else _names(alive))
    if pending := [it for it in alive if now < _due(it, me)]:
        return Wait(min(_due(it, me) for it in pending), _names(alive))
    if watch_error:
        return Wait(now + END_MARGIN, watch_error)
    if unseen := [it.run for it in alive if it.confirmed is None or it.confirmed < _due(it, me)]:
        return Look(frozenset(unseen))
    if untold := sorted(it.pod for it in alive if it.pod and not it.pod_told):
        names = ", ".join(untold)
        return Wait(
            now + END_MARGIN,
            f"pod {names} is not being deleted: delete it, or check that kube-controller-manager is running",
        )
    return GiveUp(frozenset(it.run for it in alive))


def _due(it: Known, me: Known) -> float:
    """Return when its container must have ended.

    Where no pod is known the Job, or its pod, may still come: a creation that was cut off is carried out late.
    """
    margin = END_MARGIN if it.pod else LATE_CREATION
    return (me.since if it.told is None else it.told) + it.grace + margin


def _names(launches: Collection[Known]) -> str:
    return ", ".join(sorted({it.job or it.pod for it in launches}))
