"""The GitHub Action's script makes a package and tells the steps after it where it is."""

import hashlib
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k8s_builder.packaging.inspection import inspect_package
from tests.packaging.conftest import DIGEST

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs
ACTION: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "action.yml").read_text())
(INSTALL,) = (step for step in ACTION["runs"]["steps"] if step["id"] == "install")
(STEP,) = (step for step in ACTION["runs"]["steps"] if step["id"] == "package")
INPUTS = {"chaincode-label": "basic_1.0", "chaincode-image": "ghcr.io/org/cc", "chaincode-digest": DIGEST}


def run(folder: Path, inputs: dict[str, str]) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """Run the step as GitHub's runner does, and return the outputs that it set."""
    command = folder / "runner" / "k8s-builder" / "bin" / "k8s-builder"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m k8s_builder "$@"\n')
    command.chmod(0o755)
    given = {name: definition.get("default", "") for name, definition in ACTION["inputs"].items()} | inputs
    environment = {name: _expand(value, given) for name, value in STEP["env"].items()}
    environment |= {"RUNNER_TEMP": str(folder / "runner"), "GITHUB_OUTPUT": str(folder / "output")}
    environment |= {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    if "PYTHONPATH" in environment:
        places = [str(Path(place).absolute()) for place in environment["PYTHONPATH"].split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(places)
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True)
    (folder / "output").touch()
    script = folder / "script.sh"
    script.write_text(STEP["run"])
    # What `shell: bash` stands for on a runner.
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    completed = subprocess.run(bash, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    return completed, dict(line.split("=", 1) for line in (folder / "output").read_text().splitlines())


def _expand(value: str, inputs: dict[str, str]) -> str:
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) }}", lambda match: inputs[match[1]], value)


def test_it_makes_the_package_and_sets_path_and_id(tmp_path: Path) -> None:
    completed, outputs = run(tmp_path, INPUTS)
    assert completed.returncode == 0, completed.stderr
    content = (tmp_path / "workspace" / "basic_1.0.tgz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    assert outputs == {"package-path": "basic_1.0.tgz", "package-id": f"basic_1.0:{digest}"}


def test_it_takes_indexes_and_a_path_with_spaces(tmp_path: Path) -> None:
    indexes = tmp_path / "workspace" / "my META" / "statedb" / "couchdb" / "indexes"
    indexes.mkdir(parents=True)
    (indexes / "x.json").write_text('{"index":{"fields":["owner"]}}')
    completed, outputs = run(tmp_path, INPUTS | {"meta-inf": "my META", "output": "my package.tgz"})
    assert completed.returncode == 0, completed.stderr
    assert outputs["package-path"] == "my package.tgz"
    inspection = inspect_package((tmp_path / "workspace" / "my package.tgz").read_bytes())
    assert inspection.indexes == ["META-INF/statedb/couchdb/indexes/x.json"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"chaincode-label": "a+b"},
        {"chaincode-label": "--help"},
        {"chaincode-label": '"; touch injected; "'},
        {"chaincode-label": "$(touch injected)"},
        {"chaincode-image": "ghcr.io/org/cc:1.0"},
        {"chaincode-digest": "sha256:00"},
    ],
)
def test_wrong_inputs_fail_the_step_without_outputs_and_are_never_run(tmp_path: Path, inputs: dict[str, str]) -> None:
    completed, outputs = run(tmp_path, INPUTS | inputs)
    assert completed.returncode == 1
    assert completed.stderr.startswith("Error: ")
    assert outputs == {}
    assert list((tmp_path / "workspace").iterdir()) == []


def test_no_script_holds_an_expression_that_would_be_run() -> None:
    assert not any("${{" in step["run"] for step in ACTION["runs"]["steps"])


def test_the_installation_runs_no_module_of_the_workspace(tmp_path: Path) -> None:
    """The checked-out repository may be a stranger's: a pull request's."""
    workspace, runner, action = (tmp_path / name for name in ("workspace", "runner", "action"))
    for folder in (workspace, runner, action):
        folder.mkdir()
    for module in ("venv", "sys", "sysconfig", "ensurepip", "sitecustomize"):
        (workspace / f"{module}.py").write_text("from pathlib import Path\nPath('injected').touch()\n")
    # An action without anything to install: what pip says of it is no matter here.
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(workspace)}
    environment |= {"RUNNER_TEMP": str(runner), "GITHUB_ACTION_PATH": str(action), "PIP_NO_INDEX": "1"}
    for line in INSTALL["run"].splitlines():
        if "python3" in line:
            assert re.search(r"\bpython3 -I ", line) or "::error::" in line, line
    script = tmp_path / "script.sh"
    script.write_text(INSTALL["run"].partition('"$RUNNER_TEMP/k8s-builder/bin/pip"')[0])
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    completed = subprocess.run(bash, cwd=workspace, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert (runner / "k8s-builder" / "bin" / "python3").exists()
    assert not (workspace / "injected").exists()
