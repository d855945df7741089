"""Keys stand in the Secret and nowhere else: what daemon and programs print, expose and raise at debug is searched.

They are given real key material: the chaincode's, a kubeconfig's client key and token, a token file, a credentials
plugin's, and the token of a `run`. Scenes go well and badly. Then everything that can be read is read.
"""

import base64
import json
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.daemon.chaincodes import Ticking
from tests.daemon.scene import Package, Running, Scene
from tests.daemon.test_socket import Raw
from tests.daemon.test_status import builder
from tests.daemon.test_token import TOKEN, request
from tests.embedded.cluster import PATIENCE
from tests.kube.certificates import Authority

pytestmark = pytest.mark.anyio

CRASHING = """
import sys
from k8s_builderd import __main__
from k8s_builderd.fabric import manifests
def secret(plan, uid):
    raise RuntimeError(f"{plan!r} {plan} {plan.chaincode!r} {plan.token!r}")
manifests.secret = secret
sys.exit(__main__.main())
"""
"""A daemon with a mistake, which puts all that it has into an exception."""
SHORTEST = 16
"""Characters of what is searched for at least: less proves nothing."""


class Given:
    """What was given to the daemon and its programs, and must not be seen again."""

    def __init__(self) -> None:
        self._secrets: dict[str, bytes] = {}

    def add(self, name: str, secret: str | bytes) -> str:
        self._secrets[name] = secret if isinstance(secret, bytes) else secret.encode()
        return self._secrets[name].decode()

    def forms(self) -> Iterator[tuple[str, bytes]]:
        """Yield what to look for: tokens, the lines of PEMs, and what both are in base64, wherever they begin in it."""
        for name, secret in self._secrets.items():
            lines = [line for line in secret.splitlines() if not line.startswith(b"-----")]
            assert all(len(line) >= SHORTEST for line in lines), name
            for line in lines:
                yield name, line
            for offset in range(3):
                encoded = base64.b64encode(b"\0" * offset + secret)
                # Without the ends, which what stands before and after changes; whole, and in pieces of one line.
                inner = encoded[4:-4]
                for start in range(0, max(len(inner) - 40, 1), 40):
                    yield f"{name} in base64", inner[start : start + 40]

    def found(self, texts: dict[str, bytes]) -> list[tuple[str, str]]:
        """Return which of it was found where."""
        return [(name, where) for where, text in texts.items() for name, form in self.forms() if form in text]


class Seen:
    """Everything that anybody can read."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.texts: dict[str, bytes] = {}
        self._processes: list[tuple[str, Running]] = []

    def watch(self, name: str, process: Running) -> Running:
        self._processes.append((name, process))
        return process

    def add(self, name: str, text: str | bytes) -> None:
        self.texts[name] = self.texts.get(name, b"") + (text if isinstance(text, bytes) else text.encode())

    async def run(self, name: str, package: Package, program: str = "run", *, start_timeout: str = "3m") -> Running:
        settings = {"FABRIC_K8S_BUILDER_DEBUG": "true", "FABRIC_K8S_BUILDER_START_TIMEOUT": start_timeout}
        return self.watch(name, await self.scene.call(program, package, read=True, **settings))

    async def look(self, daemon: Running) -> None:
        """Read what the daemon exposes and what is in the cluster now, but for Secrets."""
        for path in ("/metrics", "/readyz", "/livez"):
            self.add(path, (await self.scene.health(daemon, path))[1])
        self.add("status --json", "".join((await builder(self.scene, "status", "--json"))[1:]))
        self.add("status", "".join((await builder(self.scene, "status"))[1:]))
        for plural in ("jobs", "pods", "events"):
            self.add(plural, json.dumps(await self.scene.cluster.list(plural)))

    def everything(self) -> dict[str, bytes]:
        printed = {name: b"\n".join(process.lines) for name, process in self._processes}
        assert all(text for name, text in printed.items() if "daemon" in name)
        return self.texts | printed


def chaincode_with_keys(given: Given, directory: Path, package: Package) -> Package:
    """Give a chaincode a real key and certificates, as the peer does; in base64, as the newer shims want them, too."""
    directory.mkdir(exist_ok=True)
    authority = Authority(directory, "tlsca")
    certificate, key = authority.issue("chaincode")
    package.connect(
        client_key=given.add(f"client_key {directory.name}", key.read_bytes()),
        client_cert=given.add(f"client_cert {directory.name}", certificate.read_bytes()),
        root_cert=given.add(f"root_cert {directory.name}", authority.file.read_bytes()),
    )
    return package


def kubeconfig(given: Given, scene: Scene, directory: Path, **user: Any) -> Path:
    """Write the scene's kubeconfig with a client's key in it, and another user where one is given."""
    directory.mkdir()
    certificate, key = Authority(directory).issue("client")
    document = json.loads(scene.kubeconfig.read_bytes())
    [only] = document["users"]
    given.add("kubeconfig's key", key.read_bytes())
    given.add("kubeconfig's certificate", certificate.read_bytes())
    only["user"] = {
        **(user or only["user"]),
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
    }
    path = directory / "kubeconfig"
    path.write_text(json.dumps(document))
    return path


async def doctor(scene: Scene) -> str:
    """Return all that the doctor says, who has the daemon's kubeconfig."""
    _, output, errors = await builder(scene, "doctor", "--json", KUBECONFIG_PATH=str(scene.kubeconfig))
    assert '"status"' in output, errors
    return output + errors


@asynccontextmanager
async def searched(scene: Scene) -> AsyncIterator[tuple[Given, Seen]]:
    """Hand out what collects; search all of it at the end, when the key is in the Secret and nowhere else."""
    given, seen = Given(), Seen(scene)
    given.add("kubeconfig's token", scene.cluster.token)
    yield given, seen
    assert given.found(seen.everything()) == []


async def test_a_search_finds_what_is_there(tmp_path: Path) -> None:
    given = Given()
    token, key = given.add("token", "a-token-of-some-length"), Authority(tmp_path).issue("key")[1].read_bytes()
    given.add("key", key)
    for name, text in (
        ("token", token.encode()),
        ("token", json.dumps({"Authorization": f"Bearer {token}"}).encode()),
        ("token in base64", base64.b64encode(b"x" + token.encode())),
        ("key", key),
        ("key", json.dumps({"key": key.decode()}).encode()),
        ("key in base64", base64.b64encode(key)),
        ("key in base64", base64.b64encode(b"k: " + key + b" more")),
        ("key in base64", base64.b64encode(json.dumps({"a": 1, "key": "k"}).encode() + key)),
    ):
        assert (name, "where") in given.found({"where": b"before " + text + b" after"}), (name, text)
    assert given.found({"where": b"-----BEGIN PRIVATE KEY-----\nhidden\n-----END PRIVATE KEY-----"}) == []


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_launch_its_log_and_its_stop(scene: Scene, tmp_path: Path, log_format: str) -> None:
    async with searched(scene) as (given, seen):
        scene.kubeconfig = kubeconfig(given, scene, tmp_path / "kube")
        given.add("run's token", TOKEN)
        daemon = seen.watch("daemon", await scene.daemon(DEBUG="true", LOG_FORMAT=log_format))
        ticking = await Ticking.make(scene, "ticking")
        package = chaincode_with_keys(given, tmp_path / "ticking", ticking.package)
        for program in ("detect", "build", "release"):
            await (await seen.run(program, package, program)).wait()
        run = await seen.run("run", package)
        await run.line("line 2")
        secrets = json.dumps(await scene.cluster.list("secrets")).encode()
        assert given.found({"secrets": secrets}), "the search finds a key where it has to be"
        again = await seen.run("run again", package)
        await run.wait()
        await again.wait()
        async with Raw.open(scene) as raw:
            await raw.send(request(chaincode_with_keys(given, tmp_path / "raw", await scene.package("raw"))))
            with anyio.fail_after(PATIENCE):
                kind, line = await raw.frame()
                while b"Running chaincode" not in line:
                    seen.add("frames", kind.encode() + line)
                    kind, line = await raw.frame()
            await scene.asked("create secrets", 2)
            if log_format == "json":
                await daemon.line("api_request")
                await seen.look(daemon)
            seen.add("logs", "".join((await builder(scene, "logs", "raw"))[1:]))
            seen.add("doctor", await doctor(scene))
            seen.add("stop", "".join((await builder(scene, "stop", "--yes", "raw"))[1:]))
            seen.add("frames", b"".join(payload for kind, payload in await raw.rest() if kind != "C"))
        assert await daemon.terminate() == 0


REFUSALS: dict[str, dict[str, Any]] = {
    "forbidden": {"verb": "create", "resource": "jobs", "action": {"do": "status", "code": 403}},
    "secret invalid": {
        "verb": "create",
        "resource": "secrets",
        "action": {"do": "status", "code": 422, "reason": "Invalid", "message": "data: Invalid value"},
    },
    "unauthorized": {"action": {"do": "status", "code": 401}},
    "broken off": {"verb": "create", "resource": "secrets", "action": {"do": "reset", "when": "after"}},
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_requests_that_are_refused(scene: Scene, tmp_path: Path, refusal: dict[str, Any]) -> None:
    async with searched(scene) as (given, seen):
        token_file = tmp_path / "token"
        token_file.write_text(given.add("token file", scene.cluster.token))
        scene.kubeconfig = kubeconfig(given, scene, tmp_path / "kube", tokenFile=str(token_file))
        daemon = seen.watch("daemon", await scene.daemon(DEBUG="true"))
        await daemon.line("watch_synced", times=2)
        await scene.fault(times=None, **refusal)
        package = chaincode_with_keys(given, tmp_path / "keys", await scene.package(script="exit 0"))
        run = await seen.run("run", package, start_timeout="1s")
        if refusal["action"].get("code") == 401:
            await daemon.line('"code": "401"')
            await run.terminate()
        await run.wait()
        await scene.cluster.switch("DELETE", "faults")
        await seen.look(daemon)
        assert await daemon.terminate() == 0


async def test_a_crash_that_has_all_of_a_launch_in_its_exception(scene: Scene, tmp_path: Path) -> None:
    async with searched(scene) as (given, seen):
        program = tmp_path / "crashing.py"
        program.write_text(CRASHING)
        daemon = await scene.daemon(program=[sys.executable, str(program)], DEBUG="true")
        seen.watch("daemon", daemon)
        package = chaincode_with_keys(given, tmp_path / "keys", await scene.package())
        run = await seen.run("run", package)
        line = await daemon.line("launch_crashed")
        assert b"RuntimeError" in line
        assert b"Chaincode(" in line
        await seen.look(daemon)
        await run.terminate()


async def test_packages_and_images_that_are_wrong(scene: Scene, tmp_path: Path) -> None:
    async with searched(scene) as (given, seen):
        daemon = seen.watch("daemon", await scene.daemon(DEBUG="true"))
        package = chaincode_with_keys(given, tmp_path / "keys", await scene.package(script="exit 0"))
        good = json.loads((package.root / "run/chaincode.json").read_bytes())
        for number, broken in enumerate(
            (
                {**good, "chaincode_id": "without a colon"},
                {**good, "client_key": 7},
                {name: value for name, value in good.items() if name != "mspid"},
                {**good, "unknown": good["client_key"]},
                {**good, "client_cert": good["client_key"], "root_cert": ""},
                [good],
            )
        ):
            package.write("run/chaincode.json", broken)
            await (await seen.run(f"run {number}", package)).wait()
        package.write("run/chaincode.json", json.dumps(good).encode()[:-40])
        await (await seen.run("run half", package)).wait()
        package.write("run/chaincode.json", good)
        package.image({"name": "localhost/nowhere", "digest": "sha256:" + "0" * 64})
        run = await seen.run("wrong digest", package, start_timeout="2s")
        await run.line("the image cannot be pulled")
        await seen.look(daemon)
        await run.wait()
        assert await daemon.terminate() == 0


PLUGINS = {
    "fails": "exit 1",
    "says too little": """echo '{"kind": "ExecCredential", "token": "@TOKEN@"}'""",
    "says no JSON": "echo '@TOKEN@'",
    "says it and fails": "echo '@TOKEN@'; exit 3",
}


@pytest.mark.parametrize("script", PLUGINS.values(), ids=PLUGINS)
async def test_a_credentials_plugin_that_fails(scene: Scene, tmp_path: Path, script: str) -> None:
    """At first it gives the token; when that is refused, and it is asked again, it fails."""
    async with searched(scene) as (given, seen):
        plugin, fails = tmp_path / "plugin", tmp_path / "fails"
        answer = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": scene.cluster.token},
        }
        token = given.add("plugin's token", "plugins-token-that-nobody-knows")
        then = script.replace("@TOKEN@", token)
        plugin.write_text(f"#!/bin/sh\nif [ -e {fails} ]; then {then}\nelse echo '{json.dumps(answer)}'; fi\n")
        plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
        exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
        scene.kubeconfig = kubeconfig(given, scene, tmp_path / "kube", exec=exec_)
        daemon = seen.watch("daemon", await scene.daemon(DEBUG="true", ACCESS_INTERVAL="200ms"))
        package = chaincode_with_keys(given, tmp_path / "keys", await scene.package())
        run = await seen.run("run", package)
        await run.line("Running chaincode")
        fails.touch()
        await scene.cluster.switch("POST", "tokens", {"tokens": ["other-than-before"]})
        await daemon.line("access_lost")
        for path in ("/metrics", "/readyz"):
            seen.add(path, (await scene.health(daemon, path))[1])
        seen.add("status", "".join((await builder(scene, "status", "--json"))[1:]))
        seen.add("doctor", await doctor(scene))
        refused = seen.watch(
            "a daemon that cannot start", await scene.daemon(ready=False, DEBUG="true", INSTANCE="other")
        )
        assert await refused.wait() == 1
