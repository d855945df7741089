"""Requests to the API server, on one connection pool without a limit.

Every followed log holds a connection: with a bounded pool the hundredth chaincode would wait for the ninety-ninth to
end. Whatever the other side does or leaves undone, every wait here has an end, but two: for the next bytes of a watch
and for those of a followed log, the first included. Whoever reads these sees to their end.
"""

import os
import re
import socket
import ssl
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from typing import Any, Generic, Self, TypeVar

import aiohttp
import anyio
import msgspec
import structlog

from k8s_builderd.kube.credentials import LOAD_TIMEOUT, Credentials, Login
from k8s_builderd.kube.errors import ApiError, Unavailable, Unreachable, error_for_status, error_without_status
from k8s_builderd.kube.objects import Identity, IdentityOnly, RawList, Status
from k8s_builderd.kube.resources import PODS, Resource
from k8s_builderd.tasks import background, in_time

KEEPALIVE_IDLE = 20
"""Seconds of silence on a connection before the kernel asks whether the other side is there."""

KEEPALIVE_INTERVAL = 10
UNACKNOWLEDGED = 30_000
"""Milliseconds after which unanswered data or probes end a connection (TCP_USER_TIMEOUT)."""

AT_ONCE = 32
"""Requests of one verb for one resource that are on their way at once. More are only more connections. Watches and logs
do not count."""

BITE = 100
"""Objects of a list that are decoded before others have their turn: a thousand take 30 ms or more."""

CLOSE_TIMEOUT = 2.0
"""Seconds that the connections may take to close when the daemon ends."""

TURN = 16 * 1024
"""Bytes of a stream for which its reader lets everybody else have a turn.

A stop takes some twenty turns of the event loop, one after the other. Were a log at full speed read in each, the stop
would take several times as long; a turn in which nobody has anything to do takes some microseconds.
"""

READ_AHEAD = 64 * 1024
"""Bytes of a stream that are read before they are asked for; where there are twice as many, no more are read."""

MERGE_PATCH = "application/merge-patch+json"

_ERROR_BODY = 64 * 1024

_log = structlog.get_logger("k8s_builderd.api")
_decode_status = msgspec.json.Decoder(Status).decode
_decode_identity = msgspec.json.Decoder(IdentityOnly).decode

T = TypeVar("T")

NO_ANSWER = "none"
"""What stands for the HTTP status where no answer came."""

Observe = Callable[[str, str, str, float | None], None]
"""Is told of each request when its answer is there: verb and resource in RBAC's words, HTTP status or `NO_ANSWER`, and
the seconds that it took; of a watch those to the beginning of its answer, of a followed log None, because that begins
with its first line."""


def unobserved(verb: str, resource: str, code: str, seconds: float | None) -> None:
    """Take no notice of a request."""


Answered = Callable[[str, str, ApiError | None], None]
"""Is told how each request has ended, once: verb and resource in RBAC's words, and the refusal or None. A request that
is made again at once with a newer login counts with its second answer only."""


def unanswered(verb: str, resource: str, error: ApiError | None) -> None:
    """Take no notice of an answer."""


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


class _Request(msgspec.Struct, frozen=True):
    """One request, and what RBAC calls it."""

    verb: str
    resource: str
    method: str
    path: str
    query: Mapping[str, str] | None = None
    data: bytes | None = None
    accept: str = ""
    content_type: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What the API server has answered to a request that it has carried out."""

    content: bytes
    headers: Mapping[str, str] = {}
    warnings: tuple[str, ...] = ()
    """The values of its `Warning` headers (RFC 7234), such as `299 - "..."`."""


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """What a list has returned: the resourceVersion to watch from, and the objects.

    `unreadable` are the uids of objects that are there but cannot be read; empty where not even that can be.
    """

    version: str
    items: list[T]
    unreadable: set[str]


class Api:
    """The API server, as one namespace sees it. Borrowed by everybody, closed by who opened it."""

    def __init__(
        self,
        credentials: Credentials,
        session: aiohttp.ClientSession,
        namespace: str,
        patience: float,
        observe: Observe = unobserved,
        answered: Answered = unanswered,
    ) -> None:
        self.namespace = namespace
        self._observe = observe
        self._answered = answered
        self._credentials = credentials
        self._session = session
        self._patience = patience
        self._turns: dict[tuple[str, str], anyio.Semaphore] = defaultdict(lambda: anyio.Semaphore(AT_ONCE))
        # `connect` is all that comes before the request: DNS, a proxy, TCP and TLS.
        self._limits = aiohttp.ClientTimeout(total=None, connect=patience, sock_connect=patience)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        kubeconfig: str,
        namespace: str,
        *,
        patience: float = 10.0,
        load_timeout: float = LOAD_TIMEOUT,
        observe: Observe = unobserved,
        answered: Answered = unanswered,
    ) -> AsyncIterator[Self]:
        """Open a connection pool; nothing is asked yet.

        :param kubeconfig: a file's path, or empty for the pod's own service account.
        :param patience: seconds that one request may take; watches and logs have no end.
        :param load_timeout: seconds that loading the credentials may take.
        :param observe: is told of each request.
        :param answered: is told how each has ended.
        :raises SettingsError: if the configuration cannot be used.
        """
        async with background() as tasks:
            credentials = Credentials(kubeconfig, tasks, load_timeout=load_timeout)
            await credentials.load()
            async with _session() as session:
                yield cls(credentials, session, namespace, patience, observe, answered)

    @property
    def server(self) -> str:
        """The URL of the API server."""
        return str(self._credentials.current.configuration.host)

    async def list(self, resource: Resource, kind: type[T], **selectors: str) -> Listing[T]:
        """Return all objects that the selectors (`labelSelector`, `fieldSelector`) choose.

        :param kind: the Struct to decode each into.
        :raises ApiError: as every request here does.
        """
        answer = await self.request("GET", "list", resource, resource.path(self.namespace), selectors)
        raw = decoded(RawList, answer.content, "list", resource)
        items, unreadable = [], set()
        for number, item in enumerate(raw.items or ()):
            if number % BITE == 0:
                await anyio.lowlevel.checkpoint()
            try:
                items.append(decoded(kind, item, "list", resource))
            except Unavailable as error:
                # One object that nobody can read, such as with a time after the year 9999, hides no other.
                found = identity(item)
                unreadable.add(found.uid)
                _log.warning("object_unreadable", resource=resource.rbac, name=found.name, reason=str(error))
        return Listing(raw.metadata.resource_version, items, unreadable)

    async def get(self, resource: Resource, kind: type[T], name: str) -> T:
        """Return one object."""
        answer = await self.request("GET", "get", resource, resource.path(self.namespace, name))
        return decoded(kind, answer.content, "get", resource)

    async def create(self, resource: Resource, kind: type[T], body: Mapping[str, Any], *, dry_run: bool = False) -> T:
        """Create an object and return it; a field that Kubernetes does not know is refused, not dropped.

        :param dry_run: only say whether it could be created.
        An `Unreachable` leaves open whether it was created: a second try answers with `AlreadyExists` then.
        """
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        answer = await self.request("POST", "create", resource, resource.path(self.namespace), query, body)
        return decoded(kind, answer.content, "create", resource)

    async def patch(self, resource: Resource, kind: type[T], name: str, patch: Mapping[str, Any]) -> T:
        """Change an object by a JSON Merge Patch (RFC 7386), and return it."""
        path = resource.path(self.namespace, name)
        answer = await self.request("PATCH", "patch", resource, path, body=patch, content_type=MERGE_PATCH)
        return decoded(kind, answer.content, "patch", resource)

    async def delete(self, resource: Resource, name: str, uid: str) -> None:
        """Delete just the object with this uid; what it owns goes after it, in the background."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self.request("DELETE", "delete", resource, resource.path(self.namespace, name), body=options)

    @asynccontextmanager
    async def watch(self, resource: Resource, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch and hand out its bytes as they come, cut anywhere."""
        path = resource.path(self.namespace)
        async with self._stream("watch", path, {"watch": "true", **query}, resource.rbac, self._patience) as chunks:
            yield chunks

    @asynccontextmanager
    async def log(self, pod: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a pod's log and hand out its bytes as they come, cut anywhere.

        The end of the iterator is a clean end of the stream; a broken one raises `Unreachable`, and so does one that
        is not followed and falls silent.
        """
        # The head of a followed log comes with its first line, whenever that is.
        patience = None if query.get("follow") else self._patience
        path = PODS.path(self.namespace, pod, "log")
        async with self._stream("get", path, query, "pods/log", patience, patience) as chunks:
            yield chunks

    async def request(
        self,
        method: str,
        verb: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        accept: str = "",
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request and return the whole of its answer.

        :param verb: RBAC's.
        :param body: is sent as JSON.
        :param accept: the media type wanted; empty for JSON.
        :param content_type: the media type of the body.
        :raises ApiError: if it is refused, or there is no answer within the patience.
        """
        data = msgspec.json.encode(body) if body is not None else None
        request = _Request(verb, resource.rbac, method, path, query, data, accept, content_type)
        asked = anyio.current_time()

        async def whole() -> tuple[aiohttp.ClientResponse, bytes]:
            async with self._turns[verb, resource.rbac]:  # what hangs holds up its like only
                response = await self._send(request)
                async with response:
                    return response, await response.read()

        with self._telling(verb, resource.rbac):
            try:
                response, content = await in_time(self._patience, whole)
            except (aiohttp.ClientError, OSError) as error:
                self._asked(request, NO_ANSWER, anyio.current_time() - asked)
                raise _unreachable(error, verb, resource.rbac) from error
            self._asked(request, str(response.status), anyio.current_time() - asked)
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise _refusal(response, content, verb, resource.rbac)
        return Answer(content, response.headers, tuple(response.headers.getall("Warning", ())))

    def _asked(self, request: _Request, code: str, seconds: float | None) -> None:
        """Tell of a request whose answer is there. Neither its body nor its query is told."""
        self._observe(request.verb, request.resource, code, seconds)
        _log.debug(
            "api_request",
            verb=request.verb,
            resource=request.resource,
            path=request.path,
            code=code,
            ms=round(seconds * 1000, 1) if seconds is not None else None,
        )

    @contextmanager
    def _telling(self, verb: str, what: str) -> Iterator[None]:
        """Tell how the request that is made meanwhile has ended."""
        try:
            yield
        except ApiError as error:
            self._answered(verb, what, error)
            raise
        self._answered(verb, what, None)

    @asynccontextmanager
    async def _stream(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str],
        what: str,
        head: float | None,
        silence: float | None = None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer without end.

        :param head: seconds that may pass before it begins.
        :param silence: seconds that may pass between two pieces of it.
        """
        request = _Request(verb, what, "GET", path, query)
        asked = anyio.current_time()

        def seconds() -> float | None:
            return anyio.current_time() - asked if head is not None else None

        with self._telling(verb, what):
            try:
                response = await in_time(head, lambda: self._send(request))
            except (aiohttp.ClientError, OSError) as error:
                self._asked(request, NO_ANSWER, seconds())
                raise _unreachable(error, verb, what) from error
            self._asked(request, str(response.status), seconds())
            if response.status >= HTTPStatus.MULTIPLE_CHOICES:
                raise await self._refused_stream(response, verb, what)
        try:
            yield _chunks(response, verb, what, silence)
        finally:
            _leave(response)  # a stream is never read to its end for the sake of the connection

    async def _refused_stream(self, response: aiohttp.ClientResponse, verb: str, what: str) -> ApiError:
        content = b""
        try:
            with suppress(aiohttp.ClientError, OSError), anyio.fail_after(self._patience):
                content = await _beginning(response.content, _ERROR_BODY)
        finally:
            _leave(response)
        return _refusal(response, content, verb, what)

    async def _send(self, request: _Request) -> aiohttp.ClientResponse:
        # A token may have been replaced (a kubeconfig's tokenFile, an exec plugin's expiry), or a certificate, ours or
        # the cluster's CA: once more with the new one. Until then nothing has been carried out.
        login = self._credentials.current
        asked = anyio.current_time()
        try:
            response = await self._send_as(login, request)
        except aiohttp.ClientSSLError as error:
            if _is_end(getattr(error, "os_error", None)):
                raise  # nobody has looked at our certificate: a balancer without a server behind it, say
            if (renewal := self._credentials.renewal(login)) is None:
                raise
            code = NO_ANSWER
        else:
            if response.status != HTTPStatus.UNAUTHORIZED or (renewal := self._credentials.renewal(login)) is None:
                return response
            code = str(response.status)
            _leave(response)
        self._asked(request, code, anyio.current_time() - asked)
        return await self._send_as(await renewal.login(), request)

    async def _send_as(self, login: Login, request: _Request) -> aiohttp.ClientResponse:
        headers = await login.headers()
        if request.data is not None:
            headers["Content-Type"] = request.content_type
        if request.accept:
            headers["Accept"] = request.accept
        return await self._session.request(
            request.method,
            login.configuration.host + request.path,
            params=dict(request.query or {}),
            data=request.data,
            headers=headers,
            timeout=self._limits,
            allow_redirects=False,  # the Kubernetes API does not redirect, and a Secret goes to nobody else
            proxy=login.configuration.proxy,
            proxy_headers=login.configuration.proxy_headers,
            ssl=login.tls,
            server_hostname=login.configuration.tls_server_name,
        )


def _is_end(error: OSError | None) -> bool:
    """Say whether the other side has closed the connection, by what OpenSSL has said."""
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return True
    return isinstance(error, ssl.SSLError) and error.reason == "UNEXPECTED_EOF_WHILE_READING"  # Python 3.11.2


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, socket_factory=_socket)
    session = aiohttp.ClientSession(connector=connector, auto_decompress=True, read_bufsize=READ_AHEAD)
    try:
        yield session
    finally:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await session.close()


def _leave(response: aiohttp.ClientResponse) -> None:
    """Drop an answer and its connection at once.

    TLS would say farewell first and wait for the other side to do so, for 30 s and with 256 KiB of buffers.
    """
    if response.connection is not None and response.connection.transport is not None:
        response.connection.transport.abort()
    response.close()


def identity(item: msgspec.Raw) -> Identity:
    """Return which object this is, empty where not even that can be read."""
    try:
        return _decode_identity(item).metadata
    except (msgspec.MsgspecError, RecursionError):
        return Identity()


def decoded(kind: type[T], content: bytes | msgspec.Raw, verb: str, resource: Resource) -> T:
    """Return what has been answered.

    :raises Unavailable: if it is not what Kubernetes answers.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        # A proxy's page of HTML with status 200, for one. The next answer may be the API server's.
        message = f"the answer is not a valid Kubernetes API response ({error})"
        raise Unavailable(message, verb=verb, resource=resource.rbac) from error


async def _chunks(
    response: aiohttp.ClientResponse, verb: str, rbac: str, silence: float | None
) -> AsyncIterator[bytes]:
    try:
        while chunk := await _next_chunk(response.content, silence):
            yield chunk
            for _ in range(len(chunk) // TURN):
                await anyio.lowlevel.checkpoint()
    except (aiohttp.ClientError, OSError) as error:
        _forget_frames(error)
        raise _unreachable(error, verb, rbac) from None


def _forget_frames(error: BaseException | None) -> None:
    """Have an error of a stream hold nothing: aiohttp's reader keeps it, and its frames would keep that reader."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


async def _next_chunk(content: aiohttp.StreamReader, silence: float | None) -> bytes:
    return await (content.readany() if silence is None else in_time(silence, content.readany))


async def _beginning(content: aiohttp.StreamReader, size: int) -> bytes:
    """Return the bytes up to the end, but no more than so many."""
    data = bytearray()
    while len(data) < size and (chunk := await content.readany()):
        data += chunk
    return bytes(data[:size])


def _unreachable(error: Exception, verb: str, rbac: str) -> Unreachable:
    return Unreachable(f"the Kubernetes API does not answer ({_why(error)})", verb=verb, resource=rbac)


def _why(error: Exception) -> str:
    # aiohttp's own words show an SSLContext, or a class of its parser.
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"{error.host}:{error.port}: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        number, words = error.os_error.errno, error.os_error.strerror
        if number and number > 0 and not isinstance(error.os_error, ssl.SSLError):  # whose numbers are OpenSSL's
            words = os.strerror(number)
        return f"{error.host}:{error.port}: {words or error.os_error}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    return str(error) or type(error).__name__


def _refusal(response: aiohttp.ClientResponse, content: bytes, verb: str, rbac: str) -> ApiError:
    status = _status(content)
    if status is None:
        kind = error_without_status(response.status)
        message = f"HTTP {response.status} {response.reason}, which is not a Kubernetes API response"
        return kind(message, verb=verb, resource=rbac, retry_after=_retry_after(response))
    details = status.details
    after: float | None = details.retry_after_seconds if details else None
    causes = [cause.reason or "" for cause in (details and details.causes) or ()]
    kind = error_for_status(response.status, status.reason or "", kind=(details and details.kind) or "", causes=causes)
    return kind(
        status.message or f"HTTP {response.status}",
        verb=verb,
        resource=rbac,
        reason=status.reason or "",
        retry_after=_retry_after(response) if after is None else after,
    )


def _status(content: bytes) -> Status | None:
    """Return the Status object that this is; None where it is none, as with the page of a proxy."""
    try:
        status = _decode_status(content)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return status if status.kind == "Status" else None


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    header = response.headers.get("Retry-After", "")
    return int(header) if re.fullmatch("[0-9]{1,6}", header) else None
