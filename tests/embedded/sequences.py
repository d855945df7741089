"""Reduces watch events of one Job to the facts that the daemon lives by, so that two clusters can be compared.

What differs from run to run (names, times, uids, counts of repeated events, whether two quick writes are seen as one)
is left out. `python -m tests.embedded.sequences FOLDER` prints what the recordings in FOLDER reduce to, as
observed.json holds it.
"""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Facts = dict[str, list[list[Any]]]

STATUSES = {"initContainerStatuses": "init container", "containerStatuses": "container"}

_DIGEST = re.compile(r'"[^" ]+@sha256:[0-9a-f]{64}"')
_VAGUE = (
    # Where the registry is, and what it said; which syntax rule the name broke.
    re.compile(r"(: failed to resolve reference IMAGE): .*"),
    re.compile(r"(: invalid reference format): .*"),
)


def reduce(events: Iterable[dict[str, Any]]) -> Facts:
    """Return the facts in order: of the Job, of its pod, of the Events, and the turning points of all together.

    `events` have `kind`, `type` and `object`, of one Job alone.
    """
    facts: Facts = {"job": [], "pod": [], "events": [], "turns": []}
    ordered = sorted(events, key=lambda event: int(event["object"]["metadata"]["resourceVersion"]))
    job = next(event["object"]["metadata"]["name"] for event in ordered if event["kind"] == "Job")
    for event in ordered:
        kind, obj = event["kind"], event["object"]
        if kind == "Job":
            _add(facts["job"], [event["type"], *_job(obj["status"])])
            for condition in obj["status"].get("conditions") or []:
                _turn(facts, f"job {condition['type']}")
            if obj["status"].get("ready"):
                _turn(facts, "job ready")
            if event["type"] == "DELETED":
                _turn(facts, "job deleted")
        elif kind == "Pod":
            _add(facts["pod"], [event["type"], *_pod(obj, job)])
            for turn in _pod_turns(event["type"], obj):
                _turn(facts, turn)
        else:
            reduced = _event(obj, job)
            if event["type"] == "ADDED" and reduced not in facts["events"]:
                facts["events"].append(reduced)
    facts["events"].sort(key=lambda event: str(event[0]))  # the Job's own, then the pod's, each in their order
    return facts


def _add(facts: list[list[Any]], fact: list[Any]) -> None:
    if not facts or facts[-1][1:] != fact[1:] or fact[0] == "DELETED":
        facts.append(fact)


def _turn(facts: Facts, turn: str) -> None:
    if [turn] not in facts["turns"]:
        facts["turns"].append([turn])


def _job(status: dict[str, Any]) -> list[Any]:
    conditions = [f"{c['type']}={c['status']}: {c['reason']}: {c['message']}" for c in status.get("conditions") or []]
    counts = {key: status[key] for key in ("active", "ready", "terminating", "failed", "succeeded") if key in status}
    uncounted = sorted(status.get("uncountedTerminatedPods") or {})
    if counts.get("active"):
        # Whether the Job looks at its pod while that is ready, and between its end and its phase, is chance.
        counts["ready"] = 0
    return [counts, uncounted, conditions, "startTime" in status, "completionTime" in status]


def _pod(pod: dict[str, Any], job: str) -> list[Any]:
    status, metadata = pod["status"], pod["metadata"]
    conditions = [
        f"{c['type']}={c['status']}" + (f": {c['reason']}" if "reason" in c else "")
        for c in status.get("conditions") or []
        if c["type"] != "PodReadyToStartContainers"  # whether the time before it is seen is chance
    ]
    return [
        status["phase"],
        "nodeName" in pod["spec"],
        conditions,
        *([_container(each) for each in status.get(field) or []] for field in STATUSES),
        metadata.get("deletionGracePeriodSeconds"),
        [status.get("reason", ""), status.get("message", "")],
    ]


def _container(status: dict[str, Any]) -> list[Any]:
    ((state, details),) = status["state"].items()
    told = {key: details[key] for key in ("reason", "exitCode", "message") if key in details}
    if "message" in told:
        told["message"] = _plain(told["message"], "")
    return [state, told, status["ready"], status["started"], status["restartCount"], status["imageID"] != ""]


def _pod_turns(kind: str, pod: dict[str, Any]) -> list[str]:
    conditions = pod["status"].get("conditions") or []
    told = [each for each in conditions if each["type"] in {"PodScheduled", "DisruptionTarget"}]
    turns = ["pod", *(f"pod {each['type']}={each['status']}" for each in told)]
    for field, name in STATUSES.items():
        turns += [f"{name} {state}" for status in pod["status"].get(field) or [] for state in status["state"]]
    if pod["status"]["phase"] in {"Failed", "Succeeded"}:
        turns.append(f"pod {pod['status']['phase']}")
    if "deletionTimestamp" in pod["metadata"]:
        turns.append("pod deleting")
    return [*turns, "pod deleted"] if kind == "DELETED" else turns


def _event(event: dict[str, Any], job: str) -> list[Any]:
    about, source = event["involvedObject"], event["source"]
    return [
        about["kind"],
        about.get("fieldPath", ""),
        event["type"],
        event["reason"],
        _plain(event["message"], job),
        [source.get("component", ""), event["reportingComponent"], event.get("action", "")],
        ["count" in event, event["eventTime"] is not None, event.get("firstTimestamp") is not None],
    ]


def _plain(text: str, job: str) -> str:
    """Take names that differ from run to run out of a message."""
    text = _DIGEST.sub("IMAGE", text)
    text = re.sub(r'"Not A Name@sha256:0+"', "IMAGE", text)
    if job:
        text = re.sub(rf"\b{re.escape(job)}-[a-z0-9]{{5}}\b", "POD", text)
        text = re.sub(r"assigned [a-z0-9-]+/", "assigned NAMESPACE/", text)
        text = re.sub(r"service account [a-z0-9-]+/", "service account NAMESPACE/", text)
    for pattern in _VAGUE:
        text = pattern.sub(r"\1", text)
    return text


def recorded(folder: Path) -> dict[str, Facts]:
    """Return what the recordings in a folder reduce to, by scenario."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_bytes())
        if isinstance(document, dict) and "events" in document:
            found[document["scenario"]] = reduce(document["events"])
    return found


if __name__ == "__main__":
    lines = json.dumps(recorded(Path(sys.argv[1])), indent=1)
    # One fact a line.
    sys.stdout.write(re.sub(r"\n {4,}", " ", lines).replace("\n   ]", "]") + "\n")
