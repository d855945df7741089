"""Asks a registry for the digest of a tag: OCI distribution specification, `GET /v2/<name>/manifests/<tag>`.

Why no library: `oras` waits two minutes in blocking sleeps for a registry that is not there, sets no time-outs,
cannot answer a Basic challenge unless told before that one will come, and takes docker.io for the API's host.
`python-dxf` leaves the Docker config file and the choice of host to the caller. Both bring requests beside the
HTTP client that is here anyway, and what is left to them is this one request.
"""

import base64
import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct

from k8s_builderd.errors import BuilderError
from k8s_builderd.fabric.imageref import Reference, split_host

from .credentials import DOCKER_HUB, Credentials, find_credentials

_HUB_API = "registry-1.docker.io"
_MANIFEST_SIZE = 4 * 1024 * 1024  # what the specification lets a registry bound a manifest to
_SECONDS = 60
_REASON = 1000
_WANTED = ("service", "scope")
_PARTS = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")+')
_PARAMETER = re.compile(r'\s*(?P<name>[^\s="]+)\s*=\s*(?P<value>"(?:[^"\\]|\\.)*"|[^\s="]+)\s*')
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_KNOWN = (*_INDEXES, *_MANIFESTS)
# One value, because some registries look at the first header of this name only.
_ACCEPT = ", ".join(_KNOWN)


class RegistryError(BuilderError):
    """A registry does not tell the digest; the text says which image was asked for, and why not."""


class Resolved(Struct, frozen=True):
    """What a tag stands for now: a digest and, where that is a multi-architecture index, its platforms."""

    digest: str
    platforms: tuple[str, ...]
    index: bool


async def resolve(reference: Reference, docker_config: Path, *, plain_http: bool = False) -> Resolved:
    """Ask the registry which digest a tag has. `latest` is asked for where there is no tag.

    :param docker_config: Docker's config.json, which has the credentials; it need not exist
    :param plain_http: speak HTTP without TLS; with a registry on a loopback address that is tried anyway
    :raises RegistryError: where the registry does not tell
    :raises CredentialsError: where the credentials cannot be read
    """
    host, path = split_host(reference.name)
    hub = host in {"", DOCKER_HUB, "index.docker.io"}
    if hub and "/" not in path:
        path = f"library/{path}"
    registry = DOCKER_HUB if hub else host
    credentials = await find_credentials(registry, docker_config)
    image = f"{reference.name}:{reference.tag or 'latest'}"
    async with _Registry(_HUB_API if hub else host, credentials, image) as api:
        return await api.resolve(path, reference.tag or "latest", _schemes(host, plain_http=plain_http))


def _schemes(host: str, *, plain_http: bool) -> tuple[str, ...]:
    if plain_http:
        return ("http",)
    return ("https", "http") if _is_loopback(host) else ("https",)


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Descriptor(Struct):
    platform: dict[str, object] | None = None


class _Manifest(Struct):
    """The fields in use of an index or a manifest."""

    media_type: str = msgspec.field(default="", name="mediaType")
    manifests: list[_Descriptor] | None = None


class _Registry:
    """One registry, asked about one image."""

    def __init__(self, host: str, credentials: Credentials | None, image: str) -> None:
        self._host = host
        self._credentials = credentials
        self._image = image
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_SECONDS),
            trust_env=True,  # HTTPS_PROXY
            headers={"User-Agent": "k8s-builder"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def resolve(self, path: str, tag: str, schemes: tuple[str, ...]) -> Resolved:
        for scheme in schemes:
            try:
                return await self._resolve(f"{scheme}://{self._host}/v2/{path}/manifests/{tag}")
            except aiohttp.ClientConnectorCertificateError as error:
                raise self._error(f"{self._host} has no trusted certificate: {error}") from error
            except aiohttp.ClientConnectionError as error:
                # A registry on this machine may well have no TLS, which shows in its answer to the greeting.
                if scheme == schemes[-1]:
                    raise self._error(f"{self._host} cannot be reached: {error}") from error
            except TimeoutError as error:
                raise self._error(f"{self._host} did not answer within {_SECONDS} s") from error
            except (aiohttp.ClientError, msgspec.MsgspecError, ValueError) as error:
                raise self._error(f"{self._host} gave no valid answer: {error}") from error
        raise AssertionError("unreachable: the last scheme returns or raises")

    async def _resolve(self, url: str) -> Resolved:
        # No redirects: the place that one names would be taken for the registry, and get its password.
        async with self._session.get(url, headers={"Accept": _ACCEPT}, allow_redirects=False) as response:
            if response.status != 401:
                return await self._manifest(response)
            challenges = _challenges(response.headers.getall("WWW-Authenticate", []))
        authorization = await self._answer(challenges, url)
        headers = {"Accept": _ACCEPT, "Authorization": authorization}
        async with self._session.get(url, headers=headers, allow_redirects=False) as response:
            return await self._manifest(response)

    async def _answer(self, challenges: list[tuple[str, dict[str, str]]], url: str) -> str:
        """Return the Authorization header that answers a 401 (RFC 9110, 11.6; distribution's token authentication).

        A token is asked for where that is offered, because many registries give one without a login.
        """
        known = self._credentials
        offered = {scheme.lower(): parameters for scheme, parameters in reversed(challenges)}
        bearer = offered.get("bearer", {})
        realm = bearer.get("realm", "")
        usable = urlsplit(realm).scheme in {"http", "https"}
        secure = known is None or urlsplit(realm).scheme == "https" or url.startswith("http:")
        if usable and secure:
            return f"Bearer {await self._token(realm, {name: bearer[name] for name in _WANTED if name in bearer})}"
        if "basic" in offered:
            if known is None or not known.username:
                raise self._error(f"{self._host} asks for a user and password: log in with `docker login {self._host}`")
            return _basic(known)
        if usable:
            raise self._error(f"{self._host} asks for the password without TLS, at {realm}")
        ways = ", ".join(scheme for scheme, _ in challenges) or "none"
        raise self._error(f"{self._host} asks for an unsupported way of logging in: {ways}")

    async def _token(self, realm: str, wanted: Mapping[str, str]) -> str:
        known = self._credentials
        if known and known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": "k8s-builder"}
            request = self._session.post(realm, data={**wanted, **form}, allow_redirects=False)
        else:
            headers = {"Authorization": _basic(known)} if known else {}
            request = self._session.get(realm, params=wanted, headers=headers, allow_redirects=False)
        async with request as response:
            if response.status != 200:
                raise self._error(f"{realm} gives no token: {self._why(response.status)}")
            answer = await _read(response)
        match msgspec.json.decode(answer):
            case {"token": str(token)} | {"access_token": str(token)} if token:
                return token
        raise self._error(f"{realm} gives no token in its answer")

    async def _manifest(self, response: aiohttp.ClientResponse) -> Resolved:
        if response.status != 200:
            raise self._error(f"{self._host} says: {self._why(response.status)}")
        content = await _read(response)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        said = response.headers.get("Docker-Content-Digest", digest)
        if said.startswith("sha256:") and said != digest:
            raise self._error(f"{self._host} sent a manifest that does not have the digest {said}")
        manifest = msgspec.json.decode(content, type=_Manifest)
        # The header decides, because an OCI manifest need not say what it is.
        media_type = response.content_type if response.content_type in _KNOWN else manifest.media_type
        if media_type not in _KNOWN:
            raise self._error(
                f"it is not an image that Kubernetes can run, but {media_type or response.content_type!a}"
            )
        platforms = [name for entry in manifest.manifests or () if (name := _platform(entry.platform or {}))]
        return Resolved(digest, tuple(platforms), media_type in _INDEXES)

    def _why(self, status: int) -> str:
        if status == 404:
            return "there is no such repository or tag"
        if status in {401, 403}:
            if self._credentials:
                return "access is denied with the credentials in the Docker config file"
            return "access is denied without credentials: log in with `docker login`"
        if status == 429:
            return "too many requests: try again later, or log in with `docker login`"
        if 300 <= status < 400:
            return f"status {status}, a redirect, which is not followed: give the name of the registry it leads to"
        return f"status {status}"

    def _error(self, reason: str) -> RegistryError:
        return RegistryError(f"{self._image} cannot be resolved: {_printable(reason)}")


def _printable(reason: str) -> str:
    """Return a reason as one line of at most 1,000 characters that cannot steer a terminal: registries have a say."""
    line = "".join(char if char.isprintable() else "?" for char in reason)
    return line if len(line) <= _REASON else f"{line[:_REASON]}..."


def _challenges(headers: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Return scheme and parameters of each challenge in the WWW-Authenticate headers of an answer.

    A header may hold several, with the same commas between them as between the parameters of one.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        for part in _PARTS.findall(header):
            parameter = _PARAMETER.fullmatch(part)
            if parameter is None:  # a scheme, alone or with the first of its parameters
                scheme, _, rest = part.strip().partition(" ")
                found += [(scheme, {})] if scheme else []
                parameter = _PARAMETER.fullmatch(rest)
            if parameter and found:
                value = parameter["value"]
                quoted = value.startswith('"')
                found[-1][1][parameter["name"].lower()] = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
    return found


def _basic(credentials: Credentials) -> str:
    return f"Basic {base64.b64encode(f'{credentials.username}:{credentials.password}'.encode()).decode()}"


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_chunked(65536):
        content += chunk
        if len(content) > _MANIFEST_SIZE:
            raise ValueError(f"it is longer than {_MANIFEST_SIZE:,} bytes")
    return bytes(content)


def _platform(platform: Mapping[str, object]) -> str:
    """Return a platform as people write it; build tools put attestations into an index under the name 'unknown'."""
    words = [str(platform[key]) for key in ("os", "architecture", "variant") if platform.get(key)]
    return "" if "unknown" in words else "/".join(words)
