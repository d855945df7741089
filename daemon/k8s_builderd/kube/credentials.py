"""Who we are to the API server: its address, and certificates and a bearer token that may change.

kubernetes_asyncio finds them: in a pod, or in a kubeconfig with token, client certificate or exec plugin.
"""

import hashlib
import os
import signal
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio.abc import TaskGroup

from k8s_builderd.backoff import Allowance
from k8s_builderd.errors import SettingsError
from k8s_builderd.kube import slim
from k8s_builderd.kube.errors import Unauthorized

LOAD_TIMEOUT = 60.0
"""Seconds that loading the credentials may take; an exec plugin may have to ask somebody far away."""

LOADS, LOAD_EVERY = 3, 15.0
"""Loads for a refused login that may follow each other at once, and the seconds in which another one may.

While the API server refuses everybody, none of them helps. An exec plugin is a process each time, and another
certificate leaves a connection for every request.
"""


class Login(msgspec.Struct, frozen=True, eq=False):
    """What one load has found. Every load makes another, so that two can be told apart."""

    configuration: Any
    tls: ssl.SSLContext | bool
    certificates: bytes
    """A hash of the files that `tls` was made of."""

    async def headers(self) -> dict[str, str]:
        """Return the Authorization header, the token read anew from its file where that is due.

        :raises Unauthorized: if it cannot be read, as when its file is empty for a moment; it is read again next time.
        """
        try:
            settings = await self.configuration.auth_settings()
        except Exception as error:  # the library raises whatever a file makes it raise
            raise Unauthorized(f"the credentials cannot be read: {error}") from error
        if (bearer := settings.get("BearerToken")) is None:
            return {}
        value = bearer["value"].strip()
        if not value.isprintable():
            raise Unauthorized("the credentials cannot be used: the token holds control characters")
        return {"Authorization": value}


class Credentials:
    """The newest login, and how to come by a newer one.

    A load goes on in a task of its own: whoever waits for it may lose patience, and the others still get it.
    """

    def __init__(self, kubeconfig: str, tasks: TaskGroup, *, load_timeout: float = LOAD_TIMEOUT) -> None:
        """Prepare; `load` comes first.

        :param kubeconfig: a file's path, or empty for the pod's own service account.
        :param tasks: where loads run.
        """
        self._kubeconfig = kubeconfig
        self._tasks = tasks
        self._load_timeout = load_timeout
        self._configuration, self._config = slim.load()
        self._loads = Allowance(LOADS, LOAD_EVERY, anyio.current_time())
        self._renewal: Renewal | None = None
        self._newest: Login | None = None

    @property
    def current(self) -> Login:
        """The newest login."""
        assert self._newest is not None, "nothing has been loaded yet"
        return self._newest

    async def load(self) -> None:
        """Read the configuration, now.

        :raises SettingsError: if there is none, it cannot be used, or an exec plugin does not end.
        """
        with _files_for_a_moment(self._config):
            configuration = await self._load()
            certificates = _certificates(configuration)
            if (known := self._newest) is not None and known.certificates == certificates:
                # Connections of another context cannot be used again. While all requests are refused, each load would
                # leave one for every request, open for as long as aiohttp keeps it.
                tls = known.tls
            else:
                tls = _tls(configuration)
            self._newest = Login(configuration, tls, certificates)

    async def _load(self) -> Any:
        configuration = self._configuration.Configuration()
        try:
            with anyio.fail_after(self._load_timeout):
                if self._kubeconfig:
                    await self._config.load_kube_config(
                        config_file=self._kubeconfig, client_configuration=configuration, persist_config=False
                    )
                else:
                    self._config.load_incluster_config(client_configuration=configuration)
        except Exception as error:  # the loaders raise whatever a file or plugin makes them raise
            why: Exception | str = error
            if isinstance(error, TimeoutError):
                why = f"no answer within {self._load_timeout:g} s"
                _kill_plugins()
            if self._kubeconfig:
                raise SettingsError(
                    f"The KUBECONFIG_PATH environment variable must name a kubeconfig that can be used:"
                    f" {self._kubeconfig}: {why}"
                ) from error
            raise SettingsError(
                f"Not in a Kubernetes pod ({why}): set the KUBECONFIG_PATH environment variable to a kubeconfig"
            ) from error
        return configuration

    def renewal(self, than: Login) -> "Renewal | None":
        """Return where a newer login comes from than one that was refused; None where it is too early to load another.

        All who ask at the same time share one load.
        """
        if self.current is not than:
            return Renewal(self.current)
        newest = self._renewal
        if newest is not None and not newest.over:
            return newest
        if self._loads.take(anyio.current_time()):
            self._renewal = Renewal()
            self._tasks.start_soon(self._renew, self._renewal)
            return self._renewal
        return newest if newest is not None and newest.failed else None

    async def _renew(self, renewal: "Renewal") -> None:
        found, error = None, "the credentials were not loaded"
        try:
            await self.load()
            found = self.current
        except SettingsError as failure:
            error = str(failure)
        finally:
            renewal.end(found, error)


class Renewal:
    """One load, for all who wait for it."""

    def __init__(self, found: Login | None = None) -> None:
        self._found = found
        self._error = ""
        self._over = anyio.Event()
        if found is not None:
            self._over.set()

    @property
    def over(self) -> bool:
        """Say whether it has ended."""
        return self._over.is_set()

    @property
    def failed(self) -> bool:
        """Say whether it has ended without a login."""
        return self.over and self._found is None

    def end(self, found: Login | None, error: str = "") -> None:
        """Tell what has come of it."""
        self._found, self._error = found, error
        self._over.set()

    async def login(self) -> Login:
        """Wait for it.

        :raises Unauthorized: if the credentials could not be loaded.
        """
        await self._over.wait()
        if self._found is None:
            raise Unauthorized(self._error)
        return self._found


def _kill_plugins() -> None:
    """Kill the exec plugins that this process has started: the library leaves behind what it no longer waits for."""
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            _, _, fields = (directory / "stat").read_text("utf-8", "replace").rpartition(")")
            parent = int(fields.split()[1])
            if parent == os.getpid() and b"KUBERNETES_EXEC_INFO=" in (directory / "environ").read_bytes():
                os.kill(int(directory.name), signal.SIGKILL)


@contextmanager
def _files_for_a_moment(config: Any) -> Iterator[None]:
    """Remove the files that kubernetes_asyncio writes certificates and keys into, for OpenSSL to read them.

    By itself it leaves each of them, and an open descriptor, for as long as the daemon runs: two an hour, where
    certificates are renewed every hour.
    """
    owner, method = getattr(config.kube_config, "FileOrData", None), "_create_temp_file_with_content"
    original = getattr(owner, method, None)
    if original is None:  # another layout
        yield
        return
    names: list[str] = []

    def write(_: object, content: str | bytes) -> str:
        descriptor, name = tempfile.mkstemp()
        names.append(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        return name

    setattr(owner, method, write)
    try:
        yield
    finally:
        setattr(owner, method, original)
        for name in names:
            with suppress(OSError):
                Path(name).unlink()


def _certificates(configuration: Any) -> bytes:
    """Return a hash of all that `_tls` depends on; a file that cannot be read counts as empty."""
    authorities = configuration.ssl_ca_cert or ssl.get_default_verify_paths().cafile
    found = hashlib.blake2b(f"{configuration.host.partition(':')[0]} {configuration.verify_ssl}".encode())
    for file in (authorities, configuration.cert_file, configuration.key_file):
        content = b""
        with suppress(OSError):
            content = Path(file).read_bytes() if file else b""
        found.update(hashlib.blake2b(content).digest())
    return found.digest()


def _tls(configuration: Any) -> ssl.SSLContext | bool:
    """Return what TLS to speak by a configuration of kubernetes_asyncio.

    :raises SettingsError: if a certificate file is missing or broken.
    """
    if not configuration.host.startswith("https"):
        return True
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"The kubeconfig's certificates cannot be used: {error}") from error
    # What Go's clients do not ask for either: from Python 3.13 on, a cluster whose CA lacks a key usage extension
    # would be refused. Chain and name are checked all the same.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    # Python 3.11.2, Debian's, takes a connection that is cut for one that has ended.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
