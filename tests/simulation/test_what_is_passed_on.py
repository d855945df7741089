"""What of a log is passed on, or else said to be missing, where it cannot be read or its pod cannot be found."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from k8s_builderd.kube.errors import Unavailable
from tests.simulation.api import Fault
from tests.simulation.cluster import Program
from tests.simulation.stories import deleted_unseen, launched, over
from tests.simulation.world import Site, World

MISSING = "The end of the chaincode's log is missing"


@pytest.mark.parametrize("silent", [False, True])
def test_a_log_whose_pod_could_not_be_listed_for_a_while(world: World, silent: bool) -> None:
    """The right to list pods is away for some seconds while a chaincode crashes; pod and log are there still."""
    site = world.site()
    assert site.daemon is not None
    world.advance(1)
    world.cluster.image.program = Program(exits_after=1.0, code=1, connects_after=9)
    api = site.daemon.api
    api.faults.append(Fault("list", "pods", "403", times=10**6))
    if silent:
        world.sim.call(api.silence, "pods")
    else:
        world.sim.call(api.expire)
    world.ask(site)
    world.advance(20)
    client = world.clients[0]
    assert client.code is None
    api.faults.clear()
    world.advance(30)
    assert client.code == 1
    assert client.said("ended with exit code 1"), client.words
    assert len(client.lines) == len(world.cluster.containers[0].lines), (client.lines, client.words)
    over(world)


def keeps_logs_back(world: World, site: Site) -> None:
    """Have a node give no log: the API server answers 500 for it, and 404 once the pod is gone."""
    assert site.daemon is not None
    api, serve = site.daemon.api, site.daemon.api.log

    @asynccontextmanager
    async def log(pod: str, query: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        if world.cluster.find("pods", pod) is not None:
            raise Unavailable("dial tcp 10.0.0.1:10250: connection refused", verb="get", resource="pods/log")
        async with serve(pod, query) as chunks:
            yield chunks

    api.log = log  # type: ignore[method-assign]


def test_a_log_that_a_node_never_gave_and_that_goes_with_its_pod(world: World) -> None:
    """The API server cannot ask the kubelet (its serving certificate, say), and the pod is deleted: the log is lost."""
    site = world.site()
    keeps_logs_back(world, site)
    assert world.works(site) == 1
    world.advance(20)
    pod = world.cluster.containers[0].name
    world.sim.call(lambda: world.cluster.delete("pods", pod))
    world.advance(60)
    client = world.clients[0]
    assert client.code == 1
    assert len(world.cluster.containers[0].lines) > 5
    assert not client.lines
    assert client.said(MISSING), client.words


def test_a_daemon_restarts_and_the_rest_of_the_log_goes_with_the_pod(world: World) -> None:
    site = launched(world)
    world.advance(10)
    world.end_daemon(site)
    world.advance(9)
    world.start_daemon(site)
    keeps_logs_back(world, site)
    pod = world.cluster.containers[0].name
    world.sim.call(lambda: world.cluster.delete("pods", pod))
    world.advance(60)
    client = world.clients[0]
    assert client.code == 1
    assert len(client.lines) == len(world.cluster.containers[0].lines) or client.said("chaincode's log"), client.words


@pytest.mark.parametrize("times", [0, 1, 3])
def test_that_its_job_was_deleted_is_told_though_the_api_does_not_answer_at_once(world: World, times: int) -> None:
    """Job and pod went while no watch told; of pods a list is to be had then, and of Jobs nothing."""
    site = deleted_unseen(world)
    assert site.daemon is not None
    api = site.daemon.api
    pod = world.cluster.containers[0].name
    assert world.sim.advance_until(lambda: world.cluster.find("pods", pod) is None, 60, 0.1)
    api.faults += [Fault("watch", what, "expired") for what in ("jobs", "pods")]
    api.faults += [Fault("list", "jobs", "503", times=10**6), Fault("get", "jobs", "503", times=times)]
    world.sim.call(api.drop)
    world.advance(20)
    client = world.clients[0]
    assert client.code == 1
    assert client.said("because its job was deleted"), client.words
    over(world)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_that_only_events_tell_of_is_told_though_the_api_does_not_answer_at_once(world: World, times: int) -> None:
    """Whoever evicts a pod deletes it, and an event alone says why."""
    site = launched(world)
    assert site.daemon is not None
    world.advance(5)
    pod = world.cluster.find("pods", world.cluster.containers[0].name)
    assert pod is not None
    site.daemon.api.faults.append(Fault("list", "events", "503", times=times))
    world.sim.call(lambda: world.cluster.event(pod, "TaintManagerEviction", "Marking for deletion Pod default/p"))
    world.sim.call(lambda: world.cluster.delete("pods", pod["metadata"]["name"]))
    world.advance(40)
    client = world.clients[0]
    assert client.code == 1
    assert client.said("because its pod was evicted (TaintManagerEviction)"), client.words
    over(world)
