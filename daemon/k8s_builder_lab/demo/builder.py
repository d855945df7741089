"""The peer's side of an external builder: calls detect, build, release and run, and keeps what they make.

After Fabric's core/container/externalbuilder (externalbuilder.go, instance.go).
"""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from k8s_builderd.errors import BuilderError

from .session import OnExit, OnLine, Session, propagated, start_session
from .unpack import Package, path_of, unpack_code


class BuildError(BuilderError):
    """Raised when no builder takes a package, or one of its programs fails; the peer then refuses to install it."""


@dataclass(frozen=True)
class PeerConnection:
    """How a chaincode reaches its peer; the PEM fields are empty where the peer runs without TLS."""

    peer_address: str
    mspid: str
    client_cert: str = ""
    client_key: str = ""
    root_cert: str = ""

    def document(self, chaincode_id: str) -> bytes:
        """Return chaincode.json."""
        fields = {
            "chaincode_id": chaincode_id,
            "peer_address": self.peer_address,
            "client_cert": self.client_cert,
            "client_key": self.client_key,
            "root_cert": self.root_cert,
            "mspid": self.mspid,
        }
        return json.dumps(fields, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Directories:
    """The temporary directories of one build, all of mode 0700."""

    source: Path
    metadata: Path
    build: Path
    release: Path


class ExternalBuilder:
    """One builder of core.yaml. Made by `open_builder`; a runtime for the peer's launches."""

    def __init__(
        self, location: Path, environment: Mapping[str, str], directory: Path, on_line: OnLine, tasks: TaskGroup
    ) -> None:
        self.sessions: list[Session] = []
        """Every `run` that was started, the newest last."""
        self._location = location
        self._environment = environment
        self._directory = directory
        self._on_line = on_line
        self._tasks = tasks

    async def call(self, program: str, *directories: Path) -> int:
        """Call one of the programs and return its exit code. Raises OSError if it cannot be started."""
        return await (await self._start(program, *directories)).wait()

    @asynccontextmanager
    async def unpacked(self, package: Package) -> AsyncIterator[Directories]:
        """Lay out a package for detect, build and release. Raises UnpackError."""
        scratch = Path(tempfile.mkdtemp(prefix=f"fabric-{path_of(package.package_id)}", dir=self._directory))
        try:
            directories = Directories(*(scratch / name for name in ("src", "metadata", "bld", "release")))
            for directory in (directories.source, directories.metadata, directories.build, directories.release):
                directory.mkdir(mode=0o700)
            unpack_code(package.code, directories.source)
            _write(directories.metadata / "metadata.json", package.metadata, 0o700)
            yield directories
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def install(self, package: Package) -> None:
        """Detect, build and release, and keep the result for every launch. Raises BuildError or UnpackError."""
        if self.built(package.package_id).exists():
            return
        async with self.unpacked(package) as directories:
            if await self.call("detect", directories.source, directories.metadata) != 0:
                raise BuildError(f"no external builder detected {package.package_id}, and docker build is disabled")
            code = await self.call("build", directories.source, directories.metadata, directories.build)
            if code != 0:
                raise BuildError(f"external builder failed to build {package.package_id}: exit status {code}")
            code = await self.call("release", directories.build, directories.release)
            if code != 0:
                raise BuildError(f"external builder failed to release {package.package_id}: exit status {code}")
            self.keep(package.package_id, directories)

    def keep(self, package_id: str, directories: Directories) -> None:
        """Keep what build and release made; `run` gets the copy."""
        durable = self.built(package_id)
        durable.mkdir(mode=0o700, parents=True)
        _write(durable / "build-info.json", b'{"builder_name":"k8s_builder"}', 0o600)
        shutil.copytree(directories.release, durable / "release")
        shutil.copytree(directories.build, durable / "bld")

    def built(self, package_id: str) -> Path:
        """Return where the result for a package is kept: `bld`, `release` and build-info.json."""
        return self._directory / "externalbuilder" / "builds" / path_of(package_id)

    async def start(self, chaincode_id: str, connection: PeerConnection) -> Session:
        """Start `run`, with a chaincode.json that lasts as long as it. Raises BuildError."""
        built = self.built(chaincode_id)
        if not built.exists():
            raise BuildError(f"chaincode {chaincode_id} is not installed")
        launch = Path(tempfile.mkdtemp(prefix="fabric-run", dir=self._directory))
        remove = partial(shutil.rmtree, launch, ignore_errors=True)
        try:
            _write(launch / "chaincode.json", connection.document(chaincode_id), 0o600)
            session = await self._start("run", built / "bld", launch, on_exit=remove)
        except OSError as error:
            remove()
            raise BuildError(f"builder run failed to start: {error}") from error
        self.sessions.append(session)
        return session

    async def _start(self, program: str, *directories: Path, on_exit: OnExit = lambda: None) -> Session:
        return await start_session(
            self._tasks, [self._location / "bin" / program, *directories], self._environment, self._on_line, on_exit
        )


@asynccontextmanager
async def open_builder(
    location: Path, environ: Mapping[str, str], directory: Path, on_line: OnLine, propagate: Sequence[str] = ()
) -> AsyncIterator[ExternalBuilder]:
    """Open the builder whose programs are in `location`/bin.

    `environ` is the peer's environment, of which the names in `propagate` and Fabric's own four are passed on.
    `directory` holds the peer's data and temporary files. Leaving kills every program that is still alive.
    """
    async with anyio.create_task_group() as tasks:
        builder = ExternalBuilder(location, propagated(environ, propagate), directory, on_line, tasks)
        try:
            yield builder
        finally:
            for session in builder.sessions:
                session.signal(signal.SIGKILL)
            tasks.cancel_scope.cancel()


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode), "wb") as stream:
        stream.write(content)
