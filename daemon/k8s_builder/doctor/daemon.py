"""The daemon's socket, and the daemon behind it."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from k8s_builder.call import DaemonError
from k8s_builder.doctor.result import Result, failure, ok, skipped, warning

PATIENCE = 5.0
"""Seconds without a byte after which the daemon counts as away."""

Ask = Callable[[str], dict[str, Any]]
"""Ask the daemon at a socket for its status (docs/operations.md, `status --json`)."""


def check(path: Path, namespace: str | None, version: str, ask: Ask, *, autostart: bool = False) -> Iterator[Result]:
    """Check the socket, who may write to it, and whether a daemon of our version answers and is ready.

    :param namespace: that of this command's settings; None where they cannot be used.
    :param version: ours.
    :param autostart: whether the programs start the daemon where there is none.
    """
    found = _file(path, autostart=autostart)
    yield found
    if found.status != "ok":
        yield skipped("daemon", "there is no socket to ask")
        return
    try:
        about = ask(str(path))["daemon"]
    except DaemonError as error:
        yield _silent(error.message)
        return
    yield ok("daemon", f"answers: instance {about['instance']}, namespace {about['namespace']}")
    yield same_version(about["version"], version)
    yield from ready(about["checks"])
    if namespace is not None and about["namespace"] != namespace:
        yield warning(
            "daemon-namespace",
            f"the daemon works in namespace {about['namespace']}, and this command looks at {namespace}",
            "Set FABRIC_K8S_BUILDER_NAMESPACE for this command as for the daemon",
        )


def _file(path: Path, *, autostart: bool) -> Result:
    try:
        found = path.stat()
    except FileNotFoundError:
        if autostart:
            return skipped("socket", f"{path} does not exist: the programs start the daemon with their next call")
        remedy = "Start k8s-builderd, or check FABRIC_K8S_BUILDER_SOCKET and that the socket's volume is mounted here"
        return failure("socket", f"{path} does not exist", remedy)
    except OSError as error:
        return failure(
            "socket", f"{path}: {error.strerror}", "Run this as the user that the peer or the daemon runs as"
        )
    seen = f"{path} ({stat.filemode(found.st_mode)}, uid {found.st_uid}, gid {found.st_gid})"
    if not stat.S_ISSOCK(found.st_mode):
        return failure("socket", f"{seen} is not a socket", "Correct FABRIC_K8S_BUILDER_SOCKET")
    if not os.access(path, os.W_OK, effective_ids=True):
        return failure(
            "socket",
            f"{seen} cannot be written to by uid {os.geteuid()}, gid {os.getegid()}",
            "Give the peer's pod an fsGroup, or set FABRIC_K8S_BUILDER_SOCKET_MODE",
        )
    return ok("socket", seen)


def _silent(words: str) -> Result:
    """Return what a daemon that does not serve us means."""
    if "FABRIC_K8S_BUILDER_ALLOWED_UIDS" in words:
        return failure("daemon", words, "Add the uid to FABRIC_K8S_BUILDER_ALLOWED_UIDS on the daemon")
    if "is older than this command" in words:
        return warning("daemon", words, "Use the k8s-builder that came with the daemon")
    return failure("daemon", words, "See the daemon's log and its /livez; restart it if it is frozen")


def same_version(daemon: str, ours: str) -> Result:
    """Return whether the daemon and this command are of one version."""
    if daemon == ours:
        return ok("version", f"daemon and command are {ours}")
    seen = f"the daemon is {daemon}, this command is {ours}"
    return warning("version", seen, "Restart the daemon from the newer image, or upgrade this installation")


def ready(checks: dict[str, str | None]) -> Iterator[Result]:
    """Return what /readyz says, one result for each of its checks that fails."""
    failing = {name: fault for name, fault in checks.items() if fault}
    for name, fault in failing.items():
        yield failure("ready", f"the daemon's check {name!a} fails: {fault}", "As it says; see the daemon's log")
    if not failing:
        yield ok("ready", f"the daemon's own checks pass: {', '.join(checks)}")
