"""Where the four programs are that the peer calls."""

import sys
from importlib.util import find_spec
from pathlib import Path

from k8s_builderd.errors import BuilderError

NAMES = ("detect", "build", "release", "run")

# What client/bin has in a checkout, for an installation that has the client's package only.
_PROGRAM = """#!/bin/sh
''':'
exec "{python}" -I -S "$0" "$@"
'''
import os
import sys

sys.path.insert(0, {packages!r})
from k8s_builder_client.__main__ import main

os._exit(main(sys.argv, os.environb))
"""


class ProgramsMissing(BuilderError):
    """Raised when the client is not installed."""


def builder_location(directory: Path) -> Path:
    """Return the directory whose `bin` holds the four programs: the checkout's, or `directory`, where they are made.

    Raises ProgramsMissing or OSError.
    """
    client = find_spec("k8s_builder_client")
    if client is None or client.origin is None:
        raise ProgramsMissing("The package k8s_builder_client is not installed beside k8s_builderd")
    packages = Path(client.origin).parents[1]
    if all((packages / "bin" / name).is_file() for name in NAMES):
        return packages
    programs = directory / "bin"
    programs.mkdir(parents=True)
    for name in NAMES:
        (programs / name).write_text(_PROGRAM.format(python=sys.executable, packages=str(packages)))
        (programs / name).chmod(0o755)
    return directory
