"""Peers, their `run`s, daemons and a cluster in one virtual time, and what must be true of them all the time.

What is true is known by the model: whether a container runs, what a client wants, who owns a Job. Nothing is asked of
the code that is tested.
"""

import datetime as datetimes
import hashlib
import sys
import traceback
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from random import Random
from types import TracebackType
from typing import Any, Self

import structlog

from k8s_builderd import backoff
from k8s_builderd.kube import watch
from tests.simulation.api import Fault
from tests.simulation.client import Client
from tests.simulation.cluster import EPOCH, TOKEN, Cluster, Container, Object, launch_key
from tests.simulation.daemon import Daemon, serving, token_sha256
from tests.simulation.loop import Simulation
from tests.simulation.peer import LaunchError, Process

CHAINCODES = tuple(f"{label}:{hashlib.sha256(label.encode()).hexdigest()}" for label in ("basic_1.0", "other_2"))
WAIT = 7.0
"""Seconds that a launch waits for the containers of the one before it: the pod's grace and 5 s."""
LOOK = 1.0
"""Seconds in which a state that the API tells may be missed: two requests are under way."""
TTL = 300.0


@dataclass
class Site:
    """A peer's place: its names, its daemon beside it, and the pod that holds both."""

    world: "World"
    name: str
    instance: str
    tls: bool = True
    own_pod: bool = True
    startup_timeout: float = 300.0
    start_timeout: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    """What each daemon meets when it starts."""
    daemon: Daemon | None = None
    peer: Process | None = None
    pod: Object | None = None
    msp_id: str = "Org1MSP"
    tells_start: bool = True
    """Whether its `run`s say when they were started; those of an earlier version do not."""

    @property
    def address(self) -> str:
        return f"{self.name}:7051"

    @property
    def peer_id(self) -> str:
        return self.name


class World:
    """The whole of it. Use it as a context; it is moved on with `advance`."""

    def __init__(self, seed: int = 0) -> None:
        self.sim = Simulation()
        self.random = Random(seed)
        self.cluster = Cluster(self.sim, self.random)
        self.sites: list[Site] = []
        self.clients: list[Client] = []
        self.daemons: list[Daemon] = []
        self.trace: list[str] = []
        self.violations: list[str] = []
        self.events: list[tuple[float, MutableMapping[str, Any]]] = []
        """What the daemons have logged."""
        self.made_by: dict[str, tuple[float, Daemon]] = {}
        """When and by whom each Job was created, by its uid."""
        self.refused: list[Container] = []
        self.healthy_since = 0.0
        self.mistakes_expected = False
        """Whether the daemon may log a mistake of its own: one is made on purpose."""
        self.late = 0.0
        """Seconds for which each new `run` does nothing at first."""
        self.wait = WAIT
        self._peers = 0
        self._seeds = Random(seed + 1)
        self._undo: list[Any] = []
        self.cluster.on_start.append(self._container_started)

    def __enter__(self) -> Self:
        before = structlog.get_config()
        structlog.configure(processors=[self._logged], cache_logger_on_first_use=False)
        self._undo.append(lambda: structlog.configure(**before))
        self._replace(watch, "Random", lambda: Random(self._seeds.random()))
        self._replace(backoff, "uniform", Random(self._seeds.random()).uniform)
        clock = _clock(self)
        for name, module in list(sys.modules.items()):
            if name.startswith("k8s_builderd.runs") and getattr(module, "datetime", None) is datetimes.datetime:
                self._replace(module, "datetime", clock)
        return self

    def _replace(self, module: Any, name: str, value: Any) -> None:
        before = getattr(module, name)
        setattr(module, name, value)
        self._undo.append(lambda: setattr(module, name, before))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            self.sim.close()
        finally:
            for undo in reversed(self._undo):
                undo()
        if kind is None:
            self.check()

    # Time and words

    @property
    def now(self) -> float:
        return self.sim.now

    def advance(self, seconds: float) -> None:
        """Let time go by, and look whether all is well."""
        self.sim.advance(seconds)

    def note(self, text: str) -> None:
        """Keep what has happened, for whoever reads a failure."""
        self.trace.append(f"{self.now:9.3f} {text}")

    def wrong(self, text: str, error: BaseException | None = None) -> None:
        """Take in that something must not have happened."""
        self.note(f"WRONG: {text}")
        if error is not None:
            text += "\n" + "".join(traceback.format_exception(error))
        self.violations.append(f"{self.now:.3f} {text}")

    def check(self) -> None:
        """Raise AssertionError if something was wrong so far."""
        for error in self.sim.errors:
            self.wrong(f"nobody caught {error!r}", error)
        self.sim.errors.clear()
        if self.violations:
            raise AssertionError("\n".join([*self.violations, "What happened:", *self.trace[-150:]]))

    def _logged(self, _: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        self.events.append((self.now, event))
        rest = ", ".join(f"{name}={value}" for name, value in event.items() if name not in {"event", "exc_info"})
        self.note(f"{serving.get()} logs {event['event']}: {rest}")
        if (event.get("exc_info") or method in {"exception", "critical"}) and not self.mistakes_expected:
            told = event.get("exc_info")
            error = told if isinstance(told, BaseException) else sys.exc_info()[1]
            self.wrong(f"{event['event']} is logged as a mistake of ours", error)
        raise structlog.DropEvent

    def logged(self, name: str) -> list[MutableMapping[str, Any]]:
        """Return the daemons' events of that name."""
        return [event for _, event in self.events if event["event"] == name]

    # Who is there

    def site(self, name: str = "peer0", instance: str = "", **rest: Any) -> Site:
        """Add a place for a peer, with a daemon and a peer in it."""
        site = Site(self, name, instance or name, **rest)
        self.sites.append(site)
        self.start_pod(site)
        self.start_daemon(site)
        self.start_peer(site)
        return site

    def start_pod(self, site: Site) -> None:
        """Make the pod that holds the peer and its daemon."""
        if site.own_pod:
            site.pod = self.sim.call(self.cluster.add, "pods", {"metadata": {"name": f"{site.name}-pod"}})["metadata"]

    def start_daemon(self, site: Site) -> Daemon:
        """Start the daemon of a place, which must have none."""
        assert site.daemon is None or not site.daemon.alive
        daemon = site.daemon = self.sim.call(Daemon, site, len(self.daemons))
        self.daemons.append(daemon)
        self.note(f"{daemon} starts")
        self.sim.advance(0.01)
        return daemon

    def end_daemon(self, site: Site, *, crash: bool = True) -> None:
        """End the daemon of a place, if there is one."""
        if site.daemon is not None and site.daemon.alive:
            self.sim.call(site.daemon.crash if crash else site.daemon.end)
            self.sim.advance(0.1)
            if site.daemon.alive:
                self.wrong(f"{site.daemon} does not end")
        site.daemon = None

    def start_peer(self, site: Site) -> Process:
        """Start the peer of a place."""
        self._peers += 1
        site.peer = self.sim.call(Process, site, self._peers)
        self.note(f"{site.peer} starts")
        return site.peer

    def end_peer(self, site: Site, *, gracefully: bool = True, kills: bool = True) -> None:
        """End the peer of a place, if there is one."""
        if site.peer is not None:
            peer, site.peer = site.peer, None
            self.sim.call(lambda: peer.end(gracefully=gracefully, kills=kills))

    def new_client(self, process: Process, chaincode_id: str) -> Client:
        """Start a `run`."""
        client = Client(process, chaincode_id, len(self.clients) + 1)
        self.clients.append(client)
        self.note(f"{process} starts run {client.number}")
        if self.late:
            client.freeze()
            self.sim.after(self.late, client.thaw)
        return client

    def running(self) -> list[Client]:
        """Return the `run`s that have not ended."""
        return [client for client in self.clients if client.alive]

    # What they do

    def ask(self, site: Site, chaincode: int = 0) -> "Asked":
        """Send a request to a peer, and do not wait."""
        asked = Asked(self)
        self.sim.call(lambda: self.sim.spawn(asked.run, site, CHAINCODES[chaincode]))
        self.sim.advance(0)
        return asked

    def request(self, site: Site, chaincode: int = 0, patience: float = 1000.0) -> "Asked":
        """Send a request to a peer and wait for its answer, so many seconds at most."""
        asked = self.ask(site, chaincode)
        self.sim.advance_until(lambda: asked.over, patience)
        return asked

    def stream_lost(self, container: Container) -> None:
        """Have a chaincode see that its peer has gone."""
        if container.program.ends_with_stream:
            self.sim.after(self.random.uniform(0.02, 0.3), container.exit, 1)

    def _container_started(self, container: Container) -> None:
        self.note(f"{container.name} starts")
        container.ends.append(lambda: self.note(f"{container.name} ends with {container.code}"))
        secret = self.cluster.find("secrets", container.pod.secret)
        assert secret is not None
        container.pod.meta["mounted"] = secret["data"]
        self.sim.after(container.program.connects_after, self._connect, container)
        for other in self.cluster.alive():
            if other is not container and other.key == container.key:
                self._two_live(other, container)

    def _connect(self, container: Container) -> None:
        if not container.alive:
            return
        site = next(site for site in self.sites if site.address == container.key[2])
        if site.peer is None or not site.peer.connect(container):
            self.sim.after(0.5, container.exit, 1)

    # What must be true

    def clients_of(self, job: Object) -> list[Client]:
        """Return the `run`s that a Job has or had."""
        token, uid = job["metadata"]["annotations"][TOKEN], job["metadata"]["uid"]
        return [client for client in self.clients if uid in client.jobs or token_sha256(client) == token]

    def container_of(self, job: Object) -> Container | None:
        """Return the container of a Job, where one was started."""
        uid = job["metadata"]["uid"]
        return next((it for it in self.cluster.containers if _job_uid(it) == uid), None)

    def _job(self, container: Container) -> Object | None:
        uid = _job_uid(container)
        return next((job for job in self.cluster.objects["jobs"].values() if job["metadata"]["uid"] == uid), None)

    def job_created(self, daemon: Daemon, job: Object) -> None:
        """Check that a Job may be created now."""
        self.note(f"{daemon} creates {job['metadata']['name']}")
        self.made_by[job["metadata"]["uid"]] = self.now, daemon
        for container in self.cluster.alive():
            since = self.cluster.seen_running_since(container)
            if container.key == launch_key(job["metadata"]) and since is not None and since < self.now - LOOK:
                self._unless_waited(container, job)

    def _two_live(self, one: Container, other: Container) -> None:
        jobs = sorted((one, other), key=lambda it: self.made_by[_job_uid(it)][0])
        newer = self._job(jobs[1])
        if newer is not None and jobs[0].started_at < self.now:
            self._unless_waited(jobs[0], newer)

    def _unless_waited(self, old: Container, job: Object) -> None:
        at, _ = self.made_by[job["metadata"]["uid"]]
        clients = self.clients_of(job)
        told = [when for client in clients for when, text in client.words if "Waiting for an earlier launch" in text]
        if old.pod.meta["uid"] in self.cluster.abandoned or any(when <= at - self.wait + 0.1 for when in told):
            return
        self.wrong(f"{job['metadata']['name']} was created while {old.name} of an earlier launch runs")

    def job_deleted(self, daemon: Daemon, job: Object) -> None:
        """Check that a Job may be deleted now."""
        meta = job["metadata"]
        name = meta["name"]
        self.note(f"{daemon} deletes {name}")
        container = self.container_of(job)
        if container is None or not container.alive:
            return
        since = self.cluster.seen_running_since(container)
        if since is None or since > self.now - LOOK:
            return
        clients = self.clients_of(job)
        if any(client.stopped_at is not None for client in clients):
            return
        if any(self._is_launched_again(client, daemon) for client in clients):
            return
        grace = daemon.settings.reconnect_grace
        knocked = max((client.knocks for client in clients), default=-1000.0)
        mine = self._is_of(daemon, meta)
        if knocked <= self.now - grace + 0.2 and mine:
            return
        why = "its run is there" if knocked > self.now - grace else "it is another daemon's"
        self.wrong(f"{daemon} deletes {name}, whose chaincode is healthy: {why}")

    def _is_launched_again(self, client: Client, daemon: Daemon | None) -> bool:
        """Say whether a later launch of the same chaincode by the same peer has reached a daemon.

        The start of their `run`s says which of two is later; but a daemon that has not heard one of them since its own
        start, or that is told no start, knows no more than when the first requests came.
        """

        def is_later(it: Client) -> bool:
            if client.site.tells_start and it.started_ticks != client.started_ticks and daemon in client.daemons:
                return it.started_ticks > client.started_ticks
            return (it.asked_at or 0.0) > (client.asked_at or 0.0)

        return any(it.key == client.key and it.asked_at is not None and is_later(it) for it in self.clients)

    def _is_of(self, daemon: Daemon, meta: Object) -> bool:
        owners = meta.get("ownerReferences") or ()
        if owners:
            return bool(daemon.settings.pod_uid) and owners[0]["uid"] == daemon.settings.pod_uid
        # Without an owner, it is whose instance it names, while nobody else of that name lives.
        made = self.made_by[meta["uid"]][1]
        others = [
            it
            for it in self.daemons
            if it.alive and it is not daemon and it.settings.instance == daemon.settings.instance
        ]
        return made.site is daemon.site or not others

    def client_ended(self, client: Client) -> None:
        """Check that a `run` may exit now, and that it has passed on its chaincode's log."""
        self._check_lines(client)
        if client.killed or client.stopped_at is not None or client.code is None:
            return
        if not client.words:
            self.wrong(f"run {client.number} exits with {client.code} and says nothing")
        for container in self.cluster.containers:
            uid = _job_uid(container)
            if uid not in client.jobs:
                continue
            again = self._is_launched_again(client, client.site.daemon)
            since = self.cluster.seen_running_since(container)
            job = self._job(container)
            there = job is not None and "deletionTimestamp" not in job["metadata"]
            if container.alive and since is not None and since < self.now - LOOK and there and not again:
                self.wrong(f"run {client.number} ends, and its chaincode {container.name} runs")

    def _check_lines(self, client: Client) -> None:
        printed = {it.name: [text for _, text in it.lines] for it in self.cluster.containers}
        got: dict[str, list[bytes]] = {}
        for line in client.lines:
            got.setdefault(line.split(b" ")[0].decode(), []).append(line)
        for name, lines in got.items():
            if lines != printed[name][: len(lines)] and not client.said("Lines of the chaincode's log are missing"):
                self.wrong(f"run {client.number} has the log of {name} with a line lost or doubled: {lines}")
        for container in self.cluster.containers:
            if (
                client.code is not None
                and not client.killed
                and client.stopped_at is None
                and client.said("Chaincode ID")
                and client.words[-1][1].startswith("Chaincode ID")
                and _job_uid(container) in client.jobs
                and not client.said("missing")
                and self.cluster.find("pods", container.name) is not None
                and len(got.get(container.name, [])) != len(container.lines)
            ):
                self.wrong(f"run {client.number} ends without the end of its chaincode's log")

    # Ends

    def heal(self) -> None:
        """Have everything behave from now on. A silent stream stays silent, and a frozen `run` is let go on."""
        self.healthy_since = self.now
        self.note("everything behaves again")
        self.late = 0.0
        cluster = self.cluster
        cluster.image.there = True
        cluster.image.program = type(cluster.image.program)()
        cluster.schedulable, cluster.refuses_pods = True, False

        def heal() -> None:
            for actor in (cluster.controller, cluster.scheduler, *cluster.nodes):
                actor.resume()
            for daemon in self.daemons:
                daemon.api.heal()
            for client in self.running():
                client.thaw()
            for name, pod in list(cluster.objects["pods"].items()):
                if pod["metadata"]["uid"] in cluster.abandoned:
                    cluster.delete("pods", name)  # by the person who has cut it off

        self.sim.call(heal)

    def works(self, site: Site, chaincode: int = 0, requests: int = 6, seconds: float = 900.0) -> int:
        """Ask again and again until a request succeeds, and return how many that took."""
        begin = self.now
        failures = []
        for number in range(1, requests + 1):
            asked = self.request(site, chaincode, seconds)
            if asked.container is not None:
                return number
            failures.append(asked.error)
            self.advance(0.5)
        self.wrong(f"a livelock: {requests} requests within {self.now - begin:.0f} s have failed: {failures}")
        return requests

    def stays(self, site: Site, chaincode: int = 0, seconds: float = 100.0) -> None:
        """Check that a chaincode that works goes on, in one container, without being launched anew."""
        first = self.request(site, chaincode)
        self.advance(seconds)
        second = self.request(site, chaincode)
        if first.container is None or second.container is not first.container:
            self.wrong(f"a chaincode does not stay: {first} and {second} {seconds:g} s later")

    def ends_in_time(self, seconds: float = 150.0) -> None:
        """Check that, everything being well, each `run` has ended whose chaincode has."""
        self.advance(seconds)
        alive = {it.name for it in self.cluster.alive()}
        for client in self.running():
            containers = [it for it in self.cluster.containers if _job_uid(it) in client.jobs]
            over = [it for it in containers if it.name not in alive and (it.ended_at or 0) < self.now - seconds]
            gone = client.jobs and not any(
                job["metadata"]["uid"] in client.jobs for job in self.cluster.objects["jobs"].values()
            )
            if (over or (gone and not containers)) and not client.frozen:
                self.wrong(f"run {client.number} does not end, though its chaincode has, {seconds:g} s ago")

    def nothing_left(self) -> None:
        """Check that nothing stays when all peers and `run`s are gone and the daemons live."""
        for site in self.sites:
            self.end_peer(site)
        self.advance(10)
        for client in self.running():
            self.sim.call(client.kill)
        grace = max([60.0, *(daemon.settings.orphan_grace for daemon in self.daemons)])
        self.advance(grace + TTL + 60)
        own = {site.pod["uid"] for site in self.sites if site.pod}
        left = [
            f"{plural[:-1]} {name}"
            for plural in ("jobs", "pods", "secrets")
            for name, item in self.cluster.objects[plural].items()
            if item["metadata"]["uid"] not in own | self.cluster.abandoned
        ]
        left += [container.name for container in self.cluster.alive() if container.pod.object is None]
        if left:
            self.wrong(f"these are left: {', '.join(left)}")
        for daemon in self.daemons:
            if daemon.alive and daemon.store.count:
                self.wrong(f"{daemon} remembers {daemon.store.count} runs that are no more")

    def no_task_left(self) -> None:
        """Check that daemons which have ended leave no task, and the others none but their own."""
        for site in self.sites:
            self.end_daemon(site, crash=False)
        self.advance(30)
        if left := self.sim.tasks:
            self.wrong(f"tasks are left: {left}")


class Asked:
    """One request to a peer, and its answer."""

    def __init__(self, world: World) -> None:
        self.over = False
        self.container: Container | None = None
        self.error = ""
        self._world = world

    async def run(self, site: Site, chaincode_id: str) -> None:
        """Ask."""
        try:
            if site.peer is None:
                raise LaunchError("there is no peer")
            self.container = await site.peer.invoke(chaincode_id)
        except LaunchError as error:
            self.error = str(error)
        self._world.note(f"a request of {site.peer}: {self}")
        self.over = True

    def __str__(self) -> str:
        return self.container.name if self.container else self.error or "no answer"


def _job_uid(container: Container) -> str:
    return container.pod.job_uid


def _clock(world: World) -> Any:
    class Clock(datetimes.datetime):
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> Any:
            return (EPOCH + datetimes.timedelta(seconds=world.now)).astimezone(tz)

    return Clock
