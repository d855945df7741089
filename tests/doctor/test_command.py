"""`k8s-builder doctor` as a whole: a process, as people and scripts call it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from k8s_builder.commands import doctor
from k8s_builder.doctor.result import ok, warning
from k8s_builder.programs import install
from tests import measured
from tests.daemon.scene import Scene, open_scene
from tests.embedded.cluster import PATIENCE
from tests.test_docs import ROOT

pytestmark = pytest.mark.anyio


async def builder(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Call the command, whose standard input is the file STDIN; return its exit code, standard output and error."""
    with anyio.fail_after(PATIENCE):
        done = await anyio.run_process(
            [sys.executable, "-m", "k8s_builder", "doctor", *arguments],
            input=await anyio.Path(core).read_bytes() if (core := environment.pop("STDIN", "")) else b"",
            check=False,
            env={"PATH": os.environ["PATH"], **environment, **measured.ENVIRONMENT},
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def of(scene: Scene) -> dict[str, str]:
    return {"KUBECONFIG_PATH": str(scene.kubeconfig), "FABRIC_K8S_BUILDER_SOCKET": str(scene.socket)}


def relative(path: Path) -> str:
    return os.path.relpath(path)


async def test_beside_a_daemon_that_is_well_all_is_well(tmp_path: Path) -> None:
    install(tmp_path / "builder", Path(sys.executable))
    core = (ROOT / "deploy" / "core.yaml").read_text().replace("/opt/k8s-builder", str(tmp_path / "builder"))
    (tmp_path / "core.yaml").write_text(core)
    variables = (
        f"CORE_PEER_ID=peer0\nCORE_PEER_ADDRESS=peer0:7051\nCORE_LEDGER_PASSWORD=s3cret\nPATH={os.environ['PATH']}\n"
    )
    (tmp_path / "peer.env").write_text(variables)
    folder = relative(tmp_path / "builder")  # core.yaml has all of the path
    arguments = ("--programs", folder, "--core-yaml", "-", "--peer-env", str(tmp_path / "peer.env"))
    async with open_scene(tmp_path) as scene:
        await scene.daemon(INSTANCE="peer0")
        environment = {**of(scene), "FABRIC_K8S_BUILDER_INSTANCE": "peer0"}
        code, out, err = await builder(*arguments, STDIN=str(tmp_path / "core.yaml"), **environment)
        assert (code, err) == (0, "")
        *lines, empty, summary = out.splitlines()
        assert empty == ""
        assert {line.split()[0] for line in lines} == {"ok"}
        assert summary == f"{len(lines)} ok, 0 warning, 0 failure, 0 skipped"
        code, out, _ = await builder(*arguments, "--json", STDIN=str(tmp_path / "core.yaml"), **environment)
        document = json.loads(out)
        assert (code, document["format"], document["ok"]) == (0, 1, True)
        assert [f"{it['status']} {it['check']}" for it in document["results"]] == [
            " ".join(line.split()[:2]) for line in lines
        ]
        assert {it["remedy"] for it in document["results"]} == {None}
        token = json.loads(scene.kubeconfig.read_text())["users"][0]["user"]["token"]
        assert [secret for secret in (token, "s3cret") if secret in out] == []


async def test_what_is_wrong_is_a_line_each_and_an_exit_code(tmp_path: Path) -> None:
    environment = {"KUBECONFIG_PATH": str(tmp_path / "none"), "FABRIC_K8S_BUILDER_SOCKET": str(tmp_path / "none.sock")}
    code, out, err = await builder("--programs", str(tmp_path), **environment)
    assert (code, err) == (1, "")
    lines = out.splitlines()[:-2]
    assert [" ".join(line.split()[:2]) for line in lines] == [
        "ok settings",
        "failure socket",
        "skipped daemon",
        "failure api",
        *["failure programs"] * 4,
        "skipped core-yaml",
    ]
    assert all(re.fullmatch(r"(ok|warning|failure|skipped) +[a-z-]+ +\S.*", line) for line in lines)
    assert out.splitlines()[-1] == "1 ok, 0 warning, 6 failure, 2 skipped"
    code, out, _ = await builder("--json", "--programs", str(tmp_path), **environment)
    document = json.loads(out)
    assert (code, document["ok"]) == (1, False)
    assert all(it["remedy"] for it in document["results"] if it["status"] == "failure")


async def test_a_setting_that_cannot_be_used_is_told_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "core.yaml").write_text("chaincode: [s3cret")
    code, out, _ = await builder(
        "--core-yaml",
        str(tmp_path / "core.yaml"),
        FABRIC_K8S_BUILDER_START_TIMEOUT="soon",
        FABRIC_K8S_BUILDER_SOCKET="/none",
    )
    assert code == 1
    found = {line.split()[1]: line for line in out.splitlines()[:-2]}
    assert found["settings"].startswith("failure")
    assert "The FABRIC_K8S_BUILDER_START_TIMEOUT environment variable must be a valid Go duration" in found["settings"]
    assert found["api"].split(maxsplit=2) == ["skipped", "api", "the settings cannot be used"]
    assert f"{tmp_path}/core.yaml: it is not valid YAML at line 1" in found["core-yaml"]
    assert "s3cret" not in out


async def test_only_what_is_asked_for_is_looked_at(tmp_path: Path) -> None:
    code, out, _ = await builder("--only", "core-yaml", "--only", "programs")
    checks = [line.split()[:2] for line in out.splitlines()[:-2]]
    assert code == (1 if ["failure", "programs"] in checks else 0)
    assert checks[0] == ["ok", "settings"]
    assert checks[-1] == ["skipped", "core-yaml"]
    assert {check for _, check in checks} <= {"settings", "programs", "programs-version", "python", "call", "core-yaml"}


async def test_a_daemon_that_turns_us_away_is_told(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        await scene.daemon(ALLOWED_UIDS=str(os.getuid() + 1))
        code, out, _ = await builder("--only", "daemon", **of(scene))
        assert code == 1
        assert f"user id {os.getuid()} is not in FABRIC_K8S_BUILDER_ALLOWED_UIDS. Add the uid to" in out


async def test_what_the_peer_would_forward_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "peer.env").write_text("FABRIC_K8S_BUILDER_NAMESPACE=another\n")
    code, out, _ = await builder("--only", "cluster", "--peer-env", str(tmp_path / "peer.env"))
    assert code == 1
    lines = [line for line in out.splitlines() if line.startswith("failure   settings")]
    assert "The FABRIC_K8S_BUILDER_NAMESPACE environment variable of the peer says 'another'" in lines[0]
    assert lines[0].endswith("Correct the variable on the peer: each launch would be refused")


async def test_an_image_without_a_digest_is_a_wrong_argument() -> None:
    code, _, err = await builder("--only", "cluster", "--image", "localhost/basic:1.0")
    assert (code, "Invalid value for --image" in err) == (2, True)


async def test_where_the_default_folder_is_not_here_the_programs_are_skipped() -> None:
    if os.access("/opt/k8s-builder", os.F_OK):
        pytest.skip("it is here")
    code, out, _ = await builder("--only", "programs")
    assert (code, "skipped   programs             /opt/k8s-builder is not here. Run this where" in out) == (0, True)


def test_no_other_command_pays_for_the_doctor() -> None:
    code = "import sys; from k8s_builder.main import main; main.get_command(None, 'status'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"yaml", "anyio", "aiohttp", "msgspec", "k8s_builder.doctor", "k8s_builderd.settings"}
    assert heavy & set(done.stdout.split()) == set()


def test_nothing_that_comes_from_outside_writes_to_the_terminal() -> None:
    line = doctor.line(warning("job", "the API server warns: \x1b[2J\nx.", "Do it"))
    assert line == "warning   job                  the API server warns:  [2J x. Do it"
    assert doctor.summary([ok("job", "x")]) == "1 ok, 0 warning, 0 failure, 0 skipped"
