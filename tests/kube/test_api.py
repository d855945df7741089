"""Whoever we are to the API server, and whatever it answers: a failure is one of our errors, with verb and resource."""

import asyncio
import base64
import json
import os
import socket
import ssl
import struct
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute
from structlog.testing import capture_logs

from k8s_builderd.errors import SettingsError
from k8s_builderd.kube import slim
from k8s_builderd.kube.api import AT_ONCE, Api
from k8s_builderd.kube.credentials import Credentials
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
from k8s_builderd.tasks import background, beside
from tests.embedded.cluster import PATIENCE, Cluster, eventually, secret
from tests.kube.certificates import Authority
from tests.kube.rogue import Answer, Reply, Request, Rogue, rogue, status

pytestmark = pytest.mark.anyio

EMPTY = {"metadata": {"resourceVersion": "1"}, "items": []}


async def well(request: Request, reply: Reply) -> None:
    await reply.whole(200, EMPTY)


@asynccontextmanager
async def opened(server: Rogue, path: Path, patience: float = 10.0, **user: Any) -> AsyncIterator[Api]:
    async with Api.open(str(server.kubeconfig(path, **user)), "ns", patience=patience) as api:
        yield api


def only_with(*tokens: str) -> Answer:
    """Answer those who have one of the tokens, and tell all others that they are unknown."""

    async def answer(request: Request, reply: Reply) -> None:
        if request.headers.get("authorization") in {f"Bearer {token}" for token in accepted}:
            await reply.whole(200, EMPTY)
        else:
            await reply.whole(401, status(401, "Unauthorized", "Unauthorized"))

    accepted = [*tokens]
    answer.accepted = accepted  # type: ignore[attr-defined]
    return answer


# Credentials


async def test_a_kubeconfigs_token_is_sent(kubeconfig: Path) -> None:
    async with rogue(well) as server, opened(server, kubeconfig, token="first") as api:
        await api.list(JOBS, ObjectOnly)
    assert server.asked[0].headers["authorization"] == "Bearer first"
    assert server.asked[0].path == "/apis/batch/v1/namespaces/ns/jobs"


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "files"])
async def test_a_client_certificate_is_shown_over_tls(kubeconfig: Path, tmp_path: Path, inline: bool) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("builder")
    files = {"certificate-authority": authority.file, "client-certificate": certificate, "client-key": key}
    fields: dict[str, Any] = (
        {f"{name}-data": base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
        if inline
        else {name: str(path) for name, path in files.items()}
    )
    ca: dict[str, Any] = {name: fields.pop(name) for name in [*fields] if name.startswith("certificate-authority")}
    async with rogue(well, authority.server()) as server, opened(server, kubeconfig, cluster=ca, **fields) as api:
        await api.list(JOBS, ObjectOnly)
        async with api.log("pod", {}) as chunks:
            assert b"".join([chunk async for chunk in chunks])
    assert [request.peer for request in server.asked] == ["builder", "builder"]


async def test_a_client_certificate_that_has_changed_is_read_anew_when_it_is_refused(
    kubeconfig: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("first")
    files: Any = {"client-certificate": str(certificate), "client-key": str(key)}

    async def only_the_second(request: Request, reply: Reply) -> None:
        known = request.peer == "second"
        await reply.whole(200 if known else 401, EMPTY if known else status(401, "Unauthorized", "Unauthorized"))

    ca = {"certificate-authority": str(authority.file)}
    async with (
        rogue(only_the_second, authority.server()) as server,
        opened(server, kubeconfig, cluster=ca, **files) as api,
    ):
        with pytest.raises(Unauthorized):
            await api.list(JOBS, ObjectOnly)
        for old, new in zip((certificate, key), authority.issue("second"), strict=True):
            new.replace(old)
        await api.list(JOBS, ObjectOnly)
        async with api.watch(JOBS, {}):
            pass
    assert [request.peer for request in server.asked] == ["first", "first", "first", "second", "second"]


def open_descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_certificates_that_are_renewed_leave_no_file_and_no_descriptor(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads files only; one with a key in it is not left lying about."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    authority = Authority(tmp_path)
    ca = {"certificate-authority-data": base64.b64encode(authority.file.read_bytes()).decode()}

    def renew(number: int) -> None:
        files = zip(("client-certificate-data", "client-key-data"), authority.issue(f"builder{number}"), strict=True)
        user = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files}
        Rogue("https://127.0.0.1:1").kubeconfig(kubeconfig, cluster=ca, **user)

    async with background() as tasks:
        credentials = Credentials(str(kubeconfig), tasks)
        descriptors = []
        for number in range(3):
            renew(number)
            await credentials.load()
            assert isinstance(credentials.current.tls, ssl.SSLContext)
            assert [*folder.iterdir()] == []
            descriptors.append(open_descriptors())
    assert len(set(descriptors)) == 1


async def test_only_other_certificates_make_other_connections(kubeconfig: Path, tmp_path: Path) -> None:
    """While all requests are refused, each load would leave a connection for every one of them: 400 MB at 1,000."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("first")
    found = []

    async with background() as tasks:
        credentials = Credentials(str(kubeconfig), tasks)

        async def load(**user: Any) -> None:
            ca = {"certificate-authority": str(authority.file)}
            files = {"client-certificate": str(certificate), "client-key": str(key)}
            Rogue("https://127.0.0.1:1").kubeconfig(kubeconfig, cluster=ca, **files, **user)
            await credentials.load()
            found.append(credentials.current.tls)

        await load(token="one")
        await load(token="two")
        for old, new in zip((certificate, key), authority.issue("second"), strict=True):
            new.replace(old)
        await load(token="two")
        with authority.file.open("a") as file:
            file.write(Authority(tmp_path, "other").file.read_text())
        await load(token="two")
        await load(token="two")
    one, two, renewed, other, still = found
    assert one is two
    assert two is not renewed is not other
    assert other is still


async def test_a_server_that_closes_within_the_handshake_is_not_one_that_refuses_us(
    kubeconfig: Path, tmp_path: Path
) -> None:
    """A load balancer without a server behind it does so. Nobody has looked at our credentials: they stay."""
    token, program = tmp_path / "token", tmp_path / "plugin.py"
    token.write_text("first")
    user = plugin(program, token)
    program.write_text(program.read_text() + f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n")

    async def close(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()

    authority = Authority(tmp_path)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, background() as tasks:
        tasks.start_soon(listener.serve, close)
        server = Rogue(f"https://127.0.0.1:{listener.extra(SocketAttribute.local_port)}")
        async with opened(server, kubeconfig, cluster={"certificate-authority": str(authority.file)}, **user) as api:
            for _ in range(3):
                with pytest.raises(Unreachable, match=r"127\.0\.0\.1:\d+: .*EOF"):
                    await api.list(JOBS, ObjectOnly)
    assert (tmp_path / "runs").read_text() == "x"


async def test_a_ca_that_has_changed_is_read_anew_when_it_does_not_fit(kubeconfig: Path, tmp_path: Path) -> None:
    """The cluster's CA is replaced once in some years, while the daemon goes on for months."""
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    ca = {"certificate-authority": str(ours.file)}
    async with rogue(well, other.server()) as server, opened(server, kubeconfig, cluster=ca, token="t") as api:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await api.list(JOBS, ObjectOnly)
        other.file.replace(ours.file)
        await api.list(JOBS, ObjectOnly)
        ours.file.write_text("none")
        await api.list(JOBS, ObjectOnly)
    assert len(server.asked) == 2


async def test_a_server_of_another_ca_is_not_spoken_to(kubeconfig: Path, tmp_path: Path) -> None:
    ours, other = Authority(tmp_path, "ours"), Authority(tmp_path, "other")
    ca = {"certificate-authority": str(ours.file)}
    async with rogue(well, other.server()) as server, opened(server, kubeconfig, cluster=ca, token="t") as api:
        with pytest.raises(Unreachable, match="certificate verify failed"):
            await api.list(JOBS, ObjectOnly)
    assert server.asked == []


async def test_a_server_of_another_name_is_not_spoken_to_unless_that_is_said(kubeconfig: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ca = {"certificate-authority": str(authority.file)}
    async with rogue(well, authority.server("kubernetes.default")) as server:
        async with opened(server, kubeconfig, cluster=ca, token="t") as api:
            with pytest.raises(Unreachable):
                await api.list(JOBS, ObjectOnly)
        named = {**ca, "tls-server-name": "kubernetes.default"}
        async with opened(server, kubeconfig, cluster=named, token="t") as api:
            await api.list(JOBS, ObjectOnly)


async def test_a_ca_without_key_usage_is_good_enough(kubeconfig: Path, tmp_path: Path) -> None:
    """Python 3.13 asks for it by default; Go never did, and older clusters have such a CA."""
    authority = Authority(tmp_path, usage=False)
    ca = {"certificate-authority": str(authority.file)}
    async with rogue(well, authority.server()) as server, opened(server, kubeconfig, cluster=ca, token="t") as api:
        await api.list(JOBS, ObjectOnly)


async def test_an_insecure_cluster_is_one_whose_certificate_is_not_looked_at(kubeconfig: Path, tmp_path: Path) -> None:
    tls = Authority(tmp_path).server("elsewhere")
    insecure = {"insecure-skip-tls-verify": True}
    async with rogue(well, tls) as server, opened(server, kubeconfig, cluster=insecure, token="t") as api:
        await api.list(JOBS, ObjectOnly)


def plugin(path: Path, token_file: Path) -> dict[str, Any]:
    """Return a user whose token an exec plugin reads from a file; it fails where the file is not there."""
    path.write_text(
        "import json, sys\n"
        f"token = open({str(token_file)!r}).read()\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
        " 'status': {'token': token}}))\n"
    )
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": [str(path)],
            "interactiveMode": "Never",
        }
    }


@pytest.mark.parametrize("how", ["exec", "tokenFile"])
async def test_a_token_that_has_changed_is_read_anew_when_it_is_refused(
    kubeconfig: Path, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    user = plugin(tmp_path / "plugin.py", file) if how == "exec" else {"tokenFile": str(file)}
    answer = only_with("first")
    async with rogue(answer) as server, opened(server, kubeconfig, **user) as api:
        await api.list(JOBS, ObjectOnly)
        file.write_text("second")
        answer.accepted[:] = ["second"]  # type: ignore[attr-defined]
        await api.list(JOBS, ObjectOnly)
        async with api.watch(JOBS, {}):
            pass
        assert [request.headers["authorization"] for request in server.asked] == [
            "Bearer first",
            "Bearer first",
            "Bearer second",
            "Bearer second",
        ]
        answer.accepted.clear()  # type: ignore[attr-defined]
        with pytest.raises(Unauthorized, match="Check the service account's token"):
            await api.list(JOBS, ObjectOnly)
        assert len(server.asked) == 6  # asked once more, and no more than that
        file.unlink()
        with pytest.raises(Unauthorized):
            await api.get(PODS, ObjectOnly, "p")


async def test_a_token_file_may_end_with_a_line_feed(kubeconfig: Path, tmp_path: Path) -> None:
    """As `echo` writes it; Kubernetes' own clients trim it."""
    file = tmp_path / "token"
    file.write_text("first\n")
    async with rogue(only_with("first")) as server, opened(server, kubeconfig, tokenFile=str(file)) as api:
        await api.list(JOBS, ObjectOnly)


@pytest.fixture
def service_account() -> Any:
    """The module that reads Kubernetes' files in a pod."""
    _, config = slim.load()
    return config.incluster_config


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_account: Any) -> Callable[[Rogue], Path]:
    """Pretend to be in a pod: Kubernetes' files lie elsewhere, as the library that reads them has them."""

    def pretend(server: Rogue) -> Path:
        host, _, port = server.server.removeprefix("https://").rpartition(":")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        monkeypatch.setattr(service_account, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
        monkeypatch.setattr(service_account, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
        (tmp_path / "token").write_text("first")
        return tmp_path / "token"

    return pretend


async def test_in_a_pod_its_service_accounts_files_are_used(pod: Callable[[Rogue], Path], tmp_path: Path) -> None:
    answer = only_with("first")
    async with rogue(answer, Authority(tmp_path).server()) as server:
        token = pod(server)
        async with Api.open("", "ns") as api:
            await api.list(JOBS, ObjectOnly)
            token.write_text("second")
            answer.accepted[:] = ["second"]  # type: ignore[attr-defined]
            await api.list(JOBS, ObjectOnly)
    assert server.asked[-1].headers["authorization"] == "Bearer second"


@pytest.mark.parametrize("content", ["", None, "broken\ntoken"], ids=["empty", "missing", "two lines"])
async def test_a_token_file_that_is_bad_for_a_moment_breaks_nothing_but_the_request(
    pod: Callable[[Rogue], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    service_account: Any,
    content: str | None,
) -> None:
    """The kubelet replaces it while we read; every minute it is read anew."""
    async with rogue(only_with("first"), Authority(tmp_path).server()) as server:
        token = pod(server)
        monkeypatch.setattr(service_account, "TOKEN_REFRESH_PERIOD", timedelta(0))
        async with Api.open("", "ns") as api:
            await api.list(JOBS, ObjectOnly)
            if content is None:
                token.unlink()
            else:
                token.write_text(content)
            for request in REQUESTS.values():
                with pytest.raises(ApiError):
                    await request(api)
            token.write_text("first")
            await api.list(JOBS, ObjectOnly)


async def test_outside_of_a_pod_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(SettingsError) as refused:
        async with Api.open("", "ns"):
            pass
    assert str(refused.value) == (
        "Not in a Kubernetes pod (Service host/port is not set.): set the KUBECONFIG_PATH environment variable to a"
        " kubeconfig"
    )


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"current-context": "nowhere"}',
        b'{"apiVersion":"v1","kind":"Config","current-context":"a","contexts":[],"clusters":[],"users":[]}',
    ],
    ids=str,
)
async def test_a_kubeconfig_that_cannot_be_used_is_named(kubeconfig: Path, content: bytes | None) -> None:
    if content is not None:
        await anyio.Path(kubeconfig).write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        async with Api.open(str(kubeconfig), "ns"):
            pass
    assert str(refused.value).startswith(
        f"The KUBECONFIG_PATH environment variable must name a kubeconfig that can be used: {kubeconfig}: "
    )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("what", ["certificate-authority", "client-certificate", "exec"])
async def test_a_kubeconfig_that_names_what_is_not_there_is_refused(
    kubeconfig: Path, tmp_path: Path, what: str
) -> None:
    missing = str(tmp_path / "missing")
    user: dict[str, Any] = {"token": "t"}
    if what == "exec":
        user = plugin(tmp_path / "plugin.py", tmp_path / "missing")
    elif what == "client-certificate":
        user = {"client-certificate": missing, "client-key": missing}
    else:
        user["cluster"] = {"certificate-authority": missing}
    with pytest.raises(SettingsError):
        async with opened(Rogue("https://127.0.0.1:1"), kubeconfig, **user):
            pass


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


class Loads:
    """Counts how often the credentials are loaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        load = Credentials.load

        async def counted(credentials: Credentials) -> None:
            self.count += 1
            await load(credentials)

        monkeypatch.setattr(Credentials, "load", counted)


@pytest.mark.parametrize("how", ["exec", "tokenFile"])
async def test_many_requests_refused_at_once_load_the_credentials_once(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    user = plugin(tmp_path / "plugin.py", file) if how == "exec" else {"tokenFile": str(file)}
    loads, refused, all_refused = Loads(monkeypatch), 0, anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        nonlocal refused
        if request.headers["authorization"] == "Bearer second":
            await reply.whole(200, EMPTY)
            return
        refused += 1
        if refused == AT_ONCE:
            all_refused.set()
        await all_refused.wait()
        await reply.whole(401, status(401, "Unauthorized", "Unauthorized"))

    async with rogue(answer) as server, opened(server, kubeconfig, patience=PATIENCE, **user) as api:
        file.write_text("second")
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(api.list, JOBS, ObjectOnly)
    assert loads.count == 2  # at the start, and now
    assert len(server.asked) == 2 * AT_ONCE


async def test_who_was_refused_with_older_credentials_takes_the_newer_ones(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer is late: others have loaded them meanwhile."""
    file = tmp_path / "token"
    file.write_text("first")
    loads, held, go_on = Loads(monkeypatch), anyio.Event(), anyio.Event()

    async def answer(request: Request, reply: Reply) -> None:
        if request.headers["authorization"] == "Bearer second":
            await reply.whole(200, EMPTY)
            return
        if request.path.endswith("/pods"):
            held.set()
            await go_on.wait()
        await reply.whole(401, status(401, "Unauthorized", "Unauthorized"))

    async with (
        rogue(answer) as server,
        opened(server, kubeconfig, patience=PATIENCE, tokenFile=str(file)) as api,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(api.list, PODS, ObjectOnly)
        await held.wait()
        file.write_text("second")
        await api.list(JOBS, ObjectOnly)
        go_on.set()
    assert loads.count == 2


def waiting_plugin(directory: Path) -> dict[str, Any]:
    """Return a user whose exec plugin notes its start, and reads the token from a pipe after that."""
    (directory / "plugin.py").write_text(
        "import json, os\n"
        f"print(os.getpid(), file=open({str(directory / 'started')!r}, 'a'))\n"
        f"token = open({str(directory / 'pipe')!r}).read()\n"
        "print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential',"
        " 'status': {'token': token}}))\n"
    )
    os.mkfifo(directory / "pipe")
    user = plugin(directory / "unused.py", directory / "unused")
    user["exec"]["args"] = [str(directory / "plugin.py")]
    return user


async def test_a_plugin_that_is_slower_than_a_request_is_waited_for_by_the_next(
    kubeconfig: Path, tmp_path: Path
) -> None:
    user, answer = waiting_plugin(tmp_path), only_with("first")
    pipe = anyio.Path(tmp_path / "pipe")
    async with rogue(answer) as server, anyio.create_task_group() as tasks:
        tasks.start_soon(pipe.write_text, "first")
        async with opened(server, kubeconfig, patience=0.3, **user) as api:
            answer.accepted[:] = ["second"]  # type: ignore[attr-defined]
            with anyio.fail_after(PATIENCE):
                for _ in range(3):
                    with pytest.raises(Unreachable, match="no answer in time"):
                        await api.list(JOBS, ObjectOnly)
                await pipe.write_text("second")
                while True:
                    with suppress(Unreachable):
                        await api.list(JOBS, ObjectOnly)
                        break
    assert len((tmp_path / "started").read_text().split()) == 2


async def test_a_plugin_that_never_ends_is_killed_and_told(kubeconfig: Path, tmp_path: Path) -> None:
    user = waiting_plugin(tmp_path)
    path = Rogue("http://127.0.0.1:1").kubeconfig(kubeconfig, **user)
    with anyio.fail_after(PATIENCE), pytest.raises(SettingsError, match="no answer within 2 s"):
        async with Api.open(str(path), "ns", load_timeout=2.0):
            pytest.fail("there are no credentials")
    (pid,) = (tmp_path / "started").read_text().split()
    await eventually(lambda: not exists(pid) and not any("waitpid" in it.name for it in threading.enumerate()))
    await anyio.wait_all_tasks_blocked()


def exists(pid: str) -> bool:
    return Path("/proc", pid).exists()


# Answers

REQUESTS: dict[str, Callable[[Api], Awaitable[Any]]] = {
    "list jobs.batch": lambda api: api.list(JOBS, ObjectOnly),
    "get pods": lambda api: api.get(PODS, ObjectOnly, "p"),
    "create secrets": lambda api: api.create(SECRETS, ObjectOnly, {"metadata": {"name": "s"}}),
    "delete jobs.batch": lambda api: api.delete(JOBS, "j", "uid"),
    "list events": lambda api: api.list(EVENTS, ObjectOnly, fieldSelector="involvedObject.uid=u"),
    "watch pods": lambda api: _opens(api.watch(PODS, {})),
    "get pods/log": lambda api: _opens(api.log("p", {})),
}


async def _opens(stream: Any) -> None:
    async with stream as chunks:
        async for _ in chunks:
            pass


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
    "get pods/log": lambda api: _opens(api.log("p", {"follow": "true"})),
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
