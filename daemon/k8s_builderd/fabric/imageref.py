"""Image references: a repository's name, a tag, a digest, and the one rule that a wrong one breaks. Pure.

The grammar is that of the distribution project's `reference` package, which container runtimes apply.
"""

import re
from collections.abc import Mapping

from msgspec import Struct

NAME_LENGTH = 255
"""Characters of the longest repository name."""

DIGEST_HEX = {"sha256": 64, "sha512": 128}
"""Digest algorithms that a package may use, and the number of their hex digits."""

RUNNABLE_DIGEST_HEX = {**DIGEST_HEX, "sha384": 96}
"""Those that Kubernetes takes in a pod (opencontainers/go-digest)."""

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[A-Fa-f0-9:]+\])"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_MAX_PORT = 65535


class Reference(Struct, frozen=True):
    """An image reference in its parts; tag and digest are empty where it has none."""

    name: str
    tag: str = ""
    digest: str = ""


def split_reference(text: str) -> Reference:
    """Split `NAME[:TAG][@DIGEST]` into its parts, which are not checked."""
    text, _, digest = text.partition("@")
    head, slash, last = text.rpartition("/")
    last, _, tag = last.partition(":")
    return Reference(head + slash + last, tag, digest)


def split_host(name: str) -> tuple[str, str]:
    """Split a repository name into registry host (with its port) and path; the host is empty where none is named.

    The first part is a host where it could not be a part of a path: it holds a dot, a colon or
    an upper-case letter, or is `localhost`.
    """
    first, slash, rest = name.partition("/")
    if slash and (any(char in first for char in ".:[") or first == "localhost" or first != first.lower()):
        return first, rest
    return "", name


def name_fault(name: str) -> str | None:
    """Return the rule that `name` breaks as a repository name, without tag and digest; None if it is one."""
    if not name:
        return "must not be empty"
    if "://" in name:
        return "must not begin with a scheme such as https://"
    if "@" in name:
        return "must not contain a digest: move what follows '@' to 'digest'"
    if len(name) > NAME_LENGTH:
        return f"must be at most {NAME_LENGTH} characters"
    if any(char.isspace() for char in name):
        return "must not contain white space"
    host, path = split_host(name)
    if ":" in path.rpartition("/")[2]:
        return "must not contain a tag: the digest identifies the image"
    if "" in name.split("/"):
        return "must not begin or end with '/' or contain '//'"
    return _host_fault(host) or _path_fault(path)


def _host_fault(host: str) -> str | None:
    if not host:
        return None
    match = _HOST.match(host)
    if match is None:
        return "must begin with a host name of letters, digits, '-' and '.', or an address, where it names a registry"
    port = host[match.end() :]
    if not port:
        return None
    if port[0] != ":":
        return "must begin with a host name of letters, digits, '-' and '.', or an address, where it names a registry"
    if not re.fullmatch("[0-9]{1,5}", port[1:]) or not 1 <= int(port[1:]) <= _MAX_PORT:
        return f"must have a number from 1 to {_MAX_PORT} as the registry's port"
    return None


def _path_fault(path: str) -> str | None:
    if path != path.lower():
        return "must be lower case, except for the registry's host"
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            return (
                "must have lower-case letters and digits between its '/', and "
                "only single '.', '_', '__' or dashes between those"
            )
    return None


def tagged_name_fault(name: str) -> str | None:
    """Return the rule that `name` breaks as a repository name that may have a tag; None if it is one."""
    reference = split_reference(name)
    if name == reference.name or reference.digest:
        return name_fault(name)
    return tag_fault(reference.tag, "must have a tag that is") or name_fault(reference.name)


def digest_fault(digest: str, algorithms: Mapping[str, int] = DIGEST_HEX) -> str | None:
    """Return the rule that `digest` breaks; None if it is `sha256:` and 64, or `sha512:` and 128, lower-case hex.

    :param algorithms: the algorithms that it may have, and the numbers of their hex digits.
    """
    algorithm, colon, digits = digest.partition(":")
    if not colon or algorithm not in algorithms:
        return "must begin with 'sha256:' or 'sha512:'"
    if re.search("[^0-9a-fA-F]", digits):
        return f"must have only hexadecimal digits after '{algorithm}:'"
    if digits != digits.lower():
        return "must be lower case"
    if len(digits) != algorithms[algorithm]:
        return f"must have {algorithms[algorithm]} hexadecimal digits after '{algorithm}:', not {len(digits)}"
    return None


def tag_fault(tag: str, must: str = "must be") -> str | None:
    """Return the rule that `tag` breaks, which begins with `must`; None if it is one."""
    if not _TAG.fullmatch(tag):
        return f"{must} at most 128 letters, digits, '_', '.' and '-', and begin with none of the last two"
    return None
