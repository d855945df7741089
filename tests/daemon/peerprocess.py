"""A peer for one program, as a process of its own that can be killed: `peerprocess.py PROGRAM [ARGUMENT...]`.

It reads the program's standard error as the peer does, and passes it on. One of its descriptors is inherited by the
program, as it would be if the peer forgot to close it.
"""

import os
import subprocess
import sys

LEAKED = 77


def main() -> int:
    forgotten, _ = os.pipe()
    os.dup2(forgotten, LEAKED)
    program = subprocess.Popen(
        sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, close_fds=False
    )
    assert program.stderr is not None
    for line in program.stderr:
        os.write(2, line)
    return program.wait()


if __name__ == "__main__":
    sys.exit(main())
