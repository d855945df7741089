"""A daemon that is there but says nothing, or never comes to an end: every wait of the programs has an end."""

import select
import threading

import pytest

from .standin import Connection, Daemon, Elapsed, Peer, copy, exits, log, words

SIGN = words(b"")


def is_quiet(descriptor: int, seconds: float) -> bool:
    """Whether nothing is said for so long; what it shows is that nothing is due."""
    return not select.select([descriptor], [], [], seconds)[0]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("stage", ["detect", "run"])
def test_a_daemon_that_is_frozen_is_told_and_given_up(peer: Peer, stage: str) -> None:
    """The kernel connects for it: to be connected proves nothing."""
    peer.hurry(FIRST_WORDS=0.4)
    elapsed = Elapsed()
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="700ms")
    program.says(f"Waiting for k8s-builderd at {peer.daemon.path}: the daemon does not answer")
    assert elapsed.seconds >= 0.4
    program.says(
        f"Could not reach k8s-builderd at {peer.daemon.path} within 0.7s: the daemon does not answer. See its log"
    )
    assert program.ends_saying() == 1
    assert elapsed.seconds >= 0.7


@pytest.mark.parametrize("stage", ["build", "run"])
def test_a_daemon_that_thaws_in_time_is_heard(peer: Peer, daemon: Daemon, stage: str) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call(stage)
    program.says("Waiting for k8s-builderd")
    connection = daemon.accept()
    connection.request()
    connection.send(SIGN)
    program.says("Connected to k8s-builderd after ")
    connection.send(words(b"done\n"), exits(0))
    assert program.ends_saying(b"done\n") == 0


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("detect", b""),
        ("build", words(b"word\n")),
        ("release", SIGN),
        ("detect", words(b"word\n")[:-2]),
        ("build", b"W\0"),
    ],
)
def test_a_daemon_that_falls_silent_is_given_up(peer: Peer, daemon: Daemon, stage: str, said: bytes) -> None:
    peer.hurry(FIRST_WORDS=0.1)
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="500ms")
    connection = daemon.accept()
    connection.request()
    connection.send(said)
    if said == words(b"word\n"):
        assert program.line() == b"word"
    program.says(f"Waiting for k8s-builderd at {daemon.path}: the daemon does not answer")
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 0.5s: the daemon does not answer. ")
    assert program.ends_saying() == 1


def frozen_after(peer: Peer, *frames: bytes) -> Connection:
    connection = peer.daemon.accept()
    connection.request()
    connection.send(*frames)
    return connection


def test_a_launch_is_given_up_when_a_daemon_that_gave_signs_gives_no_more(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(SILENCE=0.5)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    frozen_after(peer, SIGN, words(b"word\n"))
    assert program.line() == b"word"
    program.says(f"Waiting for k8s-builderd at {daemon.path}: the daemon does not answer")
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 1s: the daemon does not answer. ")
    assert program.ends_saying() == 1


def test_a_run_with_a_job_waits_for_a_daemon_that_gives_signs_no_more(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(SILENCE=0.5, MORE_WORDS=0.3)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="100ms")
    connection = frozen_after(peer, SIGN, log(b"c", b"line\n"))
    assert program.line() == b"line"
    for _ in range(3):
        program.says(f"Lost k8s-builderd at {daemon.path} (the daemon does not answer). Running chaincode goes on")
    connection.send(SIGN, exits(7))
    assert b"Connected to k8s-builderd after " in program.rest()
    assert program.ends() == 7


def test_a_run_that_comes_back_to_a_frozen_daemon_waits_and_says_so(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="100ms")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"c"))
    connection.close()  # and nobody accepts the next
    program.says(f"Lost k8s-builderd at {daemon.path} (the daemon does not answer). Running chaincode goes on")
    connection = daemon.accept()
    assert connection.request().one("C") == b"c"
    program.says("Connected to k8s-builderd after ")
    connection.send(exits(0))
    assert program.ends_saying() == 0


def test_signs_of_life_are_no_words(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    connection.send(SIGN, words(b"a\n"), SIGN, log(b"c", b"b\n"), SIGN * 1000, exits(0))
    assert program.ends_saying(b"a\nb\n") == 0


# A daemon of an earlier version gives no signs of life.


def test_a_launch_that_an_older_daemon_has_read_is_not_given_up_at_once(peer: Peer, daemon: Daemon) -> None:
    """It says nothing for as long as one request to the Kubernetes API may take."""
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="100ms")
    connection = frozen_after(peer)
    program.says("Waiting for k8s-builderd")  # beyond the time to connect
    assert is_quiet(program.stderr, 1)
    connection.send(words(b"Trying again\n"))
    program.says("Connected to k8s-builderd after ")
    connection.send(log(b"c"), exits(0))
    assert program.ends_saying(b"Trying again\n") == 0


def test_but_it_is_given_up_at_last(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2, UNANSWERED=1.5)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    frozen_after(peer)
    program.says("Waiting for k8s-builderd")
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 1s: the daemon does not answer. ")
    assert program.ends_saying() == 1


@pytest.mark.parametrize("before", [words(b"word\n"), log(b"c", b"word\n")])
def test_the_silence_of_an_older_daemon_says_nothing(peer: Peer, daemon: Daemon, before: bytes) -> None:
    peer.hurry(SILENCE=0.1)
    program = peer.call("run", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="100ms")
    connection = frozen_after(peer, before)
    assert program.line() == b"word"
    assert is_quiet(program.stderr, 1)
    connection.send(exits(0))
    assert program.ends_saying() == 0


# Without an end


@pytest.mark.parametrize("stage", ["detect", "build", "release"])
def test_a_daemon_that_talks_without_end_is_left(peer: Peer, daemon: Daemon, stage: str) -> None:
    peer.hurry(CALL_TIMEOUT=0.3)
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="200ms")
    connection = daemon.accept()
    connection.request()

    def talk() -> None:
        try:
            while True:
                connection.send(words(b"word\n"))
        except (BrokenPipeError, ConnectionResetError):
            return

    talking = threading.Thread(target=talk)
    talking.start()
    *_, last = program.rest().splitlines()
    talking.join()
    own = f"{stage} [{program.pid}]: k8s-builderd at {daemon.path} did not finish this call within 0.5s. See its log"
    assert last.decode() == own
    assert program.ends() == 1


@pytest.mark.parametrize("stage", ["detect", "build", "release"])
def test_a_daemon_that_hangs_up_after_each_word_is_left(peer: Peer, daemon: Daemon, stage: str) -> None:
    peer.hurry(FIRST_DELAY=0.01)
    program = peer.call(stage, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1s")
    while True:
        readable, _, _ = select.select([daemon.listener.fileno(), program.stderr], [], [])
        if program.stderr in readable:
            break
        connection = daemon.accept()
        connection.send(SIGN)
        connection.close()
    program.says(f"Could not reach k8s-builderd at {daemon.path} within 1s: ")
    assert program.ends_saying() == 1


def test_the_time_for_copying_is_not_the_daemons(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(CALL_TIMEOUT=0.5, FIRST_WORDS=0.1)
    with (peer.source / "image.json").open("wb") as large:
        large.write(bytes(900_000))
    program = peer.call("build", FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="500ms")
    connection = daemon.accept()
    connection.request()
    connection.send(*(copy(b"image.json", b"copy%d" % number) for number in range(500)), exits(0))
    assert program.ends_saying() == 0
    assert len(list(peer.output.glob("copy*"))) == 500


def test_while_the_peer_does_not_read_the_daemon_is_not_blamed(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.1)
    peer.environment["FABRIC_K8S_BUILDER_CONNECT_TIMEOUT"] = "300ms"
    program = peer.call_with_small_pipe("detect")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 4095 + b"\n"
    connection.send(words(line * 2))
    program.fills()
    assert is_quiet(connection.socket.fileno(), 1)  # it has not left
    connection.send(exits(0))
    assert program.ends_saying(line * 2) == 0
