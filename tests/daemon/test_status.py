"""`k8s-builder status`, `logs` and `stop` against a daemon that runs chaincode."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import anyio
import pytest

from tests.daemon.scene import DIGEST, HASH, PEER_ID, Running, Scene, eventually
from tests.daemon.test_socket import END, Raw, frame, hello, request
from tests.embedded.cluster import PATIENCE

pytestmark = pytest.mark.anyio

CHATTY = "trap 'echo bye; exit 0' TERM; echo one; echo two; echo up; while :; do sleep 0.05; done"


async def builder(scene: Scene, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Call the command; return its exit code, standard output and standard error."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "k8s_builder", *arguments],
            stdin=subprocess.DEVNULL,
            check=False,
            env={"PATH": os.environ["PATH"], "FABRIC_K8S_BUILDER_SOCKET": str(scene.socket), **environment},
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def status(scene: Scene) -> dict[str, Any]:
    code, out, err = await builder(scene, "status", "--json")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


async def only(scene: Scene) -> dict[str, Any]:
    [found] = (await status(scene))["chaincodes"]
    return found  # type: ignore[no-any-return]


# status


async def test_a_running_chaincode_is_told_with_all_that_belongs_to_it(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    pod = await scene.running_pod()
    found = await only(scene)
    started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"]
    assert found == {
        "label": "basic_1.0",
        "package_id": f"basic_1.0:{HASH}",
        "state": "running",
        "since": started,
        "peer_id": PEER_ID,
        "job": pod["metadata"]["labels"]["job-name"],
        "pod": pod["metadata"]["name"],
        "node": pod["spec"]["nodeName"],
        "client_pid": run.pid,
        "log_lines": 3,
        "log_bytes": len(b"one\ntwo\nup\n"),
        "log_interruptions": 0,
        "last_problem": None,
        "deletion": None,
        "unclaimed": None,
    }
    code, out, err = await builder(scene, "status")
    assert (code, err) == (0, "")
    about, empty, heading, row = out.splitlines()
    assert re.fullmatch(r"k8s-builderd \S+, instance scene, namespace default, up \d+s, ready", about)
    assert empty == ""
    columns = ["LABEL", "PACKAGE", "STATE", "SINCE", "POD", "NODE", "PEER", "CLIENT", "LINES", "BYTES", "BREAKS"]
    assert re.split(" {2,}", heading) == [*columns, "LAST PROBLEM"]
    assert re.split(" {2,}", row)[:3] == ["basic_1.0", HASH[:12], "running"]
    assert re.split(" {2,}", row)[4:] == [found["pod"], found["node"], PEER_ID, str(run.pid), "3", "11 B", "0", "-"]


async def test_without_a_chaincode_it_says_so(scene: Scene, daemon: Running) -> None:
    assert (await status(scene))["chaincodes"] == []
    assert (await builder(scene, "status"))[1].splitlines()[2:] == ["No chaincode."]


async def test_what_holds_a_launch_up_is_its_last_problem(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    package.image({"name": "localhost/nowhere", "digest": DIGEST})
    run = await scene.call("run", package)
    await run.line("the image cannot be pulled")
    found = await only(scene)
    assert (found["state"], found["client_pid"]) == ("pending", run.pid)
    assert "the image cannot be pulled" in found["last_problem"]["text"]
    out = (await builder(scene, "status"))[1]
    assert re.search(r"\d+s ago: the image cannot be pulled", out)


async def test_a_break_in_the_log_is_counted(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="log", times=1, action={"do": "cut", "bytes": 20, "reset": True})
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    found = await only(scene)
    assert found["log_interruptions"] == 1
    assert found["last_problem"]["text"].startswith("its log broke off: ")
    assert found["log_lines"] == 3  # and no line is counted twice


async def test_a_chaincode_without_a_client_is_told_with_its_grace(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    run.process.kill()
    await run.wait()

    async def unclaimed() -> bool:
        return (await only(scene))["unclaimed"] is not None

    await eventually(unclaimed)
    found = await only(scene)
    assert found["unclaimed"]["reason"] == "client gone"
    assert 0 < found["unclaimed"]["seconds"] <= 10
    assert (found["state"], found["client_pid"]) == ("running", None)


async def test_a_new_daemon_says_since_when_it_runs_by_the_nodes_word(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    before = await only(scene)
    await daemon.terminate()
    await scene.daemon()

    async def adopted() -> bool:
        return [it["client_pid"] for it in (await status(scene))["chaincodes"]] == [run.pid]

    await eventually(adopted)
    after = await only(scene)
    assert (after["since"], after["log_lines"]) == (before["since"], 0)


async def test_a_chaincode_that_has_ended_is_told_while_its_job_is_there(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script="echo last words; exit 7"))
    assert await run.wait() == 1

    async def left() -> bool:
        return (await only(scene))["client_pid"] is None

    await eventually(left)  # at once after the end was told
    found = await only(scene)
    assert found["state"] == "ended"
    assert found["last_problem"]["text"] == "the chaincode ended with exit code 7"
    code, out, err = await builder(scene, "logs", "basic_1.0")
    assert (code, out, err) == (0, "last words\n", "")


async def test_a_check_that_fails_is_told(scene: Scene) -> None:
    await scene.fault(verb="watch", resource="pods", action={"do": "status", "code": 503}, times=None)
    await scene.daemon()

    async def told() -> bool:
        document = await status(scene)
        return document["daemon"]["checks"]["pods"] is not None

    await eventually(told)
    assert ", not ready: pods: " in (await builder(scene, "status"))[1]


async def test_no_key_and_no_token_is_told(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script=CHATTY)
    async with Raw.open(scene) as raw:
        await raw.send(request(package.root))
        await scene.running_pod()
        out = json.dumps(await status(scene))
        secrets = ["PRIVATE KEY", "CERTIFICATE", "00112233445566778899aabbccddeeff"]
        job = await scene.only("jobs")
        secrets.append(job["metadata"]["annotations"]["fabric-builder-k8s-run"])
        assert [secret for secret in secrets if secret in out] == []
        await raw.send(frame("S"))
        await raw.rest()


# logs


async def test_the_log_is_what_the_pod_has_printed(scene: Scene) -> None:
    await scene.daemon(LOG_PREFIX="{label} ")
    script = (
        "echo 'run [1]: mine'; printf 'a\\001b\\n'; head -c 100000 /dev/zero | tr '\\0' x; echo; echo end; sleep 600"
    )
    run = await scene.call("run", await scene.package(script=script))
    await run.line("end")
    pod = await scene.only("pods")
    for what in ("basic_1.0", f"basic_1.0:{HASH}", HASH[:12], f"basic_1.0:{HASH[:7]}", pod["metadata"]["name"]):
        code, out, err = await builder(scene, "logs", what)
        assert (code, out, err) == (0, "run [1]: mine\na\x01b\n" + "x" * 100000 + "\nend\n", "")


async def test_the_log_is_followed_to_the_end(scene: Scene, daemon: Running, tmp_path: Any) -> None:
    go = tmp_path / "go"
    script = f"echo begin; while ! [ -e {go} ]; do sleep 0.05; done; echo end; exit 0"
    run = await scene.call("run", await scene.package(script=script))
    await run.line("begin")
    command = [sys.executable, "-m", "k8s_builder", "logs", "basic_1.0", "-f", "--socket", str(scene.socket)]
    async with await anyio.open_process(command, stderr=None) as logs:
        assert logs.stdout is not None
        with anyio.fail_after(PATIENCE):
            assert await logs.stdout.receive() == b"begin\n"
            go.touch()
            assert await logs.stdout.receive() == b"end\n"
            assert await logs.wait() == 0
    await run.wait()


async def test_a_stream_that_does_not_end_with_its_container_is_left(scene: Scene) -> None:
    await scene.daemon(pace=10)
    run = await scene.call("run", await scene.package(script="trap 'exit 0' TERM; echo up; sleep 600 & wait"))
    await run.line("up")
    await scene.fault(verb="log", times=1, action={"do": "hang"})
    async with Raw.open(scene) as raw:
        await raw.send(hello("logs") + frame("A", b"chaincode", b"basic_1.0") + frame("A", b"follow", b"1") + END)
        await scene.asked("log pods", 2)
        await run.terminate()
        assert (await raw.rest())[-1] == ("X", b"0")


async def test_who_hangs_up_leaves_no_stream_behind(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    before = (await scene.health(daemon, "/metrics"))[1]
    tasks = re.search(r"^k8s_builderd_tasks (\d+)", before, re.MULTILINE)
    assert tasks
    async with Raw.open(scene) as raw:
        await raw.send(hello("logs") + frame("A", b"chaincode", b"basic_1.0") + frame("A", b"follow", b"1") + END)
        assert await raw.frame() == ("L", b"\0\0one\ntwo\nup\n")

    async def settled() -> bool:
        after = (await scene.health(daemon, "/metrics"))[1]
        return f"\n{tasks[0]}" in after

    await eventually(settled)


async def test_since_is_a_duration(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    assert (await builder(scene, "logs", "basic_1.0", "--since", "1h"))[:2] == (0, "one\ntwo\nup\n")
    for wrong in ("yesterday", "-1m", "0s"):
        code, out, err = await builder(scene, "logs", "basic_1.0", "--since", wrong)
        assert (code, out) == (1, "")
        assert err.startswith("Error: Error reading the log of chaincode: --since must be a duration ")


async def test_a_pod_that_waits_is_waited_for_with_follow_alone(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script="echo up; sleep 600")
    image = {package.image_name: {"behaviour": "pending", "command": ["true"]}}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": image})
    await (await scene.call("run", package)).line("Running chaincode ID")
    code, _, err = await builder(scene, "logs", "basic_1.0")
    assert code == 1
    assert err.startswith("Error: Error reading the log of chaincode: ")
    async with Raw.open(scene) as raw:
        await raw.send(hello("logs") + frame("A", b"chaincode", b"basic_1.0") + frame("A", b"follow", b"1") + END)
        kind, line = await raw.frame()
        assert (kind, line.startswith(b"logs [4242]: Waiting for the container of job hlfcc-")) == ("W", True)


# stop


async def test_a_stop_is_told_to_both_and_the_log_comes_to_its_end(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    code, out, err = await builder(scene, "stop", "basic_1.0", "--yes")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"Stopped: the Kubernetes API accepted the deletion of chaincode job default/hlfcc-\S+\n", out)
    assert await run.wait() == 1
    told = f"run [{run.pid}]: Stopping the chaincode because user id {os.getuid()} ran k8s-builder stop".encode()
    assert run.lines.count(told) == 1
    assert b"bye" in run.lines
    assert b"because its job was deleted" in run.lines[-1]
    await scene.none("jobs", "pods", "secrets")
    assert json.loads(await daemon.line("stop_called"))["by"] == f"user id {os.getuid()}"

    async def forgotten() -> bool:
        return not (await status(scene))["chaincodes"]

    await eventually(forgotten)


async def test_a_stop_before_the_daemon_has_seen_the_pod_knows_that_it_runs(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    await daemon.terminate()
    await scene.fault(verb="list", resource="pods", times=2, action={"do": "status", "code": 503})
    await scene.daemon()

    async def attended() -> bool:
        return bool((await status(scene))["chaincodes"])

    await eventually(attended)
    assert (await builder(scene, "stop", "basic_1.0", "--yes"))[0] == 0
    assert await run.wait() == 1
    assert run.count("ran k8s-builder stop") == 1
    assert b"bye" in run.lines


async def test_a_launch_that_has_not_started_is_stopped(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    image = {package.image_name: {"behaviour": "pending", "command": ["true"]}}
    await scene.cluster.switch("PATCH", "environment", {"extraImages": image})
    run = await scene.call("run", package)
    await run.line("Running chaincode ID")
    assert (await builder(scene, "stop", HASH[:12], "-y"))[0] == 0
    assert await run.wait() == 1
    assert run.lines[-1].endswith(f"user id {os.getuid()} stopped it with k8s-builder stop".encode())
    await scene.none("jobs", "pods", "secrets")


async def test_a_launch_whose_job_is_being_asked_for_is_stopped_and_none_stays(scene: Scene, daemon: Running) -> None:
    await scene.fault(verb="create", resource="jobs", action={"do": "hang"}, times=None)
    run = await scene.call("run", await scene.package())
    await scene.asked("create jobs")
    assert (await builder(scene, "stop", "basic_1.0", "-y"))[0] == 0
    assert await run.wait() == 1
    await scene.cluster.switch("DELETE", "faults")
    await scene.none("jobs", "secrets")


async def test_a_chaincode_without_a_client_is_stopped(scene: Scene) -> None:
    daemon = await scene.daemon(RECONNECT_GRACE="10m")
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    run.process.kill()
    await run.wait()
    assert (await builder(scene, "stop", "basic_1.0", "-y"))[0] == 0
    await scene.none("jobs", "pods", "secrets")
    await daemon.line("job_deleted")


async def test_nothing_is_stopped_before_the_word(scene: Scene, daemon: Running) -> None:
    run = await scene.call("run", await scene.package(script=CHATTY))
    await run.line("up")
    code, _, err = await builder(scene, "stop", "basic_1.0")
    assert code == 2
    assert "--yes is required if there is no terminal to ask on." in err
    async with Raw.open(scene) as raw:
        await raw.send(hello("stop") + frame("A", b"chaincode", b"basic_1.0") + END)
        kind, line = await raw.frame()
        assert (kind, json.loads(line[2:])["label"]) == ("L", "basic_1.0")
    found = await only(scene)
    assert (found["state"], found["deletion"]) == ("running", None)


# Which one


async def test_what_is_not_there_is_told(scene: Scene, daemon: Running) -> None:
    for command in (["logs", "basic_1.0"], ["stop", "basic_1.0", "-y"]):
        code, out, err = await builder(scene, *command)
        assert (code, out) == (1, "")
        assert err.endswith("there is no chaincode 'basic_1.0' here. Run k8s-builder status to see all\n")


async def test_what_two_peers_have_must_be_named_by_its_job(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script=CHATTY)
    for peer in ("peer0", "peer1"):
        await (await scene.call("run", package, CORE_PEER_ID=peer)).line("up")
    jobs = {it["peer_id"]: it["job"] for it in (await status(scene))["chaincodes"]}
    code, _, err = await builder(scene, "stop", "basic_1.0", "-y")
    assert code == 1
    assert "'basic_1.0' matches more than one chaincode. Give the name of a job: " in err
    assert all(job in err for job in jobs.values())
    assert (await builder(scene, "stop", jobs["peer1"], "-y"))[0] == 0
    await scene.cluster.gone("jobs", jobs["peer1"])
    assert (await scene.only("jobs"))["metadata"]["name"] == jobs["peer0"]


# Who may ask, and whom


async def test_a_daemon_that_is_not_there_is_told(scene: Scene) -> None:
    code, out, err = await builder(scene, "status")
    assert (code, out) == (1, "")
    assert err.startswith(f"Error: cannot reach k8s-builderd at {scene.socket}: No such file or directory. Check that")


async def test_only_who_may_connect_may_ask(scene: Scene) -> None:
    await scene.daemon(ALLOWED_UIDS=str(os.getuid() + 1))
    code, _, err = await builder(scene, "status")
    assert code == 1
    assert f"user id {os.getuid()} is not in FABRIC_K8S_BUILDER_ALLOWED_UIDS" in err
