"""The process that forks: it reads requests from its standard input, and ends when nobody can send one any more."""

import gc
import json
import os
import runpy
import selectors
import socket
import struct
from contextlib import suppress
from typing import Any

import anyio
import click  # noqa: F401 - what a daemon imports
import coverage

import k8s_builderd.daemon  # noqa: F401
import k8s_builderd.logconf  # noqa: F401
from k8s_builderd.kube import slim, tls  # noqa: F401
from tests.forkserver import clock


def serve(requests: socket.socket) -> tuple[dict[str, Any], int] | None:
    """Fork for each request; return None at the end, and in each fork what it is to become."""
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    descriptor, (pid, status) = key.fd, key.data
                    selector.unregister(descriptor)
                    _, code = os.waitpid(pid, 0)
                    with suppress(BrokenPipeError):  # a test that has ended before its daemon does not read it
                        os.write(status, struct.pack("i", os.waitstatus_to_exitcode(code)))
                    os.close(status)
                    os.close(descriptor)
                    continue
                data, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 2)
                if not data:
                    return None
                stderr, status = descriptors
                pid = os.fork()
                if pid == 0:
                    requests.detach()
                    return json.loads(data), stderr
                os.close(stderr)
                descriptor = os.pidfd_open(pid)
                selector.register(descriptor, selectors.EVENT_READ, (pid, status))
                socket.send_fds(requests, [struct.pack("i", pid)], [descriptor])


def become(request: dict[str, Any], stderr: int) -> None:
    """Be `python -m k8s_builderd`."""
    os.dup2(stderr, 2)
    os.dup2(1, 0)  # both /dev/null
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["pace"] != 1:
        clock.hurry(request["pace"])
    coverage.process_startup()  # where the environment says so
    runpy.run_module("k8s_builderd", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    slim.load()
    anyio.run(anyio.sleep, 0)  # which imports what an event loop needs
    gc.freeze()
    if (request := serve(socket.socket(fileno=0))) is not None:
        become(*request)
