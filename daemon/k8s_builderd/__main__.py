"""`k8s-builderd`: settings, logging, exit code."""

import sys
from pathlib import Path

import anyio
import click
import msgspec

from k8s_builderd import logconf  # first: it knows how structlog is to be imported

# isort: split
from k8s_builderd import autostart, daemon
from k8s_builderd.errors import BuilderError
from k8s_builderd.kube import tls
from k8s_builderd.settings import Settings
from k8s_builderd.systemd import ServiceManager


@click.command()
@click.option("--embedded", is_flag=True, help="Start an embedded cluster and use it: chaincode as local processes.")
@click.option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The embedded cluster's table of images (JSON, see k8s-builder embedded-cluster --help).",
)
# The peer's programs start a daemon with these two (k8s_builderd.autostart).
@click.option("--start-file", type=click.Path(path_type=Path), hidden=True)
@click.option("--peer-process", type=autostart.PeerProcess, hidden=True)
@click.version_option(package_name="k8s-builderd")
def main(
    embedded: bool, images: Path | None, start_file: Path | None, peer_process: autostart.PeerProcess | None
) -> None:
    """Run Hyperledger Fabric chaincode on Kubernetes, for the peer beside this daemon.

    All settings come from the environment; docs/configuration.md has them in one table.
    """
    manager = ServiceManager()
    try:
        manager = ServiceManager.from_environment()
        settings = Settings.load()
        logconf.configure(settings.log_format, debug=settings.debug)
        options = {"loop_factory": tls.Loop}
        if embedded:
            anyio.run(_serve_embedded, settings, images, backend_options=options)
        else:
            anyio.run(daemon.serve, settings, peer_process, manager, backend_options=options)
    except (BuilderError, BaseExceptionGroup) as error:
        told = _leaves(error)
        if not all(isinstance(leaf, BuilderError) for leaf in told):
            raise
        if start_file is not None:
            autostart.say_why(start_file, told)
        for leaf in told:
            click.echo(f"k8s-builderd: {leaf}", err=True)
            manager.notify(STATUS=leaf)
        sys.exit(1)


async def _serve_embedded(settings: Settings, images: Path | None) -> None:
    try:
        from k8s_builder_lab.embedded.process import running  # the daemon proper knows nothing of it
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "k8s_builder_lab":
            raise
        raise BuilderError(
            "--embedded needs the package k8s_builder_lab, which is not installed: pip install k8s-builderd"
        ) from error

    async with running(settings.namespace, images) as kubeconfig:
        await daemon.serve(msgspec.structs.replace(settings, kubeconfig=str(kubeconfig)))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


if __name__ == "__main__":
    main()
