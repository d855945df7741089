"""Words, logs, exit codes and reconnecting: what the daemon says arrives once, in order, whatever is cut."""

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable

import pytest

from .standin import CLIENT, Daemon, Peer, exits, log, words


@pytest.mark.parametrize("code", [0, 1, 2, 255])
def test_the_exit_code_is_the_daemons(peer: Peer, daemon: Daemon, code: int) -> None:
    program = peer.call("detect")
    connection = daemon.accept()
    connection.request()
    connection.send(exits(code))
    assert program.ends_saying() == code


def test_bytes_arrive_as_they_are(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    everything = bytes(range(256)) + b"\n"
    connection.send(words(b"run [1]: w\n"), log(b"c", everything), log(b"d"), words(b"end\n"), exits(3))
    assert program.ends_saying(b"run [1]: w\n" + everything + b"end\n") == 3


def test_words_of_the_longest_frame_arrive_whole(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    lines = b"".join(b"%d\n" % number for number in range(160_000))[: (1 << 20) - 4]
    frames = [log(b"ab", lines), log(b"ab", lines), exits(0)]
    assert program.rest_while(lambda: connection.send(*frames)) == lines + lines
    assert program.ends() == 0


def test_what_follows_the_exit_is_ignored(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("detect")
    connection = daemon.accept()
    connection.request()
    connection.send(words(b"a\n"), exits(0), words(b"b\n"), b"\0\xff")
    assert program.ends_saying(b"a\n") == 0


def test_a_log_cut_in_the_middle_of_a_frame_goes_on_after_the_cursor(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run", CORE_PEER_ID="p")
    connection = daemon.accept()
    first = connection.request()
    assert first.of("C") == []
    connection.send(log(b"c0"), log(b"c1", b"one\n"), log(b"c2", b"two\n"), log(b"c3", b"three\n")[:-3])
    assert program.line() == b"one"
    assert program.line() == b"two"
    connection.close()
    connection = daemon.accept()
    again = connection.request()
    assert again.one("C") == b"c2"
    assert [frame for frame in again if frame.kind != "C"] == first
    connection.send(log(b"c3", b"three\n"), log(b"c4", b"four\n"), exits(0))
    assert program.ends_saying(b"three\nfour\n") == 0


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 7, 8, 9, 10])
def test_a_cut_anywhere_in_a_frame_leaves_neither_cursor_nor_lines(peer: Peer, daemon: Daemon, cut: int) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"A"), log(b"B", b"xyz\n")[:cut])
    connection.close()
    connection = daemon.accept()
    assert connection.request().one("C") == b"A"
    connection.send(log(b"B", b"xyz\n"), exits(0))
    assert program.ends_saying(b"xyz\n") == 0


def test_a_connection_cut_again_and_again_loses_and_repeats_nothing(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    said = 0
    for turn in range(5):
        connection = daemon.accept()
        cursor = connection.request().of("C")
        assert cursor == ([] if turn == 0 else [b"%d" % said])
        for _ in range(3):
            said += 1
            connection.send(log(b"%d" % said, b"line %d\n" % said))
        connection.send(log(b"lost", b"cut off here\n")[:-5])
        connection.close()
    connection = daemon.accept()
    connection.request()
    connection.send(exits(0))
    assert program.ends_saying(b"".join(b"line %d\n" % number for number in range(1, said + 1))) == 0


def test_a_run_with_a_job_waits_longer_than_the_time_to_connect(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="10ms")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"c"), words(b"started\n"))
    assert program.line() == b"started"
    daemon.close()
    connection.close()
    program.says(f"Lost k8s-builderd at {daemon.path} (No such file or directory). Running chaincode goes on")
    connection = daemon.open().accept()
    assert connection.request().one("C") == b"c"
    connection.send(words(b"here\n"))
    program.says("Connected to k8s-builderd after ")
    connection.send(exits(0))
    assert program.ends_saying(b"here\n") == 0


def test_being_back_is_told_though_the_daemon_has_nothing_to_say(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"c"))
    daemon.close()
    connection.close()
    program.says("Lost k8s-builderd")
    connection = daemon.open().accept()
    connection.request()
    program.says("Connected to k8s-builderd after ")
    connection.send(exits(0))
    assert program.ends_saying() == 0


@pytest.mark.parametrize("stage", ["build", "run"])
def test_a_connection_lost_before_any_job_is_made_again(peer: Peer, daemon: Daemon, stage: str) -> None:
    program = peer.call(stage)
    connection = daemon.accept()
    first = connection.request()
    connection.send(words(b"one\n"))
    connection.close()
    connection = daemon.accept()
    assert connection.request() == first
    connection.send(words(b"two\n"), exits(0))
    assert program.ends_saying(b"one\ntwo\n") == 0


@pytest.mark.parametrize("stage", ["detect", "build", "release", "run"])
def test_the_daemon_may_come_later(peer: Peer, stage: str) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call(stage)
    program.says(f"Waiting for k8s-builderd at {peer.daemon.path}: No such file or directory")
    connection = peer.daemon.open().accept()
    connection.request()
    connection.send(exits(0))
    program.says("Connected to k8s-builderd after ")
    assert program.ends_saying() == 0


def refusal(peer: Peer, stage: str = "run") -> str:
    """What the program says where it cannot reach the daemon in 20 ms."""
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="20ms")
    said = program.rest().decode()
    assert program.ends() == 1
    own = f"{stage} [{program.pid}]: Could not reach k8s-builderd at {peer.daemon.path} within 0.02s: "
    assert said.startswith(own)
    assert said.index("\n") == len(said) - 1
    return said.removeprefix(own)


@pytest.mark.parametrize("stage", ["detect", "build", "release", "run"])
def test_a_missing_socket_is_told_with_what_to_check(peer: Peer, stage: str) -> None:
    assert refusal(peer, stage).startswith("No such file or directory. Check that the daemon is running and ")


def test_a_socket_without_a_daemon_is_told(peer: Peer) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(peer.daemon.path))
    left.close()
    assert refusal(peer) == (
        "Connection refused. The socket exists, but nothing listens on it: check that the daemon is running\n"
    )


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def interpreter_for_nobody(*candidates: str) -> str:
    """The first interpreter that a user without rights can start; root's own may be out of reach."""
    for candidate in (*candidates, "/usr/bin/python3"):
        try:
            subprocess.run([candidate, "-I", "-S", "-c", ""], check=True, stderr=subprocess.DEVNULL, user=65534)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    pytest.skip("every interpreter here is root's alone")


def test_a_socket_that_may_not_be_used_is_told_with_the_user_that_tried(
    peer: Peer, daemon: Daemon, interpreter: str
) -> None:
    daemon.path.chmod(0)
    user = os.geteuid()
    before: Callable[[], object] | None = None
    if user == 0:  # whom nothing is denied
        user = 65534
        before = become_nobody
        peer.directory.chmod(0o711)
        shutil.copytree(CLIENT, peer.directory / "client")
        peer.bin = peer.directory / "client/bin"
        peer.environment["FABRIC_K8S_BUILDER_PYTHON"] = interpreter_for_nobody(interpreter)
    program = peer.call("detect", before=before, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="20ms")
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 0.02s: Permission denied for uid {user}, gid ")
    assert program.ends_saying() == 1


def test_a_full_queue_is_told(peer: Peer) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(peer.daemon.path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(peer.daemon.path))
            assert refusal(peer).startswith("its queue of connections is full. See ")


def test_a_path_too_long_for_a_socket_is_told_at_once(peer: Peer) -> None:
    program = peer.call("run", FABRIC_K8S_BUILDER_SOCKET="/" + "s" * 107)
    program.says("The FABRIC_K8S_BUILDER_SOCKET environment variable must be a maximum of 107 bytes")
    assert program.ends_saying() == 1


@pytest.mark.parametrize(
    ("value", "ending"),
    [
        ("3", 'time: missing unit in duration "3"'),
        ("three minutes", 'time: invalid duration "three minutes"'),
        ("1x", 'time: unknown unit "x" in duration "1x"'),
        ("-1s", 'a negative duration "-1s"'),
    ],
)
def test_a_time_to_connect_that_is_no_duration_is_told(peer: Peer, value: str, ending: str) -> None:
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT=value)
    rule = "The FABRIC_K8S_BUILDER_CONNECT_TIMEOUT environment variable must be a valid Go duration string, e.g. 3m40s"
    assert program.ends_saying(f"run [{program.pid}]: {rule}: {ending}\n".encode()) == 1


@pytest.mark.parametrize("stage", ["detect", "run"])
def test_a_daemon_that_accepts_and_closes_is_not_hammered_and_not_waited_for_for_ever(
    peer: Peer, daemon: Daemon, stage: str
) -> None:
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    connections = 0
    while True:
        readable, _, _ = select.select([daemon.listener.fileno(), program.stderr], [], [])
        if program.stderr in readable:
            break
        daemon.accept().close()
        connections += 1
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 1s: ")
    assert program.ends_saying() == 1
    assert 2 <= connections <= 20


def test_a_refusal_is_heard_though_the_request_was_not_taken(peer: Peer, daemon: Daemon) -> None:
    (peer.metadata / "metadata.json").write_bytes(bytes(1 << 19))
    (peer.source / "image.json").write_bytes(bytes(1 << 19))
    program = peer.call("build")
    connection = daemon.accept()
    assert connection.frame().kind == "H"
    connection.send(words(b"build [1]: too much\n"), exits(1))
    connection.close()
    assert program.ends_saying(b"build [1]: too much\n") == 1


def test_what_was_said_before_the_connection_closed_is_heard_through_a_full_pipe(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("build")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 4095 + b"\n"
    connection.send(words(line * 2), words(line), words(b"last\n"), exits(5))
    connection.close()
    program.fills()
    assert program.ends_saying(line * 3 + b"last\n") == 5


MALFORMED = {
    b"Q\0\0\0\0": "a frame of the unknown kind b'Q'",
    b"W\0\x10\0\x01": "a frame of 1048577 bytes, where 1048576 are allowed",
    b"X\0\0\0\x03999": "an exit frame without an exit code",
    b"L\0\0\0\x01\0": "a log frame shorter than its cursor",
    b"Y\0\0\0\x03a\0b": "a copy frame to a stage that copies nothing",
}


@pytest.mark.parametrize("frame", MALFORMED)
def test_what_is_no_frame_ends_a_run_without_a_job(peer: Peer, daemon: Daemon, frame: bytes) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    connection.send(frame)
    program.says(f"k8s-builderd at {daemon.path} sent {MALFORMED[frame]}: use the programs that came with")
    assert program.ends_saying() == 1


@pytest.mark.parametrize("frame", MALFORMED)
def test_what_is_no_frame_is_a_broken_connection_to_a_run_with_a_job(peer: Peer, daemon: Daemon, frame: bytes) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"c"), frame)
    program.says(f"k8s-builderd at {daemon.path} sent {MALFORMED[frame]}")
    connection.is_left()
    connection = daemon.accept()
    assert connection.request().one("C") == b"c"
    connection.send(log(b"d"), frame)  # not told again within the minute
    connection.is_left()
    connection = daemon.accept()
    connection.request()
    connection.send(exits(4))
    assert program.ends_saying() == 4


def test_a_peer_that_does_not_read_holds_the_daemon_back(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 1023 + b"\n"
    connection.send(log(b"a", line * 4))
    program.fills()
    sent = connection.sends_until_held_back(log(b"c", line))
    assert sent < 4 << 20  # the buffers of the socket and one read of the client; more would be memory of the client
    program.line()
    assert program.rest_while(lambda: connection.send(exits(0))) == line * (3 + sent // len(log(b"c", line)))
    assert program.ends() == 0


def test_a_daemon_that_goes_is_looked_for_again_though_nobody_reads(peer: Peer, daemon: Daemon) -> None:
    """The next one keeps the chaincode for its `run` only so long. What the client has not taken comes again."""
    peer.hurry(FULL=0.1)
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"a", b"x" * 8191 + b"\n"), log(b"b", b"not taken\n"))
    program.fills()
    connection.close()
    again = daemon.accept()
    assert again.request().one("C") == b"a"
    program.line()
    assert program.rest_while(lambda: again.send(log(b"b", b"taken\n"), exits(0))) == b"taken\n"
    assert program.ends() == 0


def test_an_exit_that_waits_for_a_reader_is_not_left_for_another_daemon(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FULL=0.1)
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"a", b"x" * 8191 + b"\n"), words(b"the end\n"), exits(3))
    program.fills()
    connection.close()
    assert not select.select([daemon.listener], [], [], 0.5)[0]
    assert program.rest() == b"x" * 8191 + b"\nthe end\n"
    assert program.ends() == 3
