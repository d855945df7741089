"""What a launch waits for: an earlier container that nobody sees ending, and rights that are lacking."""

import pytest

from tests.simulation.api import Fault
from tests.simulation.cluster import Program
from tests.simulation.stories import launched, over
from tests.simulation.world import CHAINCODES, World

DROPPED = "the peer cancelled this launch because the previous chaincode disconnected"
NOT_DELETED = "is not being deleted: delete it, or check that kube-controller-manager is running"


def test_the_end_of_the_old_one_cannot_be_seen(world: World) -> None:
    """Then it is waited for, however long that takes: to go on, or to promise anything, would be a guess."""
    site = launched(world)
    assert site.daemon is not None
    assert site.peer is not None
    api = site.daemon.api
    api.faults += [Fault(verb, "pods", "503", times=10**6) for verb in ("list", "watch", "get")]
    world.sim.call(api.drop, "pods")
    world.advance(1)
    world.sim.call(site.peer.deregister, world.clients[0].chaincode_id)
    world.ask(site)
    world.advance(100)
    assert not world.cluster.alive(), "the old one was told to end"
    assert len(world.cluster.containers) == 1
    assert world.clients[1].alive
    assert world.clients[1].said("Waiting for an earlier launch of this chaincode to end: cannot")
    world.sim.call(api.heal)
    world.advance(30)
    assert world.clients[1].code == 1
    assert world.clients[1].said(DROPPED), world.clients[1].words
    assert world.works(site) == 1
    over(world)


def test_the_old_ones_pod_is_told_to_end_long_after_its_job_was_deleted(world: World) -> None:
    """It has its grace from then on: nothing new starts beside it."""
    world.cluster.image.program = Program(obeys=False, ends_with_stream=False)
    site = launched(world)
    world.cluster.controller.down = True
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    asked = world.ask(site)
    world.advance(30)
    (old,) = world.cluster.containers
    assert old.alive
    assert world.clients[1].said(NOT_DELETED), world.clients[1].words
    world.cluster.controller.down = False
    assert world.sim.advance_until(lambda: asked.over, 60)
    assert not old.alive
    assert asked.container is world.cluster.containers[1]
    assert not world.logged("pod_does_not_end")
    over(world)


def test_a_container_that_never_ends_is_not_waited_for_for_ever(world: World) -> None:
    """Its node is lost: after its grace and 5 s the launch goes on, and the next one does not wait at all."""
    site = launched(world)
    old = world.cluster.containers[0]
    lost = old.pod.node
    lost.down = True
    world.cluster.nodes.remove(lost)  # nothing more is scheduled there
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    begin = world.now
    assert world.works(site) == 1
    assert world.wait <= world.now - begin < world.wait + 5
    assert [event["job"] for event in world.logged("pod_does_not_end")] == [old.name.rpartition("-")[0]]
    world.stays(site)
    world.sim.call(world.cluster.containers[1].exit, 1)
    begin = world.now
    assert world.works(site) <= 2
    assert world.now - begin < world.wait
    assert len(world.logged("pod_does_not_end")) == 1, "nobody waits twice"
    world.cluster.nodes.append(lost)
    over(world)


@pytest.mark.parametrize("seconds", [3, 20])
def test_an_api_server_that_is_away_for_longer_than_a_launch_may_take(world: World, seconds: int) -> None:
    """It is away when the daemon starts; the launch that was given up meanwhile leaves nothing."""
    site = world.site(start_timeout=f"{seconds}s", faults=[Fault("*", "*", "refused", times=10**6)])
    assert site.daemon is not None
    assert world.request(site, patience=60).container is None
    last = world.clients[0].words[-1][1]
    assert "timed out waiting for the condition" in last
    assert "cannot list jobs.batch: the Kubernetes API does not answer" in last
    world.sim.call(site.daemon.api.heal)
    world.advance(30)
    assert not world.cluster.objects["jobs"]
    assert not world.cluster.containers
    assert world.works(site) == 1
    over(world)


@pytest.mark.parametrize("status", ["401", "403"])
@pytest.mark.parametrize(
    ("verb", "plural", "lacking"),
    [
        ("create", "jobs", "cannot create jobs.batch"),
        ("create", "secrets", "cannot create secrets"),
        ("list", "jobs", "cannot list jobs.batch"),
        ("list", "pods", "cannot list pods"),
    ],
)
def test_a_right_that_is_lacking_for_good(world: World, verb: str, plural: str, lacking: str, status: str) -> None:
    """The launch fails and says what is lacking, nothing is left, and the next one succeeds with the right."""
    site = world.site(start_timeout="20s", faults=[Fault(verb, plural, status, times=10**6)])
    assert site.daemon is not None
    world.advance(1)
    assert world.request(site).container is None
    assert world.clients[0].code == 1
    last = world.clients[0].words[-1][1]
    assert lacking in last
    assert "for now" not in last, "that is said of what may pass"
    assert verb == "list" or "timed out" not in last
    assert not world.clients[0].said("has not answered"), "it has, each time"
    world.advance(30)
    assert not world.cluster.alive()
    world.sim.call(site.daemon.api.heal)
    world.advance(10)
    assert world.works(site) == 1
    lives_on = world.cluster.alive()
    world.stays(site)
    assert world.cluster.alive() == lives_on
    over(world)


@pytest.mark.parametrize("seed", range(10))
def test_ten_launches_at_once(seed: int) -> None:
    """One of them is left, whichever came last, or none where it was dropped together with one that had come up."""
    with World(seed) as world:
        site = world.site()
        world.advance(1)
        peer = site.peer
        assert peer is not None
        runs = [world.sim.call(world.new_client, peer, CHAINCODES[0]) for _ in range(10)]
        world.advance(60)
        left = [run for run in runs if run.alive]
        assert len(left) == len(world.cluster.alive()) <= 1
        assert [run.code for run in runs if not run.alive] == [1] * (10 - len(left))
        world.sim.call(peer.stop, CHAINCODES[0])
        for run in left:
            world.sim.call(run.terminate)
        over(world)


def test_a_launch_after_one_whose_pod_no_watch_has_told_of(world: World) -> None:
    """The watch of pods has died without a word. The `run` of a launch dies; its Job goes, its container not yet."""
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    world.cluster.image.program = Program(obeys=False, ends_with_stream=False, connects_after=100)
    world.ask(site)
    assert world.sim.advance_until(lambda: len(world.cluster.containers) == 1, 10, 0.01)
    world.sim.call(world.clients[0].kill)
    assert world.sim.advance_until(lambda: not world.cluster.objects["jobs"], 30, 0.01)
    world.advance(0.1)
    assert world.cluster.containers[0].alive
    world.cluster.image.program = Program()
    world.ask(site)
    world.advance(10)
    over(world)


def test_a_pod_that_came_after_the_api_was_asked_for_it(world: World) -> None:
    """START_TIMEOUT: there is no pod yet. The deletion takes its time; meanwhile there is one, and no watch tells."""
    site = world.site(startup_timeout=9, start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    world.cluster.refuses_pods = True
    world.cluster.image.program = Program(obeys=False, ends_with_stream=False, connects_after=100)
    world.ask(site)
    assert world.sim.advance_until(lambda: bool(world.cluster.objects["secrets"]), 10, 0.01)
    site.daemon.api.faults.append(Fault("delete", "jobs", "slow", 1))
    world.advance(8.2)
    world.cluster.refuses_pods = False
    assert world.sim.advance_until(lambda: len(world.cluster.containers) == 1, 60, 0.01)
    world.ask(site)
    assert world.sim.advance_until(lambda: not world.cluster.objects["jobs"], 30, 0.01)
    world.cluster.image.program = Program()
    world.advance(30)
    over(world)


def test_nobody_can_see_whether_an_earlier_container_has_ended(world: World) -> None:
    """A launch waits for START_TIMEOUT at most, and is told why."""
    site = world.site(startup_timeout=20, start_timeout="30s")
    assert site.daemon is not None
    world.advance(1)
    api = site.daemon.api
    world.sim.call(api.silence, "pods")
    api.faults.append(Fault("list", "pods", "403", times=10**9))
    world.cluster.image.program = Program(connects_after=1000)
    world.request(site)
    world.ask(site)
    world.advance(90)
    assert len(world.clients) == 2
    assert world.clients[1].code == 1
    assert world.clients[1].said("cannot list pods"), world.clients[1].words
