"""Runs a program of the client as `python -I -S` does, and measures it: `program.py PROGRAM [ARGUMENT...]`."""

import os
import runpy
import sys


def main() -> None:
    del sys.argv[0]
    path = list(sys.path)
    sys.path.append(os.environ["MEASURED_SITE"])
    import coverage

    coverage.process_startup()
    sys.path[:] = path
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
