"""What a launch is made from."""

import pytest

from k8s_builderd.fabric.plan import TICKS, Start


def test_the_start_of_a_run_is_read_as_its_client_says_it() -> None:
    assert Start.parse("723bb541-b1e6-4350-b3b5-b8a87dafdbd9 180046") == Start(
        "723bb541-b1e6-4350-b3b5-b8a87dafdbd9", 180046
    )


@pytest.mark.parametrize(
    "text", ["", "723bb541", "723bb541 ", " 5", "723bb541 -5", "723bb541 5.5", "723BB541 5", "a 5 6"]
)
def test_anything_else_says_nothing(text: str) -> None:
    assert Start.parse(text) is None


def test_two_starts_of_one_boot_are_so_many_seconds_apart() -> None:
    one, other = Start("b", 5 * TICKS), Start("b", 7 * TICKS)
    assert (one.until(other), other.until(one), one.until(one)) == (2.0, -2.0, 0.0)
    assert one.until(Start("c", 7 * TICKS)) is None
