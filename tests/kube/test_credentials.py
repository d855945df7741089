"""Who we are to the API server: found in a kubeconfig or a pod, sent to nobody else, and read anew when refused."""

import base64
import os
import ssl
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

from k8s_builderd.errors import SettingsError
from k8s_builderd.kube import slim
from k8s_builderd.kube.api import AT_ONCE, Api
from k8s_builderd.kube.credentials import LOADS, Credentials
from k8s_builderd.kube.errors import ApiError, Unauthorized, Unreachable
from k8s_builderd.kube.objects import ObjectOnly
from k8s_builderd.kube.resources import JOBS, PODS
from k8s_builderd.tasks import background
from tests.embedded.cluster import PATIENCE, eventually
from tests.kube.asking import REQUESTS, opened
from tests.kube.certificates import Authority
from tests.kube.rogue import EMPTY, Reply, Request, Rogue, only_with, rogue, status, well

pytestmark = pytest.mark.anyio


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


async def test_while_everybody_is_refused_the_credentials_are_not_loaded_each_time(
    kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exec plugin is a process each time."""
    file = tmp_path / "token"
    file.write_text("first")
    loads, answer = Loads(monkeypatch), only_with()
    async with rogue(answer) as server, opened(server, kubeconfig, tokenFile=str(file)) as api:
        for _ in range(20):
            with pytest.raises(Unauthorized, match=r"cannot list jobs\.batch: Unauthorized"):
                await api.list(JOBS, ObjectOnly)
    assert loads.count == 1 + LOADS
    assert len(server.asked) == 20 + LOADS


async def test_why_the_last_load_failed_is_told_until_the_next(kubeconfig: Path, tmp_path: Path) -> None:
    program = tmp_path / "plugin.py"
    file = tmp_path / "token"
    file.write_text("first")
    user = plugin(program, file)
    async with rogue(only_with()) as server, opened(server, kubeconfig, **user) as api:
        program.write_text("raise SystemExit('no luck')")
        for _ in range(2 * LOADS):
            with pytest.raises(Unauthorized, match="no luck"):
                await api.list(JOBS, ObjectOnly)


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
