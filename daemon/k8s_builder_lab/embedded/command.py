"""`k8s-builder embedded-cluster`: the embedded cluster as a process of its own."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import anyio
import click

from k8s_builder_lab.embedded.address import Address
from k8s_builder_lab.embedded.server import Options, serve


@click.command("embedded-cluster")
@click.option(
    "--kubeconfig",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where to write the kubeconfig, once the API listens.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='JSON: image name (no digest) to {"command": [...]}. Read anew at each pull.',
)
@click.option("--namespace", "namespaces", multiple=True, default=("default",), help="One that exists; repeatable.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of the API, on the loopback; 0: any free one.")
@click.option("--pace", type=click.FloatRange(0), default=0.1, show_default=True, help="1.0: as slow as a real one.")
@click.option("--bookmark-interval", type=click.FloatRange(0.01), default=60.0, show_default=True, help="Seconds.")
@click.option("--node-label", "node_labels", multiple=True, metavar="KEY=VALUE", help="Of the only node; repeatable.")
@click.option("--with-parent", is_flag=True, help="End when standard input ends, i.e. with the process that holds it.")
def embedded_cluster(
    kubeconfig: Path,
    images: Path | None,
    namespaces: tuple[str, ...],
    port: int,
    pace: float,
    bookmark_interval: float,
    node_labels: tuple[str, ...],
    with_parent: bool,
) -> None:
    """Run a small Kubernetes API server whose pods are local processes.

    It listens on the loopback only and wants the bearer token that it writes into the kubeconfig. SIGTERM and SIGINT
    end it, and its pods with it.
    """
    options = Options(
        kubeconfig=kubeconfig,
        images={} if images is None else images,
        namespaces=namespaces,
        port=port,
        pace=pace,
        bookmark_interval=bookmark_interval,
        node_labels=dict(label.partition("=")[::2] for label in node_labels),
        path=os.environ.get("PATH", os.defpath),  # noqa: TID251 (handed on to the pods, not a setting)
    )
    wrong: list[BaseException] = []
    try:
        anyio.run(_run, options, with_parent)
    except* (OSError, ValueError) as errors:
        wrong = _leaves(errors)  # what is raised in here, Python before 3.11.4 puts into a group of its own
    if wrong:
        raise click.ClickException("; ".join(map(str, wrong)))


async def _run(options: Options, with_parent: bool) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tg:
            address: Address = await tg.start(serve, options)
            click.echo(f"API server at {address.server}, kubeconfig {options.kubeconfig}", err=True)
            if with_parent:
                tg.start_soon(_cancel_at_end_of_input, tg.cancel_scope)
            async for _ in signals:
                break
            tg.cancel_scope.cancel()


async def _cancel_at_end_of_input(scope: anyio.CancelScope) -> None:
    descriptor = sys.stdin.fileno()
    while True:
        with contextlib.suppress(PermissionError):  # a file cannot be waited for, and need not be
            await anyio.wait_readable(descriptor)
        if not os.read(descriptor, 4096):
            scope.cancel()
            return


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
