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

FOUND: Sequence[tuple[Setting, int, Sequence[Act]]] = ()
"""Plays that came out wrong once."""


@pytest.mark.parametrize(("setting", "seed", "acts"), FOUND)
def test_what_came_out_wrong_once(setting: Setting, seed: int, acts: Sequence[Act]) -> None:
    play = Play(setting, seed)
    try:
        play.play(acts)
    finally:
        play.close()
