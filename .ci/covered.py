"""Says how much of the production image's code the suite ran, and exits with 1 where that is too little.

Call it in the repository's root when the suite has run under `coverage run`. coverage's own fail_under mixes lines and
branches into one number, in which the many lines hide the branches.
"""

import json
import subprocess
import sys
from typing import Any

LEAST = {"lines": 97.0, "branches": 93.0}
"""Per cent that must be covered."""


def main() -> int:
    """Print each file that lacks something, then the sums, and return the exit code."""
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "combine", "-q"], check=True)
    subprocess.run([*coverage, "report", "--skip-covered", "--show-missing"], check=True)
    done = subprocess.run([*coverage, "json", "-q", "-o", "-"], check=True, capture_output=True)
    sums = _per_cent(json.loads(done.stdout)["totals"])
    for what, reached in sums.items():
        sys.stdout.write(f"{what}: {reached:.2f} % covered, at least {LEAST[what]:g} % needed\n")
    return 0 if all(reached >= LEAST[what] for what, reached in sums.items()) else 1


def _per_cent(totals: dict[str, Any]) -> dict[str, float]:
    return {
        "lines": 100 * totals["covered_lines"] / totals["num_statements"],
        "branches": 100 * totals["covered_branches"] / totals["num_branches"],
    }


if __name__ == "__main__":
    sys.exit(main())
