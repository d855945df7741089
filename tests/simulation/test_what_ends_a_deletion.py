"""A deletion is carried out to its end, and not for longer: nothing runs on, nothing is remembered, nothing spins."""

from k8s_builderd.runs.decide import END_NEWS
from tests.simulation.api import Fault
from tests.simulation.cluster import Program
from tests.simulation.stories import deleted_unseen, launched, not_started, over
from tests.simulation.world import Site, World


def remembers_nothing(site: Site) -> None:
    """Check that the daemon knows of no run any more."""
    assert site.daemon is not None
    assert [(run.state, run.deletion and run.deletion.reason) for run in site.daemon.store] == []


def test_a_job_that_is_gone_while_no_watch_tells(world: World) -> None:
    site = deleted_unseen(world)
    assert site.daemon is not None
    api = site.daemon.api
    world.advance(0.1)
    before = len(api.requests)
    world.sim.call(world.clients[0].terminate)
    world.advance(10)
    assert world.clients[0].code == 0
    asked = [(verb, plural) for _, verb, plural in api.requests[before:]]
    assert len(asked) <= 5, f"{len(asked)} requests in 10 s"
    over(world)


def test_a_pod_whose_job_is_gone_and_that_a_person_deletes(world: World) -> None:
    """The Job went with `--cascade=orphan` while no daemon was there: a pod that nobody owns is all that is known."""
    site = launched(world)
    world.advance(5)
    world.end_daemon(site)
    job = next(iter(world.cluster.objects["jobs"]))
    world.sim.call(lambda: world.cluster.delete("jobs", job, orphan=True))
    world.sim.call(world.clients[0].terminate)
    world.advance(0.3)
    world.start_daemon(site)
    world.advance(5)
    assert world.clients[0].said("was deleted without its pod"), world.clients[0].words
    (container,) = world.cluster.alive()
    world.sim.call(lambda: world.cluster.delete("pods", container.name))
    world.advance(30)
    assert not container.alive
    remembers_nothing(site)
    over(world)


def test_a_stop_while_a_deletion_could_still_be_withdrawn(world: World) -> None:
    """The Job is to go for not starting; then its container starts, and its client asks for the end of it."""
    site, _ = not_started(world)
    world.cluster.image.there = True
    assert world.sim.advance_until(lambda: len(world.cluster.containers) > 0, 10, 0.01)
    world.sim.call(world.clients[0].terminate)
    world.advance(3)
    assert world.clients[0].said("The daemon keeps trying"), world.clients[0].words
    assert site.daemon is not None
    site.daemon.api.faults.clear()
    world.advance(12)
    assert not world.cluster.alive(), "it keeps trying, as it has said"
    assert [event["reason"] for event in world.logged("job_deleted")] == ["stopped"]
    assert not world.logged("deletion_withdrawn")
    remembers_nothing(site)
    over(world)


def test_a_withdrawn_deletion_wakes_who_waits_for_it(world: World) -> None:
    """The peer has come back as another process, whose launch waits for the end of the Job that does not start."""
    world.cluster.image.program = Program(connects_after=60)
    site, _ = not_started(world)
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    asked = world.ask(site)
    world.advance(0.5)
    assert world.clients[1].said("Waiting for an earlier launch"), world.clients[1].words
    world.cluster.image.there = True
    assert world.sim.advance_until(lambda: bool(world.logged("deletion_withdrawn")), 20, 0.01)
    assert site.daemon is not None
    site.daemon.api.faults.clear()
    world.cluster.image.program = Program()
    world.advance(END_NEWS + 0.5)  # for which news of a crash is waited for
    assert [event["reason"] for event in world.logged("job_deleted")] == ["replaced"]
    world.advance(10)
    assert asked.container is not None
    assert world.cluster.alive() == [asked.container]
    over(world)


def test_a_stop_of_nothing_while_a_watch_is_interrupted(world: World) -> None:
    """Whether the Job came late cannot be told until the watch is back; then the wait for it has its end."""
    site = world.site()
    assert site.daemon is not None
    api = site.daemon.api
    world.advance(1)
    api.faults.append(Fault("create", "jobs", "hang"))
    world.ask(site)
    world.advance(2)
    world.sim.call(world.clients[0].terminate)
    world.advance(12)
    api.faults += [Fault(verb, "pods", "503", 5) for verb in ("list", "watch")]
    world.sim.call(api.drop, "pods")
    world.sim.call(api.expire)
    world.advance(120)
    remembers_nothing(site)
    over(world)


def test_a_job_that_no_list_has_had(world: World) -> None:
    """A stop comes between the new daemon's list of pods and its list of Jobs, which has the Job no more."""
    site = launched(world)
    world.advance(5)
    world.end_daemon(site)
    site.faults.append(Fault("list", "jobs", "slow"))
    world.start_daemon(site)
    world.advance(1)
    world.sim.call(world.clients[0].terminate)
    world.advance(60)
    assert world.clients[0].code == 0
    assert not world.cluster.alive()
    remembers_nothing(site)
    over(world)


def test_a_proxys_404_is_no_word_of_the_job(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    pages = Fault("delete", "jobs", "page", times=3)
    site.daemon.api.faults.append(pages)
    world.sim.call(world.clients[0].kill)
    world.advance(30)
    assert not pages.times
    assert not world.cluster.alive()
    assert not world.cluster.objects["jobs"]
    over(world)


def test_a_run_that_comes_back_too_late_is_told_so(world: World) -> None:
    """The API has accepted the deletion for want of a client, and the container is about to end."""
    world.cluster.image.program = Program(obeys=False)
    site = launched(world)
    assert site.daemon is not None
    client = world.clients[0]
    world.sim.call(client.freeze)
    world.sim.call(site.daemon.connections[0].hang_up)
    assert world.sim.advance_until(lambda: bool(world.logged("job_deleted")), 20, 0.01)
    world.sim.call(client.thaw)
    assert world.sim.advance_until(lambda: client.code is not None, 20, 0.01)
    assert client.code == 1
    assert client.said("is being deleted (client gone)"), client.words
    over(world)
