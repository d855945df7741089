"""What no watch has told is asked for before a verdict: unknown is not ended."""

import pytest

from k8s_builderd.fabric.template import PodTemplate
from tests.simulation.cluster import Program
from tests.simulation.stories import lives, over
from tests.simulation.world import World


@pytest.mark.parametrize(("late", "grace"), [(20.0, 2), (None, 30)], ids=["a late watch", "a silent watch"])
def test_a_job_is_replaced_whose_pod_no_watch_has_told_of(world: World, late: float | None, grace: int) -> None:
    """The chaincode ignores SIGTERM and the end of its stream, and the Job is gone at once."""
    world.cluster.image.program = Program(obeys=False, ends_with_stream=False)
    template = {"spec": {"terminationGracePeriodSeconds": grace}}
    site = world.site(settings={"pod_template": PodTemplate(template)})
    assert site.daemon is not None
    world.wait = grace + 5.0
    world.advance(1)
    if late is None:
        world.sim.call(site.daemon.api.silence, "pods")
    else:
        site.daemon.api.lag["pods"] = late
    first = world.request(site, patience=20).container
    assert first is not None
    world.advance(2)
    world.end_peer(site, gracefully=False)
    world.start_peer(site)
    second = world.request(site, patience=60).container
    world.check()
    assert second is not None
    assert first.ended_at is not None
    assert second.started_at > first.ended_at
    over(world)


def test_what_is_known_to_be_there_is_not_made_again(world: World) -> None:
    """No watch tells of Secrets. A connection that breaks while the pod is pending makes none anew."""
    site = world.site()
    assert site.daemon is not None
    world.cluster.image.there = False
    world.ask(site)
    world.advance(2)
    for _ in range(3):
        world.sim.call(world.clients[0].cut_off)
        world.advance(5)
    made = [plural for _, verb, plural in site.daemon.api.requests if verb == "create"]
    assert made == ["jobs", "secrets"]
    world.cluster.image.there = True
    world.advance(30)
    lives(world, site)
    over(world)
