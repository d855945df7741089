"""Stopping: SIGTERM, SIGINT, SIGHUP or a peer that is gone, in every state, well inside the peer's five seconds."""

import signal

import pytest

from .standin import Connection, Daemon, Elapsed, Peer, Program, exits, log, words

PEER_PATIENCE = 5.0
"""Seconds from the peer's SIGTERM to its SIGKILL."""

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def running(peer: Peer, program: Program | None = None) -> tuple[Program, Connection]:
    """A run with a Job and a connection, whose first words have arrived."""
    program = program or peer.call("run")
    connection = peer.daemon.accept()
    connection.request()
    connection.send(log(b"c"), words(b"started\n"))
    assert program.line() == b"started"
    return program, connection


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_a_running_chaincode(peer: Peer, daemon: Daemon, number: int) -> None:
    program, connection = running(peer)
    program.signal(number)
    connection.is_told_to_stop()
    program.says(f"Stopping the chaincode because of {signal.Signals(number).name}")
    connection.send(log(b"d", b"last\n"), words(b"deleted\n"), exits(0))
    assert program.ends_saying(b"last\ndeleted\n") == 0


def test_a_second_signal_changes_nothing(peer: Peer, daemon: Daemon) -> None:
    program, connection = running(peer)
    for number in SIGNALS:
        program.signal(number)
    connection.is_told_to_stop()
    for number in SIGNALS:
        program.signal(number)
    program.says("Stopping the chaincode because of SIG")
    connection.send(words(b"deleted\n"), exits(0))
    connection.is_left()
    assert program.ends_saying(b"deleted\n") == 0


def test_a_signal_before_there_is_a_job_stops_the_launch(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    program.signal()
    connection.is_told_to_stop()
    connection.send(exits(0))
    program.says("Stopping the chaincode because of SIGTERM")
    assert program.ends_saying() == 0


def test_a_run_that_never_reached_the_daemon_leaves_nothing_behind_and_ends_with_0(peer: Peer) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run")
    program.says("Waiting for k8s-builderd at ")
    program.signal(signal.SIGHUP)
    program.says("Stopped by SIGHUP before anything was started")
    assert program.ends_saying() == 0


@pytest.mark.parametrize(("stage", "number"), list(zip(["detect", "build", "release"], SIGNALS, strict=True)))
def test_the_other_programs_end_at_once(peer: Peer, daemon: Daemon, stage: str, number: int) -> None:
    program = peer.call(stage)
    connection = daemon.accept()
    connection.request()
    program.signal(number)
    connection.is_left()
    program.says(f"Stopped by {signal.Signals(number).name}")
    assert program.ends_saying() == 1


def test_another_program_ends_at_once_while_it_waits_for_the_daemon(peer: Peer) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("detect")
    program.says("Waiting for k8s-builderd at ")
    program.signal()
    program.says("Stopped by SIGTERM")
    assert program.ends_saying() == 1


def test_a_stop_works_with_a_full_pipe_that_nobody_reads(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 1023 + b"\n"
    connection.send(log(b"a", line * 20))
    program.fills()
    connection.send(log(b"b", line * 20))
    program.signal()
    elapsed = Elapsed()
    connection.is_told_to_stop()
    connection.send(words(b"deleted\n"), exits(0))
    connection.is_left()
    assert program.ends() == 0
    assert elapsed.seconds < PEER_PATIENCE
    assert program.rest() == line * 4


def test_a_stop_is_heard_behind_a_log_that_nobody_reads(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 1023 + b"\n"
    connection.send(log(b"a", line * 20))
    program.fills()
    connection.sends_until_held_back(log(b"b", line))
    program.signal()
    connection.is_told_to_stop()
    connection.send(exits(0))
    connection.is_left()
    assert program.ends() == 0


def test_a_stop_with_a_reader_that_is_only_slow_loses_no_line(peer: Peer, daemon: Daemon) -> None:
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    line = b"x" * 1023 + b"\n"
    connection.send(log(b"a", line * 50))
    program.signal()
    connection.is_told_to_stop()
    connection.send(log(b"b", line * 800))
    connection.send(words(b"deleted\n"), exits(0))
    lines = program.rest().split(b"\n")
    assert lines.count(b"x" * 1023) == 850
    assert lines[-2:] == [b"deleted", b""]
    assert program.ends() == 0


def test_the_exit_code_is_heard_behind_words_that_nobody_reads(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"a", b"x" * 9000 + b"\n"), exits(9))
    program.fills()
    program.signal()
    connection.is_left_at_last()
    assert program.ends() == 9


def test_a_peer_that_is_gone_counts_as_a_stop(peer: Peer, daemon: Daemon) -> None:
    program, connection = running(peer)
    program.stops_reading()
    connection.is_told_to_stop()
    connection.send(words(b"deleted\n"), exits(0))
    connection.is_left()
    assert program.ends() == 0


def test_a_peer_that_goes_with_the_pipe_full_counts_as_a_stop(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"a", b"x" * 9000 + b"\n"))
    program.fills()
    program.stops_reading()
    connection.is_told_to_stop()
    connection.send(words(b"deleted\n"), exits(0))
    connection.is_left()
    assert program.ends() == 0


@pytest.mark.parametrize("stage", ["detect", "build", "release", "run"])
def test_a_peer_that_goes_while_the_program_waits_for_the_daemon_ends_it(peer: Peer, stage: str) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call(stage)
    program.says("Waiting for k8s-builderd at ")
    program.stops_reading()
    assert program.ends() == (0 if stage == "run" else 1)


def test_a_daemon_that_does_not_answer_a_stop_is_not_waited_for(peer: Peer, daemon: Daemon) -> None:
    program, connection = running(peer)
    program.signal()
    elapsed = Elapsed()
    connection.is_told_to_stop()
    program.says("Stopping the chaincode because of SIGTERM")
    program.says(f"k8s-builderd at {daemon.path} did not answer the stop within 2.5s. It deletes the chaincode's")
    assert program.ends_saying() == 1
    assert elapsed.seconds < PEER_PATIENCE


def test_a_daemon_that_does_not_answer_and_a_full_pipe(peer: Peer, daemon: Daemon) -> None:
    program = peer.call_with_small_pipe("run")
    connection = daemon.accept()
    connection.request()
    connection.send(log(b"a", b"x" * 9000 + b"\n"))
    program.fills()
    program.signal()
    elapsed = Elapsed()
    connection.is_told_to_stop()
    connection.is_left()
    assert program.ends() == 1
    assert elapsed.seconds < PEER_PATIENCE


def test_a_stop_while_the_daemon_is_away_reaches_it_when_it_comes_back_in_time(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program, connection = running(peer)
    daemon.close()
    connection.close()
    program.says("Lost k8s-builderd at ")
    program.signal()
    program.says("Stopping the chaincode because of SIGTERM")
    connection = daemon.open().accept()
    assert connection.request().one("C") == b"c"
    connection.is_told_to_stop()
    connection.send(exits(0))
    assert b"Could not reach" not in program.rest()
    assert program.ends() == 0


def test_a_stop_while_the_daemon_stays_away_says_what_may_be_left(peer: Peer, daemon: Daemon) -> None:
    program, connection = running(peer)
    daemon.close()
    connection.close()
    program.says("Lost k8s-builderd at ")
    program.signal()
    elapsed = Elapsed()
    program.says("Stopping the chaincode because of SIGTERM")
    program.says(
        f"Could not reach k8s-builderd at {daemon.path} to stop the chaincode: No such file or directory. When"
    )
    assert program.ends_saying() == 1
    assert elapsed.seconds < PEER_PATIENCE


def test_a_stop_whose_connection_breaks_is_said_again(peer: Peer, daemon: Daemon) -> None:
    program, connection = running(peer)
    program.signal()
    connection.is_told_to_stop()
    connection.close()
    connection = daemon.accept()
    assert connection.request().one("C") == b"c"
    connection.is_told_to_stop()
    connection.send(exits(0))
    program.says("Stopping the chaincode because of SIGTERM")
    assert program.ends_saying() == 0


def test_a_stop_after_a_request_whose_connection_broke_is_still_said(peer: Peer, daemon: Daemon) -> None:
    peer.hurry(FIRST_WORDS=0.2)
    program = peer.call("run")
    connection = daemon.accept()
    connection.request()
    daemon.close()
    connection.close()
    program.says("Waiting for k8s-builderd at ")
    program.signal()
    program.says("Stopping the chaincode because of SIGTERM")
    connection = daemon.open().accept()
    assert connection.request().of("C") == []
    connection.is_told_to_stop()
    connection.send(exits(0))
    assert b"Could not reach" not in program.rest()
    assert program.ends() == 0
