"""The name of this daemon's instance, which no two daemons of a host may have for one cluster and namespace.

Each would take the other's Jobs for its own. Beyond the host the owner of a Job tells (runs/store.py).
"""

import errno
import hashlib
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

import anyio

from k8s_builderd.errors import SettingsError


async def addresses(api_server: str) -> set[str]:
    """Return all addresses of the API server, as one cluster has several names: `localhost` and `127.0.0.1`, for one.

    :param api_server: its URL.
    """
    url = urlsplit(api_server)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await anyio.getaddrinfo(url.hostname, port, type=socket.SOCK_STREAM)
    except OSError:
        return {api_server}  # no name server just now; the name has to do
    return {f"{address[0]} {address[1]}" for _, _, _, _, address in found}


@contextmanager
def held(api_servers: Iterable[str], namespace: str, instance: str) -> Iterator[None]:
    """Hold the name of the instance while the context is open.

    Abstract sockets: they need no directory that both can see, and the kernel frees them with the process.

    :raises SettingsError: if another daemon of this host has it.
    """
    if sys.platform != "linux":
        yield
        return
    with ExitStack() as stack:
        for server in sorted(api_servers):
            scope = hashlib.sha256("\0".join((server, namespace, instance)).encode()).hexdigest()
            name = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            try:
                name.bind(f"\0k8s-builderd/{scope}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                raise SettingsError(
                    f"Another k8s-builderd on this host uses the instance name {instance}. Give this one another name:"
                    " set the FABRIC_K8S_BUILDER_INSTANCE environment variable"
                ) from None
        yield
