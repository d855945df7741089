"""Imports from kubernetes_asyncio what we use of it, without its generated modules.

`kubernetes_asyncio.client` imports every API and model of Kubernetes when it is imported: with 36.1 that takes 71 MB
and 0.37 s of CPU instead of 37 MB and 0.19 s. We use its configuration and its loaders only. So a package that holds
just those takes its place while they are imported, and is taken away again: whoever imports kubernetes_asyncio before
or after that finds the whole of it. Where any of this fails, the whole of it is what we use.
"""

import importlib
import os
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_PACKAGE = "kubernetes_asyncio"


@cache
def load() -> tuple[Any, Any]:
    """Return the modules `kubernetes_asyncio.client.configuration` and `kubernetes_asyncio.config`.

    :raises ImportError: if kubernetes_asyncio is not installed.
    """
    _have_a_home()
    if not _imported():
        try:
            # Its layout is its own affair, and may be another one in the next version.
            with suppress(Exception):
                return _without_models()
        finally:
            for name in _imported():
                del sys.modules[name]
    return _both()


def _have_a_home() -> None:
    """Set HOME for a user that the system does not know: without it kubernetes_asyncio cannot be imported at all."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"  # noqa: TID251 - not a setting; what container runtimes do in this case


def _both() -> tuple[Any, Any]:
    return (
        importlib.import_module(f"{_PACKAGE}.client.configuration"),
        importlib.import_module(f"{_PACKAGE}.config"),
    )


def _without_models() -> tuple[Any, Any]:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError(f"{_PACKAGE} is not installed")
    (root,) = spec.submodule_search_locations
    _stand_in(_PACKAGE, root)
    client: Any = _stand_in(f"{_PACKAGE}.client", f"{root}/client")
    client.Configuration = importlib.import_module(f"{_PACKAGE}.client.configuration").Configuration
    client.ApiClient = object  # named in annotations, and by functions that we do not call
    client.Configuration()
    return _both()


def _stand_in(name: str, path: str) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
    return module


def _imported() -> list[str]:
    return [name for name in sys.modules if name == _PACKAGE or name.startswith(f"{_PACKAGE}.")]
