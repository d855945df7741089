"""A state machine draws what happens; the model says what must be true. `benchmarks/simulation.py` does it for long.

Short here: a few plays, always the same ones. What it finds by hand becomes one of the plays below.
"""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.simulation.play import Act, Play, Setting

NUMBERS = st.integers(0, 99)
SETTINGS = st.builds(
    Setting,
    sites=st.integers(1, 2),
    one_instance=st.booleans(),
    tls=st.booleans(),
    own_pod=st.booleans(),
    startup_timeout=st.sampled_from([20.0, 40.0, 300.0]),
    start_timeout=st.sampled_from(["", "15s", "2m"]),
    clock=st.sampled_from([0.0, 3.0, -3.0]),
)


class Machine(RuleBasedStateMachine):
    """Draws a play, one act after another."""

    play: Play

    @initialize(setting=SETTINGS, seed=st.integers(0, 9))
    def begin(self, setting: Setting, seed: int) -> None:
        self.play = Play(setting, seed)

    @rule(how=NUMBERS)
    def time_goes_by(self, how: int) -> None:
        self.play.act("wait", 0, 0, how)

    @rule(where=NUMBERS, which=NUMBERS, how=NUMBERS)
    def peer_is_asked(self, where: int, which: int, how: int) -> None:
        self.play.act("ask", where, which, how)

    @rule(where=NUMBERS, which=NUMBERS)
    def peer_is_asked_and_answers(self, where: int, which: int) -> None:
        self.play.act("ask_and_wait", where, which, 0)

    @rule(name=st.sampled_from(Play.names()), where=NUMBERS, which=NUMBERS, how=NUMBERS)
    def something_happens(self, name: str, where: int, which: int, how: int) -> None:
        self.play.act(name, where, which, how)

    def teardown(self) -> None:
        if hasattr(self, "play"):
            try:
                self.play.finish()
            finally:
                self.play.close()


TestMachine = Machine.TestCase
Machine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # a play says itself how to see it again, the benchmark makes it short
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

FOUND: Sequence[tuple[Setting, int, Sequence[Act]]] = (
    # The daemon ends while the rest of a log is read: nothing could be begun in its store any more.
    (
        Setting(tls=False, startup_timeout=20.0, start_timeout="2m", clock=-3.0),
        1,
        (("ask", 55, 77, 97), ("delete_pod", 13, 40, 3), ("restart_daemon", 92, 3, 67)),
    ),
    # A stop before the Jobs were listed, and then the API server goes away: its deletion never came to an end.
    (
        Setting(own_pod=False, startup_timeout=300.0, start_timeout="2m", clock=3.0),
        10252,
        (("ask", 97, 65, 10), ("restart_peer", 29, 67, 13), ("lose_api", 29, 79, 65)),
    ),
    # A `run` comes back without a cursor when its Job is gone and its pod is not.
    (
        Setting(one_instance=True, tls=False, startup_timeout=20.0, start_timeout="15s"),
        10948,
        (
            ("fail", 97, 90, 63),
            ("ask_and_wait", 88, 89, 98),
            ("freeze_run", 4, 68, 21),
            ("ask", 5, 40, 98),
            ("restart_daemon", 26, 86, 68),
            ("ask_and_wait", 67, 92, 91),
        ),
    ),
    # START_TIMEOUT while nobody can see whether the chaincode runs, which it does.
    (
        Setting(one_instance=True, own_pod=False, startup_timeout=300.0, start_timeout="15s", clock=3.0),
        11330,
        (
            ("delete_job", 44, 71, 47),
            ("lose_api", 46, 6, 83),
            ("ask_and_wait", 63, 76, 99),
            ("restart_api", 34, 57, 29),
        ),
    ),
    # A Job deleted without its pod, which no watch had told of.
    (
        Setting(sites=2, one_instance=True, startup_timeout=20.0, clock=-3.0),
        11729,
        (("ask", 22, 98, 25), ("break_streams", 65, 73, 55), ("ask_and_wait", 5, 72, 20), ("delete_job", 63, 5, 95)),
    ),
    # A `run` comes back after its grace, when the API has not accepted the deletion yet.
    (
        Setting(startup_timeout=20.0, clock=3.0),
        20929,
        (
            ("ask_and_wait", 62, 92, 16),
            ("restart_daemon", 53, 49, 22),
            ("freeze_run", 72, 42, 42),
            ("wait", 51, 96, 12),
            ("lose_api", 27, 25, 24),
        ),
    ),
    # A pod that was asked for goes while the watch is silent.
    (
        Setting(one_instance=True, startup_timeout=20.0, start_timeout="15s", clock=-3.0),
        40595,
        (
            ("wait", 34, 17, 42),
            ("break_streams", 51, 34, 37),
            ("ask_and_wait", 86, 7, 41),
            ("wait", 76, 10, 41),
            ("terminate_run", 19, 10, 49),
        ),
    ),
)
"""Plays that came out wrong once, and why."""


@pytest.mark.parametrize(("setting", "seed", "acts"), FOUND)
def test_what_came_out_wrong_once(setting: Setting, seed: int, acts: Sequence[Act]) -> None:
    play = Play(setting, seed)
    try:
        play.play(acts)
    finally:
        play.close()
