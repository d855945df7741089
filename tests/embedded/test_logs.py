"""pods/log, by the rules that were measured: timestamps, whole seconds, CR, the last line, rotation, size."""

import os
import re
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from k8s_builder_lab.embedded.logs import PIECE, ContainerLog, Reader, stamp

from .cluster import DIGEST, Cluster, ended, job, running

pytestmark = pytest.mark.anyio

STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (.*)", re.DOTALL)
SHELL_WAIT = "until [ -e {} ]; do sleep 0.05; done"


async def printed(cluster: Cluster, script: str, **query: str) -> bytes:
    """Return the log of a shell script that has ended."""
    await cluster.create(job("j1", "sh", "-c", script))
    pod = await cluster.pod_when("j1", ended)
    return await cluster.log(pod["metadata"]["name"], **query)


def test_a_timestamp_has_30_characters_whatever_the_time() -> None:
    assert stamp(0) == b"1970-01-01T00:00:00.000000000Z"
    assert stamp(1_700_000_000_000_000_001) == b"2023-11-14T22:13:20.000000001Z"


async def test_stdout_and_stderr_come_in_the_order_of_their_writing(cluster: Cluster) -> None:
    script = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"
    expected = "".join(f"out {i}\nerr {i}\n" for i in range(1, 6))
    assert await printed(cluster, script) == expected.encode()


async def test_every_line_has_a_timestamp_of_30_characters(cluster: Cluster) -> None:
    lines = (await printed(cluster, "echo one; echo; echo three", timestamps="true")).split(b"\n")
    assert lines.pop() == b""
    matches = [STAMPED.fullmatch(line) for line in lines]
    assert [match and match[2] for match in matches] == [b"one", b"", b"three"]
    assert [match and len(match[1]) for match in matches] == [30] * 3


async def test_bytes_stay_as_they_are_but_for_a_cr_before_the_line_feed(cluster: Cluster) -> None:
    assert await printed(cluster, r"printf 'a\r\nb\rc\n\377\376\000x\n\r\r\n'") == b"a\nb\rc\n\xff\xfe\x00x\n\r\n"


async def test_the_last_line_without_a_line_feed_comes_after_the_end(cluster: Cluster, tmp_path: Path) -> None:
    script = f"echo whole; printf half; {SHELL_WAIT.format(tmp_path / 'go')}"
    await cluster.create(job("j1", "sh", "-c", script))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    async with cluster.open(cluster.path("pods", name, "log"), follow="true") as log:
        assert await log.content.readline() == b"whole\n"
        assert await cluster.log(name) == b"whole\n"
        (tmp_path / "go").touch()
        assert await log.content.read() == b"half"
    assert await cluster.log(name) == b"whole\nhalf"


async def test_a_follower_gets_lines_as_they_are_written_and_the_end_at_the_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    steps = "; ".join(f"{SHELL_WAIT.format(tmp_path / str(i))}; echo {i}" for i in range(3))
    await cluster.create(job("j1", "sh", "-c", steps))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    async with cluster.open(cluster.path("pods", name, "log"), follow="true", container="chaincode") as log:
        for i in range(3):
            (tmp_path / str(i)).touch()
            assert await log.content.readline() == f"{i}\n".encode()
        assert await log.content.read() == b""


async def test_a_hundred_thousand_lines_and_one_of_a_mebibyte_come_whole(cluster: Cluster) -> None:
    program = "import sys; [print('line', i) for i in range(100000)]; print('x' * 1048576); print('last')"
    await cluster.create(job("j1", sys.executable, "-c", program))
    pod = await cluster.pod_when("j1", running_or_ended)
    lines = (await cluster.log(pod["metadata"]["name"], follow="true", timestamps="true")).split(b"\n")
    assert lines.pop() == b""
    texts = [line[31:] for line in lines]
    assert texts == [*(f"line {i}".encode() for i in range(100000)), b"x" * 1048576, b"last"]
    assert all(re.fullmatch(rb"[-T:.Z0-9]{30} ", line[:31]) for line in lines)


def running_or_ended(pod: dict[str, object]) -> bool:
    return running(pod) or ended(pod)


async def test_since_time_is_cut_to_the_second_and_includes_it(cluster: Cluster) -> None:
    log = await printed(cluster, "echo one; sleep 1.1; echo two", timestamps="true")
    first, second = log.splitlines()
    name = (await cluster.pod_of("j1"))["metadata"]["name"]
    second_of_two = second[:19].decode()
    for since in (f"{second_of_two}Z", f"{second_of_two}.999999999Z", f"{second_of_two}+00:00"):
        assert await cluster.log(name, sinceTime=since) == b"two\n"
    assert await cluster.log(name, sinceTime=f"{first[:19].decode()}.999Z", timestamps="true") == log
    assert await cluster.log(name, sinceTime="2100-01-01T00:00:00Z", follow="true") == b""
    assert await cluster.log(name, sinceSeconds="3600") == b"one\ntwo\n"


async def test_only_the_newest_file_is_served_and_a_follower_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    steps = "; ".join(f"echo {i}; {SHELL_WAIT.format(tmp_path / str(i))}" for i in range(4))
    await cluster.create(job("j1", "sh", "-c", steps))
    name = (await cluster.pod_when("j1", running))["metadata"]["name"]
    async with cluster.open(cluster.path("pods", name, "log"), follow="true") as log:
        for i in range(4):
            assert await log.content.readline() == f"{i}\n".encode()
            if i < 3:
                await cluster.switch("POST", f"pods/default/{name}/rotate", {})
                assert await cluster.log(name) == b""
            (tmp_path / str(i)).touch()
        assert await log.content.read() == b""
    assert await cluster.log(name) == b"3\n"


@pytest.mark.parametrize("clock", ["jitter", "coarse"])
async def test_timestamps_can_go_backwards_or_be_alike(cluster: Cluster, clock: str) -> None:
    image = {"command": ["seq", "1000"], "clock": clock}
    await cluster.switch("PATCH", "environment", {"extraImages": {"localhost/clock": image}})
    await cluster.create(job("j1", container={"image": f"localhost/clock@{DIGEST}"}))
    pod = await cluster.pod_when("j1", ended)
    lines = (await cluster.log(pod["metadata"]["name"], timestamps="true")).splitlines()
    assert [line[31:] for line in lines] == [str(i).encode() for i in range(1, 1001)]
    stamps = [line[:30] for line in lines]
    if clock == "jitter":
        assert stamps != sorted(stamps)
    else:
        assert all(stamp.endswith(b".000000000Z") for stamp in stamps)


async def read_all(
    log: ContainerLog, *, since: str | None = None, timestamps: bool = False, size: int = 65536
) -> bytes:
    reader = Reader(log, since=since, timestamps=timestamps, follow=False)
    try:
        out = b""
        while data := await reader.receive(size):
            out += data
        return out
    finally:
        reader.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"\n", b"\r\n", b"\r", b"x" * (PIECE + 1)]))),
    st.integers(1, 100),
)
async def test_what_is_read_is_what_was_written_however_it_was_cut(
    tmp_path: Path, anyio_backend: str, chunks: list[bytes], size: int
) -> None:
    log = ContainerLog(tmp_path)
    for chunk in chunks:
        log.write(chunk)
    log.close()
    expected = b"".join(chunks).replace(b"\r\n", b"\n")
    assert await read_all(log, size=size) == expected
    assert await read_all(log, since="2000-01-01T00:00:00", size=size) == expected
    assert await read_all(log, since="2100-01-01T00:00:00", size=size) == b""
    stamped = await read_all(log, timestamps=True, size=size)
    assert re.sub(rb"(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", b"", stamped) == expected


async def test_a_log_that_grows_too_large_is_rotated(tmp_path: Path, anyio_backend: str) -> None:
    log = ContainerLog(tmp_path, limit=1000)
    follower = Reader(log, since=None, timestamps=False, follow=True)
    seen = b""
    line = b"x" * 99 + b"\n"
    for _ in range(200):
        log.write(line)
        seen += await follower.receive()
    log.close()
    assert seen == line * 200
    assert len(await read_all(log)) < 9000
    follower.close()
    assert len([*os.scandir(tmp_path)]) <= 5, "old files go"


async def test_a_follower_that_does_not_read_costs_nothing_and_goes_on_later(
    tmp_path: Path, anyio_backend: str
) -> None:
    log = ContainerLog(tmp_path)
    follower = Reader(log, since=None, timestamps=False, follow=True)
    for i in range(10):
        log.write(f"{i}\n".encode())
        log.rotate()
    log.write(b"end\n")
    seen = b""
    with anyio.fail_after(60):
        while not seen.endswith(b"end\n"):
            seen += await follower.receive()
    # What was rotated away meanwhile is lost, as it is with a kubelet; the rest comes in order.
    assert seen.splitlines()[-5:] == [b"6", b"7", b"8", b"9", b"end"]
    follower.close()
    log.close()
