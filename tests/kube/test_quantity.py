"""Quantities mean what they mean to Kubernetes."""

from decimal import Decimal

import pytest

from k8s_builderd.kube.quantity import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("1", "1"),
        ("007", "7"),
        ("1.", "1"),
        (".5", "0.5"),
        ("+1.5", "1.5"),
        ("-1", "-1"),
        ("100m", "0.1"),
        ("2n", "2e-9"),
        ("3u", "3e-6"),
        ("1k", "1000"),
        ("1.5M", "1500000"),
        ("1G", "1000000000"),
        ("1T", "1e12"),
        ("1P", "1e15"),
        ("1E", "1e18"),
        ("1Ki", "1024"),
        ("64Mi", "67108864"),
        ("1.5Gi", "1610612736"),
        ("1Ti", str(1024**4)),
        ("1Pi", str(1024**5)),
        ("1Ei", str(1024**6)),
        ("1e3", "1000"),
        ("12E-1", "1.2"),
        ("1e+3", "1000"),
    ],
)
def test_a_quantity_is_read(text: str, number: str) -> None:
    assert parse_quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text",
    ["", "m", "1MB", "1mi", "1ki", "1K", "64 Mi", " 1", "1\n", "1,5", "1.2.3", "e3", "1e", "0x10", "+", "\u0661"],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be a Kubernetes quantity such as 250m"):
        parse_quantity(text)
