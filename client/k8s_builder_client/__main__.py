"""The program that the peer calls: the stage from its own name, the directories from its arguments, an exit code."""

import posix
import sys

from .call import ARGUMENTS, Call, CallError, encoded, shown
from .request import Request
from .signals import Signals
from .stderr import Stderr

TYPE_CHECKING = False  # typing's own would cost more than all of this package
if TYPE_CHECKING:
    from typing import Mapping


def main(argv: "list[str]", environment: "Mapping[bytes, bytes]", file: str = "") -> int:
    """Carry out one call of the peer and return the exit code. `argv` begins with the name the program was called by.

    `file` is the program itself, where that name may be a link. Everything it has to say goes to standard error, which
    is all that the peer reads.
    """
    _occupy_standard_descriptors()
    signals = Signals()
    program = argv[0].rpartition("/")[2]
    stderr = Stderr(program, posix.getpid())
    stopping = False
    try:
        if program not in ARGUMENTS:
            raise CallError("This program must have one of these names: %s" % ", ".join(ARGUMENTS))
        folder = encoded(file or argv[0]).rpartition(b"/")[0] or b"."
        call = Call(program, [encoded(argument) for argument in argv[1:]], environment, folder)
        stderr.debugging = call.debug
        for name, directory in call.directories.items():
            stderr.debug("%s: %s" % (name, shown(directory)))
        request = Request(call, posix.getpid())
        if request.plainly_not_ours:
            stderr.debug("Chaincode type not supported")
            code = 1
        else:
            from .session import Session  # a quarter of the start-up, which a detect of another type need not pay

            session = Session(call, request, stderr, signals)
            code = session.serve()
            stopping = session.stopping
    except CallError as refusal:
        stderr.words(str(refusal))
        code = 1
    stderr.drain(signals.fd, stopping=stopping)
    return code


def _occupy_standard_descriptors() -> None:
    # Where one of the three is closed the socket would take its place, and words for the peer would go to the daemon.
    for descriptor in (0, 1, 2):
        try:
            posix.fstat(descriptor)
        except OSError:
            posix.open("/dev/null", posix.O_RDWR)


if __name__ == "__main__":
    posix._exit(main(sys.argv[1:] or sys.argv, posix.environ))
