"""Requests to the API server. With slim.py, which loads it, the only user of kubernetes_asyncio.

kubernetes_asyncio finds the configuration (in a cluster, or a kubeconfig with token, client certificate or exec
plugin); the requests are made here, on one connection pool without a limit: every followed log holds a connection,
and with a bounded pool the hundredth chaincode would wait for the ninety-ninth to end.
"""

import re
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Generic, Self, TypeVar

import aiohttp
import anyio
import msgspec
import structlog

from k8s_builderd.errors import SettingsError
from k8s_builderd.kube import slim
from k8s_builderd.kube.errors import ApiError, Unauthorized, Unavailable, Unreachable, error_for_status
from k8s_builderd.kube.objects import RawList, Status

KEEPALIVE_IDLE = 20
"""Seconds of silence on a connection before the kernel asks whether the other side is there."""

KEEPALIVE_INTERVAL = 10
UNACKNOWLEDGED = 30_000
"""Milliseconds after which unanswered data or probes end a connection (TCP_USER_TIMEOUT)."""

_ERROR_BODY = 64 * 1024

_log = structlog.get_logger("k8s_builderd.api")
_decode_status = msgspec.json.Decoder(Status).decode

T = TypeVar("T")


class Resource(msgspec.Struct, frozen=True):
    """A kind of object: where it lives in the API, and RBAC's name for it."""

    prefix: str
    plural: str
    rbac: str

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the URL path of the collection, of one object, or of a subresource of it."""
        parts = [self.prefix, "namespaces", namespace, self.plural, name, subresource]
        return "/".join(part for part in parts if part)


JOBS = Resource("/apis/batch/v1", "jobs", "jobs.batch")
PODS = Resource("/api/v1", "pods", "pods")
SECRETS = Resource("/api/v1", "secrets", "secrets")
EVENTS = Resource("/api/v1", "events", "events")


def _socket(address: Any) -> socket.socket:
    # A node that loses power sends no FIN: without these a watch on it stays silent for hours.
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED)
    return connection


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """What a list has returned: the resourceVersion to watch from, and the objects."""

    version: str
    items: list[T]


class Credentials:
    """Who we are to the API server: its address, and certificates and a bearer token that may change."""

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._configuration, self._config = slim.load()
        self.current: Any = None
        self.tls: ssl.SSLContext | bool = True

    async def load(self) -> None:
        """Read the configuration, or read it again after a 401 or a certificate that cannot be verified.

        :raises SettingsError: if there is none, or it cannot be used.
        """
        configuration = self._configuration.Configuration()
        try:
            if self._kubeconfig:
                await self._config.load_kube_config(
                    config_file=self._kubeconfig, client_configuration=configuration, persist_config=False
                )
            else:
                self._config.load_incluster_config(client_configuration=configuration)
        except Exception as error:  # the loaders raise whatever a file or plugin makes them raise
            if self._kubeconfig:
                raise SettingsError(
                    f"The KUBECONFIG_PATH environment variable must name a kubeconfig that can be used:"
                    f" {self._kubeconfig}: {error}"
                ) from error
            raise SettingsError(
                f"Not in a Kubernetes pod ({error}): set the KUBECONFIG_PATH environment variable to a kubeconfig"
            ) from error
        self.tls = _tls(configuration)
        self.current = configuration

    async def headers(self) -> dict[str, str]:
        """Return the Authorization header, the token read anew from its file where that is due.

        :raises Unauthorized: if it cannot be read, as when its file is empty for a moment; it is read again next time.
        """
        try:
            settings = await self.current.auth_settings()
        except Exception as error:  # as above
            raise Unauthorized(f"the credentials cannot be read: {error}") from error
        if (bearer := settings.get("BearerToken")) is None:
            return {}
        value = bearer["value"].strip()
        if not value.isprintable():
            raise Unauthorized("the credentials cannot be used: the token holds control characters")
        return {"Authorization": value}


class Api:
    """The API server, as one namespace sees it. Borrowed by everybody, closed by who opened it."""

    def __init__(
        self, credentials: Credentials, session: aiohttp.ClientSession, namespace: str, patience: float
    ) -> None:
        self.namespace = namespace
        self._credentials = credentials
        self._session = session
        self._patience = patience
        self._limits = aiohttp.ClientTimeout(total=None, sock_connect=patience)

    @classmethod
    @asynccontextmanager
    async def open(cls, kubeconfig: str, namespace: str, *, patience: float = 10.0) -> AsyncIterator[Self]:
        """Open a connection pool; nothing is asked yet.

        :param kubeconfig: a file's path, or empty for the pod's own service account.
        :param patience: seconds that one request may take; watches and logs have no end.
        :raises SettingsError: if the configuration cannot be used.
        """
        credentials = Credentials(kubeconfig)
        await credentials.load()
        connector = aiohttp.TCPConnector(limit=0, socket_factory=_socket)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=True) as session:
            yield cls(credentials, session, namespace, patience)

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._credentials.current.host)

    async def list(self, resource: Resource, kind: type[T], **selectors: str) -> Listing[T]:
        """Return all objects that the selectors (`labelSelector`, `fieldSelector`) choose.

        :param kind: the Struct to decode each into.
        :raises ApiError: as every request here does.
        """
        content = await self._request("GET", "list", resource, resource.path(self.namespace), selectors)
        raw = _decoded(RawList, content, "list", resource)
        items = []
        for item in raw.items or ():
            try:
                items.append(_decoded(kind, item, "list", resource))
            except Unavailable as error:
                # One object that nobody can read, such as with a time after the year 9999, hides no other.
                _log.warning("object_unreadable", resource=resource.rbac, reason=str(error))
        return Listing(raw.metadata.resource_version, items)

    async def get(self, resource: Resource, kind: type[T], name: str) -> T:
        """Return one object."""
        content = await self._request("GET", "get", resource, resource.path(self.namespace, name))
        return _decoded(kind, content, "get", resource)

    async def create(self, resource: Resource, kind: type[T], body: Mapping[str, Any]) -> T:
        """Create an object and return it; a field that Kubernetes does not know is refused, not dropped.

        An `Unreachable` leaves open whether it was created: a second try answers with `AlreadyExists` then.
        """
        query = {"fieldValidation": "Strict"}
        content = await self._request("POST", "create", resource, resource.path(self.namespace), query, body)
        return _decoded(kind, content, "create", resource)

    async def delete(self, resource: Resource, name: str, uid: str) -> None:
        """Delete just the object with this uid; what it owns goes after it, in the background."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self._request("DELETE", "delete", resource, resource.path(self.namespace, name), body=options)

    @asynccontextmanager
    async def watch(self, resource: Resource, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch and hand out its bytes as they come, cut anywhere."""
        path = resource.path(self.namespace)
        async with self._stream("watch", path, {"watch": "true", **query}, resource.rbac, self._patience) as chunks:
            yield chunks

    @asynccontextmanager
    async def log(self, pod: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a pod's log and hand out its bytes as they come, cut anywhere.

        The end of the iterator is a clean end of the stream; a broken one raises `Unreachable`.
        """
        # The head of a followed log comes with its first line, whenever that is.
        head = None if query.get("follow") else self._patience
        async with self._stream("get", PODS.path(self.namespace, pod, "log"), query, "pods/log", head) as chunks:
            yield chunks

    async def _request(
        self,
        method: str,
        verb: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> bytes:
        data = msgspec.json.encode(body) if body is not None else None
        try:
            with anyio.fail_after(self._patience):
                response = await self._send(method, path, query, data)
                async with response:
                    content = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error, verb, resource.rbac) from error
        if response.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise _refusal(response, content, verb, resource.rbac)
        return content

    @asynccontextmanager
    async def _stream(
        self, verb: str, path: str, query: Mapping[str, str], what: str, head: float | None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer without end; `head` is how many seconds may pass before it begins."""
        try:
            with anyio.fail_after(head):
                response = await self._send("GET", path, query, None)
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error, verb, what) from error
        try:
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                try:
                    content = await response.content.read(_ERROR_BODY)
                except (aiohttp.ClientError, OSError) as error:
                    raise _unreachable(error, verb, what) from error
                raise _refusal(response, content, verb, what)
            yield _chunks(response, verb, what)
        finally:
            response.close()  # a stream is never read to its end for the sake of the connection

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        data: bytes | None,
    ) -> aiohttp.ClientResponse:
        # A token may have been replaced (a kubeconfig's tokenFile, an exec plugin's expiry), or a certificate, ours or
        # the cluster's CA: once more with the new one. Until then nothing has been carried out.
        try:
            response = await self._send_once(method, path, query, data)
        except aiohttp.ClientSSLError:
            pass
        else:
            if response.status != HTTPStatus.UNAUTHORIZED:
                return response
            response.close()
        try:
            await self._credentials.load()
        except SettingsError as error:
            raise Unauthorized(str(error)) from error
        return await self._send_once(method, path, query, data)

    async def _send_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        data: bytes | None,
    ) -> aiohttp.ClientResponse:
        now = self._credentials.current
        headers = await self._credentials.headers()
        if data is not None:
            headers["Content-Type"] = "application/json"
        return await self._session.request(
            method,
            now.host + path,
            params=dict(query or {}),
            data=data,
            headers=headers,
            timeout=self._limits,
            allow_redirects=False,  # the Kubernetes API does not redirect, and a Secret goes to nobody else
            proxy=now.proxy,
            proxy_headers=now.proxy_headers,
            ssl=self._credentials.tls,
            server_hostname=now.tls_server_name,
        )


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
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _decoded(kind: type[T], content: bytes | msgspec.Raw, verb: str, resource: Resource) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        # A proxy's page of HTML with status 200, for one. The next answer may be the API server's.
        message = f"the answer is not what the Kubernetes API gives ({error})"
        raise Unavailable(message, verb=verb, resource=resource.rbac) from error


async def _chunks(response: aiohttp.ClientResponse, verb: str, rbac: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise _unreachable(error, verb, rbac) from error


def _unreachable(error: Exception, verb: str, rbac: str) -> Unreachable:
    words = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return Unreachable(f"the Kubernetes API does not answer ({words})", verb=verb, resource=rbac)


def _refusal(response: aiohttp.ClientResponse, content: bytes, verb: str, rbac: str) -> ApiError:
    try:
        status = _decode_status(content)
    except (msgspec.MsgspecError, RecursionError):
        status = Status(message=f"HTTP {response.status} {response.reason}")
    details = status.details
    after: float | None = details.retry_after_seconds if details else None
    header = response.headers.get("Retry-After", "")
    if after is None and re.fullmatch("[0-9]{1,6}", header):
        after = int(header)
    return error_for_status(response.status, status.reason or "")(
        status.message or f"HTTP {response.status}",
        verb=verb,
        resource=rbac,
        reason=status.reason or "",
        retry_after=after,
    )
