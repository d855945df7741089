"""`k8s-builder demo`. Imports nothing heavy before it knows that everything the demo needs is there."""

import os
import shlex
import sys
from importlib.util import find_spec

import anyio
import click

# What the extra `demo` installs, by the names that are imported.
_EXTRA = ("cryptography", "fabric_chaincode_python", "fabric_protos", "grpc")


@click.command()
@click.option(
    "--chaincode",
    metavar="COMMAND",
    help="Run this as the pod's process instead of the demo's own chaincode; it has to know `put KEY VALUE` and "
    "`get KEY`.",
)
def demo(chaincode: str | None) -> None:
    """Run a real chaincode from package to stop, on an embedded cluster, and check that nothing is left behind.

    Starts a small Kubernetes cluster whose pods are local processes, and the daemon; makes a chaincode package and
    calls detect, build, release and run as a peer does; plays that peer over mutual TLS. Listens on the loopback only.

    Exit code 0: all of it really happened.
    """
    if missing := [name for name in _EXTRA if find_spec(name) is None]:
        raise click.ClickException(
            f"The demo needs more than the daemon does ({', '.join(missing)}): pip install 'k8s-builderd[demo]'"
        )
    from .story import tell

    # Handed on to the processes that the demo starts.
    environ = dict(os.environ)  # noqa: TID251
    sys.exit(anyio.run(tell, environ, None if chaincode is None else shlex.split(chaincode)))
