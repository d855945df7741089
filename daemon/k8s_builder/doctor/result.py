"""What a check has found."""

from enum import StrEnum

from msgspec import Struct


class Status(StrEnum):
    """How a check has come out."""

    OK = "ok"
    WARNING = "warning"
    """Works, or may work, but not as it should."""
    FAILURE = "failure"
    """Chaincode cannot be launched, or not by everybody who should."""
    SKIPPED = "skipped"
    """Nobody could look."""


class Result(Struct, frozen=True):
    """One line of the doctor. No key and no token is in it."""

    check: str
    """The stable name of the check (docs/doctor.md); some have several results."""
    status: Status
    seen: str
    remedy: str = ""


def ok(check: str, seen: str) -> Result:
    """Return that all is well."""
    return Result(check, Status.OK, seen)


def warning(check: str, seen: str, remedy: str) -> Result:
    """Return what may go wrong."""
    return Result(check, Status.WARNING, seen, remedy)


def failure(check: str, seen: str, remedy: str) -> Result:
    """Return what goes wrong."""
    return Result(check, Status.FAILURE, seen, remedy)


def skipped(check: str, seen: str, remedy: str = "") -> Result:
    """Return why nobody could look."""
    return Result(check, Status.SKIPPED, seen, remedy)
