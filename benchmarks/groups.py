"""CPU groups of processes: each container has one, and they share a node's processors equally or as they ask for.

Where all are in one group, fifty programs that start at once leave a daemon beside them a fiftieth of the processors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNIFIED = Path("/sys/fs/cgroup")
_CPU = Path("/sys/fs/cgroup/cpu")
"""Where cgroups of version 2 and of version 1 are; see cgroups(7)."""


class Group:
    """A cgroup."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def put(self, *pids: int) -> None:
        """Have these processes, and what they will start, be in this group."""
        for pid in pids:
            (self.directory / "cgroup.procs").write_text(str(pid))


@contextmanager
def groups(*names: str) -> Iterator[list[Group]]:
    """Make CPU groups of equal weight; none where this user may not. What is in them at the end goes to the root."""
    root = _root()
    if root is None:
        yield []
        return
    made: list[Group] = []
    try:
        for name in names:
            group = Group(root / f"k8s-builderd-{os.getpid()}-{name}")
            group.directory.mkdir()
            made.append(group)
        yield made
    finally:
        for group in made:
            Group(root).put(*map(int, (group.directory / "cgroup.procs").read_text().split()))
            group.directory.rmdir()


def _root() -> Path | None:
    """Return the root of the CPU groups, where everything here is taken to be; None where this user may make none."""
    controllers = _UNIFIED / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        try:
            (_UNIFIED / "cgroup.subtree_control").write_text("+cpu")
        except OSError:
            return None
        return _UNIFIED
    return _CPU if os.access(_CPU, os.W_OK) else None
