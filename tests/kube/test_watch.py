"""A reflector has in the end what the API server has, and tells each change once, whatever becomes of its watches."""

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import anyio
import msgspec
import pytest
import structlog

from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import FORBIDDEN_PATIENCE
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import SECRETS
from k8s_builderd.kube.watch import LATE, MAX_EVENT, Applied, Deleted, Gone, Reflector
from tests.embedded.cluster import PATIENCE, Cluster, eventually, secret
from tests.kube.rogue import Reply, Request, rogue, status

pytestmark = pytest.mark.anyio

SELECTOR = "watched=yes"


KIND_OF_BUG = OverflowError("date value out of range")


class Soon(Random):
    """Waits shortly, and remembers for how long it might have been."""

    def __init__(self) -> None:
        super().__init__(0)
        self.asked: list[float] = []

    def uniform(self, a: float, b: float) -> float:
        if (a, b) == (1, 2):  # how long a watch may last
            return 1.0
        self.asked.append(b)
        return 0.01


class Watched:
    """A reflector at work, and what it has told."""

    def __init__(
        self, api: Api, silence: float = 130.0, interval: float = 0.0, refusal: float = FORBIDDEN_PATIENCE
    ) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.restarts: list[tuple[str, str]] = []
        self.asked: list[Request] = []
        self.poison = ""
        self.rng = Soon()
        self.reflector = Reflector(
            api,
            SECRETS,
            ObjectOnly,
            SELECTOR,
            self._saw,
            silence=silence,
            interval=interval,
            refusal=refusal,
            restarted=lambda *restart: self.restarts.append(restart),
            rng=self.rng,
        )
        self._changed = anyio.Event()

    def _saw(self, change: Applied[ObjectOnly] | Deleted[ObjectOnly]) -> None:
        meta = change.object.metadata
        self.told.append((type(change).__name__, meta.name, meta.resource_version))
        self._changed.set()
        self._changed = anyio.Event()
        if meta.name == self.poison:
            raise KIND_OF_BUG

    @property
    def names(self) -> set[str]:
        return {item.metadata.name for item in self.reflector.objects.values()}

    def gone(self) -> list[str]:
        return [name for what, name, _ in self.told if what == "Deleted"]

    async def until(self, wanted: Callable[[], Any]) -> None:
        with anyio.move_on_after(PATIENCE):
            while not wanted():
                await self._changed.wait()
            return
        raise AssertionError(f"it did not come: {self.told}, {self.reflector.error}")

    async def has(self, *names: str) -> None:
        await self.until(lambda: self.names == {*names})

    async def state(self, wanted: Callable[[], Any]) -> None:
        """Wait for what no change tells of."""
        await eventually(lambda: bool(wanted()))

    def sound(self) -> None:
        """See that no state was told twice, and no object's end but once between two of its beginnings."""
        applied = [(name, version) for what, name, version in self.told if what == "Applied"]
        assert len(applied) == len(set(applied)), self.told
        there: dict[str, bool] = {}
        for what, name, _ in self.told:
            assert what == "Applied" or there.get(name), self.told
            there[name] = what == "Applied"
        assert {name for name, is_there in there.items() if is_there} == self.names


@asynccontextmanager
async def watching(api: Api, silence: float = 130.0) -> AsyncIterator[Watched]:
    watched = Watched(api, silence)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watched.reflector.run)
        yield watched
        tasks.cancel_scope.cancel()


@pytest.fixture
async def watched(api: Api) -> AsyncIterator[Watched]:
    async with watching(api) as watched:
        with anyio.fail_after(PATIENCE):
            await watched.reflector.ever_synced.wait()
        yield watched


def labelled(name: str, value: str = "yes") -> Any:
    body = secret(name)
    body["metadata"]["labels"] = {"watched": value}
    return body


async def make(cluster: Cluster, *names: str) -> None:
    for name in names:
        await cluster.create(labelled(name))


async def relabel(cluster: Cluster, name: str, value: str | None) -> None:
    answer = await cluster.patch("secrets", name, {"metadata": {"labels": {"watched": value}}})
    assert answer.status == 200


async def fault(cluster: Cluster, action: dict[str, Any], **rule: Any) -> None:
    await cluster.switch("POST", "faults", {"resource": "secrets", "verb": "watch", "action": action, **rule})


async def drop(cluster: Cluster) -> None:
    await cluster.switch("POST", "drop")
    await cluster.list("secrets")  # finds out that the connection it had is gone, too, and takes another


# What a watch is for


async def test_what_is_there_and_what_comes_changes_and_goes_is_told(cluster: Cluster, api: Api) -> None:
    await make(cluster, "a", "b")
    await cluster.create(labelled("another", "no"))
    async with watching(api) as watched:
        await watched.has("a", "b")
        await make(cluster, "c")
        await cluster.patch("secrets", "a", {"metadata": {"annotations": {"x": "y"}}})
        await cluster.delete("secrets", "b")
        await watched.until(lambda: "b" in watched.gone() and len(watched.told) == 5)
    assert [(what, name) for what, name, _ in watched.told] == [
        ("Applied", "a"),
        ("Applied", "b"),
        ("Applied", "c"),
        ("Applied", "a"),
        ("Deleted", "b"),
    ]
    assert watched.reflector.synced


async def test_an_object_that_loses_the_label_is_gone_and_comes_back_with_it(
    cluster: Cluster, watched: Watched
) -> None:
    await make(cluster, "a")
    await watched.has("a")
    for _ in range(3):
        await relabel(cluster, "a", "no")
        await watched.has()
        await relabel(cluster, "a", "yes")
        await watched.has("a")
    watched.sound()


# What becomes of watches

ENDS = [
    {"do": "close"},
    {"do": "close", "events": 1},
    {"do": "expire"},
    {"do": "expire", "events": 1},
    {"do": "error"},
    {"do": "error", "events": 1},
    {"do": "error", "events": 1, "code": 429, "message": "too many requests"},
    {"do": "gone"},
    {"do": "half"},
    {"do": "half", "events": 1},
    {"do": "reset"},
    {"do": "status", "code": 500},
    {"do": "status", "code": 403},
    {"do": "status", "code": 401},
    {"do": "status", "code": 429, "retryAfter": 1},
]


@pytest.mark.parametrize("action", ENDS, ids=lambda action: "-".join(map(str, action.values())))
async def test_a_watch_that_ends_in_any_way_is_gone_on_with(cluster: Cluster, api: Api, action: dict[str, Any]) -> None:
    await make(cluster, "old", "stays")
    await fault(cluster, action, times=3)
    async with watching(api) as watched:
        await watched.until(lambda: {"old", "stays"} <= watched.names)
        await make(cluster, "a", "b", "c", "d")
        await cluster.delete("secrets", "old")
        await watched.has("stays", "a", "b", "c", "d")
        assert watched.gone() == ["old"]
        watched.sound()
        await watched.state(lambda: watched.reflector.synced)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ({"do": "close"}, "closed"),
        ({"do": "gone"}, "expired"),
        ({"do": "reset"}, "unreachable"),
        ({"do": "status", "code": 500}, "unavailable"),
        ({"do": "status", "code": 403}, "forbidden"),
        ({"do": "status", "code": 401}, "unauthorized"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_why_a_watch_begins_anew_is_told(cluster: Cluster, api: Api, action: dict[str, Any], reason: str) -> None:
    # Twice: after the first 401 the credentials are loaded anew, and aiohttp tries again where a connection it has kept
    # is reset.
    await fault(cluster, action, times=2)
    async with watching(api) as watched:
        await watched.state(lambda: watched.restarts)
        await watched.state(lambda: watched.reflector.synced)
    assert watched.restarts[0] == ("secrets", reason)


async def test_a_silent_watch_is_noticed_and_replaced(cluster: Cluster, api: Api) -> None:
    await make(cluster, "old")
    await fault(cluster, {"do": "silent"}, times=2)
    async with watching(api, silence=0.6) as watched:
        await watched.has("old")
        await make(cluster, "new")
        await cluster.delete("secrets", "old")
        await watched.has("new")
        watched.sound()
    assert watched.restarts[0] == ("secrets", "silent")


async def test_bookmarks_are_no_silence(cluster: Cluster, api: Api) -> None:
    """They come three times within it here, and the same watch goes on."""
    async with watching(api, silence=0.6) as watched:
        with anyio.fail_after(PATIENCE):
            await watched.reflector.ever_synced.wait()
        before = watched.reflector._version
        await cluster.create(secret("unlabelled"))  # takes a resourceVersion that only a bookmark can tell
        await watched.state(lambda: int(watched.reflector._version) > int(before))
        state = await cluster.switch("GET", "state")
        assert state["requests"]["watch secrets"] == 1


async def test_events_told_twice_are_one_change(cluster: Cluster, api: Api) -> None:
    await fault(cluster, {"do": "duplicate"}, times=None)
    async with watching(api) as watched:
        with anyio.fail_after(PATIENCE):
            await watched.reflector.ever_synced.wait()
        await make(cluster, "a", "b")
        await cluster.delete("secrets", "a")
        await make(cluster, "c")
        await watched.has("b", "c")
        watched.sound()


async def test_events_of_the_past_after_a_list_bring_nothing_back(cluster: Cluster, api: Api) -> None:
    """What was there and went before the list is not told at all; what a list has is not told as it was before."""
    async with watching(api) as watched:
        await make(cluster, "a", "b", "c")
        await cluster.patch("secrets", "b", {"metadata": {"annotations": {"x": "y"}}})
        await cluster.delete("secrets", "a")
        await watched.has("b", "c")
        told = list(watched.told)
        await fault(cluster, {"do": "replay", "events": 20}, times=3)
        await cluster.switch("POST", "compact")
        await drop(cluster)
        await make(cluster, "d")
        await watched.has("b", "c", "d")
        assert watched.told[: len(told)] == told
        assert [(what, name) for what, name, _ in watched.told[len(told) :]] == [("Applied", "d")]


async def test_an_event_of_a_megabyte_is_an_event(cluster: Cluster, api: Api) -> None:
    await fault(cluster, {"do": "padding"}, times=None)
    async with watching(api) as watched:
        with anyio.fail_after(PATIENCE):
            await watched.reflector.ever_synced.wait()
        await make(cluster, "a", "b")
        await cluster.delete("secrets", "a")
        await watched.until(lambda: watched.gone() == ["a"] and watched.names == {"b"})
        watched.sound()
        # It was told by the one watch, not by a list after a watch that was given up.
        requests = (await cluster.switch("GET", "state"))["requests"]
        assert (requests["watch secrets"], requests["list secrets"]) == (1, 1)


async def test_what_went_while_no_watch_was_open_is_told_as_gone(cluster: Cluster, watched: Watched) -> None:
    await make(cluster, "deleted", "relabelled", "stays", "again")
    await watched.has("deleted", "relabelled", "stays", "again")
    await fault(cluster, {"do": "status", "code": 500}, times=None)
    await drop(cluster)
    await watched.state(lambda: not watched.reflector.synced)
    await cluster.delete("secrets", "deleted")
    await relabel(cluster, "relabelled", "no")
    await cluster.delete("secrets", "again")
    await make(cluster, "again", "new")
    await cluster.switch("POST", "compact")
    await cluster.switch("DELETE", "faults")
    await watched.has("stays", "again", "new")
    assert sorted(watched.gone()) == ["again", "deleted", "relabelled"]
    assert len(watched.reflector.objects) == 3


@pytest.mark.parametrize("how", ["outage", "restart"])
async def test_an_api_server_that_was_away_is_caught_up_with(cluster: Cluster, watched: Watched, how: str) -> None:
    await make(cluster, "a", "b")
    await watched.has("a", "b")
    if how == "outage":
        await cluster.switch("POST", "outage", {"on": True})
        await watched.state(lambda: not watched.reflector.synced)
        assert "cannot watch secrets: the Kubernetes API does not answer" in str(watched.reflector.error)
        await cluster.switch("POST", "outage", {"on": False})
    else:
        await cluster.switch("POST", "restart", {"seconds": 0, "forbidden": 0.1})
        await watched.state(lambda: not watched.reflector.synced)
    await watched.state(lambda: watched.reflector.synced)
    await cluster.delete("secrets", "a")
    await make(cluster, "c")
    await watched.has("b", "c")
    watched.sound()


async def test_an_api_server_that_comes_late_is_waited_for(cluster: Cluster, api: Api) -> None:
    await make(cluster, "a")
    await cluster.switch("POST", "outage", {"on": True})
    async with watching(api) as watched:
        await watched.state(lambda: len(watched.rng.asked) > 5)
        assert not watched.reflector.synced
        assert not watched.reflector.ever_synced.is_set()
        assert "cannot list secrets" in str(watched.reflector.error)
        await cluster.switch("POST", "outage", {"on": False})
        await watched.has("a")
        await watched.state(lambda: watched.reflector.synced)


# What a request of ours has returned


def of(body: Any) -> ObjectOnly:
    return msgspec.convert(body, ObjectOnly, strict=False)


async def test_what_we_created_is_known_before_its_watch_tells_and_told_once(
    cluster: Cluster, api: Api, watched: Watched
) -> None:
    await fault(cluster, {"do": "status", "code": 500}, times=None)
    await drop(cluster)
    await watched.state(lambda: not watched.reflector.synced)
    watched.reflector.adopt(of(await cluster.create(labelled("a"))))
    assert watched.names == {"a"}
    await cluster.switch("DELETE", "faults")
    await make(cluster, "b")
    await watched.has("a", "b")
    assert [name for _, name, _ in watched.told] == ["a", "b"]


async def test_what_we_created_and_another_has_deleted_does_not_come_back(cluster: Cluster, watched: Watched) -> None:
    created = of(await cluster.create(labelled("a")))
    await watched.has("a")
    await cluster.delete("secrets", "a")
    await watched.has()
    watched.reflector.adopt(created)
    assert watched.names == set()
    watched.sound()


async def test_a_list_older_than_what_we_created_does_not_take_it_away(kubeconfig: Path) -> None:
    """The list was made before the creation, and is read after it."""
    created = thing("a", 12)
    listed = anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            late.reflector.adopt(of(created))
            await reply.whole(200, listing(10))
            listed.set()
        else:
            await reply.chunked(event("ADDED", created), end=False)
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as late:
        with anyio.fail_after(PATIENCE):
            await listed.wait()
        await late.state(lambda: late.reflector.synced)
        assert late.told == [("Applied", "a", "12")]


# Servers that are worse


def thing(name: str, version: int, uid: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}}


def listing(version: int, *items: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "items": [*items]}


def event(kind: str, body: Any) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


@asynccontextmanager
async def scripted(
    kubeconfig: Path,
    answer: Callable[[Request, Reply], Awaitable[None]],
    **options: float,
) -> AsyncIterator[Watched]:
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        watched = Watched(api, **options)
        watched.asked = server.asked
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.reflector.run)
            yield watched
            tasks.cancel_scope.cancel()


def lists(*answers: Any) -> Callable[[Request, Reply], Awaitable[None]]:
    """Answer each list with the next of these, the last one for ever, and each watch with silence."""
    turns = [*answers]

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" in request.query:
            await reply.chunked(end=False)
            await anyio.sleep_forever()
        body = turns.pop(0) if len(turns) > 1 else turns[0]
        if isinstance(body, int):
            await reply.whole(body)
        else:
            await reply.whole(200, body)

    return answer


@pytest.mark.parametrize(
    "bad",
    [
        b"<html>captive portal</html>",
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata":{"resourceVersion":"1"},"items":[{"metadata":',
        b"\xff\xfe",
        b"[" * 5000,
        302,
        404,
        418,
        599,
    ],
    ids=str,
)
async def test_a_list_that_cannot_be_read_is_asked_for_again(kubeconfig: Path, bad: Any) -> None:
    async with scripted(kubeconfig, lists(bad, bad, listing(5, thing("a", 3)))) as watched:
        await watched.has("a")
        await watched.state(lambda: watched.reflector.synced)


async def test_a_list_without_items_is_empty(kubeconfig: Path) -> None:
    async with scripted(kubeconfig, lists({"metadata": {"resourceVersion": "5"}, "items": None})) as watched:
        await watched.state(lambda: watched.reflector.synced)
        assert watched.told == []


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param(b'{"type":"ADDED","object":nonsense}\n', id="no JSON"),
        pytest.param(b"\xff\xff\n", id="no UTF-8"),
        pytest.param(b'{"type":"ADDED"}\n', id="no object"),
        pytest.param(b'{"type":"ADDED","object":null}\n', id="null"),
        pytest.param(b'{"type":"ADDED","object":{"metadata":{"name":[]}}}\n', id="another type"),
        pytest.param(b'{"type":"BOOKMARK","object":{"metadata":{}}}\n', id="bookmark without a version"),
        pytest.param(b'{"type":"ERROR","object":{}}\n', id="error without a code"),
        pytest.param(b'{"type":"ERROR","object":null}\n', id="error without an object"),
        pytest.param(b"x" * (MAX_EVENT + 1), id="an event without end"),
    ],
)
async def test_an_event_that_cannot_be_read_costs_no_other(kubeconfig: Path, odd: bytes) -> None:
    """The watch starts anew, from a list where it must; the daemon does not end."""
    watches = 0

    async def answer(request: Request, reply: Reply) -> None:
        nonlocal watches
        if "watch" not in request.query:
            await reply.whole(200, listing(10 + watches, thing("a", 3)))
            return
        watches += 1
        if watches == 1:
            await reply.chunked(event("ADDED", thing("b", 11)), odd)
        else:
            await reply.chunked(event("ADDED", thing("c", 20)), end=False)
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as watched:
        await watched.until(lambda: "c" in watched.names)
        assert ("Applied", "b", "11") in watched.told


async def test_kinds_of_events_that_are_not_known_yet_are_passed_over(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10))
        else:
            await reply.chunked(event("SYNCED", {"metadata": {}}), b"\n", event("ADDED", thing("a", 11)), end=False)
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as watched:
        await watched.has("a")
        assert len([request for request in watched.asked if "watch" in request.query]) == 1


async def test_events_cut_at_every_byte_are_whole(kubeconfig: Path) -> None:
    data = b"".join(event("ADDED", thing(name, 11 + n)) for n, name in enumerate(("a", "\N{SNOWMAN}", "c")))

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10))
        else:
            await reply.chunked(*(data[n : n + 1] for n in range(len(data))), end=False)
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as watched:
        await watched.has("a", "\N{SNOWMAN}", "c")


async def test_a_late_word_about_a_deleted_object_does_not_bring_it_back(kubeconfig: Path) -> None:
    """Events out of order: its deletion is known, and an older state of it comes behind."""

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("a", 5)))
        else:
            await reply.chunked(
                event("DELETED", thing("a", 14)),
                event("MODIFIED", thing("a", 12)),
                event("ADDED", thing("b", 13)),
                event("MODIFIED", thing("b", 12)),
                event("ADDED", thing("end", 15)),
                end=False,
            )
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as watched:
        await watched.until(lambda: "end" in watched.names)
        assert watched.names == {"b", "end"}
        assert watched.told == [
            ("Applied", "a", "5"),
            ("Deleted", "a", "14"),
            ("Applied", "b", "13"),
            ("Applied", "end", "15"),
        ]


@pytest.mark.parametrize(
    ("calls", "is_known"),
    [
        ([], True),
        ([100], True),
        ([100, 101, 100 + LATE - 1], True),
        ([100, 100 + LATE], False),
        ([100 + 10 * LATE], True),
        ([100 + 10 * LATE, 100 + 11 * LATE], False),
    ],
    ids=["at once", "one look", "many looks", "late", "nothing was told for long", "and late"],
)
def test_what_has_gone_is_remembered_until_no_answer_can_tell_of_it(calls: list[float], is_known: bool) -> None:
    gone = Gone()
    gone.add("a", "14", 50)
    for now in calls:
        gone.age(now)
    assert gone.version("a") == ("14" if is_known else None)
    assert len(gone) == is_known
    gone.discard("a")
    assert gone.version("a") is None


def test_what_has_gone_is_forgotten_though_nothing_but_lists_tells_of_it() -> None:
    gone = Gone()
    for second in range(1000):
        gone.add(str(second), "14", second)
        assert len(gone) <= 2 * LATE


async def test_a_late_word_of_a_deletion_takes_nothing_away(kubeconfig: Path) -> None:
    """It lost its label for a moment, and a request of ours has seen it since. What nobody knew is no loss either."""

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("a", 5)))
        else:
            late.reflector.adopt(of(thing("a", 20)))
            await reply.chunked(
                event("DELETED", thing("a", 14)),
                event("DELETED", thing("unknown", 15)),
                event("ADDED", thing("end", 16)),
                end=False,
            )
            await anyio.sleep_forever()

    async with scripted(kubeconfig, answer) as late:
        await late.until(lambda: "end" in late.names)
        assert late.names == {"a", "end"}
        assert late.told == [("Applied", "a", "5"), ("Applied", "a", "20"), ("Applied", "end", "16")]
        assert late.restarts == []


async def test_a_watch_from_the_future_is_not_waited_on_for_ever(kubeconfig: Path) -> None:
    """An API server whose store was restored from a backup knows only older versions: 200, and silence (measured)."""
    behind = False

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(8, thing("new", 7)) if behind else listing(100, thing("old", 90)))
            return
        if int(request.query["resourceVersion"]) <= 8:
            await reply.chunked(event("ADDED", thing("newer", 9)), end=False)
        else:
            await reply.chunked(end=False)
        await anyio.sleep_forever()

    async with scripted(kubeconfig, answer, silence=0.2) as watched:
        await watched.has("old")
        behind = True
        await watched.until(lambda: "newer" in watched.names)


async def test_a_server_that_cuts_each_watch_at_once_is_asked_ever_more_seldom(kubeconfig: Path) -> None:
    deliver = False

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10))
        else:
            await reply.chunked(*([event("ADDED", thing("a", 11))] if deliver else []))

    async with scripted(kubeconfig, answer) as watched:
        await watched.state(lambda: len(watched.rng.asked) >= 8)
        assert watched.rng.asked[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
        deliver = True
        await watched.has("a")
        seen = len(watched.rng.asked)
        deliver = False
        await watched.state(lambda: len(watched.rng.asked) > seen + 1)
        assert 0.2 in watched.rng.asked[seen - 1 :]


async def test_a_server_that_expires_each_watch_at_once_is_asked_ever_more_seldom(kubeconfig: Path) -> None:
    """Once is the normal case and costs no time; each time is a server in trouble, not to be asked at full speed."""
    expired = {"code": 410, "reason": "Expired", "message": "too old resource version: 10 (11)"}

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10))
        else:
            await reply.chunked(event("ERROR", expired))

    async with scripted(kubeconfig, answer) as watched:
        await watched.state(lambda: len(watched.asked) >= 40)
        assert len(watched.rng.asked) >= 15
        assert watched.rng.asked[-1] == 5.0


async def test_lists_and_watches_are_asked_for_in_the_apis_words(kubeconfig: Path) -> None:
    async with scripted(kubeconfig, lists(listing(10))) as watched:
        await watched.state(lambda: len(watched.asked) >= 2)
        one, other = watched.asked[:2]
    assert (one.path, one.query) == ("/api/v1/namespaces/ns/secrets", {"labelSelector": SELECTOR})
    assert other.path == one.path
    assert other.query == {
        "labelSelector": SELECTOR,
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "10",
        "timeoutSeconds": "300",
    }


# One object harms no other

TOO_LATE = "10000-01-01T00:00:00Z"
"""A time that Kubernetes can write and nobody here can read."""


def unreadable(name: str, version: int) -> dict[str, Any]:
    item = thing(name, version)
    item["metadata"]["deletionTimestamp"] = TOO_LATE
    return item


async def test_one_object_that_cannot_be_read_hides_no_other(kubeconfig: Path) -> None:
    unreadable = {"metadata": {"name": 5}}
    async with scripted(kubeconfig, lists(listing(10, unreadable, thing("a", 9)))) as watched:
        await watched.has("a")


async def test_an_event_whose_object_cannot_be_read_concerns_that_object_only(kubeconfig: Path) -> None:
    """The watch goes on, without a list; the object keeps the state that was known, and its end is told."""

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("a", 5), thing("b", 6)))
            return
        await reply.chunked(
            event("MODIFIED", unreadable("a", 11)),
            event("ADDED", unreadable("c", 12)),
            event("DELETED", unreadable("b", 13)),
            event("DELETED", unreadable("d", 14)),
            event("ADDED", thing("end", 15)),
            end=False,
        )
        await anyio.sleep_forever()

    with structlog.testing.capture_logs() as lines:
        async with scripted(kubeconfig, answer) as watched:
            await watched.until(lambda: "end" in watched.names)
            assert watched.names == {"a", "end"}
            assert watched.gone() == ["b"]
            assert watched.reflector.synced
            assert len(watched.asked) == 2
    odd = [line for line in lines if line["event"] == "object_unreadable"]
    assert [(line["resource"], line["name"]) for line in odd] == [("secrets", name) for name in "acbd"]


@pytest.mark.parametrize("restored", [False, True], ids=["relisted", "restored from a backup"])
async def test_an_object_that_a_list_has_and_nobody_can_read_is_not_gone(kubeconfig: Path, restored: bool) -> None:
    go_on, first = anyio.Event(), True

    async def stateful(request: Request, reply: Reply) -> None:
        nonlocal first
        if "watch" in request.query and first:
            first = False
            await go_on.wait()
            await reply.chunked(event("ERROR", {"code": 410}))
        elif "watch" in request.query:
            await reply.chunked(end=False)
            await anyio.sleep_forever()
        elif first:
            await reply.whole(200, listing(100, thing("a", 5), thing("b", 6), thing("c", 7)))
        else:
            await reply.whole(200, listing(50 if restored else 200, unreadable("a", 8), thing("b", 6)))

    async with scripted(kubeconfig, stateful) as watched:
        await watched.has("a", "b", "c")
        go_on.set()
        await watched.has("a", "b")
        assert watched.gone() == ["c"]


async def test_nothing_is_taken_for_gone_while_an_object_cannot_even_be_named(kubeconfig: Path) -> None:
    """It may be any of those that seem to be missing."""
    nameless = {"metadata": {"name": 5}}
    turns = iter([listing(10, thing("a", 5)), listing(20, nameless), listing(30)])
    ends: list[anyio.Event] = []

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, next(turns))
        else:
            ends.append(anyio.Event())
            await reply.chunked(event("ADDED", thing(f"end{len(ends)}", 10 * len(ends) + 1)), end=False)
            await ends[-1].wait()
            await reply.chunk(event("ERROR", {"code": 410}))

    async with scripted(kubeconfig, answer) as watched:
        await watched.has("a", "end1")
        ends[0].set()
        await watched.has("a", "end1", "end2")
        ends[1].set()
        await watched.has("end3")


@pytest.mark.parametrize("kind", [OverflowError, ValueError, KeyError, AssertionError, msgspec.DecodeError])
async def test_a_callback_that_raises_harms_that_object_only(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """It is told as our bug, with its traceback; the newest state is kept, and the watch goes on."""
    monkeypatch.setattr("tests.kube.test_watch.KIND_OF_BUG", kind("of ours"))

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("bad", 4), thing("a", 5)))
            return
        await reply.chunked(
            event("MODIFIED", thing("bad", 11)),
            event("ADDED", thing("b", 12)),
            event("DELETED", thing("bad", 13)),
            event("ADDED", thing("bad", 14, "another")),
            event("ADDED", thing("end", 15)),
            end=False,
        )
        await anyio.sleep_forever()

    with structlog.testing.capture_logs() as lines:
        async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
            watched = Watched(api)
            watched.poison = "bad"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watched.reflector.run)
                await watched.until(lambda: "end" in watched.names)
                tasks.cancel_scope.cancel()
    assert watched.names == {"a", "b", "bad", "end"}
    assert watched.reflector.objects["another"].metadata.resource_version == "14"
    assert watched.reflector.error is None
    assert len(server.asked) == 2
    crashed = [line for line in lines if line["log_level"] == "error"]
    assert [(line["event"], line["name"], line["exc_info"]) for line in crashed] == [
        ("change_crashed", "bad", True)
    ] * 4
    assert [line for line in lines if line["event"] == "watch_interrupted"] == []


async def test_an_object_whose_telling_crashed_is_told_again_by_the_next_list(kubeconfig: Path) -> None:
    """In the state that is known, though it has not changed; and once it was told, not again."""
    go_on = [anyio.Event() for _ in range(3)]
    turns = iter([*go_on, anyio.Event()])
    asked: list[Request] = []

    async def has_asked(times: int) -> None:
        await eventually(lambda: len(asked) >= times)

    async def answer(request: Request, reply: Reply) -> None:
        asked.append(request)
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("bad", 4), thing("a", 5)))
            return
        await next(turns).wait()
        await reply.chunked(event("ERROR", {"code": 410}))

    with structlog.testing.capture_logs() as lines:
        async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
            watched = Watched(api)
            watched.poison = "bad"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watched.reflector.run)
                for number, end in enumerate(go_on):
                    # Two lists crash; the third tells it, and the fourth finds nothing to tell.
                    await has_asked(2 * (number + 1))
                    if number == 1:
                        watched.poison = ""
                    end.set()
                await has_asked(8)
                tasks.cancel_scope.cancel()
    told = ("Applied", "bad", "4")
    assert sorted(watched.told) == [("Applied", "a", "5"), *[told] * 3]
    assert [line["name"] for line in lines if line["event"] == "change_crashed"] == ["bad"] * 2


async def test_what_is_gone_is_not_told_again_though_its_telling_crashed(kubeconfig: Path) -> None:
    watches = 0

    async def answer(request: Request, reply: Reply) -> None:
        nonlocal watches
        if "watch" not in request.query:
            await reply.whole(200, listing(10, thing("bad", 4)) if not watches else listing(20, thing("end", 15)))
            return
        watches += 1
        if watches == 1:
            await reply.chunked(event("DELETED", thing("bad", 11)), event("ERROR", {"code": 410}))
        else:
            await reply.chunked(event("MODIFIED", thing("bad", 4)), event("ADDED", thing("late", 21)), end=False)
            await anyio.sleep_forever()

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        watched = Watched(api)
        watched.poison = "bad"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watched.reflector.run)
            await watched.has("end", "late")
            tasks.cancel_scope.cancel()
    assert [(what, name) for what, name, _ in watched.told if name == "bad"] == [("Applied", "bad"), ("Deleted", "bad")]


async def test_a_bug_in_the_watch_itself_is_told_as_ours_and_the_watch_goes_on(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter([True])
    list_ = Api.list

    async def breaks_once(*arguments: Any, **options: Any) -> Any:
        if next(turns, False):
            raise ZeroDivisionError
        return await list_(*arguments, **options)

    monkeypatch.setattr(Api, "list", breaks_once)
    with structlog.testing.capture_logs() as lines:
        async with scripted(kubeconfig, lists(listing(10, thing("a", 5)))) as watched:
            await watched.has("a")
    assert watched.restarts == [("secrets", "crashed")]
    (crashed,) = [line for line in lines if line["log_level"] == "error"]
    assert (crashed["event"], crashed["exc_info"]) == ("watch_crashed", True)
    (interrupted,) = [line for line in lines if line["event"] == "watch_interrupted"]
    assert interrupted["reason"] == "internal error in k8s-builderd: see watch_crashed in its log"


# Not too often, and not too soon


async def test_watches_that_deliver_and_close_at_once_are_opened_at_most_so_often(kubeconfig: Path) -> None:
    times: list[float] = []

    async def answer(request: Request, reply: Reply) -> None:
        if "watch" not in request.query:
            await reply.whole(200, listing(10))
            return
        times.append(anyio.current_time())
        await reply.chunked(event("ADDED", thing(f"a{len(times)}", 10 + len(times))))

    start = anyio.current_time()
    async with scripted(kubeconfig, answer, interval=0.2) as watched:
        await watched.until(lambda: len(watched.names) == 6)
    assert times[5] - start >= 5 * 0.2


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_refusal_is_no_matter_of_the_role_before_it_has_lasted(kubeconfig: Path, verb: str, code: int) -> None:
    """An API server that has just started gives one for a moment; a Role that is lacking stays so."""
    well = False
    message = 'secrets is forbidden: User "x" cannot list resource "secrets" in API group "" in the namespace "ns"'

    async def answer(request: Request, reply: Reply) -> None:
        if ("watch" if "watch" in request.query else "list") == verb and not well:
            await reply.whole(code, status(code, "", message))
        elif "watch" in request.query:
            await reply.chunked(end=False)
            await anyio.sleep_forever()
        else:
            await reply.whole(200, listing(10))

    async with scripted(kubeconfig, answer, refusal=math.inf) as watched:
        told: set[str] = set()

        def refused_often() -> bool:
            told.add(str(watched.reflector.error))
            return len([each for each in watched.asked if ("watch" in each.query) == (verb == "watch")]) > 8

        await watched.state(refused_often)
        told -= {"None", "secrets not listed yet"}
        assert told == {f"cannot {verb} secrets: the Kubernetes API refuses it for now, retrying"}
        assert not watched.reflector.synced or verb == "watch"
    async with scripted(kubeconfig, answer, refusal=0.0) as watched:
        role = "Check the service account's token" if code == 401 else "Check the Role"
        await watched.state(lambda: role in str(watched.reflector.error))
        well = True
        await watched.state(lambda: watched.reflector.synced)
