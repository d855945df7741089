"""What is done about earlier launches, as a table of cases. Read it beside Fabric's core/chaincode.

Times are seconds of the daemon's clock. The launch that asks (`me`) came at 100; the peer has patience for 5 s.
"""

from typing import Any

import pytest
from msgspec.structs import replace

from k8s_builderd.fabric.plan import TICKS, Start
from k8s_builderd.runs.decide import (
    CRASH_NEWS,
    DROPPED,
    DROPPED_TOGETHER,
    END_MARGIN,
    END_NEWS,
    LATE_CREATION,
    LAUNCHED_AGAIN,
    REUSABLE,
    Create,
    Decision,
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
from k8s_builderd.runs.record import State

CAME = 100.0
PATIENCE = 5.0
ME = Known(run="me", job="cc-me", since=CAME, peer="p", reuse_key="image 1", claimed=CAME)
PLAIN = replace(ME, peer="")
OLD = frozenset({"old"})


def old(**facts: Any) -> Known:
    """Return an earlier launch, of the same peer process."""
    return Known(**{"run": "old", "job": "cc-old", "since": 10.0, "peer": "p", "pod": "cc-old-x", **facts})


def pending(**facts: Any) -> Known:
    return old(**{"state": State.PENDING, "on_its_way": True, "reuse_key": "image 1", **facts})


def running(**facts: Any) -> Known:
    return old(**{"state": State.RUNNING, "started": True, **facts})


def replaced(**facts: Any) -> Known:
    """Return one whose Job was deleted for `me`, and the API accepted that at once."""
    return running(**{"deleting": True, "replaced": True, "told": CAME, "pod_told": True, **facts})


def ended(at: float, **facts: Any) -> Known:
    return old(**{"state": State.ENDED, "started": True, "ended": at, **facts})


def new(**facts: Any) -> Known:
    """Return a later launch, of the same peer process."""
    return Known(**{"run": "new", "job": "cc-new", "since": CAME + 1, "peer": "p", **facts})


def started(seconds: float, boot: str = "b") -> Start:
    """Return the start of a `run`, by the kernel's clock."""
    return Start(boot, int(seconds * TICKS))


SOON = CAME + 0.1
LATER = CAME + END_NEWS + 0.1
DUE = CAME + 2.0 + END_MARGIN

CASES: dict[str, tuple[list[Known], float, Decision]] = {
    # Nothing in the way.
    "nothing else is known": ([], SOON, Create()),
    "the old one had ended before": ([ended(90.0)], SOON, Create()),
    "one that waits was given up by its client": ([old(state=State.WAITING)], SOON, Create()),
    # One that still seems to run has most likely just crashed, and its node has not told yet.
    "it runs": ([running()], SOON, Wait(CAME + END_NEWS)),
    "it crashed: its node tells in time": ([ended(CAME + 1.2)], CAME + 1.2, Create()),
    "it runs on, so it had not crashed": ([running(claimed=10.0)], LATER, Replace(OLD)),
    "it runs on without a client": ([running()], LATER, Replace(OLD)),
    "it was told to end before, so it had not crashed": ([running(deleting=True, told=99.0, pod_told=True)], SOON,
        Wait(99.0 + 2.0 + END_MARGIN, "cc-old")),
    # One whose container has not started.
    "it is pending": ([pending(on_its_way=False)], SOON, Replace(OLD)),
    "its Job was asked for, and nothing has been seen": ([old(state=State.CREATING, pod="")], SOON, Replace(OLD)),
    "its client waits, without a Job, for longer than the peer's patience": (
        [old(state=State.WAITING, claimed=10.0)], SOON, Replace(OLD)),
    "its client waits, and so does the peer: it has dropped both": (
        [old(state=State.WAITING, since=99.0, claimed=99.0)], SOON, Yield(DROPPED_TOGETHER, OLD)),
    "the same with a Job": ([pending(since=99.0, claimed=99.0)], SOON, Yield(DROPPED_TOGETHER, OLD)),
    "another process of the peer waited for it": (
        [pending(peer="q", since=99.0, claimed=99.0)], SOON, Replace(OLD)),
    "it is known to be dropped, however long ago": (
        [old(state=State.WAITING, claimed=10.0, dropped=True)], SOON, Yield(DROPPED_TOGETHER, OLD)),
    "a newer launch waits, after the peer's patience": (
        [new(since=CAME + 6, claimed=CAME + 6)], CAME + 7, Yield(LAUNCHED_AGAIN)),
    "a newer launch has its chaincode": (
        [new(since=CAME + 6, claimed=CAME + 6, state=State.RUNNING, started=True)], CAME + 9, Yield(LAUNCHED_AGAIN)),
    "a newer launch is over": (
        [new(since=CAME + 6, claimed=CAME + 6, state=State.ENDED, started=True, ended=CAME + 7, peer="q")], CAME + 9,
        Create()),
    "a newer launch waits, and so does the peer for this one: it has dropped both": (
        [new(since=CAME + 1, claimed=CAME + 1)], CAME + 2, Yield(DROPPED_TOGETHER, frozenset({"new"}))),
    # Waiting for the end.
    "its deletion is not accepted yet": ([replaced(told=None, pod_told=False)], LATER, Wait(float("inf"), "cc-old")),
    "and the API says why": (
        [replaced(told=None, deletion_error="cannot delete jobs.batch: no")], LATER,
        Wait(float("inf"), "cannot delete jobs.batch: no")),
    "it is told to end": ([replaced()], LATER, Wait(DUE, "cc-old")),
    "its pod has a grace of its own": ([replaced(grace=30.0)], LATER, Wait(CAME + 30.0 + END_MARGIN, "cc-old")),
    "its time is over: the watch may be silent": ([replaced()], DUE, Look(OLD)),
    "its time is over, and the API still has it": ([replaced(confirmed=DUE)], DUE, GiveUp(OLD)),
    "and nothing has told its pod to end": (
        [replaced(confirmed=DUE, pod_told=False)], DUE,
        Wait(DUE + END_MARGIN, "pod cc-old-x is not being deleted: delete it, or check"
             " that kube-controller-manager is running")),
    "a pod whose Job is gone, told by nobody": (
        [running(peer="q", has_job=False)], LATER, Wait(DUE, "cc-old")),
    "no pod is known: its creation may be carried out late": (
        [replaced(pod="", state=State.PENDING, started=False)], LATER, Wait(CAME + 2.0 + LATE_CREATION, "cc-old")),
    "and then it is asked for": (
        [replaced(pod="", state=State.PENDING, started=False)], CAME + 2.0 + LATE_CREATION, Look(OLD)),
    "it was given up for an earlier launch": ([replaced(given_up=True)], LATER, Create()),
    "of two, the slower one is waited for": (
        [replaced(), replaced(run="older", job="cc-older", grace=30.0)], DUE,
        Wait(CAME + 30.0 + END_MARGIN, "cc-old, cc-older")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_done(case: str) -> None:
    others, now, decision = CASES[case]
    assert decide(ME, others, now, peer_patience=PATIENCE) == decision


DROPS: dict[str, tuple[Known, Known, float, bool]] = {
    "it runs, and may have crashed": (ME, running(), SOON, False),
    "it runs on: its stream was open": (ME, running(), LATER, True),
    "it runs for a process of the peer that is no more": (ME, running(peer="q"), LATER, False),
    "it never ran": (ME, pending(), LATER, False),
    "it had ended before": (ME, ended(99.0), LATER, False),
    "it had been told to end, and ended just when the launch came": (ME, ended(CAME, told=99.0), LATER, False),
    "the news of its end came soon: a crash": (ME, ended(CAME + 1.2), LATER, False),
    "its end came too late for a crash": (ME, ended(CAME + CRASH_NEWS + 0.1), LATER, True),
    "it was told to end after the launch": (ME, ended(CAME + 0.3, told=CAME + 0.1), LATER, True),
    "it was told to end before, and ended after": (ME, ended(CAME + 0.3, told=99.0), SOON, True),
    "it is told to end": (ME, running(told=99.0), SOON, True),
    "it came up while it was being replaced": (ME, replaced(), LATER, True),
    "without TLS, its `run` is connected": (PLAIN, running(peer="", claimed=10.0), LATER, True),
    "without TLS, its `run` is dead, and so its peer": (PLAIN, running(peer=""), LATER, False),
    "without TLS, the dead one is replaced": (PLAIN, replaced(peer=""), LATER, False),
    "without TLS, the dead one has been replaced": (
        PLAIN, ended(CAME + 3, peer="", told=CAME + 2, deleting=True, replaced=True), LATER, False),
    "without TLS, its `run` was there until just now": (PLAIN, running(peer="", deleting=True), SOON, True),
    "without TLS, it ended too late for a crash": (PLAIN, ended(CAME + CRASH_NEWS + 0.1, peer=""), LATER, True),
    "a peer that has got TLS since": (ME, running(peer="", claimed=10.0), LATER, False),
}  # fmt: skip


@pytest.mark.parametrize("case", DROPS)
def test_whether_its_end_drops_the_launch(case: str) -> None:
    me, other, now, drops = DROPS[case]
    assert is_dropped(me, [other], now) is drops


def test_a_dropped_launch_ends_when_what_it_was_dropped_for_has_ended() -> None:
    dropped = replace(ME, dropped=True)
    assert decide(dropped, [running()], LATER, peer_patience=PATIENCE) == Replace(OLD)
    assert decide(dropped, [replaced()], LATER, peer_patience=PATIENCE) == Wait(DUE, "cc-old")
    over = ended(LATER, deleting=True, replaced=True)
    assert decide(dropped, [over], LATER, peer_patience=PATIENCE) == Yield(DROPPED)
    assert decide(ME, [over], LATER, peer_patience=PATIENCE) == Yield(DROPPED), "though nobody has noted it yet"
    assert decide(dropped, [], LATER, peer_patience=PATIENCE) == Yield(DROPPED), "though nothing else is known of it"


class TestOneThatComesBackDropped:
    """Its daemon has died meanwhile. What runs by now may be a later launch's."""

    def decide(self, *others: Known, now: float = LATER) -> Decision:
        return decide(replace(ME, dropped=True), others, now, peer_patience=PATIENCE, came_dropped=True)

    def test_it_ends_nobody(self) -> None:
        assert self.decide(running(claimed=90.0), pending()) == Yield(DROPPED)

    def test_it_ends_together_with_what_is_ending(self) -> None:
        assert self.decide(replaced()) == Wait(DUE, "cc-old")
        assert self.decide(replaced(), now=DUE) == Yield(DROPPED)


class TestOneThatComesLate:
    """Its `run` was started before that of another launch, whose first request has come before its own."""

    def decide(
        self, *others: Known, now: float = SOON, may_reuse: bool = False, start: Start | None = None
    ) -> Decision:
        me = replace(ME, start=start or started(50))
        return decide(me, others, now, peer_patience=PATIENCE, may_reuse=may_reuse)

    def test_it_ends_nobody_that_is_later(self) -> None:
        later = started(80)
        assert self.decide(running(start=later, claimed=10.0), now=LATER) == Yield(LAUNCHED_AGAIN)
        assert self.decide(running(start=later), now=LATER) == Yield(LAUNCHED_AGAIN)
        assert self.decide(pending(start=later, claimed=99.0)) == Yield(LAUNCHED_AGAIN)
        assert self.decide(old(start=later, claimed=99.0)) == Yield(LAUNCHED_AGAIN)

    def test_a_moment_tells(self) -> None:
        later = started(50.02)
        assert self.decide(running(start=later, claimed=10.0), now=LATER) == Yield(LAUNCHED_AGAIN)
        assert self.decide(old(start=later, since=CAME, claimed=CAME, dropped=True)) == Yield(DROPPED_TOGETHER, OLD)
        dropped = replace(ME, start=started(50), dropped=True)
        far = new(start=later, since=CAME + 0.1, claimed=CAME + 0.1)
        assert decide(dropped, [far], SOON, peer_patience=0.0) == Yield(DROPPED_TOGETHER, frozenset({"new"}))
        assert decide(dropped, [replace(far, start=None)], SOON, peer_patience=0.0) == Yield(
            DROPPED_TOGETHER, frozenset({"new"})
        )

    def test_nor_does_it_begin_where_the_later_one_is_over(self) -> None:
        assert self.decide(ended(90.0, start=started(80))) == Yield(LAUNCHED_AGAIN)
        assert self.decide(replaced(start=started(80)), now=LATER) == Yield(LAUNCHED_AGAIN)

    def test_nor_does_it_take_the_later_ones_job(self) -> None:
        assert self.decide(pending(start=started(80)), may_reuse=True) == Yield(LAUNCHED_AGAIN)

    def test_it_ends_together_with_one_that_the_peer_has_launched_within_its_patience(self) -> None:
        assert self.decide(old(start=started(54), claimed=10.0)) == Yield(DROPPED_TOGETHER, OLD)
        assert self.decide(pending(start=started(54), claimed=10.0)) == Yield(DROPPED_TOGETHER, OLD)
        assert self.decide(running(start=started(54), claimed=10.0)) == Yield(LAUNCHED_AGAIN)

    def test_what_is_earlier_is_replaced_though_it_has_come_later(self) -> None:
        assert self.decide(new(start=started(40), claimed=CAME + 1), now=CAME + 2) == Replace(frozenset({"new"}))

    def test_patience_counts_from_launch_to_launch(self) -> None:
        """Since when a client is connected tells less: it comes again to each daemon."""
        assert self.decide(pending(start=started(40), claimed=99.0, on_its_way=False)) == Replace(OLD)
        assert self.decide(pending(start=started(46), claimed=10.0)) == Yield(DROPPED_TOGETHER, OLD)

    @pytest.mark.parametrize("theirs", [None, started(50), started(80, "another boot")], ids=["none", "same", "boot"])
    def test_where_the_starts_do_not_tell_the_first_requests_do(self, theirs: Start | None) -> None:
        assert self.decide(running(start=theirs, claimed=10.0), now=LATER) == Replace(OLD)
        assert self.decide(new(start=theirs, claimed=CAME + 6, since=CAME + 6), now=CAME + 7) == Yield(LAUNCHED_AGAIN)


class TestReuse:
    """A peer that has given up a slow start asks again, and the pod is still on its way."""

    def decide(self, *others: Known, now: float = SOON) -> Decision:
        return decide(ME, others, now, peer_patience=PATIENCE, may_reuse=True)

    def test_its_job_is_taken(self) -> None:
        assert self.decide(pending()) == Reuse("old")

    def test_to_the_last_second_of_its_certificate(self) -> None:
        assert self.decide(pending(since=SOON - REUSABLE)) == Reuse("old")

    def test_also_from_a_client_that_the_peer_has_given_up(self) -> None:
        assert self.decide(pending(claimed=10.0)) == Reuse("old")

    @pytest.mark.parametrize(
        "facts",
        [
            {"reuse_key": "image 2"},
            {"reuse_key": None},
            {"on_its_way": False},
            {"deleting": True, "told": 99.0, "reuse_key": None},
            {"since": SOON - REUSABLE - 1},
        ],
        ids=["another image", "another daemon's", "refused", "being deleted", "an old certificate"],
    )
    def test_or_not(self, facts: dict[str, Any]) -> None:
        assert not isinstance(self.decide(pending(**facts)), Reuse)

    def test_not_while_the_peer_waits_for_it(self) -> None:
        assert self.decide(pending(since=99.0, claimed=99.0)) == Yield(DROPPED_TOGETHER, OLD)

    def test_only_when_new(self) -> None:
        assert decide(ME, [pending()], SOON, peer_patience=PATIENCE) == Replace(OLD)


class TestUnknownIsNotEnded:
    """What no watch tells is no fact."""

    def decide(self, *others: Known, now: float = LATER) -> Decision:
        return decide(ME, others, now, peer_patience=PATIENCE, watch_error="cannot watch pods: gone")

    def test_an_end_that_nobody_can_see_is_waited_for(self) -> None:
        assert self.decide(replaced(), now=DUE) == Wait(DUE + END_MARGIN, "cannot watch pods: gone")

    @pytest.mark.parametrize("watch_error", ["", "cannot watch pods: gone"])
    def test_a_job_that_is_over_without_a_known_pod_is_asked_for(self, watch_error: str) -> None:
        """A watch that is late or silent reports no error."""
        others = [ended(90.0, certain=False)]
        assert decide(ME, others, LATER, peer_patience=PATIENCE, watch_error=watch_error) == Look(OLD)
        assert decide(ME, [ended(90.0)], LATER, peer_patience=PATIENCE, watch_error=watch_error) == Create()


def test_what_is_known_is_told_in_short() -> None:
    known = Known(run="a" * 64, job="j", since=0.0, state=State.RUNNING)
    assert known.in_short == "running"
    more = replace(known, claimed=1.0, told=2.0, deleting=True, dropped=True, given_up=True)
    assert more.in_short == "running, claimed, told to end, deleting, dropped, given up"
