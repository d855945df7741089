"""A real chaincode as a program: what the demo's pod runs, and what tests use as an image.

    python -m k8s_builder_lab.demo.chaincode

It reads its settings from the CORE_ variables that chaincode gets, registers with the peer as a client, and says each
step on stdout. SIGTERM ends it with 0. Exit code 1: the peer ended the stream; 2: a setting is missing or a file cannot
be read. Its functions are those of keyvalue.py.
"""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def say(line: str) -> None:
    """Print a line at once; usable in a signal handler, because nothing is buffered."""
    os.write(1, f"{line}\n".encode())


def say_goodbye(number: int, _: FrameType | None) -> NoReturn:
    """End with 0 because of a signal."""
    say(f"{signal.Signals(number).name}: goodbye")
    # Nothing has to be put in order first, and gRPC's threads are not worth waiting for.
    os._exit(0)


def main() -> int:
    """Run the chaincode and return its exit code."""
    signal.signal(signal.SIGTERM, say_goodbye)
    say(f"chaincode starts with pid {os.getpid()}")
    # Imported late, because the shim takes its time and SIGTERM has to work from the first moment.
    import anyio

    from .keyvalue import load, quieten, serve

    try:
        settings = load(os.environ)  # noqa: TID251  # a program of its own: its settings are the CORE_ variables
    except KeyError as missing:
        say(f"the environment variable {missing} is not set")
        return 2
    except OSError as error:
        say(str(error))
        return 2
    quieten()
    say(f"registers as {settings.chaincode_id} with the peer at {settings.peer_address}")
    say(anyio.run(serve, settings, say))
    return 1


if __name__ == "__main__":
    sys.exit(main())
