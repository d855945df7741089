"""Waiting times grow to a cap, never leave their bounds, and are spread."""

from itertools import islice
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.backoff import delays


@settings(derandomize=True, deadline=None)
@given(st.floats(0.01, 10), st.floats(1, 100), st.integers())
def test_each_wait_lies_in_the_upper_half_of_its_step(first: float, factor: float, seed: int) -> None:
    cap = first * factor
    step = first
    for wait in islice(delays(first, cap, Random(seed)), 40):
        assert step / 2 <= wait <= step
        step = min(cap, step * 2)
    assert step == cap


def test_two_that_fail_together_do_not_come_back_together() -> None:
    one, other = ([*islice(delays(0.1, 5, Random(seed)), 20)] for seed in (1, 2))
    assert not set(one) & set(other)


def test_it_never_ends_and_never_overflows() -> None:
    assert max(islice(delays(0.2, 5.0), 5000)) <= 5.0
