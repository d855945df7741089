"""`k8s-builder logs`: the log of one chaincode."""

import sys

import click

from k8s_builder.call import calling, interruptible, socket_option
from k8s_builder_client import wire


@click.command()
@click.argument("chaincode", metavar="LABEL-or-PACKAGE-ID")
@click.option("--follow", "-f", is_flag=True, help="Follow the log until the chaincode ends, or Ctrl-C.")
@click.option("--since", metavar="DURATION", default="", help="Only what is newer than a time such as 10m or 1h30m.")
@socket_option
def logs(chaincode: str, since: str, path: str, *, follow: bool) -> None:
    """Print the log of a chaincode as kubectl would: what its pod has printed, without a prefix and uncut.

    The name of a job or pod does as well as a label or the beginning of a package id.
    """
    with interruptible(), calling(path, "logs", chaincode=chaincode, since=since, follow="1" if follow else "") as call:
        for kind, data in call.answer():
            if kind == wire.LOG:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            else:
                click.echo(data.decode(), err=True)
