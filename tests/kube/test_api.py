"""Whatever the API server answers, and when: a failure is one of our errors, with verb and resource."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from structlog.testing import capture_logs

from k8s_builderd.kube.api import AT_ONCE, Api
from k8s_builderd.kube.errors import (
    AlreadyExists,
    ApiError,
    Expired,
    Forbidden,
    Invalid,
    NamespaceNotFound,
    NamespaceTerminating,
    NotFound,
    NotServed,
    Unauthorized,
    Unavailable,
    Unreachable,
)
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import EVENTS, JOBS, PODS, SECRETS
from k8s_builderd.kube.review import try_create
from k8s_builderd.tasks import beside
from tests.embedded.cluster import PATIENCE, Cluster, eventually, secret
from tests.kube.asking import REQUESTS, opened, opens
from tests.kube.certificates import Authority
from tests.kube.rogue import EMPTY, Reply, Request, Rogue, only_with, rogue, status, well

pytestmark = pytest.mark.anyio

# Many at once


async def test_so_many_requests_are_on_their_way_and_others_than_these_wait_for_none(tmp_path: Path) -> None:
    asked, most, let_go = 0, 0, anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        nonlocal asked, most
        if "/events" in request.path:
            asked += 1
            most = max(most, asked)
            await let_go.wait()
            asked -= 1
        await reply.whole(200, EMPTY)

    async with rogue(answer) as server, opened(server, tmp_path / "kubeconfig") as api:
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE + 10):
                tasks.start_soon(api.list, EVENTS, ObjectOnly)

            async def all_there_may_be() -> bool:
                return asked == AT_ONCE

            await eventually(all_there_may_be)
            await api.delete(JOBS, "name", "uid")
            await api.list(PODS, ObjectOnly)  # what hangs holds up its like only
            let_go.set()
        assert most == AT_ONCE
        assert len(server.asked) == AT_ONCE + 10 + 2


# Answers

STREAMS = ("watch pods", "get pods/log")
requests = pytest.mark.parametrize("what", REQUESTS)


@requests
async def test_a_refusal_is_told_with_verb_and_resource(kubeconfig: Path, what: str) -> None:
    message = f'User "x" cannot {what.split()[0]} resource "y" in API group ""'

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(403, status(403, "Forbidden", message))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(Forbidden) as refused:
            await REQUESTS[what](api)
    assert f"{refused.value.verb} {refused.value.resource}" == what
    assert str(refused.value) == (
        f"cannot {what}: {message}. Check the Role of the daemon's service account (docs/operations.md lists the"
        " rights it needs), and that the namespace still exists: a Role is deleted with its namespace"
    )
    assert refused.value.reason == "Forbidden"
    assert not refused.value.transient
    assert refused.value.may_pass


async def test_a_namespace_that_is_not_there_is_named(kubeconfig: Path) -> None:
    """As recorded: the API server says so to a creation, where RBAC lets it come that far."""
    body = status(404, "NotFound", 'namespaces "nowhere" not found', name="nowhere", kind="namespaces")

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(404, body)

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(NamespaceNotFound) as refused:
            await api.create(JOBS, ObjectOnly, {})
    assert str(refused.value) == (
        'cannot create jobs.batch: namespaces "nowhere" not found. Create the namespace, with the daemon\'s Role and'
        " RoleBinding, or configure another one"
    )
    assert not refused.value.may_pass


async def test_a_namespace_that_is_being_deleted_is_no_matter_of_the_role(kubeconfig: Path) -> None:
    message = 'jobs.batch "j" is forbidden: unable to create new content in namespace ns because it is being terminated'
    causes = [{"reason": "NamespaceTerminating", "message": "namespace ns is being terminated", "field": "x"}]

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(403, status(403, "Forbidden", message, kind="jobs", causes=causes))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(NamespaceTerminating) as refused:
            await api.create(JOBS, ObjectOnly, {})
    assert str(refused.value).endswith(
        "The namespace is being deleted: create it again, with the daemon's Role and RoleBinding"
    )
    assert "Check the Role" not in str(refused.value)
    assert not refused.value.may_pass


async def test_an_error_that_comes_in_pieces_is_told_whole(kubeconfig: Path) -> None:
    data = json.dumps(status(403, "Forbidden", "quota" + "." * 5000)).encode()

    async def answer(request: Request, reply: Reply) -> None:
        await reply.raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(data))
        for start in range(0, len(data), 1000):
            await reply.raw(data[start : start + 1000])
            await anyio.wait_all_tasks_blocked()

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        for what in STREAMS:
            with pytest.raises(Forbidden, match=f"cannot {what}: quota"):
                await REQUESTS[what](api)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, Invalid),
        (404, NotFound),
        (410, Expired),
        (422, Invalid),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (599, Unavailable),
        (405, ApiError),
        (413, ApiError),
        (418, ApiError),
    ],
)
async def test_each_status_is_an_error_of_ours(kubeconfig: Path, code: int, kind: type[ApiError]) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(code, status(code, "", "words"))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(ApiError) as refused:
            await api.get(JOBS, ObjectOnly, "j")
    assert type(refused.value) is kind
    assert refused.value.transient == (code == 429 or code >= 500)
    assert str(refused.value) == "cannot get jobs.batch: words"


PAGES = [b"<html>", b"", b"null", b"[]", b'{"message": 5}', b'{"message": "not found"}', b"\xff" * 100_000]


@pytest.mark.parametrize("code", [302, 400, 404, 409, 410, 413, 422, 429, 503, 599])
async def test_what_is_no_status_object_decides_nothing(kubeconfig: Path, code: int) -> None:
    """It is a proxy's word, and a 404 of it says nothing of the object. The next answer may be the API server's."""
    turns = iter(PAGES)

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(code, next(turns))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        for _ in PAGES:
            with pytest.raises(ApiError) as refused:
                await api.get(JOBS, ObjectOnly, "j")
            assert type(refused.value) is (NotServed if code == 404 else Unavailable)
            assert refused.value.transient
            assert str(refused.value) == (
                f"cannot get jobs.batch: HTTP {code} Whatever, which is not a Kubernetes API response"
            )


@pytest.mark.parametrize(("code", "kind"), [(401, Unauthorized), (403, Forbidden)])
async def test_who_does_not_know_us_may_say_so_in_any_form(kubeconfig: Path, code: int, kind: type[ApiError]) -> None:
    turns = iter(
        [page for page in PAGES for _ in range(2 if code == 401 else 1)]
    )  # a 401 is asked again with a new login

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(code, next(turns))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        for _ in PAGES:
            with pytest.raises(kind, match=f"cannot get jobs.batch: HTTP {code}"):
                await api.get(JOBS, ObjectOnly, "j")


@pytest.mark.parametrize(
    ("reason", "kind", "transient"),
    [("AlreadyExists", AlreadyExists, False), ("Conflict", Unavailable, True), ("", Unavailable, True)],
)
async def test_a_name_that_is_taken_is_no_mere_conflict(
    kubeconfig: Path, reason: str, kind: type[ApiError], transient: bool
) -> None:
    """A quota that changes while a creation is checked against it is a 409, too, and heals by itself."""

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(409, status(409, reason, "words"))

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(ApiError) as refused:
            await api.create(JOBS, ObjectOnly, {})
    assert (type(refused.value), refused.value.transient) == (kind, transient)


@pytest.mark.parametrize(
    ("header", "details", "seconds"),
    [
        ("7", {}, 7),
        ("7", {"retryAfterSeconds": 3}, 3),
        ("", {"retryAfterSeconds": 3}, 3),
        ("", {}, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", {}, None),
        ("-1", {}, None),
        ("1.5", {}, None),
        ("soon", {}, None),
        ("7", {"retryAfterSeconds": "soon"}, 7),
    ],
)
async def test_how_long_to_wait_is_taken_from_the_answer(
    kubeconfig: Path, header: str, details: dict[str, Any], seconds: float | None
) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        headers = {"Retry_After": header} if header else {}
        await reply.whole(429, status(429, "TooManyRequests", "slowly", **details), **headers)

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(Unavailable) as refused:
            await api.list(JOBS, ObjectOnly)
    assert refused.value.retry_after == seconds


@requests
async def test_a_server_that_refuses_connections_is_unreachable(kubeconfig: Path, what: str) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    await listener.aclose()
    async with opened(Rogue(f"http://127.0.0.1:{port}"), kubeconfig) as api:
        with pytest.raises(Unreachable) as refused:
            await REQUESTS[what](api)
    why = f"(127.0.0.1:{port}: Connection refused)"
    assert str(refused.value) == f"cannot {what}: the Kubernetes API does not answer {why}"
    assert refused.value.transient


@pytest.mark.parametrize("what", [what for what in REQUESTS if what != "get pods/log"])
async def test_a_server_that_never_answers_is_unreachable_in_time(kubeconfig: Path, what: str) -> None:
    """A watch that was opened may be silent; one that is not even answered may not.

    A followed log may: the kubelet sends the head of its answer with the first line.
    """

    async def answer(request: Request, reply: Reply) -> None:
        await anyio.sleep_forever()

    async with rogue(answer) as server, opened(server, kubeconfig, patience=0.1) as api:
        with anyio.fail_after(PATIENCE / 3), pytest.raises(Unreachable, match="no answer in time"):
            await REQUESTS[what](api)


@requests
@pytest.mark.parametrize("how", ["reset", "closed", "half a head", "half a body", "no HTTP"])
async def test_a_connection_that_breaks_is_unreachable(kubeconfig: Path, what: str, how: str) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        match how:
            case "reset":
                raw: socket.socket = reply.stream.extra(SocketAttribute.raw_socket)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            case "half a head":
                await reply.raw(b"HTTP/1.1 200 OK\r\nContent-")
            case "half a body":
                await reply.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"metadata":')
            case "no HTTP":
                await reply.raw(b"\x15\x03\x03\x00\x02\x02\x16")

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(Unreachable):
            await REQUESTS[what](api)


@pytest.mark.parametrize("body", [b"<html>", b"", b"null", b"{}", b'{"metadata":{}'], ids=str)
async def test_a_list_that_is_none_is_an_error_of_ours(kubeconfig: Path, body: bytes) -> None:
    """A proxy's login page is 200, too; who asks for events must not break over it."""

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, body)

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        with pytest.raises(ApiError):
            await api.list(EVENTS, ObjectOnly)


async def test_a_long_list_holds_up_nobody(kubeconfig: Path) -> None:
    """A thousand objects take 30 ms and more to decode."""
    many = [{"metadata": {"uid": str(number), "name": "n"}} for number in range(1000)]
    one = {"metadata": {"uid": "0", "name": "n" * len(json.dumps(many))}}
    listed: list[dict[str, Any]] = []

    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, json.dumps({"metadata": {"resourceVersion": "1"}, "items": listed}).encode())

    async def turns_of(api: Api) -> int:
        turns = 0

        async def spin() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        async def look() -> None:
            nonlocal turns
            turns = 0
            assert len((await api.list(EVENTS, ObjectOnly)).items) == len(listed)

        await beside(look, spin)
        return turns

    async with rogue(answer) as server, opened(server, kubeconfig) as api:
        turns = {}
        for listed in ([one], many):
            turns[len(listed)] = min([await turns_of(api) for _ in range(5)])
    assert turns[1000] >= turns[1] + 5


async def test_credentials_go_to_no_other_server(kubeconfig: Path) -> None:
    async with rogue(well) as other:

        async def answer(request: Request, reply: Reply) -> None:
            await reply.whole(307, b"", Location=f"{other.server}{request.path}")

        async with rogue(answer) as server, opened(server, kubeconfig, token="secret") as api:
            for request in REQUESTS.values():
                with pytest.raises(ApiError):
                    await request(api)
        assert other.asked == []


async def test_requests_are_made_in_the_apis_words(kubeconfig: Path) -> None:
    async with rogue(well) as server, opened(server, kubeconfig, token="t") as api:
        await api.create(SECRETS, ObjectOnly, {"kind": "Secret"})
        await api.delete(JOBS, "j", "uid")
    create, delete = server.asked
    assert (create.method, create.path) == ("POST", "/api/v1/namespaces/ns/secrets")
    assert (create.headers["content-type"], json.loads(create.body)) == ("application/json", {"kind": "Secret"})
    assert (delete.method, delete.path) == ("DELETE", "/apis/batch/v1/namespaces/ns/jobs/j")
    assert json.loads(delete.body) == {"propagationPolicy": "Background", "preconditions": {"uid": "uid"}}


async def test_any_number_of_streams_leaves_room_for_requests(kubeconfig: Path) -> None:
    """aiohttp's pool holds 100 connections by default: the hundredth chaincode would be the last."""

    async def answer(request: Request, reply: Reply) -> None:
        if request.path.endswith("/log"):
            await reply.chunked(b"line\n", end=False)
            await anyio.sleep_forever()
        await reply.whole(200, EMPTY)

    open_now = 0
    all_open = anyio.Event()

    async def hold(api: Api) -> None:
        nonlocal open_now
        async with api.log("p", {}) as chunks:
            assert await anext(chunks) == b"line\n"
            open_now += 1
            if open_now == 150:
                all_open.set()
            await anyio.sleep_forever()

    async with rogue(answer) as server, opened(server, kubeconfig) as api, anyio.create_task_group() as tasks:
        for _ in range(150):
            tasks.start_soon(hold, api)
        with anyio.fail_after(PATIENCE):
            await all_open.wait()
            await api.list(JOBS, ObjectOnly)
        tasks.cancel_scope.cancel()


# Waits that depend on the other side


FOLLOWED: dict[str, Callable[[Api], Awaitable[Any]]] = {
    **REQUESTS,
    "get pods/log": lambda api: opens(api.log("p", {"follow": "true"})),
}


@asynccontextmanager
async def silent_port() -> AsyncIterator[int]:
    """Accept connections, and say nothing."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def hold(stream: Any) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                while True:
                    await stream.receive()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, hold)
        yield listener.extra(SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


async def ends_in_time(api: Api, what: str) -> None:
    with anyio.fail_after(PATIENCE / 3), pytest.raises(Unreachable):
        await FOLLOWED[what](api)


@requests
async def test_a_tls_handshake_that_is_not_answered_ends(kubeconfig: Path, what: str) -> None:
    async with (
        silent_port() as port,
        opened(Rogue(f"https://127.0.0.1:{port}"), kubeconfig, patience=0.1) as api,
    ):
        await ends_in_time(api, what)


@requests
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_does_not_answer_ends(kubeconfig: Path, what: str, scheme: str) -> None:
    if (scheme, what) == ("http", "get pods/log"):
        return  # such a proxy takes the request as the API server does, and the head may come late
    async with silent_port() as port:
        proxy = {"proxy-url": f"http://127.0.0.1:{port}"}
        async with opened(Rogue(f"{scheme}://127.0.0.1:1"), kubeconfig, patience=0.1, cluster=proxy) as api:
            await ends_in_time(api, what)


@requests
async def test_a_name_server_that_does_not_answer_ends(
    kubeconfig: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*arguments: Any, **options: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    async with opened(Rogue("http://api.example:6443"), kubeconfig, patience=0.1) as api:
        await ends_in_time(api, what)


@requests
@pytest.mark.parametrize("code", [403, 429])
async def test_an_error_whose_body_does_not_end_is_told_in_time(kubeconfig: Path, what: str, code: int) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.raw(b'HTTP/1.1 %d Whatever\r\nContent-Length: 500\r\n\r\n{"message"' % code)
        await anyio.sleep_forever()

    async with rogue(answer) as server, opened(server, kubeconfig, patience=0.3) as api:
        with anyio.fail_after(PATIENCE / 3), pytest.raises(ApiError) as refused:
            await FOLLOWED[what](api)
    if what in STREAMS:
        assert str(refused.value).startswith(f"cannot {what}: HTTP {code}")


@pytest.mark.parametrize("what", [what for what in REQUESTS if what != "watch pods"])
async def test_an_answer_that_stops_in_its_middle_ends_in_time(kubeconfig: Path, what: str) -> None:
    """Of the streams, a watch may be silent, and a log that is followed; one that is read to its end may not."""

    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(b'{"metadata"', end=False)
        await anyio.sleep_forever()

    async with rogue(answer) as server, opened(server, kubeconfig, patience=0.1) as api:
        with anyio.fail_after(PATIENCE / 3), pytest.raises(Unreachable, match="no answer in time"):
            await REQUESTS[what](api)


async def test_a_reader_that_takes_its_time_is_no_silence(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        for _ in range(4):
            await (reply.chunked(b"x", end=False) if not sent else reply.chunk(b"x"))
            sent.append(1)
            await taken.wait()
        await reply.raw(b"0\r\n\r\n")

    sent: list[int] = []
    taken = anyio.Event()
    async with rogue(answer) as server, opened(server, kubeconfig, patience=0.3) as api, api.log("p", {}) as chunks:
        data = await anext(chunks)
        await anyio.sleep(0.6)
        taken.set()
        async for chunk in chunks:
            data += chunk
    assert data == b"xxxx"


async def test_a_stream_is_closed_without_waiting_for_a_farewell(kubeconfig: Path, tmp_path: Path) -> None:
    """TLS says one and waits 30 s for the other side's, with its buffers; a server that is frozen says nothing."""
    authority, opened_now, closed = Authority(tmp_path), anyio.Event(), anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        await reply.chunked(b"x", end=False)
        await anyio.sleep_forever()

    async def until_it_freezes(source: Any, target: Any) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                data = await source.receive()
                if not opened_now.is_set():
                    await target.send(data)
        if opened_now.is_set():
            closed.set()

    async def relay(client: Any) -> None:
        host, _, port = server.server.removeprefix("https://").rpartition(":")
        async with client, await anyio.connect_tcp(host, int(port)) as upstream, anyio.create_task_group() as both:
            both.start_soon(until_it_freezes, upstream, client)
            await until_it_freezes(client, upstream)
            both.cancel_scope.cancel()

    ca = {"certificate-authority": str(authority.file)}
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    frozen = Rogue(f"https://127.0.0.1:{listener.extra(SocketAttribute.local_port)}")
    async with rogue(answer, authority.server()) as server, listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, relay)
        with anyio.fail_after(PATIENCE / 3):  # less than asyncio waits for a farewell
            async with opened(frozen, kubeconfig, cluster=ca, token="t") as api:
                async with api.watch(JOBS, {}) as chunks:
                    assert await anext(chunks) == b"x"
                    opened_now.set()
                await closed.wait()
        tasks.cancel_scope.cancel()


# What is told of requests


class Told:
    """What an observer was told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str]] = []
        self.untimed: list[str] = []

    def __call__(self, verb: str, resource: str, code: str, seconds: float | None) -> None:
        self.requests.append((verb, resource, code))
        if seconds is None:
            self.untimed.append(resource)
        else:
            assert seconds >= 0


async def test_each_request_is_told_with_verb_resource_and_status(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        if request.method == "DELETE":
            await reply.whole(404, status(404, "NotFound", "there is none"))
        else:
            await reply.whole(200, EMPTY)

    told = Told()
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns", observe=told) as api:
        await api.list(PODS, ObjectOnly)
        with pytest.raises(NotFound):
            await api.delete(JOBS, "j", "u")
        async with api.watch(PODS, {}):
            pass
        async with api.log("pod", {"follow": "true"}):
            pass
    assert told.requests == [
        ("list", "pods", "200"),
        ("delete", "jobs.batch", "404"),
        ("watch", "pods", "200"),
        ("get", "pods/log", "200"),
    ]
    assert told.untimed == ["pods/log"]


async def test_a_request_without_an_answer_is_told_as_one(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await anyio.sleep_forever()

    told = Told()
    async with (
        rogue(answer) as server,
        Api.open(str(server.kubeconfig(kubeconfig)), "ns", patience=0.1, observe=told) as api,
    ):
        with pytest.raises(Unreachable):
            await api.list(PODS, ObjectOnly)
        with pytest.raises(Unreachable):
            async with api.watch(PODS, {}):
                pass
    assert told.requests == [("list", "pods", "none"), ("watch", "pods", "none")]


async def test_a_request_that_is_made_again_with_another_token_is_told_twice(kubeconfig: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")
    told = Told()
    async with (
        rogue(only_with("new")) as server,
        Api.open(str(server.kubeconfig(kubeconfig, tokenFile=str(token))), "ns", observe=told) as api,
    ):
        token.write_text("new")
        await api.list(PODS, ObjectOnly)
    assert told.requests == [("list", "pods", "401"), ("list", "pods", "200")]


async def test_each_request_is_told_at_debug_without_what_it_carries(cluster: Cluster, api: Api) -> None:
    with capture_logs() as logged:
        await api.list(JOBS, ObjectOnly, labelSelector="secret=selector")
        await api.create(SECRETS, ObjectOnly, secret("s1", {"key": "secret-value"}))
        with pytest.raises(NotFound):
            await api.get(PODS, ObjectOnly, "p1")
        async with api.watch(JOBS, {"resourceVersion": "0"}):
            pass
    told = [line for line in logged if line["event"] == "api_request"]
    assert all(line["ms"] >= 0 and line["log_level"] == "debug" for line in told)
    assert [(line["verb"], line["resource"], line["path"], line["code"]) for line in told] == [
        ("list", "jobs.batch", "/apis/batch/v1/namespaces/default/jobs", "200"),
        ("create", "secrets", "/api/v1/namespaces/default/secrets", "201"),
        ("get", "pods", "/api/v1/namespaces/default/pods/p1", "404"),
        ("watch", "jobs.batch", "/apis/batch/v1/namespaces/default/jobs", "200"),
    ]
    assert "secret-value" not in str(logged)
    assert "selector" not in str(logged)


# A creation that is only tried


async def test_a_creation_that_is_tried_is_told_what_the_api_server_warns_of(kubeconfig: Path) -> None:
    """As a Job was answered in a namespace under Pod Security `restricted` (Kubernetes 1.36)."""
    words = 'would violate PodSecurity "restricted:latest": runAsNonRoot != true'
    other = r"a back slash \ and more"

    async def answer(request: Request, reply: Reply) -> None:
        quoted = [text.replace("\\", r"\\").replace('"', r"\"") for text in (words, other)]
        # The second stands twice in one header, with an agent and with a date.
        lines = f'HTTP/1.1 201 Created\r\nWarning: 299 - "{quoted[0]}"\r\n'
        date = "Thu, 26 Nov 2026 05:00:00 GMT"
        lines += f'Warning: 299 host:1 "{quoted[1]}" "{date}", 199 - "third"\r\n'
        await reply.raw(f"{lines}Content-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())

    async with rogue(answer) as server, opened(server, kubeconfig, token="t") as api:
        assert await try_create(api, JOBS, {"kind": "Job"}) == [words, other, "third"]
    [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "/apis/batch/v1/namespaces/ns/jobs")
    assert asked.query == {"dryRun": "All", "fieldValidation": "Strict"}
    assert json.loads(asked.body) == {"kind": "Job"}


async def test_a_creation_that_is_tried_may_bring_no_warning_or_a_refusal(kubeconfig: Path) -> None:
    async with rogue(well) as server, opened(server, kubeconfig, token="t") as api:
        assert await try_create(api, JOBS, {}) == []

    async def refuse(request: Request, reply: Reply) -> None:
        await reply.whole(422, status(422, "Invalid", "no"))

    async with rogue(refuse) as server, opened(server, kubeconfig, token="t") as api:
        with pytest.raises(Invalid, match=r"^cannot create jobs.batch: no$"):
            await try_create(api, JOBS, {})
