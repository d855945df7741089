"""Where the socket is if a daemon is installed beside the programs and nobody has said where. Imported only then."""

import os
import stat

from .call import LONGEST_SOCKET_PATH, CallError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Mapping

RUN = b"/run/k8s-builder"
_NAME = b"/builder.sock"


def socket_path(environment: "Mapping[bytes, bytes]", run: bytes = RUN) -> bytes:
    """The socket in `run` if this user can write there, else in a directory of the user's own below TMPDIR or /tmp.

    The answer is the same before and after a daemon has started. Raises CallError where the directory below /tmp is not
    this user's alone: who can write there would be handed the chaincode's key.
    """
    if _is_usable(run):
        return run + _NAME
    name = b"/k8s-builder-%d" % os.geteuid()
    above = environment.get(b"TMPDIR") or b"/tmp"
    if not above.startswith(b"/") or len(above + name + _NAME) > LONGEST_SOCKET_PATH:
        above = b"/tmp"
    directory = above + name
    try:
        make_directory(directory)
        status = os.lstat(directory)
    except OSError as error:
        raise CallError(
            "The directory of k8s-builderd's socket cannot be made: %s: %s. Set FABRIC_K8S_BUILDER_SOCKET"
            % (os.fsdecode(directory), error.strerror)
        ) from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise CallError(
            "%s must be a directory that belongs to uid %d and that no other user can write to. Remove it, or set "
            "FABRIC_K8S_BUILDER_SOCKET" % (os.fsdecode(directory), os.geteuid())
        )
    return directory + _NAME


def make_directory(path: bytes) -> None:
    """Make a directory for this user alone, unless it is there. Raises OSError."""
    try:  # noqa: SIM105 - contextlib costs too much to import
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass


def _is_usable(directory: bytes) -> bool:
    if os.path.isdir(directory):
        return os.access(directory, os.W_OK | os.X_OK)
    return os.access(os.path.dirname(directory), os.W_OK | os.X_OK)
