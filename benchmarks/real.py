"""A real etcd and kube-apiserver, and builders whose `run` programs are started as a peer starts them.

No controller and no node is there, so a Job gets no pod until `benchmarks.node` gives it one. When Jobs and Secrets
appear is read from the API server's audit log: so nothing that is measured has to look for them.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import click

from benchmarks.apiserver import kubeconfig
from benchmarks.groups import Group, groups
from benchmarks.node import Node, open_node
from benchmarks.plan import Plan
from benchmarks.scene import Cluster, Daemon, Run, chaincode_json, cpu_seconds, image_json, memory
from k8s_builder.programs import install
from tests.embedded.realserver import TOKEN, RealServer, started
from tests.kube.certificates import Authority

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["create", "patch"],
            "resources": [{"group": "batch", "resources": ["jobs"]}, {"group": "", "resources": ["secrets"]}],
        },
        {"level": "None"},
    ],
}

PYTHON = Path(sys.executable).resolve()
PREFIX = "hlfcc-"
PATIENCE = 120.0
LOOK = 0.02
"""Seconds between two looks at the audit log."""
SETTLE = 3.0
"""Seconds after which chaincode that was launched does nothing but run."""
BESIDE = 300
"""Chaincodes that run beside those that are started."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_numbers = count()


class Launch:
    """One `run` program of a builder: its process, and when it was started."""

    def __init__(self, label: str, pid: int, began: float) -> None:
        self.label = label
        self.pid = pid
        self.began = began
        self._exits = os.pidfd_open(pid)

    async def stop(self) -> float:
        """Have it end as a peer does, and return the seconds until it has."""
        began = time.monotonic()
        os.kill(self.pid, signal.SIGTERM)
        await self.exit()
        return time.monotonic() - began

    async def exit(self) -> None:
        """Wait for its end."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._exits, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._exits)
        self._reap()

    def _reap(self) -> None:
        os.close(self._exits)
        os.waitpid(self.pid, 0)


class Builder:
    """The `run` of a builder, and its daemon where it has one."""

    def __init__(self, run: Path, directory: Path, environment: Mapping[str, str], daemon: Daemon | None) -> None:
        self._run = run
        self._directory = directory
        self._environment = {"CORE_PEER_ID": "peer0.org1.example.com", **environment}
        self._daemon = daemon
        directory.mkdir()
        (directory / "image.json").write_bytes(image_json("idle"))

    def launch(self, many: int, group: Group | None = None) -> list[Launch]:
        """Start so many programs at once, in a CPU group of theirs where one is given."""
        labels = [f"cc{next(_numbers)}" for _ in range(many)]
        for label in labels:
            (self._directory / label).mkdir()
            (self._directory / label / "chaincode.json").write_bytes(chaincode_json(label))
        output = [(os.POSIX_SPAWN_OPEN, number, str(self._log), _APPEND, 0o600) for number in (1, 2)]
        launches = []
        for label in labels:
            command = [str(self._run), str(self._directory), str(self._directory / label)]
            began = time.time()
            pid = os.posix_spawn(command[0], command, self._environment, file_actions=output)
            if group is not None:
                group.put(pid)
            launches.append(Launch(label, pid, began))
        return launches

    def cpu(self, launches: list[Launch]) -> float:
        """Return the CPU seconds of these programs, and of the daemon."""
        return sum(cpu_seconds(each.pid) for each in launches) + (self._daemon.cpu if self._daemon is not None else 0)

    def memory(self, launches: list[Launch]) -> float:
        """Return the memory of these programs, and of the daemon, in MB."""
        return sum(memory(each.pid) for each in launches) + (memory(self._daemon.process.pid) if self._daemon else 0)

    @property
    def said(self) -> str:
        """The end of what its programs have written."""
        return self._log.read_text()[-2000:] if self._log.exists() else ""

    @property
    def _log(self) -> Path:
        return self._directory / "run.log"


class RealCluster(Cluster):
    """A server of one's own, and its daemons."""

    def __init__(self, directory: Path, server: RealServer, authority: Authority) -> None:
        super().__init__(directory)
        self.server = server
        self.authority = authority
        self._audit = directory / "audit.log"
        self._read = 0
        self._made: dict[str, dict[str, float]] = {"jobs": {}, "secrets": {}}

    @property
    def cpu(self) -> float:
        """The CPU seconds that etcd and the API server have taken."""
        return sum(cpu_seconds(pid) for pid in self.server.pids)

    def builder(self, run: Path, daemon: Daemon | None = None, **environment: str) -> Builder:
        """Return a builder whose programs find this cluster."""
        self._count += 1
        environment = {"KUBECONFIG_PATH": str(self.kubeconfig), **environment}
        return Builder(run, self.directory / f"peer{self._count}", environment, daemon)

    async def made(self, builder: Builder, launches: list[Launch]) -> tuple[list[float], list[float]]:
        """Wait until each launch has its Job and its Secret; return the seconds until the Job, and until both."""
        deadline = time.monotonic() + PATIENCE
        jobs, secrets = self._made["jobs"], self._made["secrets"]
        while not all(each.label in jobs and each.label in secrets for each in launches):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not each launch has its Job and Secret: {builder.said}")
            await asyncio.sleep(LOOK)
            self._read_audit()
        both = [max(jobs[each.label], secrets[each.label]) - each.began for each in launches]
        return [jobs[each.label] - each.began for each in launches], both

    def _read_audit(self) -> None:
        with self._audit.open("rb") as file:
            file.seek(self._read)
            lines, _, _ = file.read().rpartition(b"\n")
        self._read += len(lines) + 1 if lines else 0
        for line in lines.splitlines():
            event = json.loads(line)
            found = event["objectRef"]
            if event["responseStatus"]["code"] in (200, 201) and found["name"].startswith(PREFIX):
                label = found["name"].removeprefix(PREFIX).partition("-")[0]
                at = datetime.fromisoformat(event["stageTimestamp"]).timestamp()
                self._made[found["resource"]].setdefault(label, at)

    async def clear(self) -> None:
        """Delete all Jobs and Secrets: each round finds as few as the first."""
        for kind in ("apis/batch/v1/namespaces/default/jobs", "api/v1/namespaces/default/secrets"):
            status = await asyncio.to_thread(self.server.call, "DELETE", f"/{kind}?propagationPolicy=Background")
            if status != 200:
                raise RuntimeError(f"deleting {kind} was answered with {status}")


@asynccontextmanager
async def open_cluster(assets: Path) -> AsyncIterator[RealCluster]:
    """Start etcd and an API server from `assets`, and end them at the end."""
    with TemporaryDirectory(prefix="kb-") as name:
        directory = Path(name)
        authority = Authority(directory)
        certificate, key = authority.issue("server", "127.0.0.1")
        (directory / "policy.json").write_text(json.dumps(POLICY))
        arguments = [
            f"--audit-policy-file={directory / 'policy.json'}",
            f"--audit-log-path={directory / 'audit.log'}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
        ]
        with started(assets, directory, *arguments) as server:
            kubeconfig(directory, server.server, authority, TOKEN)
            yield RealCluster(directory, server, authority)


# What is measured


@dataclass
class Pairs:
    """The samples of one thing, each builder's, and what pairs of them make."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def take(self, ours: list[float], theirs: list[float]) -> None:
        """Take in the samples of one round; there are no others where there is no other builder."""
        self.ours += ours
        self.theirs += theirs
        if any(theirs):
            self.ratios.append(median(ours) / median(theirs))

    def add(self, plan: Plan, what: str, unit: str, scale: float = 1.0) -> None:
        """Make a figure of them."""
        plan.add(
            what,
            unit,
            [each * scale for each in self.ours],
            "the Go builder" if self.theirs else "",
            self.ratios,
            [each * scale for each in self.theirs],
        )


@dataclass
class Round:
    """What a builder took for some launches at once, by launch: seconds, and CPU seconds."""

    to_job: list[float] = field(default_factory=list)
    to_both: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)


async def real(plan: Plan) -> None:
    """Launches of whole programs against a real API server, in pairs with the Go builder's."""
    if plan.assets is None:
        click.echo("real: left out, because neither --assets nor KUBEBUILDER_ASSETS names a folder", err=True)
        return
    async with (
        open_cluster(plan.assets) as cluster,
        open_node(cluster.server, cluster.authority) as node,
        cluster.daemon() as daemon,
    ):
        programs = cluster.directory / "programs"
        install(programs, PYTHON)
        ours = cluster.builder(programs / "bin/run", daemon, FABRIC_K8S_BUILDER_SOCKET=str(daemon.socket))
        theirs = cluster.builder(plan.go_builder / "run") if plan.go_builder is not None else None
        for builder in filter(None, (ours, theirs)):
            await once(cluster, builder, 2)  # warms up
        for many, rounds, name in ((1, plan.of(30, 3), "one at a time"), (35, plan.of(10, 2), "35 at once")):
            job, both, cpu, server = Pairs(), Pairs(), Pairs(), Pairs()
            for turn in range(rounds):
                mine, other = await in_turn(cluster, ours, theirs, many, ours_first=turn % 2 == 0)
                job.take(mine.to_job, other.to_job)
                both.take(mine.to_both, other.to_both)
                cpu.take(mine.cpu, other.cpu)
                server.take(mine.server, other.server)
            job.add(plan, f"from exec to the Job, {name}", "ms", 1e3)
            both.add(plan, f"from exec to Job and Secret, {name}", "ms", 1e3)
            cpu.add(plan, f"CPU of a launch, {name}", "ms CPU", 1e3)
            server.add(plan, f"CPU of API server and etcd for it, {name}", "ms CPU", 1e3)
        await running(plan, cluster, node, ours, theirs)
        await crowd(plan, cluster, node, ours, daemon)


async def in_turn(
    cluster: RealCluster, ours: Builder, theirs: Builder | None, many: int, *, ours_first: bool
) -> tuple[Round, Round]:
    """Have each builder launch as many at once, one builder after the other."""
    if theirs is None:
        return await once(cluster, ours, many), Round()
    if ours_first:
        return await once(cluster, ours, many), await once(cluster, theirs, many)
    other = await once(cluster, theirs, many)
    return await once(cluster, ours, many), other


async def once(cluster: RealCluster, builder: Builder, many: int) -> Round:
    """Launch as many at once, and end them."""
    cpu, server = builder.cpu([]), cluster.cpu
    launches = builder.launch(many)
    to_job, to_both = await cluster.made(builder, launches)
    taken = Round(to_job, to_both, [(builder.cpu(launches) - cpu) / many], [(cluster.cpu - server) / many])
    await asyncio.gather(*(each.stop() for each in launches))
    await cluster.clear()
    return taken


async def running(plan: Plan, cluster: RealCluster, node: Node, ours: Builder, theirs: Builder | None) -> None:
    """What chaincode that runs costs."""
    many, seconds = 50, plan.of(30, 5)
    memory, cpu = Pairs(), Pairs()
    for _ in range(plan.of(3, 1)):
        found: list[tuple[list[float], list[float]]] = []
        for builder in filter(None, (ours, theirs)):
            launches = builder.launch(many)
            await cluster.made(builder, launches)
            await node.run_all()
            await asyncio.sleep(SETTLE)
            before = builder.cpu(launches)
            await asyncio.sleep(seconds)
            found.append(([builder.memory(launches)], [(builder.cpu(launches) - before) / seconds * 100]))
            await asyncio.gather(*(each.stop() for each in launches))
            await cluster.clear()
            await node.collect()
        mine, other = found if len(found) == 2 else (*found, ([], []))
        memory.take(mine[0], other[0])
        cpu.take(mine[1], other[1])
    memory.add(plan, f"memory while {many} chaincodes run, programs and daemon", "MB")
    cpu.add(plan, f"CPU while {many} chaincodes run, programs and daemon", "% of a core")


async def crowd(plan: Plan, cluster: RealCluster, node: Node, builder: Builder, daemon: Daemon) -> None:
    """Stops and probes while a peer starts 50 chaincodes beside 300: in one CPU group, and as in containers."""
    await stops(plan, cluster, node, builder, daemon)
    with groups("peer", "daemon", "server", "measuring") as made:
        if not made:
            click.echo("real: this user may make no CPU groups", err=True)
            return
        peer, its_daemon, server, measuring = made
        its_daemon.put(daemon.process.pid)
        server.put(*cluster.server.pids)
        measuring.put(os.getpid())
        await stops(plan, cluster, node, builder, daemon, peer)


async def stops(
    plan: Plan, cluster: RealCluster, node: Node, builder: Builder, daemon: Daemon, group: Group | None = None
) -> None:
    """Stop and probe while a peer starts 50 chaincodes, in a CPU group of its own or not, for as long as that takes."""
    stopped: list[float] = []
    exits: list[float] = []
    probes: list[float] = []
    beside: list[Run] = []
    for _ in range(plan.of(25, 2)):
        for _ in range(len(beside), BESIDE, 20):
            new = [await Run.open(daemon.socket, "idle", f"beside{next(_numbers)}") for _ in range(20)]
            await asyncio.gather(*(run.until(lambda run: run.job) for run in new))
            beside += new
        await node.run_all()
        await asyncio.gather(*(run.until(lambda run: run.lines) for run in beside))
        victims = builder.launch(20, group)
        await cluster.made(builder, victims)
        starting = asyncio.create_task(fifty(cluster, builder, group))
        while victims and not starting.done():
            stopped.append(await beside.pop().stop() * 1e3)
            probes.append(await daemon.probe() * 1e3)
            exits.append(await victims.pop().stop() * 1e3)
        await asyncio.gather(*(each.stop() for each in [*await starting, *victims]))
        await node.collect()
    await asyncio.gather(*(run.stop() for run in beside))
    await cluster.clear()
    await node.collect()
    how = "as in containers" if group is not None else "all in one CPU group"
    plan.add(f"a stop while a peer starts 50 beside {BESIDE}, {how}", "ms", stopped)
    plan.add(f"from SIGTERM to run's exit meanwhile, {how}", "ms", exits)
    plan.add(f"/livez meanwhile, {how}", "ms", probes)


async def fifty(cluster: RealCluster, builder: Builder, group: Group | None) -> list[Launch]:
    """Start 50 chaincodes as a peer does, in a thread of its own, and wait for their Jobs."""
    launches = await asyncio.to_thread(builder.launch, 50, group)
    await cluster.made(builder, launches)
    return launches
