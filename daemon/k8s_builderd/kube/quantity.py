"""Kubernetes' quantities, such as `250m` of a processor or `64Mi` of memory. Pure.

The grammar is that of apimachinery's `resource.Quantity`.
"""

import re
from decimal import Decimal

_FORM = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
)
_FACTORS = {suffix: Decimal(1000) ** power for power, suffix in enumerate("num", start=-3)}
_FACTORS |= {suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)}
_FACTORS |= {f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)}


def parse_quantity(text: str) -> Decimal:
    """Return what a quantity stands for.

    :raises ValueError: if it is none.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(f"must be a Kubernetes quantity such as 250m, 0.5, 64Mi or 1Gi; it is {text!a}")
    number = Decimal(match["number"])
    if match["suffix"]:
        return number * _FACTORS[match["suffix"]]
    return number.scaleb(int(match["exponent"] or 0))
