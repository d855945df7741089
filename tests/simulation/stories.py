"""How most stories begin, and how all of them end."""

from tests.simulation.api import Fault
from tests.simulation.world import Asked, Site, World


def launched(world: World, **rest: object) -> Site:
    """Return a place where one chaincode works."""
    site = world.site(**rest)  # type: ignore[arg-type]
    assert world.works(site) == 1
    return site


def deleted_unseen(world: World) -> Site:
    """Return a place where one chaincode worked, and somebody deletes its Job while no watch tells."""
    site = launched(world)
    assert site.daemon is not None
    world.advance(5)
    for what in ("jobs", "pods"):
        world.sim.call(site.daemon.api.silence, what)
    job = next(iter(world.cluster.objects["jobs"]))
    world.sim.call(lambda: world.cluster.delete("jobs", job))
    return site


def not_started(world: World) -> tuple[Site, Asked]:
    """Return a place where a Job is to be deleted for not starting, and the API refuses; and the peer's request."""
    site = world.site(start_timeout="8s")
    assert site.daemon is not None
    world.cluster.image.there = False
    world.advance(1)
    asked = world.ask(site)
    world.advance(7)
    site.daemon.api.faults.append(Fault("delete", "jobs", "503", 1000))
    assert world.sim.advance_until(lambda: bool(world.logged("job_not_deleted")), 10, 0.01)
    return site, asked


def lives(world: World, site: Site) -> None:
    """Check that the first chaincode goes on, with its `run`."""
    assert world.cluster.containers[0].alive
    assert world.clients[0].alive
    assert world.request(site).container is world.cluster.containers[0]


def over(world: World) -> None:
    """Check what must be true at the end of each story."""
    world.heal()
    world.ends_in_time()
    world.nothing_left()
    world.no_task_left()
    world.check()
