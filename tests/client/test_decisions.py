"""The client's pure decisions: Go's durations, and when to try, to speak and to give up."""

import pytest

from k8s_builder_client import duration
from k8s_builder_client.reconnect import Reconnect


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("30s", 30),
        ("3m40s", 220),
        ("1h", 3600),
        ("500ms", 0.5),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("5.s", 5),
        ("100us", 1e-4),
        ("100\N{MICRO SIGN}s", 1e-4),
        ("100\N{GREEK SMALL LETTER MU}s", 1e-4),
        ("7ns", 7e-9),
        ("1h0m0.5s", 3600.5),
    ],
)
def test_a_go_duration_is_read(text: str, seconds: float) -> None:
    assert duration.seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("-", 'time: invalid duration "-"'),
        ("s", 'time: invalid duration "s"'),
        (".s", 'time: invalid duration ".s"'),
        ("1..5s", 'time: invalid duration "1..5s"'),
        ("three minutes", 'time: invalid duration "three minutes"'),
        ("3", 'time: missing unit in duration "3"'),
        ("3m5", 'time: missing unit in duration "3m5"'),
        ("3 s", 'time: unknown unit " s" in duration "3 s"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("\N{ARABIC-INDIC DIGIT THREE}s", 'time: invalid duration "\N{ARABIC-INDIC DIGIT THREE}s"'),
        ("999999999h", 'time: invalid duration "999999999h"'),
    ],
)
def test_anything_else_is_refused_in_gos_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^time: ") as error:
        duration.seconds(text)
    assert str(error.value) == words


def test_the_pauses_grow_to_the_longest_and_never_beyond() -> None:
    away = Reconnect(0, 30)
    pauses = []
    now = 0.0
    for _ in range(20):
        away.failed(now, "", "", 5, 1)
        pauses.append(away.retry_at - now)
        now = away.retry_at
    assert pauses[:7] == sorted(pauses[:7])
    assert 0 < pauses[0] < 0.1
    assert pauses[-10:] == pytest.approx([5] * 10)


def test_several_clients_spread_their_attempts() -> None:
    first, last = Reconnect(0, 30), Reconnect(0, 30)
    first.failed(0, "", "", 5, 0)
    last.failed(0, "", "", 5, 1)
    assert 0 < first.retry_at < last.retry_at


def test_an_absence_is_told_after_two_seconds_and_then_every_minute() -> None:
    away = Reconnect(0, 30)
    told = [tenth / 10 for tenth in range(1300) if away.tell(tenth / 10)]
    assert told == [2, 62, 122]
    assert away.end(125) == 125


def test_a_short_absence_is_not_told() -> None:
    away = Reconnect(0, 30)
    away.connected(1, "", "")
    assert away.end(1.5) is None
    away.lost(10, "", "", 5, 1)
    assert not away.tell(11.9)
    assert away.end(11.9) is None


def test_each_absence_is_told_by_itself() -> None:
    away = Reconnect(0, 30)
    assert away.tell(2)
    away.connected(3, "", "")
    assert away.end(3) == 3
    away.lost(100, "", "", 5, 1)
    assert not away.tell(101.9)
    assert away.tell(102)
    assert away.end(104) == 4


def test_short_connections_buy_no_time_and_long_ones_do() -> None:
    away = Reconnect(0, 30)
    for now in range(1, 29):
        away.connected(now, "", "")
        away.end(now)
        away.lost(now + 0.5, "", "", 5, 1)
    assert away.deadline == 30
    away.connected(29, "", "")
    away.end(29)
    away.lost(60, "", "", 5, 1)
    assert away.deadline == 90


def test_a_long_connection_that_brought_nothing_buys_no_time() -> None:
    away = Reconnect(0, 30)
    away.connected(1, "", "")
    away.lost(40, "", "", 5, 1)
    assert away.deadline == 30


def test_a_silence_is_told_at_once_and_counted_from_the_last_sign() -> None:
    away = Reconnect(0, 30)
    away.connected(1, "", "")
    away.end(1)
    away.silent(112, 100, "the daemon does not answer", "Check it")
    assert [second for second in range(112, 240) if away.tell(second)] == [112, 172, 232]
    assert away.end(240) == 140
