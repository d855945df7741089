"""`k8s-builder doctor`: what usually goes wrong, and how to mend it."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import click
import structlog

from k8s_builder.call import socket_option
from k8s_builder.commands.status import ask
from k8s_builder.doctor import cluster, coreyaml, daemon, programs, sample
from k8s_builder.doctor.peerconfig import CoreYamlError, PeerConfig, read_core_yaml, read_environment
from k8s_builder.doctor.result import Result, Status, failure, ok, skipped
from k8s_builder.table import printable
from k8s_builderd.errors import PackageError, SettingsError
from k8s_builderd.settings import FORWARDED, NAMESPACE, Settings

FORMAT = 1
"""The version of the JSON document: it grows by one when a field goes or means something else."""

ROOMS = ("daemon", "cluster", "programs", "core-yaml")

_CHECK = 18
"""Characters of the longest name of a check."""
_STATUS = 7


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document for scripts.")
@click.option("--only", type=click.Choice(ROOMS), multiple=True, help="Check this only; repeatable.")
@click.option(
    "--core-yaml",
    type=click.File("rb"),
    metavar="FILE",
    help="Check the peer's core.yaml, too; - is standard input.",
)
@click.option(
    "--peer-env",
    type=click.File("rb"),
    metavar="FILE",
    help="What `env` prints in the peer's container. Without it, this process's CORE_ variables count.",
)
@click.option(
    "--programs",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help=f"Where the peer's programs are, the builder's path in core.yaml.  [default: {programs.DEFAULT}]",
)
@click.option(
    "--image",
    metavar="NAME@DIGEST",
    default=sample.IMAGE,
    help="The image of the launch that is tried, where a policy admits only some. It is not pulled.",
)
@socket_option
def doctor(
    path: str,
    only: tuple[str, ...],
    core_yaml: BinaryIO | None,
    peer_env: BinaryIO | None,
    folder: Path | None,
    image: str,
    *,
    as_json: bool,
) -> None:
    """Check what usually goes wrong, and say how to mend it. Nothing is changed.

    Exits with 1 if a check fails.
    """
    environment = os.environ  # noqa: TID251 - read once, and handed on
    # What libraries and the daemon's modules log is no line of ours; all of it comes back as errors, too.
    logging.disable(logging.CRITICAL)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    if folder is not None:
        folder = Path(os.path.abspath(folder))  # noqa: PTH100 - core.yaml may name a link, which is not to be followed
    rooms = _rooms(environment, Path(path), only or ROOMS, core_yaml, peer_env, folder, image)
    found: list[Result] = []
    for result in rooms:
        found.append(result)
        if not as_json:
            click.echo(line(result))
    if as_json:
        click.echo(json.dumps(document(found)))
    else:
        click.echo(f"\n{summary(found)}")
    sys.exit(any(result.status == Status.FAILURE for result in found))


def _rooms(
    environ: Mapping[str, str],
    path: Path,
    only: tuple[str, ...],
    core_yaml: BinaryIO | None,
    peer_env: BinaryIO | None,
    folder: Path | None,
    image: str,
) -> Iterator[Result]:
    environment = environ if peer_env is None else read_environment(peer_env.read().decode("utf-8", "replace"))
    autostart = programs.starts_daemon(folder or programs.DEFAULT, environment)
    settings: Settings | None = None
    try:
        settings = Settings.load(environ)
        yield ok("settings", f"namespace {settings.namespace}, instance {settings.instance}")
    except SettingsError as error:
        yield failure("settings", str(error), "Correct the variable: the daemon would not start with it")
    if "daemon" in only:
        namespace = None if settings is None else settings.namespace
        asking = partial(ask, patience=daemon.PATIENCE)
        yield from daemon.check(path, namespace, version("k8s-builderd"), asking, autostart=autostart)
    if "cluster" in only:
        if settings is None:
            yield skipped("api", "the settings cannot be used")
        else:
            yield from _cluster(settings, image, {} if peer_env is None else environment)
    if "programs" in only:
        yield from _programs(folder, environment)
    if "core-yaml" in only:
        config = partial(PeerConfig, environment=environment, certain=peer_env is not None)
        yield from _core_yaml(core_yaml, config, folder or programs.DEFAULT, settings, autostart=autostart)


def _cluster(settings: Settings, image: str, peer: Mapping[str, str]) -> Iterator[Result]:
    forwarded = {name: peer[name] for name in (*FORWARDED, NAMESPACE) if peer.get(name)}
    try:
        launch = sample.launch(settings, image, forwarded)
    except SettingsError as error:
        yield failure("settings", str(error), "Correct the variable on the peer: each launch would be refused")
    except PackageError as error:
        raise click.BadParameter(error.rule, param_hint="--image") from error
    else:
        yield from anyio.run(cluster.check, settings, launch)


def _programs(folder: Path | None, environment: Mapping[str, str]) -> Iterator[Result]:
    if folder is None and not programs.DEFAULT.exists():
        seen = f"{programs.DEFAULT} is not here"
        yield skipped("programs", seen, "Run this where the peer runs, or give --programs")
        return
    yield from programs.check(folder or programs.DEFAULT, environment)


def _core_yaml(
    core_yaml: BinaryIO | None,
    config: Callable[[Mapping[str, Any]], PeerConfig],
    folder: Path,
    settings: Settings | None,
    *,
    autostart: bool,
) -> Iterator[Result]:
    if core_yaml is None:
        yield skipped("core-yaml", "no --core-yaml is given")
        return
    try:
        document = read_core_yaml(core_yaml.read())
    except CoreYamlError as error:
        yield failure("core-yaml", f"{core_yaml.name}: {error}", "Correct the file")
        return
    yield ok("core-yaml", f"{core_yaml.name} is read")
    yield from coreyaml.check(config(document), folder, settings, autostart=autostart)


def line(result: Result) -> str:
    """Return a result as one line for people."""
    seen = result.seen.rstrip(".")
    text = f"{seen}. {result.remedy}" if result.remedy else seen
    return printable(f"{result.status:<{_STATUS}}   {result.check:<{_CHECK}}   {text}")


def summary(found: list[Result]) -> str:
    """Return how many results of each kind there are."""
    counts = {status: sum(result.status == status for result in found) for status in Status}
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def document(found: list[Result]) -> dict[str, Any]:
    """Return what --json prints (docs/doctor.md)."""
    return {
        "format": FORMAT,
        "version": version("k8s-builderd"),
        "ok": all(result.status != Status.FAILURE for result in found),
        "results": [
            {"check": each.check, "status": each.status.value, "seen": each.seen, "remedy": each.remedy or None}
            for each in found
        ],
    }
