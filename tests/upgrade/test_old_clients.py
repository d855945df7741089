"""The clients of 16a85a5 with today's daemon: what they get, what they say, and what is in the cluster."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.daemon.scene import Scene
from tests.upgrade.golden import OLD_BIN, SCENARIOS, comparable, field, job_name, position, requested, token_sha256
from tests.upgrade.record import SCENARIOS as PLAYS
from tests.upgrade.record import Recorder

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("play", PLAYS, ids=[play.__name__ for play in PLAYS])
async def test_they_get_what_they_got(scene: Scene, play: Callable[[Recorder], Awaitable[None]]) -> None:
    recorded = SCENARIOS[play.__name__]
    scene.bin = OLD_BIN
    await scene.daemon()
    recorder = Recorder(scene, scene.socket)
    await play(recorder)
    for program, before in zip(recorder.said, recorded["programs"], strict=True):
        assert program["code"] == before["code"]
        assert comparable(program["lines"]) == comparable(before["lines"])
    for plural in ("jobs", "secrets"):
        found, then = recorder.objects.get(plural, []), recorded["objects"].get(plural, [])
        assert [without_additions(requested(one)) for one in found] == [
            renamed(requested(old), old["metadata"], new["metadata"]) for old, new in zip(then, found, strict=True)
        ]


ADDED = {"fabric-builder-k8s-host"}
"""The annotations that later versions have added. What was there before stays as it was."""


def without_additions(body: dict[str, Any]) -> dict[str, Any]:
    for part in (body, body.get("spec", {}).get("template", {})):
        annotations = part.get("metadata", {}).get("annotations", {})
        for key in ADDED & annotations.keys():
            del annotations[key]
    return body


def renamed(body: dict[str, Any], then: dict[str, Any], now: dict[str, Any]) -> Any:
    """Return a recorded object as it would be called for today's token, which is random."""
    text = json.dumps(body).replace(then["name"], now["name"])
    key = "fabric-builder-k8s-run"
    return json.loads(text.replace(then["annotations"][key], now["annotations"][key]))


@pytest.mark.parametrize("scenario", [name for name, one in SCENARIOS.items() if one["objects"]])
def test_what_this_rests_on_is_as_recorded(scenario: str) -> None:
    """Tokens, names and cursors, made here once more by themselves."""
    recorded = SCENARIOS[scenario]
    [job], [pod] = recorded["objects"]["jobs"], recorded["objects"]["pods"]
    token = field(recorded["conversations"][0], "T")
    meta = job["metadata"]
    assert meta["annotations"]["fabric-builder-k8s-run"] == token_sha256(token)
    assert meta["name"] == job_name(meta["labels"]["fabric-builder-k8s-object"], token)
    log = recorded["log"].encode()
    lines = 0
    for frame in recorded["conversations"][-1]["daemon"]:
        if frame[0] == "L" and frame[2]:
            lines += len([line for line in frame[2].splitlines() if "[piece 1 of a longer line]" not in line])
            prefix = f"2 {token} 1" if scenario == "inherited" else "1"
            assert frame[1] == f"{prefix} {meta['uid']} {pod['metadata']['uid']} {position(log, lines)}"
    assert lines == len(log.splitlines())
