"""Draws the dashboard of deploy/monitoring as it looks in a recorded run.

    python docs/render_dashboard.py record     # plays a run; needs the project's tests, and Debian's package prometheus
    python docs/render_dashboard.py draw       # docs/dashboard.png from docs/dashboard.json; needs matplotlib

`record` starts an embedded cluster, a daemon and a Prometheus that scrapes it, has chaincode come, fail, crash and go,
takes the API away for a while, and keeps what Prometheus answers to each panel's expressions.
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "deploy" / "monitoring" / "dashboard.json"
RECORDING = ROOT / "docs" / "dashboard.json"
PICTURE = ROOT / "docs" / "dashboard.png"
VARIABLES = {"$__rate_interval": "10s", "$namespace": ".*", "$pod": ".*"}
STEP = 2
"""Seconds between two points of a curve."""


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["record", "draw"])
    record() if parser.parse_args().what == "record" else draw()


# Recording


def record() -> None:
    """Play a run and keep what the panels show of it."""
    import anyio

    sys.path.insert(0, str(ROOT))
    anyio.run(_play)


async def _play() -> None:
    import anyio

    from tests.daemon.scene import open_scene

    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        async with open_scene(Path(folder), pace=1.0) as scene:
            daemon = await scene.daemon()
            address = json.loads(await daemon.line("health_open"))["address"]
            server = stack.enter_context(_Prometheus(Path(folder), address))
            begin = time.time()
            await anyio.sleep(5)
            ticks = "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.0{}; done"
            runs = []
            for number in range(6):
                runs.append(
                    await scene.call("run", await scene.package(f"c{number}_1.0", script=ticks.format(number + 2)))
                )
                await anyio.sleep(4)
            missing = await scene.package("missing_1.0")
            missing.image({"name": "localhost/missing", "digest": "sha256:" + "5e" * 32})
            failing = await scene.call("run", missing, FABRIC_K8S_BUILDER_START_TIMEOUT="15s")
            crashing = await scene.package("crashing_1.0", script="sleep 1; exit 3")
            for _ in range(4):
                await scene.said("run", crashing)
            with socket.socket(socket.AF_UNIX) as garbage:
                garbage.connect(str(scene.socket))
                garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
                await anyio.sleep(2)
            await failing.wait()
            await scene.cluster.switch("POST", "outage", {"on": True})
            await anyio.sleep(15)
            await scene.cluster.switch("POST", "outage", {"on": False})
            await anyio.sleep(20)
            runs[0].process.kill()  # its Job is deleted after the grace
            for run in runs[1:4]:
                await run.terminate()
                await anyio.sleep(3)
            await anyio.sleep(15)
            end = time.time()
            panels = {
                panel["title"]: [
                    {"legend": target["legendFormat"], "series": server.ask(_plain(target["expr"]), begin, end)}
                    for target in panel["targets"]
                ]
                for panel in json.loads(DASHBOARD.read_text())["panels"]
            }
    RECORDING.write_text(json.dumps({"seconds": round(end - begin), "step": STEP, "panels": panels}) + "\n")


def _plain(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


class _Prometheus:
    """A Prometheus on the loopback that scrapes one daemon every second."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        self._target = target

    def __enter__(self) -> "_Prometheus":
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._address = f"127.0.0.1:{probe.getsockname()[1]}"
        config = self._folder / "prometheus.yaml"
        labels = {"namespace": "fabric", "pod": "peer0-org1-0"}
        jobs = [{"job_name": "peers", "static_configs": [{"targets": [self._target], "labels": labels}]}]
        config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
        program = shutil.which("prometheus")
        if program is None:
            sys.exit("there is no prometheus here: install Debian's package of that name")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.tsdb.path={self._folder / 'tsdb'}",
                f"--web.listen-address={self._address}",
            ],
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def ask(self, expression: str, begin: float, end: float) -> list[dict[str, Any]]:
        """Return what an expression was in this time: labels, and a value or None for each step."""
        query = urllib.parse.urlencode({"query": expression, "start": begin, "end": end, "step": STEP})
        with urllib.request.urlopen(f"http://{self._address}/api/v1/query_range?{query}") as answer:
            result = json.load(answer)["data"]["result"]
        steps = int((end - begin) / STEP) + 1
        found = []
        for series in result:
            values: list[float | None] = [None] * steps
            for at, value in series["values"]:
                number = float(value)
                values[round((at - begin) / STEP)] = float(f"{number:.4g}") if number == number else None
            labels = {name: value for name, value in series["metric"].items() if not name.startswith("__")}
            found.append({"labels": labels, "values": values})
        return found


# Drawing


def draw() -> None:
    """Draw every panel where the dashboard has it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    recording = json.loads(RECORDING.read_text())
    panels = json.loads(DASHBOARD.read_text())["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    pyplot.rcParams.update({"font.size": 7, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = pyplot.figure(figsize=(15, height * 0.36), dpi=80)
    for panel in panels:
        place = panel["gridPos"]
        axes = figure.add_axes(
            (
                place["x"] / 24 + 0.03,
                1 - (place["y"] + place["h"]) / height + 0.025,
                place["w"] / 24 - 0.045,
                place["h"] / height - 0.05,
            )
        )
        axes.set_title(panel["title"], loc="left")
        told = recording["panels"][panel["title"]]
        if panel["type"] == "stat":
            _draw_number(axes, told)
        else:
            _draw_curves(axes, told, recording["step"], panel["fieldConfig"]["defaults"]["unit"])
            axes.set_xlim(0, recording["seconds"])
    figure.savefig(PICTURE)


def _draw_number(axes: Any, told: list[dict[str, Any]]) -> None:
    axes.axis("off")
    for target in told:
        for series in target["series"]:
            last = [value for value in series["values"] if value is not None][-1]
            name = _legend(target["legend"], series["labels"])
            axes.text(0.5, 0.45, f"{last:.0f}", ha="center", va="center", fontsize=22, color="#2a7d3f")
            axes.text(0.5, 0.0, name, ha="center", va="center", color="#555555")


def _draw_curves(axes: Any, told: list[dict[str, Any]], step: int, unit: str) -> None:
    scale = 2**20 if unit == "bytes" else 1
    for target in told:
        for series in target["series"]:
            values = [float("nan") if value is None else value / scale for value in series["values"]]
            if any(value == value and value != 0 for value in values) or len(target["series"]) == 1:
                seconds = [step * number for number in range(len(values))]
                axes.plot(seconds, values, linewidth=1.1, label=_legend(target["legend"], series["labels"]))
    axes.set_ylim(0, (axes.get_ylim()[1] or 1) * 1.35)  # room for the legend
    name = {"s": "seconds", "Bps": "bytes/s", "bytes": "MiB", "reqps": "1/s"}.get(unit, "")
    axes.text(1, 1.04, name, transform=axes.transAxes, ha="right", color="#555555")
    axes.grid(alpha=0.25)
    if axes.lines:
        axes.legend(fontsize=5.5, frameon=False, loc="upper left", ncols=2)


def _legend(pattern: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        pattern = pattern.replace("{{" + name + "}}", value)
    return pattern


if __name__ == "__main__":
    main()
