"""Tables as kubectl prints them, from what the daemon tells. Pure."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

Chaincode = Mapping[str, Any]
"""One launch, as docs/operations.md describes it under `--json`."""

HASH_LENGTH = 12
_GAP = "   "
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def table(rows: Iterable[Iterable[str]]) -> list[str]:
    """Return lines with aligned columns, the last one as it is."""
    cells = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [_GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def chaincodes(
    document: Mapping[str, Any], before: Mapping[str, Any] | None = None, *, rates: bool = False
) -> list[str]:
    """Return the table of all chaincodes.

    :param before: an earlier document, from which the rates are taken.
    :param rates: whether there are columns for them.
    """
    if not document["chaincodes"]:
        return ["No chaincode."]
    now = _time(document["daemon"]["now"])
    heading = ["LABEL", "PACKAGE", "STATE", "SINCE", "POD", "NODE", "PEER", "CLIENT", "LINES", "BYTES", "BREAKS"]
    heading[10:10] = ["LINES/S", "BYTES/S"] if rates else []
    rows = [[*heading, "LAST PROBLEM"]]
    for it in document["chaincodes"]:
        row = [
            it["label"] or "-",
            it["package_id"].rpartition(":")[2][:HASH_LENGTH],
            state(it),
            age(now, it["since"]),
            it["pod"] or "-",
            it["node"] or "-",
            it["peer_id"],
            _shown(it["client_pid"]),
            _shown(it["log_lines"]),
            size(it["log_bytes"]),
            _shown(it["log_interruptions"]),
            problem(now, it),
        ]
        row[10:10] = _rates(document, before, it) if rates else []
        rows.append([printable(cell) for cell in row])
    return table(rows)


def about(document: Mapping[str, Any]) -> str:
    """Return a line about the daemon, and what its checks say."""
    daemon = document["daemon"]
    failing = [f"{name}: {fault}" for name, fault in daemon["checks"].items() if fault]
    text = (
        f"k8s-builderd {daemon['version']}, instance {daemon['instance']}, namespace {daemon['namespace']}, up"
        f" {age(_time(daemon['now']), daemon['started'])}, {'not ready: ' + '; '.join(failing) if failing else 'ready'}"
    )
    # A daemon of before has none.
    for name, warning in daemon.get("warnings", {}).items():
        text += f", {name}: {warning}" if warning else ""
    return printable(text)


def state(it: Chaincode) -> str:
    """Return the state of a chaincode, with what is about to change it."""
    if (deletion := it["deletion"]) is not None:
        return f"{it['state']} (deleting: {deletion['reason']})"
    if (unclaimed := it["unclaimed"]) is not None:
        return f"{it['state']} ({unclaimed['reason']}, {unclaimed['seconds']:.0f}s left)"
    return str(it["state"])


def problem(now: datetime, it: Chaincode) -> str:
    """Return what went wrong last, and how long ago."""
    deletion, last = it["deletion"], it["last_problem"]
    if deletion is not None and deletion["error"]:
        return f"not deleted yet: {deletion['error']}"
    return f"{age(now, last['at'])} ago: {last['text']}" if last is not None else "-"


def age(now: datetime, since: str) -> str:
    """Return how long ago something was, as kubectl has it: `45s`, `12m`, `3h10m`, `2d4h`."""
    seconds = max(0, int((now - _time(since)).total_seconds()))  # a node's clock may be ahead
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 2:
        return f"{seconds}s"
    if hours < 2:
        return f"{minutes}m"
    if days < 2:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"


def size(number: float | None) -> str:
    """Return a number of bytes."""
    if number is None:
        return "-"
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 or number >= 100 else f"{number:.1f} {_UNITS[unit]}"


def printable(text: str) -> str:
    """Return the text without what would write to a terminal; it may be the words of somebody else's webhook."""
    return "".join(it if it.isprintable() else " " for it in text)


def _rates(document: Mapping[str, Any], before: Mapping[str, Any] | None, it: Chaincode) -> list[str]:
    known = {one["job"]: one for one in before["chaincodes"]} if before is not None else {}
    earlier = known.get(it["job"])
    if before is None or earlier is None or it["log_lines"] is None or earlier["log_lines"] is None:
        return ["-", "-"]
    seconds = (_time(document["daemon"]["now"]) - _time(before["daemon"]["now"])).total_seconds()
    lines, amount = (it[name] - earlier[name] for name in ("log_lines", "log_bytes"))
    if seconds <= 0 or lines < 0:  # another daemon, or its clock was set back
        return ["-", "-"]
    return [f"{lines / seconds:.1f}", f"{size(amount / seconds)}/s"]


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)
