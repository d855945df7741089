"""The units of systemd/ under a real systemd, installed as docs/how-to/systemd.md says: an operating system booted of
this machine's /usr, by systemd-nspawn.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.daemon.scene import Package, Scene, eventually, open_scene
from tests.deploy.assembled import assemble
from tests.deploy.wheel import ROOT
from tests.embedded.cluster import PATIENCE
from tests.tutorials.page import blocks

PAGE = ROOT / "docs/how-to/systemd.md"
PEER = 7051
NOBODY = 65534
NSPAWN = shutil.which("systemd-nspawn") or "systemd-nspawn"
ETC = {
    "os-release": "ID=test\n",
    "passwd": f"root:x:0:0::/root:/bin/sh\npeer:x:{PEER}:{PEER}::/:/bin/sh\nnobody:x:{NOBODY}:{NOBODY}::/:/bin/sh\n",
    "group": f"root:x:0:\npeer:x:{PEER}:\nnogroup:x:{NOBODY}:\n",
}
PYTHON = "/opt/k8s-builderd/python/bin/python3"


class Machine:
    """A booted system; what it has is in the folder `tree`."""

    def __init__(self, tree: Path, init: int) -> None:
        self.tree = tree
        self.init = init

    async def do(self, *command: str, uid: int = 0, **environment: str) -> tuple[int, str]:
        """Run a command in it, and return its exit code and all that it has printed."""
        inside = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid"]
        user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--init-groups"] if uid else []
        variables = {"PATH": "/usr/sbin:/usr/bin", **environment}
        with anyio.fail_after(PATIENCE):
            done = await anyio.run_process(
                [*inside, *user, *command], env=variables, stderr=subprocess.STDOUT, check=False
            )
        return done.returncode, done.stdout.decode()

    async def done(self, *command: str) -> str:
        """Run a command that must not fail."""
        code, printed = await self.do(*command)
        journal = "" if code == 0 else (await self.do("journalctl", "--no-pager"))[1]
        assert code == 0, f"{command}: {printed}\n{journal}"
        return printed

    async def show(self, field: str) -> str:
        """Return what systemd knows of the service."""
        return (await self.done("systemctl", "show", "--property", field, "--value", "k8s-builderd.service")).strip()

    async def journal(self) -> str:
        return await self.done("journalctl", "--no-pager", "--output=cat", "--unit=k8s-builderd.service")

    async def logged(self, text: str) -> None:
        async def there() -> bool:
            return text in await self.journal()

        await eventually(there)

    async def call(self, program: str, package: Package, uid: int = PEER, **environment: str) -> tuple[int, str]:
        """Call a program as the peer does."""
        variables = {"FABRIC_K8S_BUILDER_PYTHON": PYTHON, "CORE_PEER_ID": "peer0", **environment}
        directories = [f"/srv{one.removeprefix(str(package.root))}" for one in package.directories(program)]
        return await self.do(f"/opt/k8s-builder/bin/{program}", *directories, uid=uid, **variables)

    async def enter(self, file: str, name: str, value: str) -> None:
        """Give a variable of an environment file its value."""
        path = anyio.Path(self.tree / file)
        text, replaced = re.subn(rf"^#?{name}=.*$", f"{name}={value}", await path.read_text(), flags=re.MULTILINE)
        assert replaced == 1
        await path.write_text(text)


@pytest.fixture
async def scene(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with open_scene(tmp_path) as scene:
        yield scene


@pytest.fixture
async def machine(scene: Scene, tmp_path: Path) -> AsyncIterator[Machine]:
    """A machine with this project in /opt and an /etc that is empty but for users; its network is the host's."""
    tree = tmp_path / "tree"
    for name in ("usr", "etc/systemd/system", "srv", "root"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    for name, text in ETC.items():
        (tree / "etc" / name).write_text(text)
    (tree / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")
    command = [NSPAWN, "--quiet", "--register=no", "--keep-unit", "--settings=no", "--console=pipe", "--bind-ro=/usr"]
    command += [f"--machine=kb-{os.getpid()}", f"--directory={tree}"]
    why = why_not(command)
    if why:
        pytest.skip(why)
    # It needs nothing of /root or /tmp, which is hidden from the service.
    await anyio.to_thread.run_sync(assemble, tree / "opt/k8s-builderd", tmp_path)
    async with await anyio.open_process(
        [*command, "--boot", "--", "--unit=basic.target", "--log-target=journal"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as nspawn:
        started = Machine(tree, await init_of(nspawn.pid))
        try:
            await eventually(lambda: booted(started))
            yield started
        finally:
            os.kill(started.init, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await nspawn.wait()


def why_not(command: list[str]) -> str:
    if not os.environ.get("K8S_BUILDER_BOOT"):
        return "K8S_BUILDER_BOOT does not ask to boot a system"
    if os.geteuid() != 0 or sys.platform != "linux":
        return "needs root on Linux"
    if shutil.which(NSPAWN) is None or not Path("/usr/lib/systemd/systemd").exists():
        return "needs systemd and systemd-nspawn (Debian's systemd-container)"
    tried = subprocess.run([*command, "/usr/bin/true"], capture_output=True, text=True, check=False)
    return f"systemd-nspawn does not work here: {tried.stderr.strip()}" if tried.returncode else ""


async def init_of(nspawn: int) -> int:
    """Wait for the machine's process 1, and return its pid here."""
    found: list[int] = []

    def is_there() -> bool:
        children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
        found[:] = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "systemd\n"]
        return bool(found)

    await eventually(is_there)
    return found[0]


async def booted(machine: Machine) -> bool:
    code, _ = await machine.do("systemctl", "is-active", "basic.target")
    return code == 0


async def install(machine: Machine, scene: Scene) -> None:
    """Follow the page, with the settings of this scene in the environment file, and PEER_USER's name."""
    shutil.copytree(ROOT / "systemd", machine.tree / "root/systemd")
    for name, value in {
        "FABRIC_K8S_BUILDER_NAMESPACE": scene.cluster.namespace,
        "FABRIC_K8S_BUILDER_HEALTH_ADDRESS": "127.0.0.1:0",
    }.items():
        await machine.enter("root/systemd/environment", name, value)
    (machine.tree / "etc/k8s-builderd").mkdir()
    shutil.copy(scene.kubeconfig, machine.tree / "etc/k8s-builderd/kubeconfig")
    (machine.tree / "etc/k8s-builderd/kubeconfig").chmod(0o644)
    for block in blocks(PAGE):
        if not block.needs:
            text = block.text.replace("PEER_USER", "peer")
            await machine.done("sh", "-ec", f"cd /root/systemd\n{text}")


async def test_a_host_with_systemd(machine: Machine, scene: Scene) -> None:
    """One machine for all, as its boot is what takes time."""
    await install(machine, scene)
    package = await scene.package()
    shutil.copytree(package.root, machine.tree / "srv", dirs_exist_ok=True)
    for path in (machine.tree / "srv").rglob("*"):
        os.chown(path, PEER, PEER)

    # READY has come, or systemctl would not have returned.
    assert await machine.show("ActiveState") == "active"
    await machine.logged('"socket_open"')
    owner = await machine.done("stat", "--format=%a %U %G", "/run/k8s-builder", "/run/k8s-builder/builder.sock")
    assert owner.splitlines() == ["750 k8s-builderd k8s-builderd", "660 k8s-builderd k8s-builderd"]
    assert await machine.done("stat", "--format=%a %U %G", "/etc/k8s-builderd") == "750 root k8s-builderd\n"
    assert (await machine.show("StatusText")).startswith("ready; chaincodes running: 0")

    code, printed = await machine.call("detect", package)
    assert (code, printed.endswith("Detected k8s chaincode: basic_1.0\n")) == (0, True), printed
    code, printed = await machine.call("detect", package, uid=NOBODY, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="0s")
    assert (code, "Permission denied for uid 65534" in printed) == (1, True), printed

    # What the service's restrictions leave of the process' own metrics.
    [address] = set(re.findall(r'"address": "([\d.:]+)"', await machine.journal()))
    metrics = (await anyio.to_thread.run_sync(urllib.request.urlopen, f"http://{address}/metrics")).read().decode()
    assert re.search(r"^process_start_time_seconds \d", metrics, re.MULTILINE)

    await machine.done("systemctl", "reload", "k8s-builderd")
    await machine.logged('"reloaded"')

    # A program starts the service: systemd holds the socket.
    await machine.done("systemctl", "stop", "k8s-builderd.service")
    assert await machine.show("ActiveState") == "inactive"
    assert '"daemon_ends"' in await machine.journal()
    code, printed = await machine.call("detect", package)
    assert (code, printed.endswith("Detected k8s chaincode: basic_1.0\n")) == (0, True), printed
    await eventually(lambda: shows(machine, "SubState", "running"))

    # A restart, a wrong setting and one that is mended: the chaincode runs on, and its run comes back.
    async with anyio.create_task_group() as tasks:
        ends: list[tuple[int, str]] = []

        async def run() -> None:
            ends.append(await machine.call("run", package))

        tasks.start_soon(run)
        pod = (await scene.running_pod())["metadata"]["name"]
        await machine.enter("etc/k8s-builderd/environment", "FABRIC_K8S_BUILDER_LOG_FORMAT", "xml")
        assert (await machine.do("systemctl", "restart", "k8s-builderd"))[0] != 0
        await eventually(lambda: shows(machine, "StatusText", "must be one of json, console; it is 'xml'"))
        await machine.enter("etc/k8s-builderd/environment", "FABRIC_K8S_BUILDER_LOG_FORMAT", "json")
        await machine.done("systemctl", "restart", "k8s-builderd")
        await eventually(lambda: shows(machine, "StatusText", "ready; chaincodes running: 1"))

        # Frozen, it is killed and started again.
        limit = "[Service]\nWatchdogSec=5\nRestartSec=100ms\n"
        (machine.tree / "etc/systemd/system/k8s-builderd.service.d").mkdir()
        (machine.tree / "etc/systemd/system/k8s-builderd.service.d/limit.conf").write_text(limit)
        await machine.done("systemctl", "daemon-reload")
        await machine.done("systemctl", "restart", "k8s-builderd")
        frozen = await machine.show("MainPID")
        await machine.done("systemctl", "kill", "--signal=SIGSTOP", "k8s-builderd.service")
        await machine.logged("Failed with result 'watchdog'")
        await eventually(lambda: shows(machine, "StatusText", "ready; chaincodes running: 1"))
        assert await machine.show("MainPID") != frozen
        assert (await scene.only("pods"))["metadata"]["name"] == pod

        await machine.done("/opt/k8s-builderd/bin/k8s-builder", "stop", "--yes", "basic_1.0")
    [(code, printed)] = ends
    assert (code, "ran k8s-builder stop" in printed) == (1, True), printed

    # Without the socket's unit the daemon makes the socket itself.
    await machine.done("systemctl", "disable", "--now", "k8s-builderd.socket")
    await machine.done("systemctl", "restart", "k8s-builderd.service")
    assert await machine.done("stat", "--format=%a %U", "/run/k8s-builder/builder.sock") == "660 k8s-builderd\n"
    code, printed = await machine.call("detect", package)
    assert (code, printed.endswith("Detected k8s chaincode: basic_1.0\n")) == (0, True), printed


async def shows(machine: Machine, field: str, text: str) -> bool:
    return text in await machine.show(field)
