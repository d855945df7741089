"""Starts the embedded cluster as a child process, for as long as a context is entered."""

import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.streams.text import TextReceiveStream

from k8s_builderd.errors import BuilderError

START_TIMEOUT = 60.0
"""Seconds in which the child must listen."""

END_TIMEOUT = 10.0


class ClusterFailed(BuilderError):
    """Raised when the embedded cluster does not come up; the text is what it said."""


@asynccontextmanager
async def running(namespace: str, images: Path | None, *options: str) -> AsyncIterator[Path]:
    """Run an embedded cluster, and hand out the path of its kubeconfig.

    It ends with this process, however that ends: its standard input is a pipe from here.

    :param options: more options of `k8s-builder embedded-cluster`.
    :raises ClusterFailed: if it does not come up.
    """
    with tempfile.TemporaryDirectory(prefix="k8s-builder-") as directory:
        kubeconfig = Path(directory) / "kubeconfig"
        command = [sys.executable, "-m", "k8s_builder_lab.embedded", "--with-parent", "--kubeconfig", str(kubeconfig)]
        command += ["--namespace", namespace, *(["--images", str(images)] if images else []), *options]
        child = await anyio.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        async with child:
            try:
                await _listening(child, kubeconfig)
                yield kubeconfig
            finally:
                with anyio.move_on_after(END_TIMEOUT, shield=True):
                    assert child.stdin is not None
                    await child.stdin.aclose()
                    await child.wait()


async def _listening(child: anyio.abc.Process, kubeconfig: Path) -> None:
    assert child.stderr is not None
    said = ""
    with anyio.move_on_after(START_TIMEOUT):
        async for text in TextReceiveStream(child.stderr):
            said += text
            if "\n" in said and await anyio.Path(kubeconfig).exists():
                return
    raise ClusterFailed(f"the embedded cluster did not start: {said.strip() or 'it said nothing'}")
