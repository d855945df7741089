"""Runs a program of the client as `python -I -S` does, and measures it: `program.py PROGRAM [ARGUMENT...]`."""

import os
import posix
import runpy
import sys


def main() -> None:
    del sys.argv[0]
    path = list(sys.path)
    sys.path.append(os.environ["MEASURED_SITE"])
    import coverage

    coverage.process_startup()
    posix._exit = os._exit  # which coverage has replaced by one that writes down first
    sys.path[:] = path
    runpy.run_path(sys.argv[0], run_name="__main__")


main()
