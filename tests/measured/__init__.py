"""What lets coverage be measured in the processes that tests start with an environment of their own.

`.ci/run` runs the suite under `coverage run`, which tells its children so in their environment. Without it all of this
does nothing, and every program is started as the peer starts it.
"""

import importlib.util
import os
import sys
from pathlib import Path

_CONFIG = os.environ.get("COVERAGE_PROCESS_CONFIG")
_COVERAGE = importlib.util.find_spec("coverage") if _CONFIG else None

ENVIRONMENT: dict[str, str] = {}
"""To be added to the environment of a process, which measures itself then."""

if _CONFIG and _COVERAGE is not None and _COVERAGE.origin is not None:
    ENVIRONMENT["COVERAGE_PROCESS_CONFIG"] = _CONFIG
    ENVIRONMENT["MEASURED_PYTHON"] = sys.executable
    ENVIRONMENT["MEASURED_SITE"] = str(Path(_COVERAGE.origin).parents[1])


def python(interpreter: str) -> str:
    """Return what starts the programs of the client: they leave out site-packages, and with it coverage."""
    return str(Path(__file__).with_name("python")) if ENVIRONMENT and interpreter == sys.executable else interpreter
