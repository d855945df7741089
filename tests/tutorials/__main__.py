"""Follows a tutorial to its end, where all that it needs is at hand: python -m tests.tutorials PAGE."""

import os
import sys
import tempfile
from pathlib import Path

from tests.tutorials.page import ROOT, BlockFailed, blocks, shell

PATIENCE = 1800.0
"""Seconds for one block: a cluster is made in it, or an image built."""


def main(page: str) -> int:
    """Run each block and print it with its output."""
    followed = blocks(Path(page))
    with (
        tempfile.TemporaryDirectory(prefix="tutorial-") as folder,
        shell(Path(folder), {**os.environ, "SOURCE": str(ROOT)}) as opened,
    ):
        for block in followed:
            sys.stdout.write(f"$ {block.text}")
            sys.stdout.flush()
            try:
                sys.stdout.write(opened.run(block.text, PATIENCE))
            except BlockFailed as error:
                sys.stdout.write(f"FAILED: {error}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
