"""What may happen to peers, daemons and their cluster, one thing after another, in whatever order somebody draws.

A play is a list of acts, each a name and three numbers; it can be written down and played again. In the end everything
behaves, and then it must come out well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.simulation.api import Fault
from tests.simulation.client import Client
from tests.simulation.cluster import Container, Program
from tests.simulation.world import CHAINCODES, Site, World

WAITS = (0.05, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 45, 70, 140, 320)
VERBS = (
    ("create", "jobs"),
    ("create", "secrets"),
    ("get", "jobs"),
    ("get", "pods"),
    ("delete", "jobs"),
    ("list", "events"),
    ("list", "jobs"),
    ("list", "pods"),
    ("watch", "jobs"),
    ("watch", "pods"),
    ("log", "pods"),
)
WHATS = (
    "refused",
    "lost",
    "late",
    "hang",
    "slow",
    "401",
    "403",
    "429",
    "500",
    "503",
    "silent",
    "short",
    "cut",
    "expired",
    "page",
)
PROGRAMS = (
    Program(),
    Program(),
    Program(exits_after=0.05, connects_after=1.0, code=1),
    Program(exits_after=1.5, code=1),
    Program(exits_after=30.0, code=0),
    Program(obeys=False, ends_with_stream=False),
    Program(ends_with_stream=False),
    Program(connects_after=8.0),
    Program(prints_every=500.0),
)


@dataclass(frozen=True)
class Setting:
    """Where a play takes place."""

    sites: int = 1
    one_instance: bool = False
    tls: bool = True
    own_pod: bool = True
    startup_timeout: float = 40.0
    start_timeout: str = ""
    clock: float = 0.0
    tells_start: bool = True

    @classmethod
    def draw(cls, random: Random, *, apart: bool = False) -> "Setting":
        """Return one at random."""
        return cls(
            random.choice([1, 1, 2]),
            random.random() < 0.5 and not apart,
            random.random() < 0.7,
            random.random() < 0.7,
            random.choice([20.0, 40.0, 300.0]),
            random.choice(["", "", "15s", "2m"]),
            random.choice([0.0, 0.0, 3.0, -3.0]),
            random.random() < 0.8,
        )


Act = tuple[str, int, int, int]


class Play:
    """One play in a world of its own."""

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting = setting
        self.seed = seed
        self.world = World(seed)
        self.acts: list[Act] = []
        self.world.__enter__()
        for node in self.world.cluster.nodes:
            node.clock = setting.clock
        for number in range(setting.sites):
            self.world.site(
                f"peer{number}",
                "all" if setting.one_instance else "",
                tls=setting.tls,
                own_pod=setting.own_pod,
                startup_timeout=setting.startup_timeout,
                start_timeout=setting.start_timeout,
                tells_start=setting.tells_start,
            )

    # Playing

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all acts."""
        return [name.removeprefix("_act_") for name in vars(cls) if name.startswith("_act_")]

    def act(self, name: str, where: int, which: int, how: int) -> None:
        """Do one thing, and see whether all is well.

        :raises AssertionError: if it is not.
        """
        self.acts.append((name, where, which, how))
        self.world.note(f"--- {name} {where} {which} {how}")
        site = self.world.sites[where % len(self.world.sites)]
        act: Callable[[Site, int, int], None] = getattr(self, f"_act_{name}")
        act(site, which, how)
        self.world.advance(0.01)
        self.check()

    def play(self, acts: Sequence[Act]) -> None:
        """Do all of it, and come to the end."""
        for act in acts:
            self.act(*act)
        self.finish()

    def check(self) -> None:
        """Raise AssertionError if something was wrong so far, with what has to be done to see it again."""
        try:
            self.world.check()
        except AssertionError as error:
            error.add_note(f"Play({self.setting}, {self.seed}).play({self.acts})")
            raise

    def finish(self) -> None:
        """Have everything behave, and see that it comes out well."""
        world = self.world
        world.heal()
        for site in world.sites:
            if site.daemon is None or not site.daemon.alive:
                world.start_daemon(site)
            if site.peer is None:
                world.start_peer(site)
        world.advance(90)  # what was told to end ends, and what nobody has claimed
        for site in world.sites:
            world.works(site, 0, requests=6, seconds=site.startup_timeout + 60)
            self.check()
        for site in world.sites:
            world.stays(site)
            self.check()
        world.ends_in_time()
        self.check()
        world.nothing_left()
        self.check()
        world.no_task_left()
        self.check()

    def close(self) -> None:
        """Leave it, however it was."""
        self.world.__exit__(AssertionError, None, None)

    # Whom it happens to

    def _container(self, site: Site, which: int) -> Container | None:
        alive = [it for it in self.world.cluster.alive() if it.key[2] == site.address]
        return alive[which % len(alive)] if alive else None

    def _run(self, site: Site, which: int) -> Client | None:
        runs = [it for it in self.world.running() if it.site is site]
        return runs[which % len(runs)] if runs else None

    def _object(self, plural: str, which: int) -> str:
        names = [name for name, item in self.world.cluster.objects[plural].items() if item["metadata"].get("labels")]
        return names[which % len(names)] if names else ""

    def _call(self, action: Callable[..., object], *args: object) -> None:
        self.world.sim.call(action, *args)

    # What happens: time, and requests

    def _act_wait(self, _: Site, which: int, how: int) -> None:
        self.world.advance(WAITS[(which + how) % len(WAITS)])

    def _act_ask(self, site: Site, which: int, how: int) -> None:
        self.world.ask(site, which % 4 // 3)
        self.world.advance(WAITS[how % len(WAITS)] if how % 2 else 0)

    def _act_ask_and_wait(self, site: Site, which: int, _: int) -> None:
        self.world.request(site, which % 4 // 3, site.startup_timeout + 30)

    # Chaincode

    def _act_crash(self, site: Site, which: int, how: int) -> None:
        if (container := self._container(site, which)) is not None:
            self._call(container.exit, (0, 1, 3, 139)[how % 4])
            if how % 3 == 0:
                self.world.request(site, CHAINCODES.index(container.key[0]), site.startup_timeout + 30)

    def _act_change_program(self, _: Site, which: int, __: int) -> None:
        self.world.cluster.image.program = PROGRAMS[which % len(PROGRAMS)]

    def _act_change_image(self, _: Site, __: int, how: int) -> None:
        self.world.cluster.image.there = how % 2 == 0

    def _act_print(self, site: Site, which: int, how: int) -> None:
        if (container := self._container(site, which)) is not None:
            self._call(container.print, 1 + how % 40)

    # Runs

    def _act_kill_run(self, site: Site, which: int, _: int) -> None:
        if (run := self._run(site, which)) is not None:
            self._call(run.kill)

    def _act_terminate_run(self, site: Site, which: int, _: int) -> None:
        if (run := self._run(site, which)) is not None:
            self._call(run.terminate)

    def _act_slow_runs(self, _: Site, which: int, how: int) -> None:
        """Have the `run`s that are started from now on come late, or no longer."""
        self.world.late = WAITS[which % 12] if how % 2 else 0.0

    def _act_freeze_run(self, site: Site, which: int, _: int) -> None:
        if (run := self._run(site, which)) is not None:
            self._call(run.freeze)

    def _act_thaw_runs(self, _: Site, __: int, ___: int) -> None:
        for run in self.world.running():
            self._call(run.thaw)

    # Peers and daemons

    def _act_stop_chaincode(self, site: Site, which: int, _: int) -> None:
        if site.peer is not None:
            self._call(site.peer.stop, CHAINCODES[which % len(CHAINCODES)])

    def _act_restart_peer(self, site: Site, which: int, how: int) -> None:
        self.world.end_peer(site, gracefully=bool(how & 1), kills=bool(how & 2))
        self.world.advance(WAITS[which % 9])
        self.world.start_peer(site)

    def _act_restart_daemon(self, site: Site, which: int, how: int) -> None:
        self.world.end_daemon(site, crash=bool(how % 2))
        self.world.advance(WAITS[which % 11])
        self.world.start_daemon(site)

    def _act_end_daemon(self, site: Site, _: int, how: int) -> None:
        self.world.end_daemon(site, crash=bool(how % 2))

    def _act_start_daemon(self, site: Site, _: int, __: int) -> None:
        if site.daemon is None:
            self.world.start_daemon(site)

    def _act_replace_pod(self, site: Site, which: int, _: int) -> None:
        """The peer's pod goes with all that is in it, and comes back with another uid."""
        self.world.end_peer(site, gracefully=True, kills=True)
        self.world.advance(0.2)
        for run in self.world.running():
            if run.site is site:
                self._call(run.kill)
        self.world.end_daemon(site)
        if site.pod is not None:
            self._call(self.world.cluster.remove, "pods", site.pod["name"], site.pod["uid"])
        self.world.advance(WAITS[which % 9])
        self.world.start_pod(site)
        self.world.start_daemon(site)
        self.world.start_peer(site)

    # People and the cluster

    def _act_delete_job(self, _: Site, which: int, how: int) -> None:
        if name := self._object("jobs", which):
            self._call(lambda: self.world.cluster.delete("jobs", name, orphan=how % 5 == 0))

    def _act_delete_pod(self, _: Site, which: int, how: int) -> None:
        if name := self._object("pods", which):
            self._call(lambda: self.world.cluster.delete("pods", name, force=how % 3 == 0))

    def _act_refuse_pods(self, _: Site, __: int, how: int) -> None:
        self.world.cluster.refuses_pods = how % 2 == 0

    def _act_fill_nodes(self, _: Site, __: int, how: int) -> None:
        self.world.cluster.schedulable = how % 2 == 1

    def _actor(self, which: int) -> Any:
        cluster = self.world.cluster
        return (cluster.controller, cluster.scheduler, *cluster.nodes)[which % 4]

    def _act_stop_actor(self, _: Site, which: int, __: int) -> None:
        self._actor(which).down = True

    def _act_slow_actor(self, _: Site, which: int, how: int) -> None:
        self._actor(which).slowness = 1.0 + how % 10

    def _act_resume_actors(self, _: Site, __: int, ___: int) -> None:
        for which in range(4):
            self._call(self._actor(which).resume)

    # The API

    def _act_fail(self, site: Site, which: int, how: int) -> None:
        if site.daemon is not None:
            verb, plural = VERBS[which % len(VERBS)]
            what = WHATS[how % len(WHATS)]
            site.daemon.api.faults.append(Fault(verb, plural, what, 1 + (which + how) % 4))

    def _act_forget_faults(self, site: Site, _: int, __: int) -> None:
        if site.daemon is not None:
            site.daemon.api.faults.clear()

    def _act_lose_api(self, site: Site, _: int, how: int) -> None:
        if site.daemon is not None:
            self._call(site.daemon.api.lose)
            self.world.advance(WAITS[how % len(WAITS)])
            self._call(site.daemon.api.heal)

    def _act_restart_api(self, _: Site, __: int, how: int) -> None:
        daemons = [site.daemon for site in self.world.sites if site.daemon is not None]
        for daemon in daemons:
            self._call(daemon.api.lose)
        self.world.advance(WAITS[how % 10])
        self.world.cluster.oldest = self.world.cluster.version
        for daemon in daemons:
            daemon.api.up = True
            daemon.api.faults.insert(0, Fault("*", "*", "403", 1 + how % 3))

    def _act_delay_watches(self, site: Site, which: int, how: int) -> None:
        if site.daemon is not None:
            plurals = (("jobs",), ("pods",), ("jobs", "pods"))[which % 3]
            site.daemon.api.lag.update(dict.fromkeys(plurals, WAITS[how % 10]))

    def _act_break_streams(self, site: Site, which: int, how: int) -> None:
        if site.daemon is not None:
            api = site.daemon.api
            what = ("jobs", "pods", "log")[which % 3]
            self._call(*((api.drop, what), (api.silence, what), (api.expire,))[how % 3])
