"""How launches are counted: each once, when it is known how it ends."""

from k8s_builderd.metrics import Metrics
from tests.exposition import Exposition
from tests.simulation.client import Connection
from tests.simulation.stories import launched, over
from tests.simulation.world import CHAINCODES, World


def launches(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return the number of launches, by category and outcome."""
    return Exposition(metrics.exposition().decode()).counted("launches_total")


def test_one_that_goes_on_over_a_newer_connection_is_no_other_launch(world: World) -> None:
    site = world.site()
    assert site.daemon is not None
    world.cluster.image.there = False
    world.ask(site)
    world.advance(2)
    client = world.clients[0]
    assert client.connection is not None
    newer = client.connection = Connection(client)
    world.sim.call(site.daemon.accept, newer)
    world.advance(2)
    assert site.daemon.connections == [newer]
    assert launches(site.daemon.metrics) == {}
    world.cluster.image.there = True
    world.advance(5)
    assert launches(site.daemon.metrics) == {("", "started"): 1}
    over(world)


def test_one_that_has_started_and_is_replaced_has_started(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    assert site.peer is not None
    world.sim.call(site.peer.deregister, CHAINCODES[0])
    assert world.works(site) == 2
    first, dropped, _ = world.clients
    assert first.said("the peer has launched this chaincode again"), first.words
    assert dropped.said("the peer cancelled this launch"), dropped.words
    assert launches(site.daemon.metrics) == {("", "started"): 2, ("", "yielded"): 1}
    over(world)


def test_one_that_has_started_and_is_stopped_has_started(world: World) -> None:
    site = launched(world)
    assert site.daemon is not None
    assert site.peer is not None
    world.sim.call(site.peer.stop, CHAINCODES[0])
    world.advance(5)
    assert world.clients[0].code == 0
    assert launches(site.daemon.metrics) == {("", "started"): 1}
    over(world)
