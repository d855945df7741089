"""Measures the daemon and its programs with one command: a table, JSON, and a page with plots.

    python -m benchmarks [OPTIONS] [NAME ...]        # --help

Everything but `real` runs against a stand-in API server over TLS on this machine (benchmarks/apiserver.py). What is
compared is measured in turn, one run of each after the other: the ratio is the median of these pairs. Nothing here has
a verdict.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import click

from benchmarks import relist
from benchmarks.figures import Plot, show, write_json, write_page
from benchmarks.plan import Plan
from benchmarks.real import real
from benchmarks.scene import Daemon, Run, Scene, cpu_seconds, open_scene
from k8s_builder.programs import install

Command = list[str]

PYTHON = Path(sys.executable).resolve()


# The programs


def cpu_of(command: Command) -> float:
    """Run a command, and return the CPU milliseconds that it took."""
    quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    pid = os.posix_spawn(command[0], command, {}, file_actions=quiet)
    _, _, usage = os.wait4(pid, 0)
    return (usage.ru_utime + usage.ru_stime) * 1e3


def in_turn(times: int, first: Command, *others: Command) -> list[list[float]]:
    """Run commands in turn, after once for warming up."""
    commands = (first, *others)
    for command in commands:
        cpu_of(command)
    rounds = [[cpu_of(command) for command in commands] for _ in range(times)]
    return [list(samples) for samples in zip(*rounds, strict=True)]


async def client(plan: Plan) -> None:
    """What a `detect` of another type of package costs, in CPU: a peer asks each of its builders."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        python = PYTHON
        (directory / "metadata.json").write_text('{"type":"golang","label":"x"}')
        arguments = [name, name]
        install(directory / "given", python)
        install(directory / "found")
        bare = [str(python), "-I", "-S", "-c", "pass"]
        commands = {
            "detect, its Python given": [str(directory / "given/bin/detect"), *arguments],
            "detect, through the shell": [str(directory / "found/bin/detect"), *arguments],
        }
        if plan.go_builder is not None:
            commands["detect of the Go builder"] = [str(plan.go_builder / "detect"), *arguments]
        base, *found = in_turn(plan.of(60, 10), bare, *commands.values())
        plan.add("python3 -I -S -c pass", "ms CPU", base)
        for what, samples in zip(commands, found, strict=True):
            plan.add(what, "ms CPU", samples, "bare Python", [a / b for a, b in zip(samples, base, strict=True)])


# The daemon


async def launches(scene: Scene, socket: Path, count: int, image: str, name: str, together: int = 10) -> list[Run]:
    """Launch so many chaincodes, a few at a time, and wait until each has its first line."""
    runs: list[Run] = []
    for start in range(0, count, together):
        labels = [f"{name}{index}" for index in range(start, min(count, start + together))]
        new = await asyncio.gather(*(Run.open(socket, image, label) for label in labels))
        await asyncio.gather(*(run.until(lambda run: run.lines >= 1 and run.job) for run in new))
        runs += new
    return runs


async def many(plan: Plan) -> None:
    """Memory, CPU and pauses by the number of chaincodes."""
    sizes = [10, 100, 400] if plan.quick else [10, 100, 300, 1000]
    extra = 40
    costs: dict[int, list[float]] = {}
    memory: list[tuple[float, float]] = []
    ratios: dict[int, list[float]] = {}
    async with open_scene() as scene, scene.daemon() as daemon, scene.daemon() as other:
        await asyncio.sleep(1)
        beside_few = await launches(scene, other.socket, sizes[0], "idle", "few-")
        memory.append((0, daemon.total))
        plan.add("memory without chaincode", "MB", [daemon.total])
        runs: list[Run] = []
        for size in sizes:
            runs += await launches(scene, daemon.socket, size - len(runs), "idle", f"n{size}-")
            memory.append((size, daemon.total))
            costs[size], ratios[size] = [], []
            for turn in range(plan.of(9, 3)):
                names = f"m{size}-{turn}-", f"o{size}-{turn}-"
                mine = await cpu_of_launches(scene, daemon, extra, names[0])
                costs[size].append(mine)
                ratios[size].append(mine / await cpu_of_launches(scene, other, extra, names[1]))
        most = sizes[-1]
        plan.add(f"memory at {most:,} chaincodes", "MB", [memory[-1][1]])
        against = f"another daemon, beside {sizes[0]}"
        for size in sizes:
            plan.add(f"a launch's CPU beside {size:,} chaincodes", "ms CPU", costs[size], against, ratios[size])
        before = daemon.cpu
        idle = plan.of(20, 5)
        await asyncio.sleep(idle)
        plan.add(f"CPU while {most:,} chaincodes are idle", "% of a core", [(daemon.cpu - before) / idle * 100])
        pauses = [await longest_pauses(daemon) for _ in range(plan.of(5, 2))]
        for name in ("pause wall", "pause CPU", "collection wall", "collection CPU"):
            found = [pause.get(name, 0.0) for pause in pauses]
            what, kind = name.split()
            about = f"longest {what} in 2 s of launches and stops beside {most:,}"
            plan.add(about, "ms" if kind == "wall" else "ms CPU", found)
        stops = [await run.stop() * 1e3 for run in runs[: plan.of(20, 5)]]
        plan.add(f"a stop beside {most:,} chaincodes", "ms", stops)
        await asyncio.gather(*(run.stop() for run in [*runs[plan.of(20, 5) :], *beside_few]))
        if not plan.quick:
            await asyncio.sleep(180)
            plan.add("memory 3 min after all have been stopped", "MB", [daemon.total])
    plan.plots.append(
        Plot(
            "chaincodes",
            "Memory by the number of chaincodes",
            "chaincodes",
            "resident memory (MB)",
            {"k8s-builderd": memory},
        )
    )
    plan.plots.append(
        Plot(
            "launch",
            "The daemon's CPU for one launch, by the number of chaincodes beside it",
            "chaincodes",
            "CPU (ms)",
            {"k8s-builderd": [(size, median(costs[size])) for size in sizes]},
        )
    )


async def cpu_of_launches(scene: Scene, daemon: Daemon, count: int, name: str) -> float:
    """Launch so many chaincodes, stop them again, and return the daemon's CPU for each launch in ms."""
    before = daemon.cpu
    runs = await launches(scene, daemon.socket, count, "idle", name)
    cpu = (daemon.cpu - before) / count * 1e3
    await asyncio.gather(*(run.stop() for run in runs))
    return cpu


async def longest_pauses(daemon: Daemon) -> dict[str, float]:
    """Launch and stop for 2 s; return the longest pauses of the daemon's event loop meanwhile, in ms."""
    deadline = time.monotonic() + 2
    turn = 0
    async with daemon.watched() as found:
        while time.monotonic() < deadline:
            turn += 1
            run = await Run.open(daemon.socket, "idle", f"churn{turn}")
            await run.until(lambda run: run.lines >= 1)
            await run.stop()
    return found


async def one(plan: Plan) -> None:
    """A launch, an end and a stop, of one chaincode."""
    to_job, ends, stops = [], [], []
    async with open_scene() as scene, scene.daemon() as daemon:
        warm = await launches(scene, daemon.socket, 2, "idle", "warm")
        for turn in range(plan.of(25, 5)):
            began = time.monotonic()
            [run] = await launches(scene, daemon.socket, 1, "idle", f"one{turn}-")
            times = await scene.control("times")
            to_job.append((times[f"jobs/{run.job}"] - began) * 1e3)
            await scene.control(f"end/{run.job}-x", "POST")
            await run.end()
            times = await scene.control("times")
            ends.append((run.ended_at - times[f"ended/{run.job}-x"]) * 1e3)
            [run] = await launches(scene, daemon.socket, 1, "idle", f"stop{turn}-")
            stops.append(await run.stop() * 1e3)
        await asyncio.gather(*(run.stop() for run in warm))
        plan.add("from the request to the Job", "ms", to_job)
        plan.add("from the pod's end to the exit code", "ms", ends)
        plan.add("a stop", "ms", stops)
    plan.plots.append(
        Plot(
            "breakdown",
            "One chaincode's life: the time that each step takes",
            "",
            "ms (median)",
            {
                "request to Job": [(0, median(to_job))],
                "pod's end to exit code": [(0, median(ends))],
                "stop": [(0, median(stops))],
            },
            bars=True,
        )
    )


async def bursts(plan: Plan) -> None:
    """Launches all at once, with probes and stops meanwhile."""
    async with open_scene() as scene, scene.daemon() as daemon:
        jobs: list[float] = []
        for turn in range(plan.of(5, 2)):
            began = time.monotonic()
            runs = await launches(scene, daemon.socket, 35, "idle", f"burst{turn}-", together=35)
            times = await scene.control("times")
            jobs += [(times[f"jobs/{run.job}"] - began) * 1e3 for run in runs]
            await asyncio.gather(*(run.stop() for run in runs))
        plan.add("from 35 requests at once to each Job", "ms", jobs)
        stops: list[float] = []
        probes: list[float] = []
        for turn in range(plan.of(5, 2)):
            victims = await launches(scene, daemon.socket, 10, "idle", f"victim{turn}-")
            starting = asyncio.create_task(launches(scene, daemon.socket, 50, "idle", f"peer{turn}-", together=50))
            for victim in victims:
                stops.append(await victim.stop() * 1e3)
                probes.append(await daemon.probe() * 1e3)
            await asyncio.gather(*(run.stop() for run in await starting))
        plan.add("a stop while a peer starts 50 chaincodes", "ms", stops)
        plan.add("/livez while a peer starts 50 chaincodes", "ms", probes)


async def logs(plan: Plan) -> None:
    """A log at full speed, and a stop beside it."""
    seconds = plan.of(4, 2)
    ours: list[float] = []
    cpu: list[float] = []
    theirs: list[float] = []
    their_cpu: list[float] = []
    stops: list[float] = []
    async with open_scene() as scene, scene.daemon() as daemon:
        for turn in range(plan.of(5, 2)):
            [flood] = await launches(scene, daemon.socket, 1, "flood", f"flood{turn}-")
            [idle] = await launches(scene, daemon.socket, 1, "idle", f"beside{turn}-")
            await flood.until(lambda run: run.lines > 10_000)
            used, lines, began = daemon.cpu, flood.lines, time.monotonic()
            await asyncio.sleep(seconds)
            count = flood.lines - lines
            ours.append(count / (time.monotonic() - began))
            cpu.append((daemon.cpu - used) / count * 1e6)
            stops.append(await idle.stop() * 1e3)
            if plan.kubectl is not None:
                flood.take_nothing()
                rate, used = await kubectl(plan.kubectl, scene.directory / "kubeconfig", f"{flood.job}-x", seconds)
                flood.take_all()
                theirs.append(rate)
                their_cpu.append(used)
            await flood.stop()
    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
    plan.add("lines of a log, one line 130 bytes", "lines/s", ours, "kubectl logs -f" if theirs else "", ratios, theirs)
    ratios = [a / b for a, b in zip(cpu, their_cpu, strict=False)]
    plan.add("CPU for a million lines", "s", cpu, "kubectl logs -f" if theirs else "", ratios, their_cpu)
    plan.add("a stop beside a log at full speed", "ms", stops)
    series = {"k8s-builderd": [(0.0, median(ours))]}
    if theirs:
        series["kubectl logs -f"] = [(0.0, median(theirs))]
    plan.plots.append(Plot("logs", "A log at full speed", "", "lines a second (median)", series, bars=True))


async def kubectl(program: Path, kubeconfig: Path, pod: str, seconds: float) -> tuple[float, float]:
    """Follow the same log with kubectl; return lines a second, and CPU seconds for a million of them."""
    command = [str(program), f"--kubeconfig={kubeconfig}", "logs", "-f", "--timestamps", pod, "-c", "chaincode"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, limit=1 << 20)
    lines = 0
    while lines < 10_000:  # what it does before that is not the log
        lines += await _lines_read(process)
    used, lines, began = cpu_seconds(process.pid), 0, time.monotonic()
    while time.monotonic() < began + seconds:
        lines += await _lines_read(process)
    elapsed = time.monotonic() - began
    used = cpu_seconds(process.pid) - used
    process.kill()
    await process.wait()
    return lines / elapsed, used / lines * 1e6


async def _lines_read(process: asyncio.subprocess.Process) -> int:
    assert process.stdout is not None
    if not (data := await process.stdout.read(1 << 18)):
        raise click.ClickException(f"kubectl has ended with {await process.wait()}")
    return data.count(b"\n")


async def api(plan: Plan) -> None:
    """What the API server is asked for by one launch, one stop, and a thousand daemons that it has left."""
    async with open_scene() as scene, scene.daemon() as daemon:
        warm = await launches(scene, daemon.socket, 1, "idle", "warm")
        before = await scene.control("asked")
        [run] = await launches(scene, daemon.socket, 1, "idle", "asked")
        launched = await scene.control("asked")
        await asyncio.sleep(plan.of(10, 2))
        idle = await scene.control("asked")
        await run.stop()
        stopped = await scene.control("asked")
        await asyncio.gather(*(run.stop() for run in warm))
    plan.add("requests for a launch", "", [float(sum(launched.values()) - sum(before.values()))])
    plan.add("requests while idle", "", [float(sum(idle.values()) - sum(launched.values()))])
    plan.add("requests for a stop", "", [float(sum(stopped.values()) - sum(idle.values()))])
    seconds = range(int(relist.AWAY) + 10)
    spread, together = relist.requests(), relist.requests(jitter=False)
    plan.add("most requests in 0.1 s by 1,000 daemons after an outage", "", [float(relist.most_on_return(spread))])
    plan.add("the same, were the delays not drawn at random", "", [float(relist.most_on_return(together))])
    plan.plots.append(
        Plot(
            "relist",
            f"1,000 daemons and an API server that is away for {relist.AWAY:g} s (a model)",
            "seconds since it went away",
            "requests a second",
            {
                "as it is": relist.rates(spread, seconds),
                "without jitter": relist.rates(together, seconds),
            },
        )
    )


BENCHMARKS: dict[str, Callable[[Plan], Awaitable[None]]] = {
    "client": client,
    "one": one,
    "bursts": bursts,
    "logs": logs,
    "many": many,
    "api": api,
    "real": real,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--quick", is_flag=True, help="Fewer rounds: to see that it works, not to quote.")
@click.option("--json", "document", type=click.Path(path_type=Path), help="Write all samples to this file.")
@click.option("--page", type=click.Path(exists=True, path_type=Path), help="Put table and plots into this page.")
@click.option(
    "--go-builder", type=click.Path(exists=True, path_type=Path), help="A folder with the Go builder's detect and run."
)
@click.option("--kubectl", type=click.Path(exists=True, path_type=Path), help="A kubectl to compare with.")
@click.option(
    "--assets",
    envvar="KUBEBUILDER_ASSETS",
    type=click.Path(exists=True, path_type=Path),
    help="A folder with etcd and kube-apiserver, for `real`.",
)
def main(
    names: tuple[str, ...],
    quick: bool,
    document: Path | None,
    page: Path | None,
    go_builder: Path | None,
    kubectl: Path | None,
    assets: Path | None,
) -> None:
    """Measure the daemon and its programs. NAME: only these of client, one, bursts, logs, many, api, real."""
    plan = Plan(quick=quick, go_builder=go_builder, kubectl=kubectl or _found("kubectl"), assets=assets)
    for name in names or BENCHMARKS:
        click.echo(f"{name} ...", err=True)
        asyncio.run(_run(BENCHMARKS[name], plan))
    show(plan.figures)
    if document is not None:
        write_json(document, plan.figures, plan.plots)
    if page is not None:
        write_page(page, plan.figures, plan.plots)


async def _run(benchmark: Callable[[Plan], Awaitable[None]], plan: Plan) -> None:
    await benchmark(plan)


def _found(name: str) -> Path | None:
    path = shutil.which(name)
    return Path(path) if path else None


if __name__ == "__main__":
    main()
