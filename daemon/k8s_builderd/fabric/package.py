"""Decodes the documents of a chaincode package and decides which of its files are copied. Pure.

What the Go builder's users may rely on in Go's encoding/json holds here: unknown keys are ignored, keys match in
any case, the last of several wins, null leaves a field as it is, and bytes that are not UTF-8 become U+FFFD.
"""

import json
import re
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any, Never

from msgspec import Struct

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric.imageref import (
    RUNNABLE_DIGEST_HEX,
    digest_fault,
    name_fault,
    split_reference,
    tagged_name_fault,
)
from k8s_builderd.fabric.names import label_value_fault, package_id

METADATA_FILE = "metadata.json"
IMAGE_FILE = "image.json"
CHAINCODE_FILE = "chaincode.json"
META_INF = "META-INF"

DOCUMENT_SIZE = 64 * 1024
"""Bytes of the largest metadata.json or image.json; both are a few lines."""

CHAINCODE_SIZE = 1024 * 1024
"""Bytes of the largest chaincode.json; it comes from the peer, with certificate chains in it."""

_INDEXES = f"{META_INF}/statedb/couchdb/"
_SHOWN = 80

# The only characters beyond ASCII that Unicode's simple folding, and so Go's key matching, takes for ASCII letters.
_FOLDED = str.maketrans({"\N{LATIN SMALL LETTER LONG S}": "s", "\N{KELVIN SIGN}": "k"})


class Metadata(Struct, frozen=True):
    """What metadata.json says. Neither field is empty, but for the label of a package of another type."""

    type: str
    label: str


class Image(Struct, frozen=True):
    """What image.json says: a repository, and the digest of an image in it.

    The name has no tag, but for one that `decode_built_image` returns.
    """

    name: str
    digest: str

    @property
    def reference(self) -> str:
        """The image as Kubernetes takes it."""
        return f"{self.name}@{self.digest}"

    @property
    def tag(self) -> str:
        """The tag in the name, which means nothing beside a digest; empty where there is none."""
        return split_reference(self.name).tag


class Chaincode(Struct, frozen=True):
    """What chaincode.json says. The three PEM texts are empty where the peer runs without TLS."""

    chaincode_id: str
    peer_address: str
    client_cert: str
    client_key: str
    root_cert: str
    mspid: str

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("chaincode_id", self.chaincode_id)]  # msgspec's shows all fields

    def __repr__(self) -> str:
        # Neither the key nor the certificates, because a repr ends up in logs and tracebacks.
        return (
            f"Chaincode(chaincode_id={self.chaincode_id!r}, peer_address={self.peer_address!r}, mspid={self.mspid!r})"
        )

    @property
    def reachable(self) -> bool:
        """Whether the peer's address may lead to the peer from another machine.

        One such as 0.0.0.0, 127.0.0.1 or localhost leads each machine, and so each pod, to itself.
        """
        host = self.peer_address.rpartition(":")[0].strip("[]")
        try:
            address = ip_address(host)
        except ValueError:
            return host not in {"", "localhost"} and not host.endswith(".localhost")
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return not any(it.is_loopback or it.is_unspecified for it in (address, mapped) if it is not None)

    @property
    def tls(self) -> bool:
        """Whether the peer gave the chaincode a certificate to come with."""
        return bool(self.client_key)


def is_k8s(metadata: Metadata) -> bool:
    """Tell whether the package is for this builder."""
    return metadata.type.lower() == "k8s"


def decode_metadata(document: bytes) -> Metadata:
    """Decode metadata.json. Whether its label can be used is for `check_label`, which `build` asks and `detect` not.

    :raises PackageError: where it is not a JSON object, a field has another type than string or is missing
    """
    fields = _decode_fields(METADATA_FILE, document, ("type", "label"))
    metadata = Metadata(fields["type"], fields["label"])
    if not metadata.type or (is_k8s(metadata) and not metadata.label):
        _missing(METADATA_FILE, "label" if metadata.type else "type", "'label' and 'type'")
    return metadata


def check_label(label: str) -> None:
    """Check that a chaincode label can be the value of a Kubernetes label, which launched objects carry.

    :raises PackageError: where it cannot
    """
    fault = "must not be empty" if not label else label_value_fault(label)
    if fault:
        rule = fault if fault.startswith("must") else f"must be a valid Kubernetes label value: {fault}"
        raise PackageError(METADATA_FILE, f"{rule}; it is {shown(label)}", "label")


def decode_image(document: bytes) -> Image:
    """Decode image.json.

    :raises PackageError: where it is not a JSON object, or `name` or `digest` is missing or breaks its rule
    """
    image = _image(document)
    check_image(image)
    return image


def decode_built_image(document: bytes) -> Image:
    """Decode the image.json that `build` has left, which may be the Go builder's, and takes all that Kubernetes runs.

    That builder leaves a tag in the name. A package cannot be mended without a new approval of the channel.

    :raises PackageError: where it is not a JSON object, or Kubernetes would refuse `name` or `digest`
    """
    image = _image(document)
    _check_image(image, tagged_name_fault(image.name), digest_fault(image.digest, RUNNABLE_DIGEST_HEX))
    return image


def check_image(image: Image) -> None:
    """Check an image's name and digest against their grammar.

    :raises PackageError: naming the field and the rule that it breaks
    """
    _check_image(image, name_fault(image.name), digest_fault(image.digest))


def _image(document: bytes) -> Image:
    fields = _decode_fields(IMAGE_FILE, document, ("name", "digest"))
    for field in ("name", "digest"):
        if not fields[field]:
            _missing(IMAGE_FILE, field, "'name' and 'digest'")
    return Image(fields["name"], fields["digest"])


def _check_image(image: Image, fault_of_name: str | None, fault_of_digest: str | None) -> None:
    for field, value, fault in (
        ("name", image.name, fault_of_name),
        ("digest", image.digest, fault_of_digest),
    ):
        if fault:
            raise PackageError(IMAGE_FILE, f"{fault}; it is {shown(value)}", field)


def decode_chaincode(document: bytes) -> Chaincode:
    """Decode chaincode.json, which the peer writes for one launch. It holds a private key: no error quotes it.

    :raises PackageError: where it is not a JSON object, or a field is missing or breaks its rule
    """
    fields = _decode_fields(CHAINCODE_FILE, document, tuple(Chaincode.__struct_fields__))
    for field in ("chaincode_id", "peer_address", "mspid"):
        if not fields[field]:
            raise PackageError(CHAINCODE_FILE, "must not be missing or empty", field)
        if not fields[field].isprintable():
            raise PackageError(CHAINCODE_FILE, "must have printable characters only", field)
    identity = package_id(fields["chaincode_id"])
    if not identity.label or not re.fullmatch("[0-9A-Fa-f]{64}", identity.hash):
        raise PackageError(
            CHAINCODE_FILE, "must be the package's label, a colon and 64 hexadecimal digits", "chaincode_id"
        )
    if fault := label_value_fault(identity.label):
        raise PackageError(
            CHAINCODE_FILE, f"must begin with a label that is a valid Kubernetes label value: {fault}", "chaincode_id"
        )
    credentials = ("client_cert", "client_key", "root_cert")
    absent = [field for field in credentials if not fields[field]]
    if absent and len(absent) < len(credentials):
        rule = "must not be missing or empty where another of client_cert, client_key and root_cert is set"
        raise PackageError(CHAINCODE_FILE, rule, absent[0])
    return Chaincode(**fields)


def files_to_build(paths: Iterable[tuple[str, str]]) -> list[str]:
    """Return the files that `build` copies, each to the same path: all regular files below META-INF.

    :param paths: kind (`f` file, `d` directory, `o` other) and path, relative to the directory that holds META-INF
    :raises PackageError: where a path leaves that directory, or META-INF is none
    """
    checked = list(_checked(paths))
    if any(path == META_INF and kind != "d" for kind, path in checked):
        raise PackageError(META_INF, "must be a directory")
    return sorted({path for kind, path in checked if kind == "f" and path.startswith(f"{META_INF}/")})


def files_to_release(paths: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return source and destination of the files that `release` copies: the CouchDB indexes.

    These are the files with the ending `.json`, in lower case, directly in `META-INF/statedb/couchdb/indexes` or
    `META-INF/statedb/couchdb/collections/<collection>/indexes`; they lose the `META-INF/`.

    :param paths: as for `files_to_build`
    :raises PackageError: where a path leaves the directory
    """
    files = sorted({path for kind, path in _checked(paths) if kind == "f" and is_index(path)})
    return [(path, path.removeprefix(f"{META_INF}/")) for path in files]


def is_index(path: str) -> bool:
    """Tell whether a file at that path, relative to the directory that holds META-INF, is a CouchDB index."""
    if not path.startswith(_INDEXES) or not path.endswith(".json"):
        return False
    match path.removeprefix(_INDEXES).split("/"):
        case ["indexes", _] | ["collections", _, "indexes", _]:
            return True
    return False


def shown(value: str) -> str:
    """Return what a document says as it can stand in a message: quoted, in ASCII, and not too long."""
    if len(value) <= _SHOWN:
        return ascii(value)
    return f"{value[:_SHOWN]!a} and {len(value) - _SHOWN} more characters"


def _checked(paths: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for kind, path in paths:
        if path_fault(path):
            raise PackageError(META_INF, f"holds the path {shown(path)}, which {path_fault(path)}")
        yield kind, path


def path_fault(path: str) -> str | None:
    """Return why a path from a listing cannot be trusted to lie below its directory; None if it can."""
    if "\0" in path:
        return "holds a NUL byte"
    if path.startswith("/"):
        return "is absolute"
    parts = path.split("/")
    if ".." in parts:
        return "leaves its directory"
    if "" in parts or "." in parts:
        return "has an empty part or '.'"
    return None


def _missing(file: str, field: str, required: str) -> Never:
    raise PackageError(file, f"is missing or empty; the file must contain {required}", field)


def _decode_fields(file: str, document: bytes, wanted: tuple[str, ...]) -> dict[str, str]:
    """Return the wanted string fields of a JSON object, empty where they are missing or null.

    An error that json raises holds the document, keys included, so none of them is raised from or chained to.
    """
    most = CHAINCODE_SIZE if file == CHAINCODE_FILE else DOCUMENT_SIZE
    if len(document) > most:
        raise PackageError(file, f"must be at most {most:,} bytes")
    if fault := encoding_fault(document):
        raise PackageError(file, fault)
    pairs, fault = _decode_object(document)
    if fault:
        raise PackageError(file, fault)
    fields = dict.fromkeys(wanted, "")
    for key, value in pairs:
        field = key.translate(_FOLDED).lower()
        if field not in fields or value is None:
            continue
        if not isinstance(value, str) or isinstance(value, _Number):
            raise PackageError(file, f"must be a string, not {_kind(value)}", field)
        # Half a surrogate pair is no character: nobody could encode it later.
        fields[field] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return fields


def encoding_fault(document: bytes) -> str | None:
    """Return why a JSON document is not in UTF-8 as Go reads it; None if it may be."""
    if document.startswith(b"\xef\xbb\xbf"):
        return "must not begin with a byte order mark: save it as UTF-8 without BOM"
    if document.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in document[:4]:
        return "must be UTF-8; it is UTF-16, UTF-32 or not text at all"
    return None


class _Object(list[tuple[str, object]]):
    """A JSON object as the list of its members, in order: which of two keys came last would be lost in a dict."""


class _Number(str):
    """A JSON number as it was written: nobody needs its value, and a huge one would cost time."""

    __slots__ = ()


def _decode_object(document: bytes) -> tuple[_Object, str | None]:
    fault = "must be a JSON object"
    try:
        value = json.loads(
            document.decode("utf-8", "replace"),
            object_pairs_hook=_Object,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        fault = f"must be valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        fault = "must be valid JSON with less nesting"
    except ValueError:
        fault = "must be valid JSON, which has neither NaN nor Infinity"
    else:
        if isinstance(value, _Object):
            return value, None
        if value is None:
            return _Object(), None
        fault = f"must be a JSON object, not {_kind(value)}"
    return _Object(), fault


def _refuse_constant(_: str) -> Never:
    raise ValueError


def _kind(value: object) -> str:
    if isinstance(value, _Object):
        return "an object"
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, _Number) else "a string" if isinstance(value, str) else "an array"
