"""Finds the processes that play a chaincode's container, by what they were started with: Linux's /proc only."""

import os
from contextlib import suppress
from pathlib import Path

import anyio

from .builder import PeerConnection


def find_chaincode(chaincode_id: str, connection: PeerConnection) -> list[int]:
    """Return the pids of all processes of this user that have this chaincode's id and peer in their environment."""
    wanted = {
        f"CORE_CHAINCODE_ID_NAME={chaincode_id}".encode(),
        f"CORE_PEER_ADDRESS={connection.peer_address}".encode(),
    }
    found = []
    for directory in Path("/proc").iterdir():
        # Gone meanwhile, or somebody else's.
        with suppress(OSError):
            if directory.name.isdecimal() and wanted <= set((directory / "environ").read_bytes().split(b"\0")):
                found.append(int(directory.name))
    return found


async def until_ended(pid: int) -> None:
    """Wait until a process, no child of ours, has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(descriptor)
    finally:
        os.close(descriptor)
