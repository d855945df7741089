"""Tells of an index definition what the peer or CouchDB would refuse when the chaincode is committed. Pure.

Nobody else tells: the peer writes such an error into its log and goes on without the index. The peer's rules are those
of Fabric's core/ledger/kvledger/txmgmt (statecouchdb/couchdb.go, createIndex; privacyenabledstate/db.go,
HandleChaincodeDeploy) and core/chaincode/lifecycle/scc.go (names of collections); CouchDB's those of its src/mango/src
(mango_opts.erl, mango_idx.erl, mango_sort.erl). CouchDB gets the bytes of the file as they are.
"""

import json
import re
from collections.abc import Iterator, Mapping
from math import isinf
from typing import Never

from msgspec import Struct

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric.package import encoding_fault, shown

INDEX_SIZE = 8_000_000
"""Bytes of the largest definition: CouchDB's max_document_size."""

_KEYS = ("index", "ddoc", "name", "type", "w", "partitioned")
_FIELDS = "'fields' and 'partial_filter_selector'"
_COLLECTION = re.compile("[A-Za-z0-9-][A-Za-z0-9_-]*")
_IMPLICIT = "_implicit_org_"
_DESIGN = "_design/"


class Index(Struct, frozen=True):
    """An index that CouchDB makes."""

    definition: Mapping[str, object]
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str] | None:
        """Design document and name; None where CouchDB derives one of them from the definition."""
        ddoc, name = self.definition.get("ddoc"), self.definition.get("name")
        return (ddoc.removeprefix(_DESIGN), name) if isinstance(ddoc, str) and isinstance(name, str) else None


def decode_index(path: str, document: bytes) -> Index:
    """Decode the definition of an index.

    :raises PackageError: where the peer or CouchDB would refuse it
    """
    definition = _decode(path, document)
    index = definition.get("index")
    if not isinstance(index, dict):
        raise PackageError(path, "must be an index definition: a JSON object that has an object 'index'")
    for key in definition.keys() - set(_KEYS):
        raise PackageError(path, f"must not contain {shown(key)}: CouchDB takes {', '.join(map(repr, _KEYS))} only")
    for key in ("ddoc", "name", "type"):
        value = definition.get(key, key)
        if not isinstance(value, str) or not value or value == _DESIGN:
            raise PackageError(path, "must be a string that is not empty", key)
    if definition.get("partitioned", False) is not False:
        raise PackageError(path, "must be false: the peer's databases are not partitioned", "partitioned")
    if (type(quorum := definition.get("w", 1)) is not int) or quorum < 1:  # true and false are ints
        raise PackageError(path, "must be a whole number above zero", "w")
    kind = definition.get("type", "json")
    if kind in {"text", "nouveau"}:
        return Index(definition, (f"CouchDB needs its search add-on for an index of type '{kind}'",))
    if kind != "json":
        raise PackageError(path, f"must be json; it is {shown(str(kind))}", "type")
    _check_fields(path, index)
    return Index(definition)


def _check_fields(path: str, index: Mapping[str, object]) -> None:
    fields = index.get("fields")
    if not isinstance(fields, list):
        raise PackageError(path, "must be an index definition: its 'index' must have an array 'fields'")
    for key in index.keys() - {"fields", "partial_filter_selector"}:
        raise PackageError(path, f"must not contain {shown(key)}: CouchDB takes {_FIELDS} only", "index")
    if not isinstance(index.get("partial_filter_selector", {}), dict):
        raise PackageError(path, "must be an object", "index.partial_filter_selector")
    directions = set()
    for field in fields:
        match list(field.items()) if isinstance(field, dict) else [(field, "asc")]:
            case [(str(name), "asc" | "desc" as direction)] if name:
                directions.add(direction)
            case _:
                rule = "must contain names, or objects of one name and 'asc' or 'desc'"
                raise PackageError(path, f"{rule}; it holds {shown(json.dumps(field))}", "index.fields")
    if len(directions) > 1:
        raise PackageError(path, "must all be 'asc' or all be 'desc': CouchDB does not take a mixture", "index.fields")


def collection_fault(path: str) -> str | None:
    """Return why the peer would make no index of a file in this folder; None if it would."""
    _, separator, rest = path.partition("/couchdb/collections/")
    collection = rest.partition("/")[0]
    if not separator:
        return None
    if collection.startswith(_IMPLICIT):
        return "will not become an index: the peer creates none for an implicit collection of an organization"
    if not _COLLECTION.fullmatch(collection):
        return (
            f"will not become an index: no collection can be called {shown(collection)}, because its name must have"
            " letters, digits, '-' and '_' only, and not begin with '_'"
        )
    return None


def duplicates(indexes: Mapping[str, Index]) -> Iterator[tuple[str, str]]:
    """Yield path and fault of each index that another one of the same database replaces.

    The peer makes them in the order of their paths, and CouchDB keeps the last one of a design document and name.
    """
    last: dict[tuple[str, str, str], str] = {}
    for path in sorted(indexes, key=str.encode, reverse=True):
        if (place := indexes[path].place) is None:
            continue
        later = last.setdefault((path.rpartition("/")[0], *place), path)
        if indexes[later].definition["index"] != indexes[path].definition["index"]:
            yield path, f"will be lost: {shown(later)} has the same 'ddoc' and 'name' and replaces it"


def _decode(path: str, document: bytes) -> dict[str, object]:
    if fault := encoding_fault(document):
        raise PackageError(path, fault)
    try:
        value = json.loads(
            document.decode(),
            object_pairs_hook=_object,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_refuse_constant,
        )
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise PackageError(path, f"must be valid JSON: {where}") from None
    except UnicodeError:
        raise PackageError(path, "must be UTF-8 throughout") from None
    except RecursionError:
        raise PackageError(path, "must be JSON with less nesting") from None
    except ValueError as error:
        raise PackageError(path, f"must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise PackageError(path, "must be an index definition: a JSON object that has an object 'index'")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Peer and CouchDB do not agree on which of them counts, and where it matters CouchDB refuses both.
        raise ValueError("an object has the same key twice")
    return found


def _float(text: str) -> float:
    if isinf(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _int(text: str) -> int:
    _float(text)
    return int(text)


def _refuse_constant(_: str) -> Never:
    raise ValueError("NaN and Infinity are not allowed")
