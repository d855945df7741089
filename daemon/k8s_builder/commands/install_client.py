"""`k8s-builder install-client`: the folder that core.yaml names as a builder."""

from importlib.metadata import version
from pathlib import Path

import click

from k8s_builder.programs import NAMES, install
from k8s_builderd.errors import BuilderError


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--python",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The interpreter that runs the programs, 3.8 or later. Without it, a shell looks for one at each call.",
)
def install_client(folder: Path, python: Path | None) -> None:
    """Write the programs that a peer calls to DIR, the `path` of a builder in core.yaml.

    DIR need not exist. Where it holds an earlier version, that is replaced while the peer goes on: whatever it calls
    meanwhile is all old or all new, and a `run` that is there stays.
    """
    try:
        install(folder, python)
    except BuilderError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder}: {', '.join(NAMES)} of k8s-builderd {version('k8s-builderd')}")
