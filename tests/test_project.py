"""What the project promises to those who join it and those who install it: one version, pinned actions, few rights."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import test_links_lead_somewhere

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PROJECT: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PAGES = ["CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"]


def workflow(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def jobs() -> list[Any]:
    return [
        pytest.param(job, id=f"{path.stem}-{name}")
        for path in WORKFLOWS
        for name, job in workflow(path)["jobs"].items()
    ]


# The version


def test_what_repeats_the_version_says_the_same() -> None:
    version = PROJECT["version"]
    overlay = yaml.safe_load((ROOT / "deploy/example/kustomization.yaml").read_text())
    assert {image["newTag"] for image in overlay["images"]} == {version}
    newest = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert newest[0] == version
    assert newest[1] == "Unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", newest[1])


def test_no_module_of_the_product_has_a_version_of_its_own() -> None:
    for folder in ("daemon", "client"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^(__version__|VERSION) *= *[\"']\d", path.read_text(), re.MULTILINE), path


def test_each_minor_version_of_python_that_is_promised_is_tested() -> None:
    (matrix,) = (
        job
        for job in workflow(ROOT / ".github/workflows/checks.yml")["jobs"].values()
        if "python" in str(job.get("strategy"))
    )
    promised = [one.rsplit(" ", 1)[1] for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert matrix["strategy"]["matrix"]["python"] == promised
    assert f">={promised[0]}" == PROJECT["requires-python"]


# Workflows. zizmor checks more (.ci/run).


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_an_action_is_pinned_by_digest_and_names_its_version(path: Path) -> None:
    uses = re.findall(r"uses: (.*)", path.read_text())
    assert uses
    for one in uses:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\$/\.github/workflows/\w+\.yml", one), one


def test_one_action_has_one_digest_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for name, digest in re.findall(r"uses: (\S+)@(.*)", path.read_text()):
            found.setdefault(name, set()).add(digest)
    assert {name: digests for name, digests in found.items() if len(digests) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_no_rights_beyond_those_of_its_jobs(path: Path) -> None:
    assert workflow(path)["permissions"] == {}


@pytest.mark.parametrize("job", jobs())
def test_a_job_has_few_rights_and_an_end(job: Any) -> None:
    writes = {right for right, level in job["permissions"].items() if level == "write"}
    assert writes <= {"id-token", "attestations", "packages", "contents", "pages"}
    if "uses" not in job:
        assert job["timeout-minutes"] <= 60
    for step in job.get("steps", []):
        if "actions/checkout" in step.get("uses", ""):
            assert step["with"] == {"persist-credentials": False}
            assert "contents" not in writes


def test_a_pull_request_gets_no_right_to_write() -> None:
    text = (ROOT / ".github/workflows/checks.yml").read_text()
    assert "write" not in re.findall(r"^ +[\w-]+: (write)\b", text, re.MULTILINE)
    assert "pull_request_target" not in "".join(path.read_text() for path in WORKFLOWS)


def test_what_the_workflow_checks_is_what_ci_run_checks() -> None:
    """Style and types cannot differ between a developer's machine and the repository."""
    here = (ROOT / ".ci/run").read_text().replace('"$venv/bin/', "").replace('"', "").replace(" --no-progress", "")
    lint = workflow(ROOT / ".github/workflows/checks.yml")["jobs"]["lint"]["steps"]
    commands = [step["run"] for step in lint if "run" in step and not step["run"].startswith(("pip", "pre-commit"))]
    assert [command for command in commands if command not in here] == []
    assert len(commands) >= 5


# People


@pytest.mark.parametrize("page", PAGES)
def test_links_of_the_projects_pages_lead_somewhere(page: str) -> None:
    test_links_lead_somewhere(ROOT / page)


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")


def test_a_report_of_a_bug_brings_the_doctors_words_and_both_logs() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    required = {
        field["id"]: field["attributes"]["label"]
        for field in form["body"]
        if field.get("validations", {}).get("required") and "id" in field
    }
    assert {"doctor", "peer-log", "daemon-log"} <= required.keys()
    assert required["doctor"] == "`k8s-builder doctor --json`"


def test_a_newcomers_test_command_names_what_is_there() -> None:
    block = re.findall(r"```sh\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[0]
    paths = re.findall(r"tests/\S+", block)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []
    extra = re.findall(r"\.\[(\w+)\]", block)
    assert extra == ["test"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_skipped_test_fails_where_that_is_asked_for(strict: bool, tmp_path: Path) -> None:
    """The contract tests of the workflow must run: without the API server's binaries they would be skipped."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_it.py").write_text("import pytest\n\ndef test_it():\n    pytest.skip('not here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        env={**os.environ, "K8S_BUILDER_NO_SKIPS": "1" if strict else ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (1 if strict else 0), done.stdout
    assert ("not here" in done.stdout) == strict
