"""Waiting times grow to a cap, never leave their bounds, and are spread."""

from itertools import islice
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.backoff import Allowance, delays


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


@pytest.mark.parametrize(
    ("asked_at", "taken"),
    [
        ([0, 0, 0, 0], [True, True, False, False]),
        ([100, 100, 100], [True, True, False]),
        ([0, 0, 9, 10, 11], [True, True, False, True, False]),
        ([0, 0, 4, 8, 12, 16, 20], [True, True, False, False, True, False, True]),
        ([0, 0, 1000, 1000, 1000], [True, True, True, True, False]),
    ],
    ids=["at once", "late", "one more in time", "asked for often", "no more than at once"],
)
def test_so_many_are_allowed_at_once_and_then_one_in_so_much_time(asked_at: list[float], taken: list[bool]) -> None:
    allowance = Allowance(2, 10.0, now=0)
    assert [allowance.take(now) for now in asked_at] == taken
