"""Tutorials as programs: the fenced blocks of a page, one after another, in one shell.

A block is ```sh. A comment before it, `<!-- needs: fabric, kind -->`, names what it needs beyond a shell and this
project; where that is not at hand, the block is left out.
"""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "tutorials"
NEEDS = {
    "api": "a Kubernetes API server, to which kubectl talks",
    "docker": "docker, and a registry to push to",
    "fabric": "Fabric's binaries and samples: the current folder is test-network-nano-bash",
    "helm": "the helm program",
    "install": "the project's source, to install it",
    "internet": "the internet",
    "kind": "a cluster with a real kubelet, and Fabric on it",
    "kubelet": "a cluster that runs pods",
}
_BLOCK = re.compile(r"(?:^<!-- needs: (?P<needs>[\w, ]+) -->\n)?^```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """Commands of a page, and what they need."""

    text: str
    needs: frozenset[str]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page in their order."""
    return [
        Block(found["text"], frozenset(re.findall(r"\w+", found["needs"] or "")))
        for found in _BLOCK.finditer(page.read_text())
    ]


class BlockFailed(Exception):
    """Raised when a command of a block failed, or the block did not end in time; says what it printed."""


class Shell:
    """A bash that keeps folder, variables and jobs between blocks."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self._process = process
        self._scratch = scratch
        self._number = 0

    def run(self, text: str, patience: float) -> str:
        """Run a block and return what it printed. Raises BlockFailed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._number += 1
        end = f"--- end of block {self._number} ---"
        file = self._scratch / f"block-{self._number}"
        file.write_text(text)
        printed: list[str] = []
        overdue = threading.Timer(patience, self.kill)
        overdue.start()
        try:
            # The file is sourced: what its commands read is not what this shell reads.
            self._process.stdin.write(f". {file} </dev/null\necho '{end}'\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.rstrip("\n").endswith(end):
                    return "".join(printed) + line.rstrip("\n").removesuffix(end)
                printed.append(line)
        except BrokenPipeError:
            pass
        finally:
            overdue.cancel()
        raise BlockFailed(f"{text}\nprinted:\n{''.join(printed)}")

    def kill(self) -> None:
        """End the shell and what it has started: every process of its session."""
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                after_the_name = (process / "stat").read_text().rpartition(")")[2].split()
                if int(after_the_name[3]) == self._process.pid:
                    os.kill(int(process.name), signal.SIGKILL)


@contextmanager
def shell(folder: Path, environment: Mapping[str, str]) -> Iterator[Shell]:
    """Start one that stops at the first failure; afterwards nothing that it started is left."""
    with tempfile.TemporaryDirectory() as scratch:
        process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        opened = Shell(process, Path(scratch))
        try:
            opened.run("set -euo pipefail -m\n", 30)  # with job control, as in a terminal
            yield opened
        finally:
            opened.kill()
            process.communicate()
