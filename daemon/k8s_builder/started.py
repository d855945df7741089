"""Where the daemon is that a peer's programs have started, for a command in the same container."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from k8s_builder_client.call import Call, CallError

_PROC = Path("/proc")


def find_socket(programs: str, running: Mapping[str, int]) -> str:
    """Return the socket of the daemon that runs, whoever has started it, or where the programs would start one.

    :param programs: the folder of the programs.
    :param running: what `daemons` has found.
    :raises SystemExit: if the programs themselves could not use a socket here; it says why.
    """
    found = {path for path, uid in running.items() if uid == os.geteuid()} or set(running)
    if len(found) == 1:
        return found.pop()
    try:
        return os.fsdecode(Call("run", [b"", b""], os.environb, os.fsencode(programs)).socket_path)
    except CallError as error:
        raise SystemExit(f"Error: {error}") from None


def daemons() -> dict[str, int]:
    """Return the sockets of the daemons that programs have started, each with the user that its daemon runs as."""
    found = {}
    for process in _PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError):  # it has ended, or is another program
            words = (process / "cmdline").read_bytes().split(b"\0")
            path = Path(os.fsdecode(words[words.index(b"--start-file") + 1])).with_suffix("")
            if _is_there(path):
                found[str(path)] = process.stat().st_uid
    return found


def _is_there(path: Path) -> bool:
    """Say whether there is a socket, also where only its own user may see it: whoever connects is told so."""
    try:
        path.lstat()
    except PermissionError:
        return True
    except OSError:
        return False  # of another container
    return True
