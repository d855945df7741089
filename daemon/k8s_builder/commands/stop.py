"""`k8s-builder stop`: ends a chaincode where its peer cannot be asked."""

import json
import sys
from datetime import UTC, datetime
from typing import Any

import click

from k8s_builder.call import calling, socket_option
from k8s_builder.table import age, printable
from k8s_builder_client import wire


@click.command()
@click.argument("chaincode", metavar="LABEL-or-PACKAGE-ID")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@socket_option
def stop(chaincode: str, path: str, *, yes: bool) -> None:
    """Stop a chaincode: its job, pod and Secret are deleted.

    Only for a peer that cannot be asked. One that runs starts the chaincode anew with the next request for it.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("--yes is required if there is no terminal to ask on.")
    with calling(path, "stop", chaincode=chaincode) as call:
        answer = call.answer()
        _, line = next(answer)
        meant = described(json.loads(line))
        if not yes:
            click.confirm(f"Stop {meant}?", abort=True)
        call.confirm()
        told = [data.decode() for kind, data in answer if kind == wire.WORDS]
        click.echo("\n".join(told))


def described(it: dict[str, Any]) -> str:
    """Return which chaincode it is, for somebody who is to say yes."""
    now = datetime.now(UTC)
    where = f"pod {it['pod']}" if it["pod"] else f"job {it['job']}"
    client = f"its run has pid {it['client_pid']}" if it["client_pid"] is not None else "no run is connected"
    return printable(
        f"{it['package_id']} of {it['peer_id']}, {it['state']} for {age(now, it['since'])}, {where}; {client}"
    )
