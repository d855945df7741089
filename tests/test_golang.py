"""Durations and truth values are read, and refused, as Go does. The expected texts are Go's own."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.golang import parse_bool, parse_duration

deterministic = settings(derandomize=True, deadline=None, database=None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("+0", 0),
        ("5s", 5),
        ("+5s", 5),
        ("-5s", -5),
        ("3m40s", 220),
        ("1h", 3600),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("1.s", 1),
        (".5s", 0.5),
        ("1h15m30.918273645s", 4530.918273645),
        ("1us", 1e-6),
        ("1µs", 1e-6),  # noqa: RUF001
        ("1μs", 1e-6),
        ("9ns", 9e-9),
        ("0.9ns", 0),
        ("1s1s1s", 3),
        ("0.100000000000000000000h", 360),
        ("0.3333333333333333333h", 1200),
        ("00000000000000000000000000000001s", 1),
        ("9223372036854775807ns", 9223372036.854775807),
        ("-9223372036854775808ns", -9223372036.854775808),
    ],
)
def test_a_duration_has_the_seconds_that_go_gives_it(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", 'time: invalid duration ""'),
        ("3", 'time: missing unit in duration "3"'),
        ("3m4", 'time: missing unit in duration "3m4"'),
        ("three minutes", 'time: invalid duration "three minutes"'),
        ("-", 'time: invalid duration "-"'),
        ("+", 'time: invalid duration "+"'),
        (".", 'time: invalid duration "."'),
        (".s", 'time: invalid duration ".s"'),
        ("-.", 'time: invalid duration "-."'),
        ("--1s", 'time: invalid duration "--1s"'),
        ("1.2.3s", 'time: missing unit in duration "1.2.3s"'),
        ("1 s", 'time: unknown unit " s" in duration "1 s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("1S", 'time: unknown unit "S" in duration "1S"'),
        ("1é", r'time: unknown unit "\xc3\xa9" in duration "1\xc3\xa9"'),
        ("1\x7f\n", r'time: unknown unit "' + "\x7f" + r'\x0a" in duration "1' + "\x7f" + r'\x0a"'),
        ("1\udcff", r'time: unknown unit "\xff" in duration "1\xff"'),
        ('"\\', r'time: invalid duration "\"\\"'),
        ("٣s", r'time: invalid duration "\xd9\xa3s"'),
        ("9223372036854775808ns", 'time: invalid duration "9223372036854775808ns"'),
        ("-9223372036854775809ns", 'time: invalid duration "-9223372036854775809ns"'),
        ("2562048h", 'time: invalid duration "2562048h"'),
        ("9223372036s1000000000ns", 'time: invalid duration "9223372036s1000000000ns"'),
        ("9" * 5000 + "s", f'time: invalid duration "{"9" * 5000}s"'),
    ],
)
def test_what_is_no_duration_is_refused_in_gos_words(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_gos_words_for_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_gos_words_for_false(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("x", '"x"'),
        ("tRUE", '"tRUE"'),
        ("yes\n", r'"yes\n"'),
        ('"', r'"\""'),
        ("é", '"é"'),
        ("\x01\x7f\u200b\U000e0001", r'"\x01\x7f\u200b\U000e0001"'),
        ("\udcff", r'"\xff"'),
    ],
)
def test_other_words_are_refused_in_gos_words(text: str, quoted: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'strconv.ParseBool: parsing {quoted}: invalid syntax')}$"):
        parse_bool(text)


@deterministic
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000), st.sampled_from([("h", 3600), ("m", 60), ("s", 1), ("ms", 1e-3), ("us", 1e-6)])
        ),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_a_duration_is_the_sum_of_its_terms(terms: list[tuple[int, tuple[str, float]]], negative: bool) -> None:
    text = ("-" if negative else "") + "".join(f"{number}{unit}" for number, (unit, _) in terms)
    total = sum(number * scale for number, (_, scale) in terms)
    assert math.isclose(parse_duration(text), -total if negative else total, rel_tol=1e-12, abs_tol=1e-9)


@deterministic
@given(st.one_of(st.text(), st.text("0123456789.+-smhnu\N{MICRO SIGN} ", max_size=12)))
def test_any_text_is_a_duration_or_a_value_error_of_one_printable_line(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        seconds, said = 0.0, str(error)
    else:
        said = "time: "
    assert math.isfinite(seconds)
    assert said.startswith("time: ")
    assert "\n" not in said
    assert said.isascii()
