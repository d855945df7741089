"""Finds processes that are no children of ours by the environment they were started with, in Linux's /proc."""

import os
from collections.abc import Iterator
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
    return [pid for pid, entries in _environments() if wanted <= set(entries)]


def find_by_directory(directory: Path) -> list[int]:
    """Return the pids of all processes of this user that have a path in `directory` in their environment."""
    path = os.fsencode(directory)
    return [pid for pid, entries in _environments() if any(path in entry for entry in entries)]


def _environments() -> Iterator[tuple[int, list[bytes]]]:
    for directory in Path("/proc").iterdir():
        # Gone meanwhile, or somebody else's.
        with suppress(OSError):
            if directory.name.isdecimal():
                yield int(directory.name), (directory / "environ").read_bytes().split(b"\0")


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
