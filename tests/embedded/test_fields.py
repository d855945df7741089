"""The table of fields is that of Kubernetes' API, as its client library has it."""

import importlib
import importlib.metadata
import re
from typing import Any

import pytest

from k8s_builder_lab.embedded.fields import TYPES

ROOTS = ("V1Job", "V1Pod", "V1Secret")


def generated() -> dict[str, dict[str, str]]:
    """Return all types that these objects are made of: each field's name, and its type as the table writes it."""
    models: Any = importlib.import_module("kubernetes_asyncio.client.models")
    found: dict[str, dict[str, str]] = {}
    wanted = [*ROOTS]
    while wanted:
        name = wanted.pop()
        if _short(name) in found:
            continue
        model = getattr(models, name)
        fields = {model.attribute_map[attribute]: kind for attribute, kind in model.openapi_types.items()}
        found[_short(name)] = {field: _written(kind) for field, kind in fields.items()}
        wanted += [part for kind in fields.values() for part in re.findall(r"\w+", kind) if hasattr(models, part)]
    return found


def _written(kind: str) -> str:
    kind = re.sub(r"list\[(.*)\]", r"[\1]", kind)
    kind = re.sub(r"dict\(str, (.*)\)", r"{\1}", kind)
    return re.sub(r"\w+", lambda word: _short(word[0]), kind)


def _short(name: str) -> str:
    return re.sub("^(Core)?V1(?=[A-Z])", "", name)


def test_the_table_is_what_the_client_library_has() -> None:
    if not importlib.metadata.version("kubernetes_asyncio").startswith("36."):
        pytest.skip("the table is of Kubernetes 1.36")
    assert generated() == TYPES
