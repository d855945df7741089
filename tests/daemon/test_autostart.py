"""The daemon that is installed beside the programs: they start it, one for all of them, and again when it dies."""

import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from k8s_builder_client import autostart
from k8s_builder_lab.demo.processes import find_by_directory, until_ended
from tests import measured
from tests.daemon import peerprocess
from tests.daemon.scene import BIN, Package, Running, Scene, eventually
from tests.embedded.cluster import PATIENCE, running

DETECTED = "Detected k8s chaincode: basic_1.0"


class Beside:
    """A scene whose programs have a daemon installed beside them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.log = scene.directory / "daemon.log"
        self.start_file = scene.socket.with_name("b.sock.start")
        self.environment = {
            "KUBECONFIG_PATH": str(scene.kubeconfig),
            "FABRIC_K8S_BUILDER_HEALTH_ADDRESS": "127.0.0.1:0",
            "FABRIC_K8S_BUILDER_INSTANCE": "scene",
            "FABRIC_K8S_BUILDER_PEER_PATIENCE": "0s",
            "FABRIC_K8S_BUILDER_LOG_FILE": str(self.log),
        }
        shutil.copytree(BIN.parent, scene.directory / "builder", ignore=shutil.ignore_patterns("__pycache__"))
        scene.bin = scene.directory / "builder" / "bin"
        self.program = scene.bin / "k8s-builderd"
        self.program.write_text(f'#!/bin/sh\nexec {sys.executable} -m k8s_builderd "$@"\n')
        self.program.chmod(0o755)

    async def call(self, program: str, package: Package) -> Running:
        return await self.scene.call(program, package, read=True, **self.environment)

    async def said(self, program: str, package: Package, **environment: str) -> tuple[int, list[str]]:
        return await self.scene.said(program, package, **self.environment, **environment)

    async def call_by_a_peer(self, program: str, package: Package, **environment: str) -> Running:
        """Call a program by a peer of its own; the process is the peer's."""
        variables = {
            "PATH": os.environ["PATH"],
            "CORE_PEER_ID": "peer0",
            "FABRIC_K8S_BUILDER_SOCKET": str(self.scene.socket),
            "FABRIC_K8S_BUILDER_PYTHON": measured.python(sys.executable),
            **self.environment,
            **environment,
        }
        command = [sys.executable, peerprocess.__file__, str(self.scene.bin / program), *package.directories(program)]
        return await self.scene._start(command, variables)

    def count(self, event: str) -> int:
        """How often the daemons' log has it."""
        return self.log.read_text().count(event) if self.log.exists() else 0

    async def logged(self, event: str, times: int = 1) -> None:
        await eventually(lambda: self.count(event) >= times)


@pytest.fixture
async def beside(scene: Scene) -> AsyncIterator[Beside]:
    yield Beside(scene)
    with anyio.move_on_after(PATIENCE, shield=True):
        for pid in find_by_directory(scene.socket.parent):
            if b"k8s_builderd" in command_line(pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                await until_ended(pid)


def command_line(pid: int) -> bytes:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def descriptors(pid: int) -> dict[int, str]:
    return {int(file.name): str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}


async def daemon_of(program: Running) -> int:
    """Return the pid of the daemon that the program has started."""
    found = re.search(rb"Started k8s-builderd, process (\d+)\. Its log: ", await program.line("Started k8s-builderd"))
    assert found
    return int(found[1])


async def test_a_program_starts_the_daemon_and_is_served(beside: Beside) -> None:
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines[-1]) == (0, DETECTED)
    assert re.fullmatch(rf"Started k8s-builderd, process \d+\. Its log: {beside.log}", lines[0])
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines) == (0, [DETECTED])
    assert beside.count("daemon_started") == 1


async def test_programs_that_are_called_by_a_link_find_the_daemon(beside: Beside) -> None:
    links = beside.scene.directory / "links"
    links.mkdir()
    (links / "absolute").symlink_to(beside.scene.bin / "detect")
    (links / "detect").symlink_to("absolute")
    beside.scene.bin = links
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines[-1]) == (0, DETECTED)
    assert lines[0].startswith("Started k8s-builderd")


async def test_programs_that_are_called_by_a_relative_path_start_the_daemon(beside: Beside) -> None:
    beside.scene.bin = Path(os.path.relpath(beside.scene.bin))  # noqa: ASYNC240 - no disk is read
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines[-1]) == (0, DETECTED)
    assert lines[0].startswith("Started k8s-builderd")


async def test_the_daemon_has_a_session_of_its_own_and_nothing_of_the_peers(beside: Beside) -> None:
    peer = await beside.call_by_a_peer("run", await beside.scene.package(), FABRIC_K8S_BUILDER_NODE_ROLE="a")
    pid = await daemon_of(peer)
    await beside.logged("daemon_started")
    assert os.getsid(pid) == os.getpgid(pid) == pid
    opened = descriptors(pid)
    assert peerprocess.LEAKED not in opened
    assert [opened[number] for number in (0, 1, 2)] == ["/dev/null", str(beside.log), str(beside.log)]
    assert (set(opened.values()) & set(descriptors(peer.pid).values())) <= {"/dev/null"}
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")  # noqa: ASYNC240 - no disk is read
    assert b"FABRIC_K8S_BUILDER_NODE_ROLE=a" in environment
    assert f"KUBECONFIG_PATH={beside.scene.kubeconfig}".encode() in environment
    assert not [entry for entry in environment if entry.startswith(b"CORE_PEER_ID=")]


async def test_many_programs_at_once_start_one_daemon(beside: Beside) -> None:
    package = await beside.scene.package()
    answers: list[tuple[int, list[str]]] = []

    async def detect() -> None:
        answers.append(await beside.said("detect", package))

    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(detect)
    assert {(code, lines[-1]) for code, lines in answers} == {(0, DETECTED)}
    assert sum("Started k8s-builderd" in line for _, lines in answers for line in lines) == 1
    assert beside.count("daemon_started") == 1


async def test_a_daemon_that_dies_is_started_again_and_chaincode_does_not_notice(beside: Beside) -> None:
    script = 'i=0; while [ -d "$HOME" ] || true; do i=$((i+1)); echo "line $i"; sleep 0.05; done'
    run = await beside.call("run", await beside.scene.package(script=script))
    first = await daemon_of(run)
    pod = (await beside.scene.running_pod())["metadata"]["name"]
    await run.line("line 5")
    os.kill(first, signal.SIGKILL)
    await beside.logged("daemon_started", times=2)
    seen = sum(line.startswith(b"line ") for line in run.lines)
    await run.until(lambda lines: sum(line.startswith(b"line ") for line in lines) >= seen + 10)
    printed = [int(line.split()[1]) for line in run.lines if line.startswith(b"line ")]
    assert printed == list(range(1, len(printed) + 1))
    found = await beside.scene.only("pods")
    assert (found["metadata"]["name"], running(found)) == (pod, True)
    assert await run.terminate() == 0
    await beside.scene.none("jobs")


async def test_a_program_that_is_killed_takes_neither_the_daemon_nor_the_lock_along(beside: Beside) -> None:
    run = await beside.call("run", await beside.scene.package())
    pid = await daemon_of(run)
    run.send(signal.SIGKILL)
    await run.wait()
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines[-1]) == (0, DETECTED)
    assert not [line for line in lines if "Started" in line]
    os.kill(pid, signal.SIGKILL)
    await until_ended(pid)
    code, lines = await beside.said("detect", await beside.scene.package())
    assert (code, lines[-1]) == (0, DETECTED)


async def test_while_another_program_holds_the_lock_nothing_is_started(beside: Beside) -> None:
    holder = os.open(beside.start_file, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(holder, fcntl.LOCK_EX)
    detect = await beside.call("detect", await beside.scene.package())
    await detect.line(f"Waiting for k8s-builderd at {beside.scene.socket}: it is starting")
    assert not detect.count("Started")
    os.close(holder)
    await detect.line(DETECTED)
    assert await detect.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make another user's file")
async def test_a_lock_of_another_user_is_told_and_not_waited_for(beside: Beside) -> None:
    beside.start_file.touch(0o666)
    os.chown(beside.start_file, 7051, 7051)
    code, [line] = await beside.said("detect", await beside.scene.package(), FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="0s")
    assert code == 1
    assert f"it cannot be started: {beside.start_file}: it belongs to user id 7051. Check that directory" in line
    assert not beside.log.exists()


async def test_why_it_does_not_start_is_told_at_once_and_all_programs_keep_one_pace(beside: Beside) -> None:
    package = await beside.scene.package()
    beside.environment["FABRIC_K8S_BUILDER_LOG_FORMAT"] = "xml"
    rule = "The FABRIC_K8S_BUILDER_LOG_FORMAT environment variable must be one of json, console; it is 'xml'"
    why = f"k8s-builderd at {beside.scene.socket}: it has ended: {rule}. See its log: {beside.log}"
    began = time.monotonic()
    for seconds in (3, 6, 12, 24, 48):  # a slow machine needs longer until the daemon has not started
        beside.environment["FABRIC_K8S_BUILDER_CONNECT_TIMEOUT"] = f"{seconds}s"
        programs = [await beside.call(program, package) for program in ("detect", "build", "run", "run")]
        for program in programs:
            assert await program.wait() == 1
        if all(program.count(why) for program in programs):
            break
    for program in programs:
        assert program.count(why) == 1
        assert re.search(
            rf"within {seconds}s: it (is starting again after it )?has ended: {re.escape(rule)}\. See its log",
            program.lines[-1].decode(),
        )
        assert sum(b"]: k8s-builderd at" in line for line in program.lines) == 1
    elapsed, starts = time.monotonic() - began, beside.count(rule)
    due = [sum(autostart.pause(attempt) for attempt in range(1, number)) for number in range(1, 20)]
    assert 1 <= starts <= sum(at <= elapsed for at in due) < 10


async def test_a_daemon_that_is_killed_at_its_start_is_told(beside: Beside) -> None:
    beside.program.write_text("#!/bin/sh\nkill -9 $$\n")
    code, lines = await beside.said("detect", await beside.scene.package(), FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    assert code == 1
    assert any("it has ended: killed by signal 9. See its log" in line for line in lines)


async def test_a_daemon_that_cannot_be_executed_is_told(beside: Beside) -> None:
    beside.program.unlink()
    settings = {"FABRIC_K8S_BUILDER_AUTOSTART": "true", "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT": "1s"}
    code, lines = await beside.said("detect", await beside.scene.package(), **settings)
    assert code == 1
    assert any(f"it has ended: {beside.program}: No such file or directory." in line for line in lines)


async def test_a_log_that_cannot_be_opened_is_told(beside: Beside) -> None:
    settings = {"FABRIC_K8S_BUILDER_LOG_FILE": "/nonexistent/log", "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT": "1s"}
    beside.environment |= settings
    code, lines = await beside.said("detect", await beside.scene.package())
    assert code == 1
    assert "it cannot be started: /nonexistent/log: No such file or directory" in lines[-1]


@pytest.mark.parametrize("setting", ["false", "0"])
async def test_nothing_is_started_where_it_is_switched_off(beside: Beside, setting: str) -> None:
    settings = {"FABRIC_K8S_BUILDER_AUTOSTART": setting, "FABRIC_K8S_BUILDER_CONNECT_TIMEOUT": "0s"}
    code, [line] = await beside.said("detect", await beside.scene.package(), **settings)
    assert (code, "No such file or directory" in line) == (1, True)
    assert not beside.start_file.exists()


async def test_a_switch_that_is_neither_on_nor_off_is_refused(beside: Beside) -> None:
    code, lines = await beside.said("detect", await beside.scene.package(), FABRIC_K8S_BUILDER_AUTOSTART="maybe")
    assert code == 1
    assert lines == ["The FABRIC_K8S_BUILDER_AUTOSTART environment variable must be true or false; it is maybe"]


async def test_when_the_peer_dies_its_chaincode_is_stopped_and_then_the_daemon_ends(beside: Beside) -> None:
    peer = await beside.call_by_a_peer("run", await beside.scene.package())
    pid = await daemon_of(peer)
    await beside.scene.running_pod()
    peer.send(signal.SIGKILL)
    await beside.scene.none("jobs", "secrets")
    with anyio.fail_after(PATIENCE):
        await until_ended(pid)
    assert beside.count("peer_ended") == 1
    assert not beside.scene.socket.exists()


async def test_when_its_programs_die_with_the_peer_the_daemon_stays_until_their_grace_is_over(beside: Beside) -> None:
    peer = await beside.call_by_a_peer("run", await beside.scene.package(), FABRIC_K8S_BUILDER_RECONNECT_GRACE="2s")
    daemon = await daemon_of(peer)
    await beside.scene.running_pod()
    found = find_by_directory(beside.scene.socket.parent)
    [run] = [pid for pid in found if b"/bin/run\0" in command_line(pid) and pid != peer.pid]
    peer.send(signal.SIGSTOP)  # so that run does not notice before it is killed
    os.kill(run, signal.SIGKILL)
    peer.send(signal.SIGKILL)
    await beside.scene.none("jobs", "secrets")
    with anyio.fail_after(PATIENCE):
        await until_ended(daemon)
    assert beside.count('"job_unclaimed"') == 1
