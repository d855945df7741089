"""Imports from kubernetes_asyncio what we use of it, without its 1,500 generated modules.

`kubernetes_asyncio.client` imports every API and model of Kubernetes when it is imported: 3.4 s of CPU and 113 MB.
We use its configuration and its loaders only, so a package object that holds just those takes its place
before the loaders ask for it. Where somebody has imported the real one already, that one is used.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def _stand_in(name: str, path: list[str]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = path
    sys.modules[name] = module
    return module


def load() -> tuple[Any, Any]:
    """Return the modules `kubernetes_asyncio.client.configuration` and `kubernetes_asyncio.config`."""
    if "kubernetes_asyncio" not in sys.modules:
        spec = find_spec("kubernetes_asyncio")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("kubernetes_asyncio is not installed")
        (root,) = spec.submodule_search_locations
        _stand_in("kubernetes_asyncio", [root])
        client = _stand_in("kubernetes_asyncio.client", [f"{root}/client"])
        configuration = importlib.import_module("kubernetes_asyncio.client.configuration")
        vars(client)["Configuration"] = configuration.Configuration
        vars(client)["ApiClient"] = object  # named in annotations only
    return (
        importlib.import_module("kubernetes_asyncio.client.configuration"),
        importlib.import_module("kubernetes_asyncio.config"),
    )
