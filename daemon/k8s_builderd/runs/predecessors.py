"""Carries out what `decide` says of earlier launches of a chaincode, before a new one begins."""

import anyio
import structlog

from k8s_builderd.fabric.plan import Plan
from k8s_builderd.kube.errors import ApiError
from k8s_builderd.runs.cursor import DROPPED
from k8s_builderd.runs.decide import (
    LAUNCHED_AGAIN,
    Create,
    GiveUp,
    Known,
    Look,
    Replace,
    Reuse,
    Wait,
    Yield,
    decide,
    is_dropped,
)
from k8s_builderd.runs.failures import Audience, LaunchFailed, TimedOut
from k8s_builderd.runs.record import Reason, Run
from k8s_builderd.runs.store import Siblings, Store

CONFIRM_TIME = 2.0
"""Seconds that the API has to confirm what the watch has told of a pod, before a launch goes on with it."""

_log = structlog.get_logger("k8s_builderd.runs")


class Yielded(LaunchFailed):
    """Raised in a run when another launch of its chaincode, or another connection of its own, takes its place."""


async def reuse(store: Store, plan: Plan, peer_patience: float) -> Plan:
    """Return the plan with the Job of an earlier launch whose pod is on its way, or unchanged where there is none.

    :param peer_patience: seconds that the peer waits for a launch at least.
    """
    if store.find(plan.token.sha256) is not None:
        return plan
    now = anyio.current_time()
    me = Known(
        run=plan.token.sha256,
        job=plan.job_name,
        since=now,
        claimed=now,
        start=plan.start,
        peer=plan.peer,
        reuse_key=plan.reuse_key,
    )

    def reusable() -> Run | None:
        runs = list(store.siblings(plan.key).runs.values())
        match decide(
            me, [Known.of(run) for run in runs], anyio.current_time(), peer_patience=peer_patience, may_reuse=True
        ):
            case Reuse(token):
                return next(run for run in runs if run.token_sha256 == token)
        return None

    if (earlier := reusable()) is None:
        return plan
    # What the watch has told may be old, and a Job that is gone would be waited for in vain.
    with anyio.move_on_after(CONFIRM_TIME):
        try:
            await store.look(earlier)
        except ApiError:
            return plan
        if reusable() is earlier and earlier.made is not None:
            return plan.reuse(earlier.job_name, earlier.made.token, earlier.takeovers + 1)
    return plan


async def make_way(
    store: Store,
    run: Run,
    plan: Plan,
    audience: Audience,
    *,
    deadline: float,
    peer_patience: float,
    came_dropped: bool = False,
) -> None:
    """Return when nothing is in the way of the run's Job: earlier launches are replaced, their containers have ended.

    :param deadline: until when that must be so, by `anyio.current_time()`.
    :param peer_patience: seconds that the peer waits for a launch at least.
    :param came_dropped: whether the run's client says that the peer has dropped it before.
    :raises Yielded: if the peer has dropped this launch, or waits for a newer one.
    :raises TimedOut: if the API does not accept the deletions, or nobody can see whether the containers have ended.
    """
    runs: dict[str, Run] = {}  # also those that have ended and were forgotten meanwhile: their end may drop this one
    while True:
        siblings = store.siblings(run.key)
        version = siblings.version
        runs |= {token: it for token, it in siblings.runs.items() if it is not run}
        now = anyio.current_time()
        me, others = Known.of(run), [Known.of(it) for it in runs.values()]
        if not run.dropped and not came_dropped and is_dropped(me, others, now):
            run.drop()
            await audience.log(str(DROPPED))  # the next daemon, if this one dies now, has no other way to know
            continue
        decision = decide(
            me,
            others,
            now,
            peer_patience=peer_patience,
            came_dropped=came_dropped,
            watch_error=store.watch_error or "",
        )
        known = {it.job: it.in_short for it in (me, *others)}
        _log.debug("decided", job=run.job_name, known=known, decision=str(decision))
        if isinstance(decision, Create):
            return
        if isinstance(decision, Wait):
            await _wait(decision, siblings, version, run, plan, audience, deadline)
        else:
            await _carry_out(decision, store, run, list(runs.values()), plan, audience, deadline)


async def _wait(
    wait: Wait, siblings: Siblings, version: int, run: Run, plan: Plan, audience: Audience, deadline: float
) -> None:
    if wait.why:
        await _tell(wait.why, run, audience)
    if anyio.current_time() >= deadline:
        raise TimedOut(plan, wait.why)
    with anyio.move_on_after(min(wait.until, deadline) - anyio.current_time()):
        await siblings.changed_since(version)


async def _carry_out(
    decision: Replace | Reuse | Look | GiveUp | Yield,
    store: Store,
    run: Run,
    others: list[Run],
    plan: Plan,
    audience: Audience,
    deadline: float,
) -> None:
    match decision:
        case Replace(chosen):
            replaced = [it for it in others if it.token_sha256 in chosen]
            for it in replaced:
                if it.claim is not None:
                    it.claim.revoke(launched_again())
                if it.state.may_run:
                    store.delete(it, Reason.REPLACED)
            await _tell(", ".join(sorted(it.job_name for it in replaced)), run, audience)
        case Look(chosen):
            try:
                for it in others:
                    if it.token_sha256 in chosen:
                        await store.look(it)
            except ApiError as error:
                await _tell(str(error), run, audience)
                if anyio.current_time() >= deadline:
                    raise TimedOut(plan, str(error)) from error
                await anyio.sleep(error.pause(1.0))
        case GiveUp(chosen):
            for it in others:
                if it.token_sha256 in chosen:
                    _log.warning("pod_does_not_end", job=it.job_name)
                    it.give_up()
        case Yield(why, together_with):
            for it in others:
                if it.token_sha256 in together_with and it.claim is not None:
                    it.claim.revoke(launched_again())
            raise Yielded(why)


async def _tell(what: str, run: Run, audience: Audience) -> None:
    run.has_problem(f"waiting for an earlier launch to end: {what}")
    if run.tells(what):
        await audience.say(f"Waiting for an earlier launch of this chaincode to end: {what}")


def launched_again() -> Yielded:
    """Return what the `run` of an earlier launch is told."""
    return Yielded(LAUNCHED_AGAIN)
