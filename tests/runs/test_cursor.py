"""The cursor survives its journey through a client, and nothing else passes for one."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from k8s_builderd.fabric.names import Token
from k8s_builderd.gateway.protocol import MAX_CURSOR
from k8s_builderd.kube.loglines import Position, Reader
from k8s_builderd.runs.cursor import DROPPED, Cursor

UID = "8a7d0ed9-a868-40bb-8ec3-b30001f984b1"
AT = "2026-11-23T06:56:51.123456789Z"
DIGEST = "0123456789abcdef"

uids = st.from_regex(r"[0-9A-Za-z-]{1,64}", fullmatch=True)
stamps = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(8999, 12, 31)).map(
    lambda at: at.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0") + ".000000001Z"
)
takeovers = st.fixed_dictionaries(
    {"token": st.builds(Token, st.from_regex(r"[0-9a-f]{32}", fullmatch=True)), "takeovers": st.integers(1, 10**9 - 1)}
)
positions = st.builds(
    Position,
    at=stamps,
    digest=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    alike=st.integers(0, 10**18 - 1),
    pieces=st.integers(0, 10**18 - 1),
)


@settings(derandomize=True, deadline=None)
@given(
    st.builds(Cursor, job=uids, pod=uids, position=st.none() | positions)
    | st.builds(Cursor, job=uids)
    | st.just(DROPPED),
    st.just({}) | takeovers,
)
def test_a_cursor_comes_back_as_it_went(cursor: Cursor, takeovers: dict[str, Any]) -> None:
    cursor = replace(cursor, **takeovers) if cursor.job else cursor
    text = str(cursor)
    assert Cursor.parse(text) == cursor
    assert text.isascii()
    assert len(text) <= MAX_CURSOR


@pytest.mark.parametrize(
    "at",
    [AT, "2026-11-23T06:56:51Z", "2026-11-23T06:56:51.1+02:00", "2026-11-23T06:56:51.123456789-11:30"],
)
def test_timestamps_of_any_time_zone_are_taken(at: str) -> None:
    cursor = Cursor(UID, UID, Position(at, DIGEST))
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1 ",
        f"2 {UID}",
        f"2 {'0' * 32} {UID}",
        f"2 {'0' * 32} 1",
        f"2 {'0' * 32} 0 {UID}",
        f"2 {'0' * 32} {10**9} {UID}",
        f"2 {'0' * 31} 1 {UID}",
        f"2 {'A' * 32} 1 {UID}",
        f"3 {'0' * 32} 1 {UID}",
        "dropped ",
        f"1  {UID}",
        f"1 {UID} ",
        f" 1 {UID}",
        f"1 {UID}\n",
        f"1 {UID}\x00",
        f"1 {UID} {UID} {AT}",
        f"1 {UID} {UID} {AT} {DIGEST} 1",
        f"1 {UID} {UID} {AT} {DIGEST} 1 0 0",
        f"1 {UID} {UID} {AT} {DIGEST.upper()} 1 0",
        f"1 {UID} {UID} {AT} {DIGEST} -1 0",
        f"1 {UID} {UID} {AT} {DIGEST} {'9' * 19} 0",
        f"1 {UID} {UID} 2026-13-23T06:56:51Z {DIGEST} 1 0",
        f"1 {UID} {UID} 2026-11-23T06:56:51 {DIGEST} 1 0",
        f"1 {UID} {UID} 2026-11-23T06:56:51+99:99 {DIGEST} 1 0",
        f"1 {UID} {UID} 2026-11-23T06:56:60Z {DIGEST} 1 0",
        f"1 {UID}/../x",
        f"1 {'a' * 65}",
        "1 \u0663",
    ],
    ids=ascii,
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller says it in its own words
        Cursor.parse(text)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999999Z"])
def test_a_time_at_the_end_of_the_calendar_breaks_nothing(at: str) -> None:
    """A client may send any cursor: whatever is taken for one can be read on from."""
    try:
        cursor = Cursor.parse(f"1 {UID} {UID} {at} {DIGEST} 1 0")
    except ValueError:
        return
    assert cursor.position is not None
    assert cursor.position.since
    assert not Reader(cursor.position).found


def test_digits_of_another_script_are_no_number() -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - as above
        Cursor.parse(f"1 {UID} {UID} {AT} {DIGEST} \u0663 0")


def test_a_token_is_not_shown() -> None:
    assert "0" * 32 not in repr(Cursor(UID, token=Token("0" * 32), takeovers=1))
