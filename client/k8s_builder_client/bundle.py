"""All of the package's byte code in one file, because to find and read each module's own takes longer than to run it.

`python3 bundle.py` writes it beside the modules' own byte code, for the interpreter that runs it. The four programs
read it. Where it is missing, or another interpreter's, they import the modules as everybody does.

The file is the interpreter's magic number, and in marshal's form the code of this module and that of all modules, each
in marshal's form again: what is never imported costs next to nothing.
"""

import sys
from marshal import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
else:
    from _frozen_importlib import ModuleSpec  # the same, without the modules around it

PACKAGE = "k8s_builder_client"


class Bundle:
    """Finds and loads the modules of the package, as `sys.meta_path` wants it."""

    def __init__(self, codes: "dict[str, bytes]", directory: str) -> None:
        self._codes = codes
        self._directory = directory

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """The module's spec, or None for modules of others."""
        if name not in self._codes:
            return None
        spec = ModuleSpec(name, self)  # type: ignore[arg-type] # a loader is what has these two methods
        if name == PACKAGE:
            spec.submodule_search_locations = [self._directory]
        return spec

    def create_module(self, _spec: "ModuleSpec") -> None:
        """Nothing: a module as usual."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the module's code in it."""
        exec(loads(self._codes[module.__name__]), module.__dict__)  # noqa: S102, S302 - written below


def install(codes: "dict[str, bytes]", directory: str) -> None:
    """Have the modules of the package come from here."""
    sys.meta_path.insert(0, Bundle(codes, directory))


def write(directory: str) -> None:
    """Write the bundle of the package in `directory` for this interpreter, unless there is one. Raises OSError."""
    import importlib.util
    import os

    cache = os.path.join(directory, "__pycache__")
    path = os.path.join(cache, "bundle.%s" % sys.implementation.cache_tag)
    if os.path.exists(path):
        return
    codes = {}
    for file in sorted(os.listdir(directory)):
        name, extension = os.path.splitext(file)
        if extension == ".py":
            with open(os.path.join(directory, file), "rb") as source:
                code = compile(source.read(), "%s/%s" % (PACKAGE, file), "exec", dont_inherit=True)
            codes[PACKAGE if name == "__init__" else "%s.%s" % (PACKAGE, name)] = dumps(code)
    os.makedirs(cache, exist_ok=True)
    unfinished = "%s.%d" % (path, os.getpid())
    with open(unfinished, "wb") as bundle:
        bundle.write(importlib.util.MAGIC_NUMBER + dumps((loads(codes[PACKAGE + ".bundle"]), codes)))  # noqa: S302
    os.replace(unfinished, path)


if __name__ == "__main__":
    write(sys.argv[1])
