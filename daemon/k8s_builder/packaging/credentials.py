"""Finds the credentials for a registry where `docker login` left them.

The file's format is the Docker command's own: `auths`, `credHelpers` and `credsStore` of config.json,
and the protocol of its credential helpers (docker/docker-credential-helpers).
"""

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread
from msgspec import Struct

from k8s_builderd.errors import BuilderError

DOCKER_HUB = "docker.io"

_HUB_SERVER = "https://index.docker.io/v1/"
_HELPER_SECONDS = 30
_TOKEN_USER = "<token>"  # noqa: S105  what helpers say instead of a user's name


class Credentials(Struct, frozen=True):
    """A user's name and password, or an identity token instead of both."""

    username: str = ""
    password: str = ""
    identity_token: str = ""

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("username", self.username)]  # msgspec's shows all fields

    def __repr__(self) -> str:
        return f"Credentials(username={self.username!r})"


class CredentialsError(BuilderError):
    """The Docker config file or its credential helper cannot be used."""


async def find_credentials(registry: str, config: Path) -> Credentials | None:
    """Return the credentials for a registry's host; None where there are none.

    :param registry: host, with port where it has one; `docker.io` for Docker Hub
    :param config: Docker's config.json; it need not exist
    :raises CredentialsError: where the file is malformed or its credential helper fails
    """
    document = _read(config)
    helpers = document.get("credHelpers")
    helper = helpers.get(registry) if isinstance(helpers, dict) else None
    if found := _from_auths(registry, document.get("auths"), config):
        return found
    if store := helper or document.get("credsStore"):
        return await _ask_helper(str(store), _HUB_SERVER if registry == DOCKER_HUB else registry)
    return None


def _read(config: Path) -> Mapping[str, object]:
    try:
        document = json.loads(config.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CredentialsError(f"{config}: {error.strerror}") from error
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        # Not chained: the decoder's error would hold the passwords.
        raise CredentialsError(f"{config} must be a JSON object")
    return document


def _from_auths(registry: str, auths: object, config: Path) -> Credentials | None:
    for server, entry in auths.items() if isinstance(auths, dict) else ():
        if _host(server) != registry or not isinstance(entry, dict):
            continue
        token = entry.get("identitytoken")
        if isinstance(token, str) and token:
            return Credentials(identity_token=token)
        username, password = entry.get("username"), entry.get("password")
        if auth := entry.get("auth"):
            username, password = _decode(auth, f"{config}: the entry {server} in 'auths'")
        if isinstance(username, str) and isinstance(password, str) and username:
            return Credentials(username, password)
    return None


def _host(server: str) -> str:
    """Return the registry of a key in `auths`, which may be a URL, as Docker Hub's is."""
    host = re.sub("^https?://", "", server).partition("/")[0]
    return DOCKER_HUB if host in {"index.docker.io", "registry-1.docker.io", DOCKER_HUB} else host


def _decode(auth: object, where: str) -> tuple[str, str]:
    text = ""
    if isinstance(auth, str):
        try:
            text = base64.b64decode(auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
    username, colon, password = text.partition(":")
    if not colon:
        raise CredentialsError(f"{where} must have as 'auth' the base64 of USER:PASSWORD")
    return username, password.rstrip("\0")


async def _ask_helper(helper: str, server: str) -> Credentials | None:
    program = f"docker-credential-{helper}"
    if not re.fullmatch("[A-Za-z0-9_.-]+", helper):
        raise CredentialsError(f"{program!a} is not the name of a credential helper")

    def get() -> subprocess.CompletedProcess[bytes]:
        command = [program, "get"]
        return subprocess.run(command, input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False)

    try:
        # In a thread, because there a helper that ends without reading its input is no error.
        completed = await to_thread.run_sync(get)
    except subprocess.TimeoutExpired as error:
        raise CredentialsError(f"the credential helper {program} does not answer") from error
    except OSError as error:
        raise CredentialsError(f"the credential helper {program} cannot be used: {error.strerror}") from error
    if completed.returncode:
        said = completed.stdout.decode(errors="replace").strip()
        if "credentials not found" in said:
            return None
        raise CredentialsError(f"the credential helper {program} failed: {said or f'exit code {completed.returncode}'}")
    try:
        answer = json.loads(completed.stdout)
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"Username": str(username), "Secret": str(secret)}:
            if username == _TOKEN_USER:
                return Credentials(identity_token=secret)
            return Credentials(username, secret) if username else None
    raise CredentialsError(f"the credential helper {program} gave no Username and Secret")
