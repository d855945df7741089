"""What keeps a chaincode alive whose container has started: no error of ours, no answer of the API, no old news."""

import pytest

from k8s_builderd.fabric.manifests import CONTAINER
from k8s_builderd.fabric.names import TOKEN_ANNOTATION
from k8s_builderd.fabric.objects import Job, Pod
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.observed import Observed
from tests.simulation.api import Fault
from tests.simulation.cluster import Program
from tests.simulation.stories import launched, lives, not_started, over
from tests.simulation.world import World

Change = Applied[Job] | Deleted[Job] | Applied[Pod] | Deleted[Pod]


def test_a_start_that_no_watch_can_tell_of(world: World) -> None:
    """START_TIMEOUT passes while the API is away, and the peer has the chaincode ready."""
    site = world.site(start_timeout="15s")
    assert site.daemon is not None
    world.advance(1)
    asked = world.ask(site)
    assert world.sim.advance_until(lambda: len(world.cluster.containers) > 0, 10, 0.005)
    world.sim.call(site.daemon.api.lose)
    world.advance(60)
    assert asked.container is not None
    assert world.clients[0].alive
    assert world.clients[0].said("Waiting for the Kubernetes API"), world.clients[0].words
    world.sim.call(site.daemon.api.heal)
    world.advance(30)
    lives(world, site)
    over(world)


@pytest.mark.parametrize("own_pod", [True, False])
def test_a_daemon_that_comes_back_under_another_instance(world: World, own_pod: bool) -> None:
    """Its watches do not tell of what it made under the old one; the `run` knows of it by its cursor."""
    site = launched(world, own_pod=own_pod)
    world.end_daemon(site)
    site.instance = "renamed"
    world.start_daemon(site)
    world.advance(250)
    lives(world, site)
    assert world.clients[0].said("Set FABRIC_K8S_BUILDER_INSTANCE=peer0 on the daemon"), world.clients[0].words
    world.end_daemon(site)
    site.instance = "peer0"
    world.start_daemon(site)
    world.advance(60)
    lives(world, site)
    over(world)


@pytest.mark.parametrize("end", ["exit", "stop", "kill"])
def test_an_end_under_another_instance(world: World, end: str) -> None:
    """The daemon cannot watch what its `run` waits for, but it can ask for it."""
    site = launched(world)
    world.advance(5)
    world.end_daemon(site)
    site.instance = "renamed"
    world.start_daemon(site)
    world.advance(7.3)
    (client,), (container,) = world.clients, world.cluster.containers
    if end == "exit":
        world.sim.call(container.exit, 3)
        world.advance(10)
        assert client.said("ended with exit code 3"), client.words
        assert client.code == 1
        assert len(client.lines) == len(container.lines)
    else:
        world.sim.call(client.terminate if end == "stop" else client.kill)
        world.advance(5 if end == "stop" else 20)
        assert client.code == (0 if end == "stop" else 137)
        assert not container.alive
    over(world)


def test_a_connection_that_breaks_while_the_job_is_asked_for(world: World) -> None:
    """The same token comes again, without a cursor, and the Job may exist by then."""
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    site.daemon.api.faults.append(Fault("create", "jobs", "hang"))
    asked = world.ask(site)
    world.advance(1)
    world.sim.call(world.clients[0].cut_off)
    world.advance(20)
    assert asked.container is not None
    lives(world, site)
    over(world)


def test_a_container_that_starts_before_its_job_can_be_deleted(world: World) -> None:
    """The deletion for not starting is withdrawn, and the `run` goes on."""
    site, asked = not_started(world)
    assert site.daemon is not None
    world.cluster.image.there = True
    assert world.sim.advance_until(lambda: bool(world.logged("deletion_withdrawn")), 20, 0.01)
    site.daemon.api.faults.clear()
    world.advance(40)
    assert asked.container is not None
    assert len([text for _, text in world.clients[0].words if text.startswith("Running chaincode ID")]) == 1
    lives(world, site)
    over(world)


def test_a_mistake_in_what_is_made_of_one_event(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the event that tells of the container's start: nothing but the next look knows of it."""
    world.mistakes_expected = True
    mistakes = 0
    fold = Observed.fold

    def breaks(self: Observed, change: Change, now: float) -> None:
        nonlocal mistakes
        pod = change.object
        if not mistakes and isinstance(pod, Pod) and pod.container(CONTAINER).running is not None:
            mistakes += 1
            raise ValueError("a mistake of ours")
        fold(self, change, now)

    monkeypatch.setattr(Observed, "fold", breaks)
    site = launched(world, start_timeout="8s")
    world.advance(20)
    assert mistakes == 1
    lives(world, site)
    over(world)


def test_a_pod_that_loses_its_label(world: World) -> None:
    """Somebody takes away the label that the watch selects by. The pod goes on, and its end is told all the same."""
    world.cluster.image.program = Program(prints_every=10_000)
    site = launched(world)
    container = world.cluster.containers[0]
    pod = world.cluster.find("pods", container.name)
    assert pod is not None
    labels = {name: value for name, value in pod["metadata"]["labels"].items() if value != site.instance}
    relabelled = {**pod, "metadata": {**pod["metadata"], "labels": labels}}
    world.sim.call(lambda: world.cluster.update("pods", relabelled))
    world.advance(400)
    lives(world, site)
    assert len(world.logged("pod_lost_label")) == 1
    world.sim.call(container.exit, 3)
    world.advance(30)
    assert world.clients[0].code == 1
    assert len(world.clients[0].lines) == len(container.lines)
    over(world)


@pytest.mark.parametrize("value", ["5e" * 32, ""], ids=["another run", "no run"])
@pytest.mark.parametrize(("kind", "away"), [("jobs", False), ("jobs", True), ("pods", False), ("pods", True)])
def test_an_annotation_that_somebody_overwrites(world: World, kind: str, value: str, away: bool) -> None:
    """The one that says whose a Job or pod is. Its `run` is there, and a daemon may have seen it before."""
    world.cluster.image.program = Program(prints_every=10_000)
    site = launched(world)
    container = world.cluster.containers[0]
    if away:
        world.advance(5)
        world.end_daemon(site)
    item = next(it for name, it in world.cluster.objects[kind].items() if container.name.startswith(name))
    annotations = {**item["metadata"]["annotations"], TOKEN_ANNOTATION: value}
    changed = {**item, "metadata": {**item["metadata"], "annotations": annotations}}
    world.sim.call(lambda: world.cluster.update(kind, changed))
    if away:
        world.start_daemon(site)
    world.advance(400)
    lives(world, site)
    world.sim.call(container.exit, 3)
    world.advance(30)
    assert world.clients[0].code == 1
    assert len(world.clients[0].lines) == len(container.lines)
    over(world)


def test_a_proxys_404_in_the_last_look(world: World) -> None:
    """START_TIMEOUT passes while the watch is silent, and a proxy answers for the API server: the pod may be there."""
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    world.cluster.image.there = False
    asked = world.ask(site)
    world.advance(2)
    world.sim.call(site.daemon.api.silence, "pods")
    world.cluster.image.there = True
    pages = Fault("get", "pods", "page", times=3)
    site.daemon.api.faults.append(pages)
    world.advance(30)
    assert not pages.times
    assert asked.container is not None
    lives(world, site)
    over(world)


def test_a_proxys_404_for_the_job_of_a_run_that_comes_back(world: World) -> None:
    """No watch of the daemon tells of that Job, so it is asked for; and a proxy says that there is none."""
    site = launched(world)
    world.end_daemon(site)
    site.instance = "renamed"
    pages = Fault("get", "jobs", "page", times=3)
    world.start_daemon(site).api.faults.append(pages)
    world.advance(60)
    assert not pages.times
    lives(world, site)
    over(world)


@pytest.mark.parametrize("restart", [False, True])
def test_a_run_that_comes_late(world: World, restart: bool) -> None:
    """It was started, and did nothing until the peer had given it up and launched again with success."""
    site = world.site(startup_timeout=20)
    world.late = 60
    assert world.request(site).container is None
    world.late = 0
    assert world.works(site) == 1
    if restart:
        world.end_daemon(site)
        world.start_daemon(site)
    world.advance(60)
    late, newer = world.clients
    assert late.code == 1
    assert late.said("the peer has launched this chaincode again"), late.words
    assert newer.alive
    assert world.request(site).container is world.cluster.containers[0]
    assert len(world.cluster.containers) == 1
    over(world)


def test_two_runs_that_find_the_daemon_in_the_wrong_order(world: World) -> None:
    """It was away. Whoever comes first, the later launch is the one that the peer waits for."""
    site = world.site(startup_timeout=20)
    world.end_daemon(site)
    world.ask(site)
    world.advance(22)
    asked = world.ask(site)
    earlier, later = world.clients
    world.sim.call(earlier.freeze)
    world.start_daemon(site)
    world.advance(5)
    assert asked.container is not None
    world.sim.call(earlier.thaw)
    world.advance(60)
    assert earlier.code == 1
    assert later.alive
    assert world.request(site).container is asked.container
    over(world)


@pytest.mark.parametrize("orphan", [False, True])
def test_a_daemon_that_stood_still_has_heard_nobody(world: World, orphan: bool) -> None:
    """Its node had no time for it, until the grace was over; whoever has knocked meanwhile is heard only now."""
    site = launched(world)
    if orphan:
        world.end_daemon(site)
    world.sim.call(world.clients[0].freeze)
    if orphan:
        world.start_daemon(site)
    else:
        assert site.daemon is not None
        world.sim.call(site.daemon.connections[0].hang_up)
    world.advance(9.5 if not orphan else 59.5)
    world.sim.stand_still(100)
    world.advance(10)
    assert not world.logged("job_unclaimed")
    world.sim.call(world.clients[0].thaw)
    world.advance(60)
    lives(world, site)
    over(world)


def test_a_pod_whose_annotation_somebody_overwrites_before_it_is_looked_for(world: World) -> None:
    """It is its Job's all the same: nobody can change an owner."""
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.advance(1)
    world.sim.call(site.daemon.api.silence, "pods")
    asked = world.ask(site)
    world.advance(3)
    (name,) = (container.name for container in world.cluster.containers)
    pod = world.cluster.find("pods", name)
    assert pod is not None
    changed = {**pod, "metadata": {**pod["metadata"], "annotations": {TOKEN_ANNOTATION: "5e" * 32}}}
    world.sim.call(lambda: world.cluster.update("pods", changed))
    world.advance(30)
    assert asked.container is not None
    lives(world, site)
    over(world)


@pytest.mark.parametrize("most", [4096, 0], ids=["free", "full"])
def test_a_daemon_that_does_not_know_the_form_of_a_cursor(world: World, most: int) -> None:
    """The daemon before it was a newer one. The chaincode goes on, and is attended when that one is back."""
    site = launched(world)
    client = world.clients[0]
    world.end_daemon(site)
    cursor, client.cursor = client.cursor, "3 and more"
    site.settings["max_connections"] = most
    world.start_daemon(site)
    world.advance(200)
    assert client.alive
    assert world.cluster.containers[0].alive
    assert most == 0 or client.said(
        "k8s-builderd cannot continue this launch: this daemon is older than the one before"
    )
    world.end_daemon(site)
    client.cursor = cursor
    site.settings["max_connections"] = 4096
    world.start_daemon(site)
    world.advance(30)
    lives(world, site)
    over(world)


def test_a_container_that_starts_before_its_job_can_be_deleted_and_no_watch_tells(world: World) -> None:
    """That it has not started is old news when the API accepts its deletion at last."""
    site, asked = not_started(world)
    assert site.daemon is not None
    world.sim.call(site.daemon.api.silence, "pods")
    world.cluster.image.there = True
    assert world.sim.advance_until(lambda: len(world.cluster.containers) > 0, 10, 0.01)
    world.advance(4)
    assert asked.container is not None
    site.daemon.api.faults.clear()
    world.advance(40)
    lives(world, site)
    over(world)
