"""Derives the names and labels of Kubernetes objects from Fabric's names. Pure.

Names and labels are those of the Go builder, so that people's selectors and dashboards go on working;
the rules for labels and prefixes, and their words, are Kubernetes' own (apimachinery's validation).
"""

import base64
import hashlib
import re
from functools import reduce

from msgspec import Struct

OBJECT_NAME_LENGTH = 63
"""Characters of the longest object name (RFC 1035 label)."""

PREFIX_LENGTH = 30
"""Characters of the longest object name prefix."""

SUFFIX_LENGTH = 5
"""Characters that tell the Jobs of one object name apart, without the dash before them."""

SAFE_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes' alphabet for generated names: no vowels and no look-alikes, so no words and no misreadings."""

LABEL_VALUE_LENGTH = 63

INSTANCE_LABEL = "app.kubernetes.io/instance"
"""Which daemon an object belongs to (FABRIC_K8S_BUILDER_INSTANCE)."""
OBJECT_LABEL = "fabric-builder-k8s-object"
CHAINCODE_ANNOTATION = "fabric-builder-k8s-ccid"
MSPID_ANNOTATION = "fabric-builder-k8s-mspid"
PEER_ADDRESS_ANNOTATION = "fabric-builder-k8s-peeraddress"
PEER_ID_ANNOTATION = "fabric-builder-k8s-peerid"
TOKEN_ANNOTATION = "fabric-builder-k8s-run"  # noqa: S105 - a SHA-256, the token itself is nowhere
"""The SHA-256 of the run's token, in hex."""
PEER_ANNOTATION = "fabric-builder-k8s-peer"
"""A hash of root_cert: each start of a peer makes a new CA, so it tells one peer process from the next."""
HOST_ANNOTATION = "fabric-builder-k8s-host"
"""A hash of the machine that the daemon ran on: it tells whose a Job is that no pod owns."""

_LABEL_VALUE = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"
_DNS_1035_LABEL = "[a-z]([-a-z0-9]*[a-z0-9])?"

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_64_BITS = 0xFFFFFFFFFFFFFFFF


class Token(Struct, frozen=True):
    """128 random bits of one `run`, as 32 hexadecimal digits. Who has it has the run, so it is shown to nobody."""

    digits: str

    @property
    def sha256(self) -> str:
        """The SHA-256 of the digits, in hex: what the cluster and the registry know of it."""
        return hashlib.sha256(self.digits.encode()).hexdigest()

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return []

    def __repr__(self) -> str:
        return "Token()"


class LaunchKey(Struct, frozen=True):
    """What all launches of one chaincode by one peer have in common, however their objects are named."""

    chaincode_id: str
    mspid: str
    peer_address: str
    peer_id: str


class PackageId(Struct, frozen=True):
    """What Fabric calls a package id, in its two parts: label and SHA-256 of the package, in hex."""

    label: str
    hash: str

    def __str__(self) -> str:
        return f"{self.label}:{self.hash}"


def package_id(chaincode_id: str) -> PackageId:
    """Split a chaincode id at its last colon. Without a colon nobody can tell which part is there: both are empty."""
    label, _, package_hash = chaincode_id.rpartition(":")
    return PackageId(label, package_hash) if ":" in chaincode_id else PackageId("", "")


def safe_label(label: str) -> str:
    """Return the label in lower case, without the characters that an object name may not have."""
    return re.sub("[^-0-9a-z]", "", label.lower())


def run_hash(prefix: str, peer_id: str, peer_address: str, mspid: str, chaincode_id: str) -> str:
    """Return the 13 characters that tell one peer's launches of one chaincode from all others.

    64-bit FNV-1a over the UTF-8 of the five, one after another, as big-endian bytes in base32.
    """
    data = (prefix + peer_id + peer_address + mspid + chaincode_id).encode("utf-8", "surrogateescape")
    value = reduce(lambda state, byte: ((state ^ byte) * _FNV_PRIME) & _64_BITS, data, _FNV_OFFSET)
    return base64.b32encode(value.to_bytes(8, "big")).decode().rstrip("=").lower()


def object_name(
    prefix: str, peer_id: str, peer_address: str, mspid: str, chaincode_id: str, suffix_length: int = SUFFIX_LENGTH + 1
) -> str:
    """Return `<prefix>-<safe label>-<run hash>`, the label cut so that `suffix_length` more characters fit."""
    hashed = run_hash(prefix, peer_id, peer_address, mspid, chaincode_id)
    room = OBJECT_NAME_LENGTH - len(prefix) - len(hashed) - len("--") - suffix_length
    return f"{prefix}-{safe_label(package_id(chaincode_id).label)[: max(room, 0)]}-{hashed}"


def job_name(name: str, token_sha256: str) -> str:
    """Return the object name, a dash and 5 characters that follow from the SHA-256 of the run's token.

    One token always gives one name: a creation that is tried again meets its own first attempt.
    """
    number = int(token_sha256, 16)
    suffix = ""
    for _ in range(SUFFIX_LENGTH):
        number, digit = divmod(number, len(SAFE_ALPHABET))
        suffix += SAFE_ALPHABET[digit]
    return f"{name}-{suffix}"


def hash_label_value(hash_hex: str) -> str:
    """Return the package hash as a label value: base32, because 64 hex digits are one character too many.

    :raises ValueError: where `hash_hex` is not hexadecimal
    """
    return base64.b32encode(bytes.fromhex(hash_hex)).decode().rstrip("=")


def label_value_fault(value: str) -> str | None:
    """Return the rule that `value` breaks as a Kubernetes label value, in Kubernetes' words; None if it is one."""
    if len(value.encode("utf-8", "replace")) > LABEL_VALUE_LENGTH:
        return f"must be no more than {LABEL_VALUE_LENGTH} bytes"
    if not re.fullmatch(_LABEL_VALUE, value):
        return (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
            "start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', "
            f"regex used for validation is '{_LABEL_VALUE}')"
        )
    return None


def name_prefix_fault(value: str) -> str | None:
    """Return what `value` must be to begin an object's name; None if it is that.

    The text goes on after 'The FABRIC_K8S_BUILDER_OBJECT_NAME_PREFIX environment variable '.
    A dash at the end is allowed, because more follows it.
    """
    if len(value.encode("utf-8", "replace")) > PREFIX_LENGTH:
        return f"must be a maximum of {PREFIX_LENGTH} characters"
    if not re.fullmatch(_DNS_1035_LABEL, value[:-1] + "a" if len(value) > 1 and value[-1] == "-" else value):
        return (
            "must be a valid DNS-1035 label: a DNS-1035 label must consist of lower case alphanumeric characters "
            "or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  "
            f"or 'abc-123', regex used for validation is '{_DNS_1035_LABEL}')"
        )
    return None
