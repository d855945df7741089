"""What was recorded of commit 16a85a5 by record.py, and what of it can be compared with today's."""

import json
import re
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("recorded")
OLD_BIN = RECORDED / "client/bin"
SCENARIOS: dict[str, Any] = json.loads((RECORDED / "conversations.json").read_text())
SETTINGS: dict[str, dict[str, str]] = json.loads((RECORDED / "settings.json").read_text())

PIECE = 32 * 1024
"""Bytes after which a line of the log is cut."""

# The letters that a Job's name ends with.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"


def encoded(frame: list[str]) -> bytes:
    """Return a recorded frame as bytes; that of a log has its cursor in a field of its own."""
    kind, *fields = frame
    payload = b"".join(field.encode() for field in fields)
    if kind == "L":
        payload = len(fields[0].encode()).to_bytes(2, "big") + payload
    return kind.encode() + len(payload).to_bytes(4, "big") + payload


def field(conversation: Any, kind: str) -> str:
    """Return the payload of the client's only frame of a kind."""
    [payload] = [payload for one, payload in conversation["client"] if one == kind]
    return str(payload)


def token_sha256(token: str) -> str:
    """Return what stands of a token in the cluster."""
    return sha256(token.encode()).hexdigest()


def job_name(object_name: str, token: str) -> str:
    """Return the name of the Job that is made for a token."""
    number, suffix = int(token_sha256(token), 16), ""
    for _ in range(5):
        number, digit = divmod(number, len(_ALPHABET))
        suffix += _ALPHABET[digit]
    return f"{object_name}-{suffix}"


def position(log: bytes, lines: int, pieces: int = 0) -> str:
    """Return the end of a cursor that stands after so many lines of a log with timestamps, or pieces of the last."""
    seen = log.splitlines()[:lines]
    identities = [(at, blake2b(at + b" " + text[:PIECE], digest_size=8).hexdigest()) for at, text in map(_cut, seen)]
    at, digest = identities[-1]
    return f"{at.decode()} {digest} {identities.count(identities[-1])} {pieces}"


def _cut(line: bytes) -> tuple[bytes, bytes]:
    at, _, text = line.partition(b" ")
    return at, text


def of_another_run(scenario: str, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Job and the Secret of a scenario as the daemon asked for them, made for another token.

    The Secret's owner is still without a uid.
    """
    recorded = SCENARIOS[scenario]
    [job], [secret] = recorded["objects"]["jobs"], recorded["objects"]["secrets"]
    old = field(recorded["conversations"][0], "T")
    name = job["metadata"]["labels"]["fabric-builder-k8s-object"]
    assert job["metadata"]["name"] == job_name(name, old)
    text = json.dumps([requested(job), requested(secret)])
    text = text.replace(job_name(name, old), job_name(name, token)).replace(token_sha256(old), token_sha256(token))
    made = json.loads(text)
    return made[0], made[1]


def requested(found: dict[str, Any]) -> dict[str, Any]:
    """Return of an object from the API what the daemon has asked for, without what a cluster puts in."""
    body: dict[str, Any] = json.loads(json.dumps(found))
    body.pop("status", None)
    for key in ("uid", "creationTimestamp", "resourceVersion", "generation", "managedFields", "finalizers"):
        body["metadata"].pop(key, None)
    for owner in body["metadata"].get("ownerReferences", []):
        owner.pop("uid")
    if "template" in body.get("spec", {}):
        body["spec"].pop("selector", None)
        body["spec"].pop("manualSelector", None)
        labels = body["spec"]["template"]["metadata"]["labels"]
        for key in [
            key for key in labels if key.removeprefix("batch.kubernetes.io/") in {"controller-uid", "job-name"}
        ]:
            del labels[key]
        body |= {"apiVersion": "batch/v1", "kind": "Job"}
    else:
        body |= {"apiVersion": "v1", "kind": "Secret"}
    return body


_OWN = re.compile(r"(detect|build|release|run) \[\d+\]: ")

GO_BUILDERS = (
    "Detected k8s chaincode: ",
    "Running chaincode ID ",
    "Expected CORE_PEER_ID environment variable",
    "The FABRIC_K8S_BUILDER_",
    "Error running chaincode: error waiting for chaincode job ",
)
"""How the lines begin that people and scripts know from the Go builder."""


_RUN = re.compile(rf"-[{_ALPHABET}]{{5}}\b(?= (?:to|is)|$)")


def comparable(lines: list[str]) -> list[str]:
    """Return of a program's lines chaincode's own and the Go builder's, Jobs' names without what follows from a token.

    What held a timed out launch up is the cluster's word, and is left out.
    """
    kept = []
    for line in lines:
        own = _OWN.match(line)
        text = line[own.end() :] if own else line
        if not own or text.startswith(GO_BUILDERS):
            kept.append(_RUN.sub("", text.partition("timed out waiting for the condition;")[0]))
    return kept
