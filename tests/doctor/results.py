"""What the tests of the doctor share."""

from collections.abc import Iterable

from k8s_builder.doctor.result import Result


def told(results: Iterable[Result], check: str) -> list[tuple[str, str, str]]:
    """Return status, what was seen and remedy of all results of one check."""
    return [(each.status.value, each.seen, each.remedy) for each in results if each.check == check]
