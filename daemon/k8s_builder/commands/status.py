"""`k8s-builder status`: the chaincodes of a daemon."""

import json
import shutil
import sys
import time
from typing import Any

import click

from k8s_builder.call import PATIENCE, DaemonError, calling, interruptible, socket_option
from k8s_builder.table import about, chaincodes
from k8s_builder_client import wire

ENTER, LEAVE, HOME, CLEAR_LINE, CLEAR_BELOW = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)
"""What a terminal is told: its other screen without a cursor, and back; to the top; to clear a line, and all below."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document for scripts.")
@click.option("--watch", "-w", is_flag=True, help="Update in place, with rates, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between two updates."
)
@socket_option
def status(path: str, interval: float, *, as_json: bool, watch: bool) -> None:
    """Show the chaincodes of the daemon beside this command."""
    with interruptible():
        if not watch:
            _print(ask(path), as_json=as_json)
        elif as_json or not sys.stdout.isatty():
            while True:
                _print(ask(path), as_json=as_json)
                time.sleep(interval)
        else:
            _redraw(path, interval)


def ask(path: str, *, patience: float = PATIENCE) -> dict[str, Any]:
    """Return what the daemon tells, as one document.

    :param patience: seconds without a byte after which the daemon counts as away.
    :raises DaemonError: if it does not.
    """
    with calling(path, "status", patience=patience) as call:
        text = b"".join(data for kind, data in call.answer() if kind == wire.LOG)
    try:
        daemon, *found = (json.loads(line) for line in text.splitlines())
    except ValueError as error:
        raise DaemonError(f"k8s-builderd at {path} sent an invalid status: {error}") from error
    return {"daemon": daemon, "chaincodes": sorted(found, key=lambda it: (it["label"], it["job"]))}


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    lines = [json.dumps(document)] if as_json else [about(document), "", *chaincodes(document)]
    click.echo("\n".join(lines))


def _redraw(path: str, interval: float) -> None:
    before: dict[str, Any] | None = None
    click.echo(ENTER, nl=False)
    try:
        while True:
            try:
                document = ask(path)
                lines = [about(document), "", *chaincodes(document, before, rates=True)]
                before = document
            except DaemonError as error:
                lines = [f"Error: {error.message}"]
            click.echo(screen(lines, *shutil.get_terminal_size()), nl=False)
            time.sleep(interval)
    finally:
        click.echo(LEAVE, nl=False)


def screen(lines: list[str], columns: int, rows: int) -> str:
    """Return what draws the lines over what a terminal shows, cut to its size."""
    shown = lines if len(lines) <= rows else [*lines[: rows - 1], f"{len(lines) - rows + 1} more"]
    return HOME + "\n".join(line[:columns] + CLEAR_LINE for line in shown) + CLEAR_BELOW
