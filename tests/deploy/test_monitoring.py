"""Alerts and dashboard: Prometheus takes them, and what they name is what /metrics shows."""

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k8s_builderd.metrics import LOG_LOSSES, OUTCOMES, REJECTIONS
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.record import Reason, State
from tests.daemon.scene import Running, Scene, open_scene
from tests.exposition import Exposition
from tests.test_docs import code, metric_labels, rows, section

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "rules.yaml"
TEST = Path(__file__).with_name("alerts.yaml")

# What a target is called, by Prometheus itself.
TARGET = {"job", "instance", "namespace", "pod"}
VARIABLES = {"$__rate_interval": "5m", "$namespace": ".*", "$pod": ".*"}
WORDS = re.compile(r"\b(?:k8s_builderd|process)_\w+")
SELECTOR = re.compile(r"\b((?:k8s_builderd|process)_\w+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
# The labels whose values are fixed, and what they can be.
VALUES: dict[tuple[str, str], set[str]] = {
    ("k8s_builderd_calls_rejected_total", "reason"): set(REJECTIONS),
    ("k8s_builderd_chaincode_ends_total", "category"): set(Category),
    ("k8s_builderd_chaincodes", "state"): set(State),
    ("k8s_builderd_jobs_deleted_total", "reason"): set(Reason),
    ("k8s_builderd_launches_total", "outcome"): set(OUTCOMES),
    ("k8s_builderd_log_interruptions_total", "reason"): {*LOG_LOSSES, "unreachable", "unavailable", "silent"},
    ("k8s_builderd_watch_restarts_total", "reason"): {"closed", "silent", "expired", "unreachable"},
}


def load(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text())


def rules() -> list[Any]:
    return [rule for group in load("rules.yaml")["groups"] for rule in group["rules"]]


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def expressions() -> Iterator[tuple[str, str]]:
    """Return every expression of PromQL, with where it stands."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool here (Debian's package prometheus)")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_each_alert_fires_where_it_should_and_is_silent_where_it_should_not(tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(TEST.read_text().replace("RULES", str(RULES)))
    promtool("test", "rules", str(file))


def test_no_alert_is_without_a_test() -> None:
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', TEST.read_text()))
    assert fired == {rule["alert"] for rule in rules()}


def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    records = [
        {"record": f"panel:{number}", "expr": expression} for number, (_, expression) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool("check", "rules", str(file))


@pytest.fixture
async def exposition(anyio_backend: str, tmp_path: Path) -> Exposition:
    async with open_scene(tmp_path) as scene:
        return await _exposition(scene, await scene.daemon())


async def _exposition(scene: Scene, daemon: Running) -> Exposition:
    await scene.said("run", await scene.package(script="echo hello"))
    return Exposition((await scene.health(daemon, "/metrics"))[1])


def names(exposition: Exposition) -> set[str]:
    """Return the names that samples can have, also of what has not been counted yet."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
    return {
        name + ending for name, family in exposition.families.items() for ending in endings.get(family.type, ("",))
    } | {sample.name for family in exposition.families.values() for sample in family.samples}


@pytest.mark.anyio
async def test_what_alerts_and_panels_name_is_what_the_daemon_shows(exposition: Exposition) -> None:
    shown = names(exposition)
    used = {name for _, expression in expressions() for name in WORDS.findall(expression)}
    assert used - shown == set()
    # And what it shows is seen somewhere, but for what is there under another name.
    unseen = {
        name
        for name in exposition.families
        if name.startswith("k8s_builderd") and not any(word.startswith(name) for word in used)
    }
    assert unseen == {"k8s_builderd_runs"}


@pytest.mark.parametrize(("where", "expression"), [*expressions()])
def test_labels_and_their_values_are_those_of_the_metric(where: str, expression: str) -> None:
    known = {name: set(of_metric) for name, of_metric in metric_labels().items()}  # which test_docs.py checks
    metrics = WORDS.findall(expression)

    def of(name: str) -> set[str]:
        base = re.sub("_(bucket|sum|count)$", "", name)
        extra = {"le"} if name.endswith("_bucket") else set()
        return TARGET | extra | known.get(name, known.get(base, set()))

    for name, matchers in SELECTOR.findall(expression):
        found = MATCHER.findall(matchers)
        assert len(found) == len([part for part in matchers.split(", ") if part])
        for label, operator, value in found:
            assert label in of(name), (name, label)
            allowed = VALUES.get((name, label))
            if allowed is not None and ".*" not in value:
                wanted = set(value.split("|")) if "~" in operator else {value}
                assert wanted <= allowed, (name, label)
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        for label in group.split(", "):
            assert any(label in of(name) for name in metrics), label


def test_legends_and_annotations_name_labels_that_are_left() -> None:
    for rule in rules():
        kept = re.search(r"\bby \(([^)]*)\)", rule["expr"])
        left = set(kept[1].split(", ")) if kept else TARGET
        told = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert told <= left, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            kept = re.search(r"\bby \(([^)]*)\)", target["expr"])
            left = set(kept[1].split(", ")) if kept else TARGET
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= left, panel["title"]


def test_the_operators_rules_are_the_plain_ones() -> None:
    resource = load("prometheus-rule.yaml")
    assert resource["kind"] == "PrometheusRule"
    assert resource["spec"] == load("rules.yaml")


def test_the_pod_monitor_finds_the_daemon_beside_the_peer() -> None:
    monitor = load("pod-monitor.yaml")
    patch = yaml.safe_load((ROOT / "deploy" / "sidecar" / "patch.yaml").read_text())
    ports = [
        port["name"]
        for container in patch["spec"]["template"]["spec"]["initContainers"]
        for port in container.get("ports", ())
    ]
    assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ports
    (target,) = (
        patch["target"]
        for patch in yaml.safe_load((ROOT / "deploy" / "sidecar" / "kustomization.yaml").read_text())["patches"]
    )
    selected = monitor["spec"]["selector"]["matchLabels"]
    assert target["labelSelector"] == ",".join(f"{key}={value}" for key, value in selected.items())
    peer = yaml.safe_load((ROOT / "deploy" / "example" / "peer.yaml").read_text())
    assert selected.items() <= peer["spec"]["template"]["metadata"]["labels"].items()


def test_the_component_names_files_that_are_there() -> None:
    component = load("kustomization.yaml")
    for name in component["resources"]:
        assert (MONITORING / name).exists()
    (generated,) = component["configMapGenerator"]
    assert [file.partition("=")[2] for file in generated["files"]] == ["dashboard.json"]


def test_panels_lie_side_by_side_and_have_an_id_each() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_operations_says_what_to_do_about_each_alert() -> None:
    table = {code(row[0])[0]: row for row in rows(section("operations.md", "Alerts"))}
    assert list(table) == [rule["alert"] for rule in rules()]
    assert all(row[1] and row[2] for row in table.values())


def test_the_recorded_run_has_every_panel_and_every_expression_of_it() -> None:
    recording = json.loads((ROOT / "docs" / "dashboard.json").read_text())
    assert {title: [target["legend"] for target in told] for title, told in recording["panels"].items()} == {
        panel["title"]: [target["legendFormat"] for target in panel["targets"]] for panel in dashboard()["panels"]
    }
