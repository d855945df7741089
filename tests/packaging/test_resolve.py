"""Tags are resolved by a real registry: open, with users, and with tokens."""

import base64
import datetime
import hashlib
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID
from rich.pretty import pretty_repr

from k8s_builder.commands.package import package
from k8s_builder.packaging import registry as registries
from k8s_builder.packaging.credentials import Credentials

REGISTRY = os.environ.get("DOCKER_REGISTRY") or shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(
    REGISTRY is None,
    reason="no docker-registry on PATH or in DOCKER_REGISTRY (Debian: apt-get install docker-registry)",
)

# bcrypt of "secret" with the least cost
HTPASSWD = "alice:$2b$04$7OZJQGpg7qoMfebL2BQOMOioZg.fz16sVm0JzICQ8rJnm9Pk/tjKi\n"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


class Served:
    """A registry at an address, and the way to put images into it."""

    def __init__(self, address: str, authorization: Callable[[str], dict[str, str]] = lambda _: {}) -> None:
        self.address = address
        self._authorization = authorization
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _send(self, method: str, url: str, body: bytes, kind: str, repository: str) -> str:
        headers = {"Content-Type": kind} | self._authorization(repository)
        request = urllib.request.Request(url, body, headers, method=method)
        with self._opener.open(request) as response:
            return str(response.headers.get("Location", ""))

    def push_blob(self, repository: str, blob: bytes) -> dict[str, object]:
        url = self._send("POST", f"http://{self.address}/v2/{repository}/blobs/uploads/", b"", "", repository)
        url = urllib.parse.urljoin(f"http://{self.address}", url)
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        query = urllib.parse.urlencode({"digest": digest})
        self._send("PUT", f"{url}{'&' if '?' in url else '?'}{query}", blob, "application/octet-stream", repository)
        return {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(blob)}

    def push_manifest(self, repository: str, tag: str, manifest: dict[str, object], kind: str) -> str:
        body = json.dumps(manifest).encode()
        self._send("PUT", f"http://{self.address}/v2/{repository}/manifests/{tag}", body, kind, repository)
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def push_image(self, repository: str, tag: str, architecture: str = "amd64", kind: str = MANIFEST) -> str:
        """Put an image without layers into the registry and return its digest."""
        config = self.push_blob(repository, json.dumps({"os": "linux", "architecture": architecture}).encode())
        manifest: dict[str, object] = {"schemaVersion": 2, "config": config, "layers": []}
        return self.push_manifest(repository, tag, manifest | {"mediaType": kind}, kind)


@contextmanager
def serve(
    folder: Path, auth: str = "", tls: str = "", **authorization: Callable[[str], dict[str, str]]
) -> Iterator[Served]:
    """Run a registry on a free port until the block ends."""
    assert REGISTRY is not None
    folder.mkdir(exist_ok=True)
    config = folder / "config.yml"
    storage = f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}"
    config.write_text(f"version: 0.1\n{storage}\nhttp: {{addr: '127.0.0.1:0'{tls}}}\n{auth}")
    log = subprocess.PIPE
    with subprocess.Popen([REGISTRY, "serve", str(config)], stderr=log, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        address = ""
        for line in process.stderr:
            if b"listening on " in line:
                address = line.partition(b"listening on ")[2].split(b'"')[0].split()[0].decode().rstrip(",")
                break
        assert address, "the registry ended before it listened"
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        try:
            yield Served(address, **authorization)
        finally:
            process.terminate()
            drain.join()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An open registry."""
    with serve(tmp_path_factory.mktemp("registry") / "open") as served:
        yield served


Resolve = Callable[..., Result]


@pytest.fixture
def resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Package an image by its tag, with the Docker config file given as a document."""
    monkeypatch.chdir(tmp_path)

    def call(image: str, config: object = None, *options: str) -> Result:
        folder = tmp_path / "docker"
        folder.mkdir(exist_ok=True)
        if config is not None:
            (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        arguments = ["a", "--resolve", "--image", image, *options]
        return CliRunner().invoke(package, arguments, env={"DOCKER_CONFIG": str(folder), "NO_PROXY": "*"})

    return call


@needs_registry
@pytest.mark.parametrize("kind", [MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"])
def test_a_tag_becomes_the_digest_of_its_image(registry: Served, resolve: Resolve, kind: str) -> None:
    digest = registry.push_image("org/cc", "1.0", kind=kind)
    result = resolve(f"{registry.address}/org/cc:1.0")
    assert result.exit_code == 0, result.output
    assert f"image       {registry.address}/org/cc@{digest}" in result.stdout.splitlines()
    assert f"resolved    {registry.address}/org/cc:1.0 to an image" in result.stdout.splitlines()


@needs_registry
@pytest.mark.parametrize("kind", [INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"])
def test_a_multi_architecture_tag_becomes_the_digest_of_its_index(
    registry: Served, resolve: Resolve, kind: str
) -> None:
    image_kind = MANIFEST if kind == INDEX else "application/vnd.docker.distribution.manifest.v2+json"
    entries = []
    for architecture in ("amd64", "arm64", "unknown"):
        digest = registry.push_image("multi/cc", architecture, architecture, image_kind)
        entry: dict[str, object] = {"mediaType": image_kind, "digest": digest, "size": 1}
        entries.append(entry | {"platform": {"os": "linux", "architecture": architecture}})
    digest = registry.push_manifest(
        "multi/cc", "latest", {"schemaVersion": 2, "mediaType": kind, "manifests": entries}, kind
    )
    result = resolve(f"localhost:{registry.address.rpartition(':')[2]}/multi/cc")
    assert result.exit_code == 0, result.output
    assert f"/multi/cc@{digest}" in result.stdout
    assert "/multi/cc:latest to an index of linux/amd64, linux/arm64" in result.stdout


@needs_registry
def test_what_is_not_there_is_told(registry: Served, resolve: Resolve) -> None:
    registry.push_image("org/cc", "1.0")
    for image in (f"{registry.address}/org/cc:2.0", f"{registry.address}/org/absent:1.0"):
        result = resolve(image)
        assert result.exit_code == 1
        assert result.stderr == (
            f"Error: {image} cannot be resolved: {registry.address} says: there is no such repository or tag\n"
        )


def test_a_registry_that_is_not_there_is_told(resolve: Resolve) -> None:
    for options in ((), ("--plain-http",)):
        result = resolve("127.0.0.1:1/org/cc:1.0", None, *options)
        assert result.exit_code == 1
        assert "Error: 127.0.0.1:1/org/cc:1.0 cannot be resolved: 127.0.0.1:1 cannot be reached" in result.stderr


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture(scope="module")
def with_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A registry that asks for a user and a password (Basic)."""
    folder = tmp_path_factory.mktemp("registry")
    (folder / "htpasswd").write_text(HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: here, path: {folder / 'htpasswd'}}}}}\n"
    header = {"Authorization": f"Basic {basic('alice', 'secret')}"}
    with serve(folder / "users", auth, authorization=lambda _: header) as served:
        served.push_image("org/cc", "1.0")
        yield served


def helper(folder: Path, script: str) -> None:
    """Make a credential helper."""
    path = folder / "docker-credential-vault"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@needs_registry
def test_docker_logins_are_used(with_users: Served, resolve: Resolve) -> None:
    host = with_users.address
    for config in (
        {"auths": {host: {"auth": basic("alice", "secret")}}},
        {"auths": {f"http://{host}/v1/": {"username": "alice", "password": "secret"}}},
    ):
        result = resolve(f"{host}/org/cc:1.0", config)
        assert result.exit_code == 0, result.output


@needs_registry
@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_credential_helpers_are_asked(
    with_users: Served, resolve: Resolve, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = with_users.address
    answer = '{"ServerURL":"x","Username":"alice","Secret":"secret"}'
    helper(tmp_path, f'test "$1" = get && test "$(cat)" = {host} && echo \'{answer}\'')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config: dict[str, object] = {setting: "vault" if setting == "credsStore" else {host: "vault"}, "auths": {host: {}}}
    result = resolve(f"{host}/org/cc:1.0", config)
    assert result.exit_code == 0, result.output


@needs_registry
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "asks for a user and password: log in with `docker login"),
        ({"auths": {"other.example": {"auth": basic("alice", "secret")}}}, "asks for a user and password"),
        ({"auths": {"HOST": {"auth": basic("alice", "wrong")}}}, "access is denied with the credentials"),
        ({"auths": {"HOST": {"auth": "!"}}}, "must have as 'auth' the base64 of USER:PASSWORD"),
        ('{"auths": {"secret"', "must be a JSON object"),
        ({"credsStore": "absent"}, "docker-credential-absent cannot be used: No such file or directory"),
        ({"credsStore": "../x"}, "is not the name of a credential helper"),
        ({"credsStore": "vault"}, "docker-credential-vault gave no Username and Secret"),
    ],
)
def test_logins_that_do_not_work_are_told_without_the_password(
    with_users: Served,
    resolve: Resolve,
    config: object,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper(tmp_path, "echo secret")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    text = (config if isinstance(config, str) else json.dumps(config)).replace("HOST", with_users.address)
    result = resolve(f"{with_users.address}/org/cc:1.0", text)
    assert result.exit_code == 1
    assert said in result.stderr
    assert "secret" not in result.output
    assert basic("alice", "wrong") not in result.output


@needs_registry
def test_a_helper_that_has_none_or_fails_is_told(
    with_users: Served, resolve: Resolve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    helper(tmp_path, "echo credentials not found in native keychain; exit 1")
    result = resolve(f"{with_users.address}/org/cc:1.0", {"credsStore": "vault"})
    assert "asks for a user and password" in result.stderr
    helper(tmp_path, "echo locked; exit 1")
    result = resolve(f"{with_users.address}/org/cc:1.0", {"credsStore": "vault"})
    assert "docker-credential-vault failed: locked" in result.stderr


class TokenServer:
    """Gives tokens that the registry trusts: to anyone who may read `public/`, to alice and her identity token all."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tokens")])
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self._key.public_key())
        builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
        certificate = builder.sign(self._key, hashes.SHA256())
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)
        self._x5c = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        self.asked: list[str] = []

    def token(self, repository: str, actions: list[str]) -> str:
        now = int(datetime.datetime.now(datetime.UTC).timestamp())
        header = {"typ": "JWT", "alg": "ES256", "x5c": [self._x5c]}
        access = [{"type": "repository", "name": repository, "actions": actions}] if actions else []
        claims = {"iss": "tokens", "aud": "registry", "sub": "", "iat": now, "nbf": now - 60, "exp": now + 600}
        parts = [_base64url(json.dumps(part).encode()) for part in (header, claims | {"jti": "1", "access": access})]
        signature = self._key.sign(".".join(parts).encode(), ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(signature)
        return ".".join([*parts, _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))])

    def answer(self, method: str, query: dict[str, str], authorization: str) -> dict[str, str] | None:
        assert query["service"] == "registry"
        repository = query["scope"].split(":")[1]
        self.asked.append(
            f"{method} {query['scope']} {authorization.partition(' ')[0] or query.get('grant_type', '-')}"
        )
        if authorization and authorization != f"Basic {basic('alice', 'secret')}":
            return None
        known = bool(authorization) or query.get("refresh_token") == "identity"
        token = self.token(repository, ["pull"] if known or repository.startswith("public/") else [])
        return {"access_token": token} if method == "POST" else {"token": token}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture(scope="module")
def with_tokens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, TokenServer]]:
    """A registry that asks for tokens (Bearer), and the server that gives them."""
    tokens = TokenServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET", urllib.parse.urlsplit(self.path).query)

        def do_POST(self) -> None:
            self._answer("POST", self.rfile.read(int(self.headers["Content-Length"])).decode())

        def _answer(self, method: str, query: str) -> None:
            answer = tokens.answer(method, dict(urllib.parse.parse_qsl(query)), self.headers.get("Authorization", ""))
            self.send_response(200 if answer else 401)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    folder = tmp_path_factory.mktemp("registry")
    (folder / "tokens.pem").write_bytes(tokens.pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        realm = f"http://127.0.0.1:{server.server_port}/token"
        auth = (
            f"auth: {{token: {{realm: '{realm}', service: registry, issuer: tokens, "
            f"rootcertbundle: {folder / 'tokens.pem'}}}}}\n"
        )
        try:
            with serve(
                folder / "tokens",
                auth,
                authorization=lambda repository: {
                    "Authorization": f"Bearer {tokens.token(repository, ['pull', 'push'])}"
                },
            ) as served:
                served.push_image("public/cc", "1.0")
                served.push_image("private/cc", "1.0")
                yield served, tokens
        finally:
            server.shutdown()
            thread.join()


@needs_registry
@pytest.mark.parametrize(
    ("image", "entry", "asked"),
    [
        ("public/cc", None, "GET repository:public/cc:pull -"),
        ("private/cc", {"auth": basic("alice", "secret")}, "GET repository:private/cc:pull Basic"),
        ("private/cc", {"identitytoken": "identity"}, "POST repository:private/cc:pull refresh_token"),
    ],
)
def test_a_token_is_asked_for_and_used(
    with_tokens: tuple[Served, TokenServer], resolve: Resolve, image: str, entry: object, asked: str
) -> None:
    served, tokens = with_tokens
    tokens.asked.clear()
    result = resolve(f"{served.address}/{image}:1.0", {"auths": {served.address: entry} if entry else {}})
    assert result.exit_code == 0, result.output
    assert tokens.asked == [asked]


@needs_registry
def test_a_token_that_does_not_suffice_is_told(with_tokens: tuple[Served, TokenServer], resolve: Resolve) -> None:
    served, _ = with_tokens
    result = resolve(f"{served.address}/private/cc:1.0")
    assert "access is denied without credentials: log in with `docker login`" in result.stderr
    wrong = {"auths": {served.address: {"auth": basic("alice", "wrong")}}}
    result = resolve(f"{served.address}/private/cc:1.0", wrong)
    assert "gives no token: access is denied with the credentials in the Docker config file" in result.stderr


@needs_registry
def test_a_certificate_must_be_trusted(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "registry")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=9))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    (tmp_path / "tls.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "tls.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, pkcs8, plain))
    with serve(tmp_path / "registry") as served:
        digest = served.push_image("org/cc", "1.0")
    tls = f", tls: {{certificate: {tmp_path / 'tls.crt'}, key: {tmp_path / 'tls.key'}}}"
    with serve(tmp_path / "registry", tls=tls) as served:
        port = served.address.rpartition(":")[2]
        image = f"localhost:{port}/org/cc:1.0"
        command = [sys.executable, "-m", "k8s_builder", "package", "a", "--resolve", "--image", image]
        command += ["--output", str(tmp_path / "a.tgz"), "--docker-config", str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        # Python reads it when the HTTP client is imported, so only a new process sees it.
        trusting = os.environ | {"SSL_CERT_FILE": str(tmp_path / "tls.crt"), "NO_PROXY": "*"}
        resolved = subprocess.run(command, capture_output=True, text=True, check=False, env=trusting)
    assert refused.returncode == 1
    assert f"localhost:{port} has no trusted certificate" in refused.stderr
    assert resolved.returncode == 0, resolved.stderr
    assert f"image       localhost:{port}/org/cc@{digest}" in resolved.stdout.splitlines()


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers by path, and keeps what it was asked: the request line, and what came with it."""

    answers: dict[str, tuple[int, dict[str, str]]]
    asked: list[str]

    def do_GET(self) -> None:
        self._answer("")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _answer(self, body: str) -> None:
        self.asked.append(f"{self.requestline} {self.headers.get('Authorization', '')} {body}")
        path, known = self.path.partition("?")[0], "Authorization" in self.headers
        status, headers = (known and self.answers.get(f"{path} with a login")) or self.answers[path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def recorder() -> Iterator[tuple[str, dict[str, tuple[int, dict[str, str]]], list[str]]]:
    """Run a server; its address, its answers (status and headers) by path, and what it was asked."""
    answers: dict[str, tuple[int, dict[str, str]]] = {}
    asked: list[str] = []
    handler = type("Handler", (Recorder,), {"answers": answers, "asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", answers, asked
        finally:
            server.shutdown()
            thread.join()


LOGINS: list[dict[str, str]] = [{"auth": basic("alice", "secret")}, {"identitytoken": "secret"}]


@pytest.mark.parametrize("login", LOGINS, ids=lambda login: next(iter(login)))
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_place_that_the_registry_redirects_to_is_not_asked(
    resolve: Resolve, login: dict[str, str], status: int
) -> None:
    with recorder() as (registry, answers, asked), recorder() as (other, others, strange):
        answers["/v2/cc/manifests/1"] = (status, {"Location": f"http://{other}/v2/cc/manifests/1"})
        others["/v2/cc/manifests/1"] = (401, {"WWW-Authenticate": f'Bearer realm="http://{other}/token"'})
        others["/token"] = (200, {})
        result = resolve(f"{registry}/cc:1", {"auths": {registry: login}}, "--plain-http")
    assert result.exit_code == 1
    assert f"{registry} says: status {status}, a redirect, which is not followed" in result.stderr
    assert len(asked) == 1
    assert strange == []


@pytest.mark.parametrize("login", LOGINS, ids=lambda login: next(iter(login)))
def test_a_place_that_the_realm_redirects_to_gets_no_password(resolve: Resolve, login: dict[str, str]) -> None:
    with recorder() as (registry, answers, asked), recorder() as (other, others, strange):
        answers["/v2/cc/manifests/1"] = (401, {"WWW-Authenticate": f'Bearer realm="http://{registry}/token"'})
        answers["/token"] = (307, {"Location": f"http://{other}/token"})
        others["/token"] = (200, {})
        result = resolve(f"{registry}/cc:1", {"auths": {registry: login}}, "--plain-http")
    assert result.exit_code == 1
    assert f"http://{registry}/token gives no token: status 307, a redirect, which is not followed" in result.stderr
    assert len(asked) == 2
    assert strange == []


def test_a_place_that_the_registry_redirects_to_after_the_login_is_not_asked(resolve: Resolve) -> None:
    with recorder() as (registry, answers, asked), recorder() as (other, _, strange):
        answers["/v2/cc/manifests/1"] = (401, {"WWW-Authenticate": 'Basic realm="here"'})
        answers["/v2/cc/manifests/1 with a login"] = (307, {"Location": f"http://{other}/v2/cc/manifests/1"})
        result = resolve(f"{registry}/cc:1", {"auths": {registry: LOGINS[0]}}, "--plain-http")
    assert result.exit_code == 1
    assert f"{registry} says: status 307, a redirect, which is not followed" in result.stderr
    assert len(asked) == 2
    assert strange == []


BEARER = 'Bearer realm="http://HOST/token",service="a registry, \\"quoted\\"",scope="repository:cc:pull,push"'


@pytest.mark.parametrize(
    "challenges",
    [
        ['Basic realm="here"', BEARER],
        [BEARER, 'Basic realm="here"'],
        [f'Basic realm="here", {BEARER}'],
        [f"{BEARER}, Basic realm=here"],
        [f'Negotiate, NTLM TlRMTVNTUA==, basic realm="Bearer realm=x, y" , {BEARER.replace("Bearer", "bearer")}'],
        [BEARER.replace('",', '" , ').replace('="', ' = "')],
    ],
)
def test_the_way_that_needs_no_login_is_taken(resolve: Resolve, challenges: list[str]) -> None:
    """A registry may offer several (RFC 9110, 11.6.1), in one header or in one each."""
    asked = []

    class Handler(Answers):
        def do_GET(self) -> None:
            asked.append(self.path)
            host = self.headers["Host"]
            if self.path.startswith("/token"):
                self._reply(200, {}, b'{"token":"anonymous"}')
            elif self.headers.get("Authorization") == "Bearer anonymous":
                self._reply(200, {"Content-Type": MANIFEST}, b"{}")
            else:
                self.send_response(401)
                for challenge in challenges:
                    self.send_header("WWW-Authenticate", challenge.replace("HOST", host))
                self.end_headers()

        def _reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        result = resolve(f"127.0.0.1:{server.server_port}/cc:1", None, "--plain-http")
        server.shutdown()
        thread.join()
    assert result.exit_code == 0, result.output
    query = urllib.parse.parse_qs(asked[1].partition("?")[2])
    assert query == {"service": ['a registry, "quoted"'], "scope": ["repository:cc:pull,push"]}


def test_what_a_registry_says_cannot_write_to_the_terminal(resolve: Resolve) -> None:
    osc, csi = "\x1b]0;PWNED\x07", "\x9b2J"
    said: list[dict[str, str]] = [
        {"WWW-Authenticate": f"Weird{osc}{csi} x"},
        {"WWW-Authenticate": f'Bearer realm="http://127.0.0.1:1/{osc}{csi}"'},
        {"Docker-Content-Digest": f"sha256:{osc}{csi}"},
        {"WWW-Authenticate": "x" * 6000},
    ]
    for headers in said:
        with recorder() as (registry, answers, _):
            answers["/v2/cc/manifests/1"] = (401 if "WWW-Authenticate" in headers else 200, headers)
            result = resolve(f"{registry}/cc:1", None, "--plain-http")
        assert result.exit_code == 1
        assert result.stderr.endswith("\n")
        assert result.stderr[:-1].isprintable()
        assert len(result.stderr) < 1200


def test_credentials_show_no_password_in_tracebacks_of_either_kind() -> None:
    """The console's, which shows the values of variables, asks for another representation than Python does."""
    for credentials in (Credentials("alice", "hidden"), Credentials(identity_token="hidden")):
        for shown in (repr(credentials), str(credentials), pretty_repr(credentials), pretty_repr([credentials])):
            assert credentials.username in shown
            assert "hidden" not in shown


class Answers(http.server.BaseHTTPRequestHandler):
    """A registry that answers with what the test laid down."""

    headers_to_send: dict[str, str]
    body: bytes
    status: int

    def do_GET(self) -> None:
        self.send_response(401 if "WWW-Authenticate" in self.headers_to_send else self.status)
        for name, value in self.headers_to_send.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def answering(headers: dict[str, str], body: bytes = b"{}", status: int = 200) -> Iterator[str]:
    """Run a registry that answers everything with the same."""
    fields = {"headers_to_send": headers, "body": body, "status": status}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), fields)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "access is denied without credentials: log in with `docker login`"),
        (404, "there is no such repository or tag"),
        (429, "too many requests: try again later, or log in with `docker login`"),
        (500, "status 500"),
    ],
)
def test_a_registry_that_refuses_is_told_with_what_can_be_done(resolve: Resolve, status: int, said: str) -> None:
    with answering({}, status=status) as address:
        result = resolve(f"{address}/cc:1", None, "--plain-http")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert said in result.stderr


@pytest.mark.parametrize(
    ("realm", "said"),
    [
        (b"{}", "gives no token in its answer"),
        (b'{"token": ""}', "gives no token in its answer"),
        (b"no", "gave no valid answer"),
    ],
)
def test_a_realm_that_gives_no_token_is_told(resolve: Resolve, realm: bytes, said: str) -> None:
    with (
        answering({}, realm) as tokens,
        answering({"WWW-Authenticate": f'Bearer realm="http://{tokens}/token"'}) as address,
    ):
        result = resolve(f"{address}/cc:1", None, "--plain-http")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert said in result.stderr


def test_a_registry_that_does_not_answer_is_given_up(resolve: Resolve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registries, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = resolve(f"127.0.0.1:{silent.getsockname()[1]}/cc:1", None, "--plain-http")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "did not answer within 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("headers", "body", "said"),
    [
        (
            {"Content-Type": INDEX, "Docker-Content-Digest": "sha256:" + "0" * 64},
            b"{}",
            "does not have the digest",
        ),
        ({"Content-Type": INDEX, "Content-Length": "5"}, b"{}", "gave no valid answer"),
        ({"Content-Type": INDEX}, b"<html>", "gave no valid answer"),
        ({"Content-Type": INDEX}, b'{"manifests": 1}', "gave no valid answer"),
        ({"Content-Type": INDEX}, b"[" * 100_000, "gave no valid answer"),
        ({"Content-Type": "text/html"}, b"{}", "it is not an image that Kubernetes can run, but 'text/html'"),
        ({"Content-Type": MANIFEST}, b" " * (4 * 1024 * 1024 + 1), "is longer than 4,194,304 bytes"),
        ({"WWW-Authenticate": "Negotiate"}, b"", "an unsupported way of logging in: Negotiate"),
        ({"WWW-Authenticate": 'Bearer realm="/etc/passwd"'}, b"", "an unsupported way of logging in: Bearer"),
    ],
)
def test_a_registry_that_answers_nonsense_is_told(
    resolve: Resolve, headers: dict[str, str], body: bytes, said: str
) -> None:
    with answering(headers, body) as address:
        result = resolve(f"{address}/cc:1", None, "--plain-http")
    assert result.exit_code == 1
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
