"""FABRIC_K8S_BUILDER_LOG_PREFIX: each line of chaincode's in the peer's log says whose it is, and stays what it was."""

import json

import pytest

from tests.daemon.scene import Scene

pytestmark = pytest.mark.anyio

RECORD = {"level": "info", "message": "two\nlines", "nested": {"a": [1]}}
SAYS = f"""
echo 'Traceback:'; echo '  at line 1'; echo ''
echo '{json.dumps(RECORD).replace(chr(92), chr(92) * 2)}'
echo 'run [1]: not the builder'
"""
GOES_ON = f"{SAYS} trap 'exit 0' TERM; n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.05; done"


async def test_each_line_has_it_and_is_unchanged_behind_it(scene: Scene) -> None:
    await scene.daemon(LOG_PREFIX="{label} {hash:.8} {pod} | ")
    package = await scene.package("basic_1.0", script=f"{SAYS} head -c 70000 /dev/zero | tr '\\0' x; exit 3")
    run = await scene.call("run", package)
    assert await run.wait() == 1
    pod = await scene.only("pods")
    prefix = f"basic_1.0 6f98c4bb {pod['metadata']['name']} | ".encode()
    ours = f"run [{run.pid}]: ".encode()
    lines = [line for line in run.lines if not line.startswith(ours)]
    assert all(line.startswith(prefix) for line in lines)
    trace, at, empty, record, feigned, *pieces = (line.removeprefix(prefix) for line in lines)
    assert (trace, at, empty) == (b"Traceback:", b"  at line 1", b"")
    assert json.loads(record) == RECORD
    assert feigned == b"run [1]: not the builder"
    assert [piece[piece.index(b" [") :] for piece in pieces] == [
        b" [piece 1 of a longer line]",
        b" [piece 2 of a longer line]",
        b" [piece 3, the last of this line]",
    ]
    assert max(map(len, lines)) < 64 * 1024
    assert b"ended with exit code 3" in run.lines[-1]  # a line of the builder's own has none


async def test_without_it_a_line_is_as_the_go_builder_has_it(scene: Scene) -> None:
    await scene.daemon()
    run = await scene.call("run", await scene.package(script="echo plain; exit 3"))
    await run.wait()
    assert run.lines.count(b"plain") == 1


async def test_a_daemon_with_another_prefix_goes_on_with_the_log(scene: Scene) -> None:
    daemon = await scene.daemon(LOG_PREFIX="one ")
    run = await scene.call("run", await scene.package(script=GOES_ON))
    await run.line("tick", times=5)
    await daemon.terminate()
    await scene.daemon(LOG_PREFIX="another ")
    await run.line("another tick", times=5)
    ticks = [line.split(b"tick ")[1] for line in run.lines if b"tick " in line]
    assert ticks == [b"%d" % number for number in range(len(ticks))]
