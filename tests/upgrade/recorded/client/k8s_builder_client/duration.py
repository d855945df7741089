"""Go's duration strings (`1h15m30.918s`), as the other FABRIC_K8S_BUILDER_ variables have them. Pure."""

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # micro sign
    "\u03bcs": 1e-6,  # Greek mu
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_DIGITS = "0123456789"


def seconds(text: str) -> float:
    """Parse a duration of zero or more into seconds. Raises ValueError, in the words of Go's own parser."""
    rest = text[1:] if text[:1] in ("+", "-") else text
    invalid = 'time: invalid duration "%s"' % text
    if rest == "0":
        return 0.0
    if not rest:
        raise ValueError(invalid)
    total = 0.0
    while rest:
        number = _leading(rest, _DIGITS + ".")
        if number.count(".") > 1 or number in ("", "."):
            raise ValueError(invalid)
        rest = rest[len(number) :]
        unit = rest[: _unit_length(rest)]
        if not unit:
            raise ValueError('time: missing unit in duration "%s"' % text)
        if unit not in _SECONDS:
            raise ValueError('time: unknown unit "%s" in duration "%s"' % (unit, text))
        total += float(number) * _SECONDS[unit]
        rest = rest[len(unit) :]
    if text[0] == "-":
        raise ValueError('a negative duration "%s"' % text)
    if total > 9e9:  # Go counts nanoseconds in 63 bits
        raise ValueError(invalid)
    return total


def _leading(text: str, alphabet: str) -> str:
    return text[: len(text) - len(text.lstrip(alphabet))]


def _unit_length(text: str) -> int:
    for index, character in enumerate(text):
        if character in _DIGITS + ".":
            return index
    return len(text)
