"""`k8s-builder package`, `inspect` and `packageid`: chaincode packages on the command line."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import anyio
import click

from k8s_builder.packaging.inspection import INSTALL_SIZE, Inspection, inspect_package
from k8s_builder.packaging.make import make_package, read_meta_inf
from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.imageref import Reference, name_fault, split_reference, tag_fault
from k8s_builderd.fabric.package import META_INF, Image, check_image, check_label, shown

Row = tuple[str, str]

STANDARD = Path("-")
"""Stands for standard input or output, where a path is asked for."""


@click.command()
@click.argument("label")
@click.option("--image", "reference", metavar="NAME@DIGEST", help="The image; with --resolve also NAME:TAG.")
@click.option("--name", metavar="NAME", help="The image's repository, where --digest gives its digest.")
@click.option("--digest", metavar="DIGEST", help="The image's digest, sha256:... or sha512:...")
@click.option(
    "--meta-inf",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder to pack as META-INF, with CouchDB indexes in statedb/couchdb/.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    help="The file to write; - is standard output.  [default: LABEL.tgz]",
)
@click.option("--resolve", is_flag=True, help="Ask the registry for the digest of NAME:TAG.")
@click.option("--plain-http", is_flag=True, help="Ask the registry without TLS.")
@click.option(
    "--docker-config",
    envvar="DOCKER_CONFIG",
    type=click.Path(path_type=Path),
    default=Path("~/.docker"),
    show_default=True,
    help="The folder of Docker's config.json, which has the registries' credentials.",
)
def package(
    label: str,
    reference: str | None,
    name: str | None,
    digest: str | None,
    meta_inf: Path | None,
    output: Path | None,
    *,
    resolve: bool,
    plain_http: bool,
    docker_config: Path,
) -> None:
    """Make a chaincode package with the LABEL, for `peer lifecycle chaincode install`.

    The same label, image and files give the same package id on every machine.
    """
    with _told():
        check_label(label)
        rows: list[Row] = []
        if resolve:
            image, rows = _resolve(reference, docker_config, plain_http=plain_http)
        else:
            image = _image(reference, name, digest)
        if meta_inf and meta_inf.name != META_INF and (meta_inf / META_INF).is_dir():
            raise click.UsageError(f"--meta-inf: {meta_inf} holds a {META_INF}; give {meta_inf / META_INF}")
        piped = output == STANDARD
        if piped and sys.stdout.isatty():
            raise click.UsageError("--output -: standard output is a terminal; send it to a file or a program.")
        content = make_package(label, image, read_meta_inf(meta_inf) if meta_inf else {})
        path = output or Path(f"{label}.tgz")
        if piped:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            _write(path, content)
        inspection = inspect_package(content)
        rows = [("package id", str(inspection.package_id)), ("path", str(path)), *rows, *_contents(inspection)]
        _show(rows, err=piped)
        if meta_inf and not inspection.indexes:
            click.echo(
                f"Warning: {meta_inf} has no CouchDB index: the peer takes those in statedb/couchdb/indexes/ and"
                " statedb/couchdb/collections/<collection>/indexes/ below the folder",
                err=True,
            )


@click.command()
@click.argument(
    "path", metavar="PACKAGE.tgz", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
def inspect(path: Path) -> None:
    """Show what a chaincode package holds and what would go wrong with it. - is standard input.

    Ends with 1 where something would.
    """
    with _told():
        inspection = inspect_package(_read(path))
    rows = [("package id", inspection.package_id or "none: the label cannot be read")]
    if inspection.metadata:
        rows += [("label", inspection.metadata.label), ("type", inspection.metadata.type)]
    _show([*rows, *_contents(inspection), *(("wrong", str(problem)) for problem in inspection.problems)])
    if inspection.problems:
        sys.exit(1)


@click.command()
@click.argument(
    "path", metavar="PACKAGE.tgz", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
def packageid(path: Path) -> None:
    """Print the id that a peer gives to a chaincode package, and nothing else. - is standard input."""
    with _told():
        inspection = inspect_package(_read(path))
        if inspection.package_id is None:
            raise inspection.problems[0]
        if not inspection.package_id.isprintable():
            raise BuilderError(f"{path} has the label {shown(inspection.package_id)}")
    click.echo(inspection.package_id)


def _image(reference: str | None, name: str | None, digest: str | None) -> Image:
    """Return the image that the options say, checked."""
    if reference and (name or digest):
        raise click.UsageError("Give either --image NAME@DIGEST, or --name and --digest.")
    if reference:
        parts = split_reference(reference)
        if not parts.digest:
            raise click.UsageError(
                f"--image {shown(reference)} has no digest: give NAME@sha256:..., or --resolve to ask the registry."
            )
        if parts.tag:
            raise click.UsageError(
                f"--image {shown(reference)} has a tag and a digest: leave out ':{parts.tag}', the digest is enough."
            )
        image = Image(parts.name, parts.digest)
    elif name and digest:
        image = Image(name, digest)
    else:
        raise click.UsageError("Give the image: --image NAME@DIGEST, or --name and --digest.")
    check_image(image)
    return image


def _resolve(reference: str | None, docker_config: Path, *, plain_http: bool) -> tuple[Image, list[Row]]:
    """Ask the registry for the image of NAME:TAG."""
    if not reference:
        raise click.UsageError("--resolve needs --image NAME:TAG.")
    parts = split_reference(reference)
    if parts.digest:
        raise click.UsageError(f"--image {shown(reference)} has a digest: there is nothing to resolve.")
    parts = Reference(parts.name, parts.tag or "latest")
    for what, value, fault in (("name", parts.name, name_fault(parts.name)), ("tag", parts.tag, tag_fault(parts.tag))):
        if fault:
            raise click.UsageError(f"--image: the {what} {fault}; it is {shown(value)}")
    # Imported here because its HTTP client takes longer than everything else that these commands do.
    from k8s_builder.packaging.registry import resolve

    ask = partial(resolve, parts, docker_config.expanduser() / "config.json", plain_http=plain_http)
    resolved = anyio.run(ask)
    what = f"an index of {', '.join(resolved.platforms) or 'no platform'}" if resolved.index else "an image"
    return Image(parts.name, resolved.digest), [("resolved", f"{parts.name}:{parts.tag} to {what}")]


def _contents(inspection: Inspection) -> Iterator[Row]:
    if inspection.image:
        yield "image", inspection.image.reference
    for index in inspection.indexes:
        yield "index", index
    for note in inspection.notes:
        yield "note", note


def _show(rows: Iterable[Row], *, err: bool = False) -> None:
    """Print a word and a value a line, in colour and folded at the words where people look."""
    output = sys.stderr if err else sys.stdout
    # What comes out of a package must not write to the terminal.
    rows = [(word, value if value.isprintable() else shown(value)) for word, value in rows]
    if not output.isatty():
        for word, value in rows:
            click.echo(f"{word:<11} {value}", err=err)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for word, value in rows:
        style = {"wrong": "bold red", "note": "yellow"}.get(word, "cyan")
        table.add_row(Text(word, style=style), Text(value, overflow="fold"))
    Console(highlight=False, stderr=err).print(table)


def _read(path: Path) -> bytes:
    with nullcontext(sys.stdin.buffer) if path == STANDARD else path.open("rb") as file:
        content = file.read(INSTALL_SIZE + 1)
    if len(content) > INSTALL_SIZE:
        raise BuilderError(f"{path} is larger than {INSTALL_SIZE:,} bytes: by default a peer refuses it")
    return content


def _write(path: Path, content: bytes) -> None:
    """Write the whole file or none of it: a package cut short would have another id."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).chmod(0o644)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@contextmanager
def _told() -> Iterator[None]:
    """Tell an error in one line on stderr and end with 1."""
    try:
        yield
    except BuilderError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error
