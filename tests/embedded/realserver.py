"""A real etcd and kube-apiserver from KUBEBUILDER_ASSETS, on free ports of the loopback, without controllers."""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

TOKEN = "contract"
STRANGER = "stranger"
"""The token of somebody who has no right in any namespace."""
PATIENCE = 120


class RealServer:
    """Where it listens; namespaces are made through `namespace`."""

    pids: tuple[int, int]
    """The processes: etcd, kube-apiserver."""

    def __init__(self, port: int) -> None:
        self.server = f"https://127.0.0.1:{port}"
        self.tls = ssl.create_default_context()
        self.tls.check_hostname = False
        self.tls.verify_mode = ssl.CERT_NONE

    def call(self, method: str, path: str, body: object = None) -> int:
        """Return the status of a request, 0 if there was no answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.server + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, context=self.tls, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def namespace(self, name: str, **labels: str) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        assert self.call("POST", "/api/v1/namespaces", body) == 201


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def real_server(directory: Path) -> Iterator[RealServer]:
    """Start both, and hand them out once the API server is ready. Skips the test where they are not to be had."""
    if not (folder := os.environ.get("KUBEBUILDER_ASSETS")):
        pytest.skip("KUBEBUILDER_ASSETS does not name a folder with etcd and kube-apiserver")
    with started(Path(folder), directory) as server:
        yield server


@contextlib.contextmanager
def started(assets: Path, directory: Path, *arguments: str) -> Iterator[RealServer]:
    """Start both from `assets`, the API server with more arguments, and hand them out once it is ready."""
    client, peer, secure = _free_ports(3)
    key = rsa.generate_private_key(65537, 2048)
    key_file = directory / "service-account.key"
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    tokens = directory / "tokens.csv"
    tokens.write_text(f"{TOKEN},contract,contract,system:masters\n{STRANGER},stranger,stranger\n")
    etcd = [
        str(assets / "etcd"),
        f"--data-dir={directory / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
    ]
    apiserver = [
        str(assets / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--cert-dir={directory / 'certs'}",
        "--endpoint-reconciler-type=none",
        f"--token-auth-file={tokens}",
        "--authorization-mode=RBAC",
        "--disable-admission-plugins=ServiceAccount",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key_file}",
        f"--service-account-signing-key-file={key_file}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--allow-privileged=true",
        *arguments,
    ]
    server = RealServer(secure)
    log = directory / "kube-apiserver.log"
    with _running(etcd, directory / "etcd.log") as storage:
        # Only what one before it wrote is too old for it: the first start makes the resourceVersion 1 an old one.
        with _running(apiserver, log) as process:
            _wait_until_ready(server, process, log)
        with _running(apiserver, log) as process:
            _wait_until_ready(server, process, log)
            server.pids = (storage.pid, process.pid)
            yield server


def _wait_until_ready(server: RealServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.call("GET", "/readyz") != 200:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
