"""How a chaincode ends, and what of its log arrives before that: every line once, in order, under 64 KiB."""

import json
import sys

import pytest

from tests.daemon.chaincodes import Ticking
from tests.daemon.scene import DIGEST, Running, Scene

pytestmark = pytest.mark.anyio


def python(code: str) -> str:
    return f"exec {sys.executable} -c '{code}'"


async def outcome(scene: Scene, script: str) -> tuple[int, list[bytes], bytes]:
    """Run a chaincode to its end; return the exit code, the lines between the first and the last, and the last."""
    package = await scene.package(script=script)
    run = await scene.call("run", package)
    code = await run.wait()
    assert b"Running chaincode ID" in run.lines[0]
    assert all(len(line) < 65535 for line in run.lines)
    return code, run.lines[1:-1], run.lines[-1]


async def test_a_chaincode_that_ends_with_0_ends_run_with_0(scene: Scene, daemon: Running) -> None:
    code, lines, last = await outcome(scene, "echo one; echo two")
    assert (code, lines) == (0, [b"one", b"two"])
    assert last.endswith(b"the chaincode ended with exit code 0")


async def test_a_chaincode_that_ends_with_3_ends_run_with_1_and_says_3(scene: Scene, daemon: Running) -> None:
    code, lines, last = await outcome(scene, "echo one; exit 3")
    assert (code, lines) == (1, [b"one"])
    assert last.endswith(b"the chaincode ended with exit code 3")


async def test_a_chaincode_that_is_killed_says_by_which_signal(scene: Scene, daemon: Running) -> None:
    code, lines, last = await outcome(scene, "echo one; kill -9 $$")
    assert (code, lines) == (1, [b"one"])
    assert last.endswith(b"was killed by signal 9 (exit code 137)")


async def test_a_log_stream_that_stays_open_and_silent_does_not_outlive_the_chaincode(
    scene: Scene, daemon: Running
) -> None:
    """A frozen kubelet, a node that is lost, a connection that lingers: `run` tells the rest, and how it ended."""
    await scene.fault(verb="log", times=1, action={"do": "hang"})
    code, lines, last = await outcome(scene, "echo one; sleep 1; echo two; exit 1")
    assert (code, lines) == (1, [b"one", b"two"])
    assert last.endswith(b"the chaincode ended with exit code 1")


async def test_a_hundred_thousand_lines_arrive_once_and_in_order(scene: Scene, daemon: Running) -> None:
    code, lines, _ = await outcome(scene, python("for i in range(100000): print(i)"))
    assert code == 0
    assert lines == [b"%d" % number for number in range(100000)]


async def test_a_line_of_a_megabyte_arrives_in_numbered_pieces(scene: Scene, daemon: Running) -> None:
    code, lines, _ = await outcome(scene, python('print("x" * 1000000); print("after")'))
    assert code == 0
    *pieces, after = lines
    assert after == b"after"
    assert pieces[0].endswith(b" [piece 1 of a longer line]")
    assert pieces[-1].endswith(b" [piece %d, the last of this line]" % len(pieces))
    assert b"".join(piece.partition(b" [piece ")[0] for piece in pieces) == b"x" * 1000000


async def test_bytes_that_are_not_utf_8_arrive_as_they_are(scene: Scene, daemon: Running) -> None:
    code, lines, _ = await outcome(scene, r"printf '\377\376\000\001 caf\351\n'")
    assert (code, lines) == (0, [b"\xff\xfe\x00\x01 caf\xe9"])


async def test_a_last_line_without_a_newline_arrives(scene: Scene, daemon: Running) -> None:
    code, lines, _ = await outcome(scene, "echo one; printf two")
    assert (code, lines) == (0, [b"one", b"two"])


async def test_a_chaincode_that_prints_nothing_ends_all_the_same(scene: Scene, daemon: Running) -> None:
    code, lines, _ = await outcome(scene, "exit 0")
    assert (code, lines) == (0, [])


async def test_a_chaincode_that_cannot_be_started_says_why(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {"localhost/chaincode1": {"command": ["/no/such/program"]}}}
    )
    code, lines = await scene.said("run", package)
    assert code == 1
    assert "could not be started (StartError, exit code 128)" in lines[-1]
    assert "/no/such/program" in lines[-1]


async def test_a_second_container_that_fails_is_told_while_the_chaincode_runs_on(scene: Scene) -> None:
    await scene.package("proxy", script="echo no route; exit 7")
    proxy = {"name": "proxy", "image": f"localhost/chaincode1@{DIGEST}"}
    template = scene.directory / "template.json"
    template.write_text(json.dumps({"spec": {"containers": [proxy]}}))
    daemon = await scene.daemon(POD_TEMPLATE=str(template))
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    line = await run.line("container proxy failed (Error, exit code 7), and the chaincode keeps running")
    pod = (await scene.only("pods"))["metadata"]["name"]
    assert line.endswith(f". See its log: kubectl logs {pod} -c proxy".encode())
    event = json.loads(await daemon.line("chaincode_degraded"))
    assert event["category"] == "SidecarFailed"
    before = len(run.lines)
    await run.until(lambda lines: len(lines) > before + 3)
    assert run.count("container proxy failed") == 1
    assert len(ticking.pids) == 1
