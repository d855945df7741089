"""What was found by trying, each as a short story in virtual time: what is done, and what must come of it."""

import pytest

from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.kube.errors import ApiError
from tests.simulation.api import Fault
from tests.simulation.cluster import Program
from tests.simulation.stories import launched, lives, over
from tests.simulation.world import CHAINCODES, World

# What is as it should be


def test_a_launch_that_works(world: World) -> None:
    site = launched(world)
    world.stays(site, seconds=1000)
    over(world)


def test_a_chaincode_that_crashes_is_launched_by_the_next_request(world: World) -> None:
    site = launched(world)
    for _ in range(3):
        world.sim.call(world.cluster.alive()[0].exit, 3)
        assert world.works(site) == 1
        world.advance(5)
    assert [client.code for client in world.clients] == [1, 1, 1, None]
    over(world)


def test_a_daemon_that_is_killed_costs_nothing(world: World) -> None:
    site = launched(world)
    for crash in (True, False, True):
        world.end_daemon(site, crash=crash)
        world.advance(20)
        world.start_daemon(site)
        world.advance(100)
    lives(world, site)
    world.sim.call(world.cluster.containers[0].exit, 3)
    world.advance(10)
    assert world.clients[0].code == 1
    assert len(world.clients[0].lines) == len(world.cluster.containers[0].lines)
    over(world)


def test_a_daemon_that_ends_while_it_reads_the_rest_of_a_log(world: World) -> None:
    site = launched(world)
    pod = world.cluster.containers[0].name
    world.sim.call(lambda: world.cluster.delete("pods", pod, force=True))
    world.advance(0.05)
    world.end_daemon(site, crash=False)
    over(world)


def test_a_run_that_is_killed_has_its_job_deleted_after_the_grace(world: World) -> None:
    launched(world)
    world.sim.call(world.clients[0].kill)
    world.advance(9)
    assert world.cluster.containers[0].alive
    world.advance(3)
    assert not world.cluster.containers[0].alive
    over(world)


def test_a_daemon_and_its_runs_that_die_together_leave_an_orphan(world: World) -> None:
    site = launched(world)
    world.end_daemon(site)
    world.sim.call(world.clients[0].kill)
    world.advance(5)
    world.start_daemon(site)
    world.advance(55)
    assert world.cluster.containers[0].alive
    world.advance(10)
    assert not world.cluster.containers[0].alive
    over(world)


def test_a_stop(world: World) -> None:
    site = launched(world)
    assert site.peer is not None
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(5)
    assert world.clients[0].code == 0
    assert not world.cluster.containers[0].alive
    over(world)


@pytest.mark.parametrize("tls", [True, False])
def test_a_start_that_takes_longer_than_the_peer_waits(world: World, tls: bool) -> None:
    site = world.site(tls=tls, startup_timeout=20)
    world.cluster.schedulable = False
    for _ in range(3):
        assert world.request(site).error == "timeout expired while starting chaincode"
    world.cluster.schedulable = True
    assert world.works(site) == 1
    world.stays(site)
    assert len(world.cluster.containers) == 1
    over(world)


def test_a_stale_chaincode_that_was_refused_and_hangs(world: World) -> None:
    site = world.site(startup_timeout=20)
    world.cluster.schedulable = False
    world.request(site)
    world.cluster.schedulable = True
    world.advance(5)
    assert len(world.cluster.alive()) == 1, "it came up, and nobody waits for it"
    assert world.works(site) <= 3
    world.stays(site)
    over(world)


@pytest.mark.parametrize("tls", [True, False])
def test_a_peer_that_comes_back_launches_at_its_first_request(world: World, tls: bool) -> None:
    """Its last process's chaincode goes on for a while. Its end costs this process nothing: they are not connected."""
    world.cluster.image.program = Program(ends_with_stream=False)
    site = launched(world, tls=tls)
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    assert world.works(site) == 1
    assert len(world.cluster.alive()) == 1
    world.stays(site)
    over(world)


def test_two_peers_with_an_instance_each(world: World) -> None:
    one, other = launched(world), world.site("peer1")
    assert world.works(other) == 1
    world.stays(one, seconds=300)
    world.stays(other, seconds=300)
    over(world)


# Healthy chaincode is killed, or the end is wrong


def test_the_list_of_events_hangs_and_the_container_starts_late(world: World) -> None:
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    site.daemon.api.faults.append(Fault("list", "events", "hang", times=100))
    world.cluster.image.there = False
    asked = world.ask(site)
    world.advance(2)
    world.cluster.image.there = True
    world.advance(30)
    assert asked.container is not None
    assert world.cluster.containers[0].alive
    over(world)


def test_a_time_out_looks_once_more(world: World) -> None:
    """The watch of pods is silent, so the container's start is not told."""
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    asked = world.ask(site)
    world.advance(30)
    assert asked.container is not None
    assert world.cluster.containers[0].alive
    over(world)


def test_a_time_out_while_the_api_server_is_away(world: World) -> None:
    """The chaincode has come up and is used, and nobody can see it: no news is no verdict."""
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    asked = world.ask(site)
    assert world.sim.advance_until(lambda: bool(world.cluster.objects["secrets"]), 5, 0.001)
    world.sim.call(site.daemon.api.lose)
    world.advance(60)
    assert asked.container is not None
    world.sim.call(site.daemon.api.heal)
    world.advance(30)
    lives(world, site)
    over(world)


def test_a_time_out_tells_the_truth_when_the_api_server_is_back(world: World) -> None:
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    world.cluster.image.there = False
    world.ask(site)
    assert world.sim.advance_until(lambda: bool(world.clients[0].cursor), 5, 0.001)
    world.sim.call(site.daemon.api.lose)
    world.advance(60)
    assert world.clients[0].code is None
    world.sim.call(site.daemon.api.heal)
    world.advance(10)
    assert world.clients[0].code == 1
    assert world.clients[0].said("timed out waiting for the condition")
    world.advance(20)
    assert not world.cluster.objects["jobs"]
    over(world)


def test_a_pod_that_was_asked_for_and_goes_while_the_watch_is_silent(world: World) -> None:
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    assert site.peer is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    assert world.works(site) == 1
    world.advance(20)
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(200)
    assert not world.cluster.alive()
    assert site.daemon.store.count == 0
    over(world)


def test_an_exception_in_the_passing_on_of_a_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    site = launched(world)
    world.mistakes_expected = True
    times = 0

    def breaks(line: bytes) -> bytes:
        nonlocal times
        times += 1
        if times == 1:
            raise KeyError("a bug")
        return line

    with monkeypatch.context() as patch:
        patch.setattr("k8s_builderd.kube.loglines._plain", breaks)
        world.advance(60)
    lives(world, site)
    assert len(world.clients[0].lines) >= len(world.cluster.containers[0].lines) - 1
    over(world)


def test_a_daemon_that_restarts_with_too_few_connections(world: World) -> None:
    """The `run` that is turned away knocks, and that is a claim."""
    site = world.site(settings={"max_connections": 2, "orphan_grace": 3.0})
    assert world.works(site, 0) == 1
    assert world.works(site, 1) == 1
    world.end_daemon(site)
    site.settings["max_connections"] = 1
    world.start_daemon(site)
    world.advance(60)
    assert len(world.cluster.alive()) == 2
    over(world)


@pytest.mark.parametrize("reason", ["client gone", "orphan"])
@pytest.mark.parametrize("full", [False, True])
def test_a_run_that_comes_back_before_its_deletion_is_accepted(world: World, reason: str, full: bool) -> None:
    """It was away for longer than its grace, and the API server is away as well: nothing is lost yet."""
    site = world.site(settings={"max_connections": 1})
    assert world.works(site) == 1
    world.sim.call(world.clients[0].freeze)
    if reason == "orphan":
        world.end_daemon(site)
        world.start_daemon(site)
        world.advance(1)
    assert site.daemon is not None
    if reason == "client gone":
        world.sim.call(site.daemon.connections[0].hang_up)
    world.sim.call(site.daemon.api.lose)
    world.advance(70)
    assert world.logged("job_not_deleted")
    if full:
        world.ask(site, 1)
        world.advance(1)
    world.sim.call(world.clients[0].thaw)
    if full:
        world.advance(10)
        world.sim.call(world.clients[1].kill)
    world.advance(10)
    world.sim.call(site.daemon.api.heal)
    world.advance(60)
    lives(world, site)
    over(world)


@pytest.mark.parametrize("own_pod", [True, False])
def test_two_daemons_with_one_instance(world: World, own_pod: bool) -> None:
    site = launched(world, instance="both", own_pod=own_pod)
    other = world.site("peer1", "both", own_pod=own_pod)
    world.advance(300)
    lives(world, site)
    assert world.works(other) == 1
    world.advance(100)
    lives(world, site)
    over(world)


def test_a_creation_that_is_answered_401_twice(world: World) -> None:
    site = world.site()
    assert site.daemon is not None
    site.daemon.api.faults.append(Fault("create", "jobs", "401", times=2))
    assert world.works(site) == 1
    over(world)


@pytest.mark.parametrize("ahead", [-3.0, 2.0, 3.0])
def test_a_node_whose_clock_is_off(world: World, ahead: float) -> None:
    """A crash is a crash, and a chaincode that was told to end is not one."""
    for node in world.cluster.nodes:
        node.clock = ahead
    site = launched(world)
    for _ in range(5):
        world.advance(world.random.uniform(3, 8))
        container = world.cluster.alive()[0]
        world.sim.call(container.exit, 3)
        world.advance(0.3)
        assert world.works(site) == 1
    over(world)


@pytest.mark.parametrize("ahead", [3.0, -3.0])
def test_a_drop_by_a_stale_chaincode_on_a_node_whose_clock_is_off(world: World, ahead: float) -> None:
    """The grace of a stale chaincode ends while the next launch waits: that launch was dropped, and must not hang."""
    for node in world.cluster.nodes:
        node.clock = ahead
    site = world.site(startup_timeout=30)
    world.cluster.schedulable = False
    world.request(site)
    world.cluster.schedulable = True
    world.advance(5)
    world.sim.call(world.clients[0].kill)
    world.advance(9.5)
    begin = world.now
    assert world.works(site) <= 3
    assert world.now < begin + 25, "a launch ran into the peer's time-out: it was dropped and nobody knew"
    over(world)


@pytest.mark.parametrize("silent", [False, True])
def test_pods_cannot_be_listed_while_a_chaincode_comes_and_goes(world: World, silent: bool) -> None:
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    world.cluster.image.program = Program(exits_after=1.0, code=1, connects_after=9)
    api = site.daemon.api
    if silent:
        world.sim.call(api.silence, "pods")
    else:
        api.faults.append(Fault("list", "pods", "504", times=5))
        world.sim.call(api.expire)
        world.sim.call(api.drop)
    world.request(site)
    client = world.clients[0]
    assert client.code == 1
    assert client.said("ended with exit code 1"), client.words
    assert len(client.lines) == len(world.cluster.containers[0].lines)
    over(world)


def test_a_log_that_stays_open_after_the_end(world: World) -> None:
    site = world.site()
    assert site.daemon is not None
    site.daemon.api.faults.append(Fault("log", "pods", "silent"))
    world.cluster.image.program = Program(exits_after=2.0, code=1)
    world.request(site)
    world.advance(60)
    assert world.clients[0].code == 1
    over(world)


def test_a_log_that_falls_silent_is_asked_for_anew(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    world.advance(10)
    world.sim.call(site.daemon.api.silence, "log")
    world.advance(300)
    assert len(world.clients[0].lines) > 50
    over(world)


def test_a_quiet_chaincode_is_no_storm(world: World) -> None:
    world.cluster.image.program = Program(prints_every=10_000)
    site = launched(world)
    assert site.daemon is not None
    world.advance(10)
    before = len(site.daemon.api.requests)
    world.advance(3600)
    assert len(site.daemon.api.requests) - before < 200
    lives(world, site)
    over(world)


def test_a_node_that_is_lost_and_its_pod_deleted_by_force(world: World) -> None:
    launched(world)
    container = world.cluster.containers[0]
    container.pod.node.down = True
    world.advance(5)
    world.sim.call(lambda: world.cluster.delete("pods", container.name, force=True))
    world.advance(60)
    assert world.clients[0].code == 1, "it is gone for all that anybody can tell"
    over(world)


def test_a_second_container_that_never_ends(world: World) -> None:
    world.cluster.image.program = Program(exits_after=5.0, code=1, aside=True)
    site = world.site()
    world.request(site)
    world.advance(10)
    assert world.clients[0].code == 1
    world.advance(360)
    assert not world.cluster.objects["jobs"], "the Job's TTL is kept by the daemon"
    over(world)


UNREADY = "its readiness probe does not succeed"


def test_a_chaincode_that_is_never_ready_runs_on_and_is_told_once(world: World) -> None:
    world.cluster.image.program = Program(ready_after=None)
    site = launched(world)
    client = world.clients[0]
    world.advance(20)
    assert not client.said(UNREADY)
    world.advance(20)
    assert len([text for _, text in client.words if UNREADY in text]) == 1
    world.stays(site, seconds=1000)
    assert len([text for _, text in client.words if UNREADY in text]) == 1
    over(world)


def test_a_chaincode_that_takes_a_while_to_be_ready_is_told_nothing(world: World) -> None:
    world.cluster.image.program = Program(ready_after=25)
    site = launched(world)
    world.stays(site, seconds=1000)
    assert not world.clients[0].said(UNREADY)
    over(world)


def test_a_second_container_that_outlives_the_daemon(world: World) -> None:
    world.cluster.image.program = Program(exits_after=5.0, code=1, aside=True)
    site = world.site()
    world.request(site)
    world.advance(10)
    world.end_daemon(site)
    world.start_daemon(site)
    world.advance(400)
    assert not world.cluster.objects["jobs"]
    over(world)


def test_a_deaf_chaincode_with_a_grace_of_the_templates_own(world: World) -> None:
    """The peer comes back as another process; the old chaincode ignores SIGTERM for 30 s."""
    template = {"spec": {"terminationGracePeriodSeconds": 30}}
    world.cluster.image.program = Program(obeys=False, ends_with_stream=False)
    site = launched(world, settings={"pod_template": PodTemplate(template)})
    world.wait = 35.0
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    assert world.works(site) <= 3
    world.stays(site)
    over(world)


def test_an_object_with_a_date_that_cannot_be_counted_with(world: World) -> None:
    """One poisoned object harms its own run at most."""
    site = launched(world)
    assert site.daemon is not None
    world.mistakes_expected = True
    assert world.works(site, 1) == 1
    pod = world.cluster.find("pods", world.cluster.containers[1].name)
    assert pod is not None
    poisoned = {**pod["metadata"], "deletionTimestamp": "0001-01-01T00:00:00Z"}
    world.sim.call(lambda: world.cluster.update("pods", {**pod, "metadata": poisoned}))
    world.advance(30)
    assert site.daemon.alive
    lives(world, site)
    world.sim.call(world.cluster.containers[0].exit, 3)
    world.advance(5)
    assert world.clients[0].code == 1, "the watch goes on"


def test_a_watch_that_closes_after_each_event(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    before = len(site.daemon.api.requests)
    site.daemon.api.faults.append(Fault("watch", "pods", "short", times=10**6))
    world.sim.call(site.daemon.api.drop, "pods")
    pod = world.cluster.find("pods", world.cluster.containers[0].name)
    assert pod is not None

    def churn() -> None:
        world.cluster.update("pods", pod)
        world.sim.after(0.01, churn)

    world.sim.call(churn)
    world.advance(30)
    assert len(site.daemon.api.requests) - before < 30 * 10


# Words about what is not so


def test_a_stop_after_the_job_was_deleted_without_its_pod(world: World) -> None:
    site = launched(world)
    assert site.peer is not None
    job = next(iter(world.cluster.objects["jobs"]))
    world.sim.call(lambda: world.cluster.delete("jobs", job, orphan=True))
    world.advance(1)
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(10)
    assert world.clients[0].code is not None
    assert world.cluster.containers[0].alive
    assert not world.clients[0].said("is deleted"), world.clients[0].words


def test_a_job_deleted_without_its_pod_before_the_pod_was_seen(world: World) -> None:
    """The watch of pods is silent: the pod is asked for, and is found although no Job owns it any more."""
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    assert world.works(site) == 1
    job = next(iter(world.cluster.objects["jobs"]))
    world.sim.call(lambda: world.cluster.delete("jobs", job, orphan=True))
    world.advance(20)
    lives(world, site)
    world.sim.call(world.cluster.containers[0].exit, 3)
    world.advance(160)
    assert world.clients[0].said("ended with exit code 3"), world.clients[0].words
    over(world)


def test_a_job_deleted_without_its_pod_and_a_new_daemon(world: World) -> None:
    site = launched(world)
    job = next(iter(world.cluster.objects["jobs"]))
    world.sim.call(lambda: world.cluster.delete("jobs", job, orphan=True))
    world.advance(5)
    world.end_daemon(site)
    world.start_daemon(site)
    world.advance(20)
    lives(world, site)
    world.sim.call(world.cluster.containers[0].exit, 3)
    world.advance(20)
    assert world.clients[0].said("ended with exit code 3"), world.clients[0].words
    assert len(world.clients[0].lines) == len(world.cluster.containers[0].lines)
    over(world)


def test_a_stop_while_the_controller_manager_is_down(world: World) -> None:
    site = launched(world)
    assert site.peer is not None
    world.cluster.controller.down = True
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(10)
    assert world.clients[0].code == 0
    assert world.cluster.containers[0].alive
    assert not world.clients[0].said("is deleted"), world.clients[0].words
    over(world)


# Faults that are ridden out


@pytest.mark.parametrize("what", ["refused", "lost", "late", "hang", "401", "403", "429", "500", "503"])
@pytest.mark.parametrize("verb", ["create", "delete", "get", "list", "watch"])
def test_each_request_may_fail_once(world: World, verb: str, what: str) -> None:
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    faults = site.daemon.api.faults
    faults += [Fault(verb, plural, what) for plural in ("jobs", "pods", "secrets", "events")]
    world.sim.call(site.daemon.api.drop)
    assert world.works(site) <= 2
    faults += [Fault(verb, plural, what) for plural in ("jobs", "pods", "secrets", "events")]
    world.sim.call(site.daemon.api.drop)
    world.sim.call(world.cluster.alive()[0].exit, 3)
    assert world.works(site) <= 3
    world.stays(site)
    over(world)


def test_a_run_that_comes_back_when_its_job_is_gone_and_its_pod_is_not(world: World) -> None:
    """Daemon and answer were lost when the Job was made, and the peer has launched again since."""
    site = world.site(startup_timeout=20)
    world.cluster.image.there = False
    asked = world.ask(site)
    assert world.sim.advance_until(lambda: bool(world.cluster.objects["jobs"]), 5, 0.001)
    world.end_daemon(site)
    first = world.clients[0]
    assert not first.cursor
    world.sim.call(first.freeze)
    assert world.sim.advance_until(lambda: asked.over, 30)
    (stale,) = world.cluster.workers.values()
    world.start_daemon(site)
    again = world.ask(site)
    assert world.sim.advance_until(lambda: stale.object is not None and stale.object["status"]["phase"] == "Failed", 9)
    stale.node.down = True  # its pod stays
    assert world.sim.advance_until(lambda: bool(world.clients[1].cursor), 5)
    world.sim.call(first.thaw)
    world.advance(1)
    assert first.code == 1
    assert first.said("The next request starts it again")
    world.heal()
    world.sim.advance_until(lambda: again.over, 30)
    assert again.container is not None
    world.stays(site)
    over(world)


def test_a_stop_of_nothing_while_the_api_server_goes_away(world: World) -> None:
    """No interrupted watch can tell whether a Job has come late; but nothing waits for it for ever."""
    site = world.site(faults=[Fault("list", "jobs", "slow")])
    assert site.daemon is not None
    assert site.peer is not None
    world.ask(site)
    world.advance(0.5)
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(10)
    assert world.clients[0].code == 0
    world.sim.call(site.daemon.api.lose)
    world.advance(20)
    world.sim.call(site.daemon.api.heal)
    over(world)


def test_an_api_server_that_is_away(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    world.sim.call(site.daemon.api.lose)
    world.advance(200)
    world.sim.call(site.daemon.api.heal)
    world.cluster.oldest = world.cluster.version
    world.advance(60)
    lives(world, site)
    world.sim.call(world.cluster.containers[0].exit, 3)
    assert world.works(site) == 1
    over(world)


def test_a_watch_that_is_late(world: World) -> None:
    """What a watch has not told is asked for before a verdict."""
    site = launched(world)
    assert site.daemon is not None
    site.daemon.api.lag = {"jobs": 20.0, "pods": 20.0}
    world.sim.call(world.cluster.alive()[0].exit, 3)
    world.works(site)
    world.advance(60)
    world.heal()
    assert world.works(site) <= 2
    world.stays(site)
    over(world)


def test_the_error_of_a_fault_is_the_daemons_own() -> None:
    """The model raises what the real one raises."""
    with World() as world:
        site = world.site()
        assert site.daemon is not None
        assert issubclass(type(site.daemon.api._unreachable("get", "pods", "gone")), ApiError)
