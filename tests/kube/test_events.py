"""Events are written in the background, repeats as a series, and what cannot be written is dropped."""

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from k8s_builder_lab.embedded.objects import Object
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.events import NOTE_LIMIT, WAITING, Happened, Recorder, Reference
from tests.embedded.cluster import PATIENCE, Cluster
from tests.kube.rogue import Reply, Request, rogue

pytestmark = pytest.mark.anyio

JOB = Reference("batch/v1", "Job", "hlfcc-basic", "u1")
POD = Reference("v1", "Pod", "peer0-0", "u2")
FORBIDDEN = (
    'events.events.k8s.io is forbidden: User "x" cannot create resource "events" in API group "events.k8s.io" in the'
    ' namespace "default"'
)


def launched(note: str = "Launched it", **more: Any) -> Happened:
    return replace(Happened(JOB, "Normal", "Launched", "Launching", note), **more)


@asynccontextmanager
async def recording(api: Api, **timings: float) -> AsyncIterator[Recorder]:
    recorder = Recorder(api, "k8s-builderd", "peer0-0", **{"spacing": 0.0, **timings})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        yield recorder
        tasks.cancel_scope.cancel()


async def eventually(found: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(PATIENCE):
        while not await found():
            await anyio.lowlevel.checkpoint()


def told(logged: list[MutableMapping[str, Any]]) -> list[str]:
    """Return the events of the daemon's log, but for those of the requests themselves."""
    return [line["event"] for line in logged if line["event"] != "api_request"]


async def written(cluster: Cluster, count: int) -> list[Object]:
    """Wait until there are so many Events, and return them in the order of their times."""
    items: list[Object] = []

    async def enough() -> bool:
        items[:] = (await cluster.list("events"))["items"]
        return len(items) >= count

    await eventually(enough)
    assert len(items) == count
    return sorted(items, key=lambda item: str(item["eventTime"]))


async def series(cluster: Cluster, count: int) -> Object:
    """Wait until the only Event has happened so often, and return it."""
    item: Object = {}

    async def enough() -> bool:
        for found in (await cluster.list("events"))["items"]:
            item.update(found)
        return bool((item.get("series") or {}).get("count") == count)

    await eventually(enough)
    return item


async def test_an_event_says_all_that_kubectl_shows(cluster: Cluster, api: Api) -> None:
    async with recording(api) as recorder:
        recorder.record(launched(related=POD))
        [event] = await written(cluster, 1)
    assert event["metadata"]["name"].startswith("hlfcc-basic.")
    assert {field: event[field] for field in ("involvedObject", "related", "reason", "action", "message", "type")} == {
        "involvedObject": {**JOB.body("default")},
        "related": {**POD.body("default")},
        "reason": "Launched",
        "action": "Launching",
        "message": "Launched it",
        "type": "Normal",
    }
    assert (event["reportingComponent"], event["reportingInstance"]) == ("k8s-builderd", "peer0-0")
    assert event["eventTime"].endswith("Z")
    assert "series" not in event


@pytest.mark.parametrize(
    "text", ["x" * 3000, "ä" * 3000, "a\nb\x00c\x1b[1m", "\ud800", "", "a" * 1023 + "ä"], ids=range(6)
)
async def test_any_note_can_be_written(cluster: Cluster, api: Api, text: str) -> None:
    async with recording(api) as recorder:
        recorder.record(launched(text))
        [event] = await written(cluster, 1)
    note = event.get("message", "")
    assert len(note.encode()) <= NOTE_LIMIT
    assert note.isprintable()
    assert len(note) >= min(len(text), NOTE_LIMIT // 2 - 1)


async def test_a_repeat_is_a_series_and_another_reason_object_or_subject_is_not(cluster: Cluster, api: Api) -> None:
    async with recording(api) as recorder:
        for _ in range(2):
            recorder.record(launched())
        event = await series(cluster, 2)
        assert event["series"]["lastObservedTime"] >= event["eventTime"]
        assert (await cluster.switch("GET", "state"))["requests"]["patch events.events.k8s.io"] == 1
        for other in ({"reason": "Running"}, {"regarding": POD}, {"subject": "basic_1.0"}):
            recorder.record(launched(**other))
        assert [each.get("series", {}).get("count") for each in await written(cluster, 4)] == [2, None, None, None]


async def test_later_repeats_are_counted_and_written_now_and_then(cluster: Cluster, api: Api) -> None:
    async with recording(api, series_ends=1.0) as recorder:
        for _ in range(50):
            recorder.record(launched())
        await series(cluster, 2)
        await series(cluster, 50)
        requests = (await cluster.switch("GET", "state"))["requests"]
    assert (requests["create events.events.k8s.io"], requests["patch events.events.k8s.io"]) == (1, 2)


async def test_after_a_while_without_a_repeat_it_is_a_new_event(cluster: Cluster, api: Api) -> None:
    async with recording(api, series_ends=0.0) as recorder:
        recorder.record(launched())
        recorder.record(launched())
        await written(cluster, 2)


async def test_a_series_whose_event_is_gone_begins_anew(cluster: Cluster, api: Api) -> None:
    async with recording(api) as recorder:
        recorder.record(launched())
        [event] = await written(cluster, 1)
        await cluster.delete("events", event["metadata"]["name"])
        recorder.record(launched())

        async def patched() -> bool:
            return bool((await cluster.switch("GET", "state"))["requests"].get("patch events.events.k8s.io"))

        await eventually(patched)
        recorder.record(launched())
        await written(cluster, 1)


async def test_the_oldest_are_dropped_when_too_many_wait(cluster: Cluster, api: Api) -> None:
    recorder = Recorder(api, "k8s-builderd", "peer0-0", spacing=0.0)
    for number in range(WAITING + 5):
        recorder.record(launched(str(number), subject=str(number)))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recorder.run)
        events = await written(cluster, WAITING)
        tasks.cancel_scope.cancel()
    # Several have the same microsecond.
    assert sorted(int(event["message"]) for event in events) == [*range(5, WAITING + 5)]


@pytest.mark.parametrize("action", [{"do": "status", "code": 500}, {"do": "reset"}, {"do": "status", "code": 429}])
async def test_one_that_cannot_be_written_is_dropped_and_the_next_is_not(
    cluster: Cluster, api: Api, action: Object
) -> None:
    await cluster.switch("POST", "faults", {"verb": "create", "resource": "events", "action": action})
    async with recording(api) as recorder:
        with capture_logs() as logged:
            recorder.record(launched("lost"))
            recorder.record(launched("kept"))
            [event] = await written(cluster, 1)
    assert event["message"] == "kept"
    assert told(logged) == ["event_dropped"]


@pytest.mark.parametrize(
    "action",
    [
        {"do": "status", "code": 403, "reason": "Forbidden", "message": FORBIDDEN},
        {"do": "status", "code": 404, "reason": "NotFound", "message": "the server could not find the resource"},
    ],
)
async def test_without_the_right_or_the_group_it_is_told_once_and_not_tried_for_long(
    cluster: Cluster, api: Api, action: Object
) -> None:
    await cluster.switch("POST", "faults", {"verb": "create", "resource": "events", "times": None, "action": action})
    with capture_logs() as logged:
        async with recording(api) as recorder:
            recorder.record(launched("first"))

            async def refused() -> bool:
                return bool(logged)

            await eventually(refused)
            for number in range(20):
                recorder.record(launched("later", subject=str(number)))
            for _ in range(20):
                asked = (await cluster.switch("GET", "state"))["requests"]["create events.events.k8s.io"]
            assert asked == 1
    assert told(logged) == ["events_refused"]


async def test_once_the_right_is_given_events_are_written_again(cluster: Cluster, api: Api) -> None:
    action = {"do": "status", "code": 403, "reason": "Forbidden", "message": FORBIDDEN}
    await cluster.switch("POST", "faults", {"verb": "create", "resource": "events", "times": 3, "action": action})
    with capture_logs() as logged:
        async with recording(api, refused_pause=0.0) as recorder:
            for number in range(4):
                recorder.record(launched(str(number)))
                with anyio.fail_after(PATIENCE):
                    while (await cluster.switch("GET", "faults"))[0]["met"] < min(number + 1, 3):
                        pass
            [event] = await written(cluster, 1)
    assert event["message"] == "3"
    assert told(logged) == ["events_refused"]


async def test_a_mistake_of_ours_ends_nothing(cluster: Cluster, api: Api) -> None:
    with capture_logs() as logged:
        async with recording(api) as recorder:
            recorder.record(launched(note=None))  # type: ignore[arg-type]
            recorder.record(launched())
            await written(cluster, 1)
    assert told(logged) == ["event_crashed"]


async def test_what_is_sent_is_what_the_api_asks_for(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str, Any]] = []
    enough = anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        seen.append((request.method, request.path, request.headers["content-type"], msgspec.json.decode(request.body)))
        await reply.whole(200, {"metadata": {"name": "e1", "uid": "u"}})
        if len(seen) == 2:
            enough.set()

    async with (
        rogue(answer) as server,
        Api.open(str(server.kubeconfig(tmp_path / "kubeconfig")), "default") as api,
        recording(api) as recorder,
    ):
        recorder.record(launched())
        recorder.record(launched())
        with anyio.fail_after(PATIENCE):
            await enough.wait()
    (method, path, kind, body), (patch_method, patch_path, patch_kind, patch) = seen
    collection = "/apis/events.k8s.io/v1/namespaces/default/events"
    assert (method, path, kind) == ("POST", collection, "application/json")
    assert (patch_method, patch_kind) == ("PATCH", "application/merge-patch+json")
    assert patch_path == f"{collection}/{body['metadata']['name']}"
    assert patch["series"].keys() == {"count", "lastObservedTime"}
    assert patch["series"]["count"] == 2
