"""Reads durations and truth values as Go's standard library does, because the Go builder's users write them. Pure.

Rules and error texts: Go's `time.ParseDuration` and `strconv.ParseBool`.
"""

import re

_NANOSECONDS = {
    "ns": 1,
    "us": 1_000,
    "\N{MICRO SIGN}s": 1_000,
    "\N{GREEK SMALL LETTER MU}s": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_INT64_MAX = (1 << 63) - 1
_INT64_DIGITS = 19
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^.0-9]*)", re.DOTALL)

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration such as `3m40s`, `1.5h`, `-500ms` or `0`.

    :raises ValueError: with Go's own text, where Go refuses it; that includes what overflows
        63 bits of nanoseconds (about 292 years)
    """
    invalid = f"time: invalid duration {_quote_bytes(text)}"
    rest = text[1:] if text[:1] in {"+", "-"} else text
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(invalid)
    total = 0
    while rest:
        match = _TERM.match(rest)
        assert match is not None  # every part of it may be empty
        whole, fraction, unit = match[1], match[2] or "", match[3]
        if not (whole or fraction):
            raise ValueError(invalid)
        digits = whole.lstrip("0")
        if len(digits) > _INT64_DIGITS or int(digits or "0") > _INT64_MAX + 1:
            raise ValueError(invalid)
        if not unit:
            raise ValueError(f"time: missing unit in duration {_quote_bytes(text)}")
        if unit not in _NANOSECONDS:
            raise ValueError(f"time: unknown unit {_quote_bytes(unit)} in duration {_quote_bytes(text)}")
        total += int(digits or "0") * _NANOSECONDS[unit] + _fraction(fraction, _NANOSECONDS[unit])
        if total > _INT64_MAX + 1:
            raise ValueError(invalid)
        rest = rest[match.end() :]
    if text[0] == "-":
        return -total / 1e9
    if total > _INT64_MAX:
        raise ValueError(invalid)
    return total / 1e9


def _fraction(digits: str, unit: int) -> int:
    """Return that decimal fraction of a unit, in whole nanoseconds, rounded down."""
    significant = digits[:18]  # 18 digits always fit; what lies behind them is far below a nanosecond
    scale: int = 10 ** len(significant)
    return int(significant or "0") * unit // scale


def parse_bool(text: str) -> bool:
    """Return the truth value of one of Go's twelve words for it.

    :raises ValueError: with Go's own text, for every other word
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"strconv.ParseBool: parsing {_quote(text)}: invalid syntax")


def _quote_bytes(text: str) -> str:
    """Quote as package time does: what is not printable ASCII, byte by byte."""
    quoted = "".join(
        f"\\{char}" if char in {'"', "\\"} else char if " " <= char <= "\x7f" else _hex_bytes(char) for char in text
    )
    return f'"{quoted}"'


def _hex_bytes(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def _quote(text: str) -> str:
    """Quote as strconv does: printable characters stay, the others are escaped by code point."""

    def escaped(char: str) -> str:
        if char in {'"', "\\"}:
            return f"\\{char}"
        if char in _ESCAPES:
            return _ESCAPES[char]
        if char.isprintable():
            return char
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:  # a byte of the environment that is not UTF-8
            return f"\\x{code - 0xDC00:02x}"
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escaped, text)) + '"'
