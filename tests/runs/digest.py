"""Makes test_diagnosis.json from recordings of a real cluster: `python tests/runs/digest.py DIR`.

A recording is `{"events": [{"at": seconds, "kind": ..., "type": ..., "object": ...}, ...]}`. What is kept of an object
is what the Structs of the daemon read, and a change that changes none of it is left out.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec
from msgspec.inspect import CustomType, ListType, StructType, Type, UnionType, VarTupleType, type_info

from k8s_builderd.fabric.objects import Job, Pod
from k8s_builderd.kube.objects import Event

DIGEST = Path(__file__).with_name("test_diagnosis.json")
KINDS = {"Job": Job, "Pod": Pod, "Event": Event}
VOLATILE = {"resourceVersion"}
CONDITIONS_LEFT_OUT = {"PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"}


def read_of(body: Any, kind: Type) -> Any:
    """Return of a decoded object what a Struct of that type reads."""
    match kind:
        case UnionType(types=kinds):
            structured = [one for one in kinds if isinstance(one, StructType | ListType | VarTupleType)]
            return read_of(body, structured[0]) if structured and body is not None else body
        case VarTupleType(item_type=item) | ListType(item_type=item) if not isinstance(item, CustomType):
            return [
                read_of(one, item)
                for one in body
                if not (isinstance(one, dict) and one.get("type") in CONDITIONS_LEFT_OUT)
            ]
        case StructType(fields=fields):
            read = {
                field.encode_name: read_of(body[field.encode_name], field.type)
                for field in fields
                if field.encode_name in body and field.encode_name not in VOLATILE
            }
            return {name: value for name, value in read.items() if value != {}}
    return body


def digest(recording: Any) -> list[list[Any]]:
    rows: list[list[Any]] = []
    newest: dict[str, Any] = {}
    for change in recording["events"]:
        kind = change["kind"]
        body = read_of(change["object"], type_info(KINDS[kind]))
        name = change["object"]["metadata"]["name"]
        if kind == "Event":
            del body["metadata"]["uid"]
        if newest.get(kind + name) != (body, change["type"]):
            rows.append([round(change["at"], 2), kind, change["type"], body])
            newest[kind + name] = (body, change["type"])
    return rows


def main(folder: Path) -> None:
    recordings = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    scenarios = {name: digest(found) for name, found in recordings.items() if name != "api"}
    for rows in scenarios.values():
        for *_, kind, _, body in rows:
            msgspec.convert(body, KINDS[kind])
    lines = (
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]"
        for name, rows in scenarios.items()
    )
    DIGEST.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
