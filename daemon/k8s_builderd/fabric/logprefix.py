"""What stands in front of each line of a chaincode's log, made from a template. Pure."""

import string
from collections.abc import Iterator

from k8s_builderd.fabric.names import PackageId

FIELDS = ("label", "hash", "pod")
"""What a template may name in braces; `{hash:.12}` is the first twelve characters."""

MAX_TEMPLATE = 256
"""Bytes of a template."""

MAX_PREFIX = 512
"""Bytes of what is made from one; what is longer is cut. With it, a piece of a line stays below the peer's 64 KiB."""


def fault(template: str) -> str | None:
    """Return the rule that a template breaks; None if it can be used.

    The text goes on after 'The FABRIC_K8S_BUILDER_LOG_PREFIX environment variable '.
    """
    if len(template.encode("utf-8", "surrogateescape")) > MAX_TEMPLATE:
        return f"must be a maximum of {MAX_TEMPLATE} bytes"
    if not template.isprintable():
        return f"must hold printable characters only; it is {template!a}"
    try:
        named = [(name, spec, conversion) for _, name, spec, conversion in _parts(template) if name is not None]
    except ValueError as error:
        return f"must be text with {{label}}, {{hash}} or {{pod}} in it ({error}); it is {template!a}"
    for name, spec, conversion in named:
        if name not in FIELDS:
            return f"must be text with {{label}}, {{hash}} or {{pod}} in it, not {{{name}}}; it is {template!a}"
        if conversion or not _cuts(spec or ""):
            return f"must have nothing after a name but a length such as {{hash:.12}}; it is {template!a}"
    return None


def render(template: str, package: PackageId, pod: str) -> bytes:
    """Return the prefix of one launch's lines.

    :param template: one without a `fault`.
    """
    text = template.format(label=package.label, hash=package.hash, pod=pod)
    # A chaincode id is what the peer says; a line feed in it would make lines of the builder's own.
    text = "".join(character if character.isprintable() else "?" for character in text)
    return text.encode("utf-8", "replace")[:MAX_PREFIX].decode("utf-8", "ignore").encode()


def _parts(template: str) -> Iterator[tuple[str, str | None, str | None, str | None]]:
    return iter(string.Formatter().parse(template))


def _cuts(spec: str) -> bool:
    return not spec or (spec[0] == "." and spec[1:].isascii() and spec[1:].isdecimal() and len(spec) <= 4)
