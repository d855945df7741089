"""The pod template while the daemon runs: its file shapes the next launch, and no mistake in it ends anything."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from k8s_builder_lab.embedded.objects import Object
from tests.daemon.chaincodes import Ticking, assert_whole, kill
from tests.daemon.scene import Package, Running, Scene, eventually
from tests.daemon.test_health import becomes, metric
from tests.daemon.test_reuse import GOES_ON, HELD_UP
from tests.daemon.test_status import status

pytestmark = pytest.mark.anyio

MEMORY = """\
spec:
  containers:
    - name: chaincode
      resources: {{limits: {{memory: {}}}}}
"""
MISSPELT = MEMORY.format("3Gi").replace("resources", "resuorces")
REFUSAL = 'unknown field \\"spec.template.spec.containers[0].resuorces\\"'


class File:
    """A template's file, replaced at once as an operator's `mv` does it."""

    def __init__(self, directory: Path, text: str) -> None:
        self.path = directory / "template.yaml"
        self.write(text)

    def write(self, text: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    async def daemon(self, scene: Scene, **settings: Any) -> Running:
        return await scene.daemon(POD_TEMPLATE=str(self.path), **settings)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path, MEMORY.format("1Gi"))


async def launched(scene: Scene, package: Package | None = None) -> str:
    """Launch a chaincode, end it, and return its memory limit."""
    run = await scene.call("run", package or await scene.package())
    await run.line("Running chaincode")
    limit = memory(await scene.running_pod())
    assert await run.terminate() == 0
    await scene.none("jobs", "pods")
    return limit


def memory(pod: Object) -> str:
    [container] = pod["spec"]["containers"]
    found: str = container["resources"]["limits"]["memory"]
    return found


async def readyz(scene: Scene, daemon: Running) -> str:
    """Return the line about the template; the daemon is ready whatever it says."""
    [line] = [line for line in (await becomes(scene, daemon, "/readyz", 200)).splitlines() if "template" in line]
    return line


# Read anew


async def test_a_changed_template_is_the_next_launchs(scene: Scene, file: File) -> None:
    daemon = await file.daemon(scene)
    assert await launched(scene) == "1Gi"
    file.write(MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"
    assert daemon.count("pod_template_changed") == 1
    file.write(json.dumps({"spec": {"containers": [{"name": "chaincode", "resources": {"limits": {"memory": 5}}}]}}))
    assert await launched(scene) == 5  # type: ignore[comparison-overlap] # a number, as it stands there
    assert daemon.count("pod_template_changed") == 2


async def test_a_configmaps_swap_is_a_change(scene: Scene, tmp_path: Path) -> None:
    """The kubelet writes a new folder beside the old one, and swaps the link `..data` that all files go through."""
    volume = tmp_path / "volume"

    def swap(number: int, text: str) -> None:
        folder = volume / f"..2026_{number}"
        folder.mkdir(parents=True)
        (folder / "template.yaml").write_text(text)
        (volume / "..data_tmp").symlink_to(folder.name)
        (volume / "..data_tmp").replace(volume / "..data")

    swap(1, MEMORY.format("1Gi"))
    (volume / "template.yaml").symlink_to("..data/template.yaml")
    daemon = await scene.daemon(POD_TEMPLATE=str(volume / "template.yaml"))
    assert await launched(scene) == "1Gi"
    swap(2, MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"
    swap(3, MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"
    assert daemon.count("pod_template_changed") == 1


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("spec: {restartPolicy: Always}", "spec.restartPolicy cannot be set"),
        ("spec: [", "line 1, column 8: "),
        ("", "it is empty"),
        ("spec: {hostNetwork: !!bool maybe}", "line 1, column 21: the value does not fit !!bool"),
        (r'metadata: {annotations: {mood: "\ud83d\ude00"}}', "line 1, column 32: half of a surrogate pair"),
        (MEMORY.format("3GB"), "spec.containers[0].resources.limits[memory] must be a Kubernetes quantity"),
        (None, "it cannot be read: No such file or directory"),
    ],
)
async def test_a_mistake_keeps_the_last_good_one_and_is_told(
    scene: Scene, file: File, mistake: str | None, told: str
) -> None:
    daemon = await file.daemon(scene)
    await daemon.line("pod_template_accepted")
    assert await readyz(scene, daemon) == "[+]template ok"
    if mistake is None:
        file.path.unlink()
    else:
        file.write(mistake)
    assert await launched(scene) == "1Gi"
    event = json.loads(await daemon.line("pod_template_wrong"))
    assert event["level"] == "error"
    assert event["reason"].startswith(f"{file.path}: {told}")
    assert await readyz(scene, daemon) == f"[!]template warning: {event['reason']}"
    assert (await status(scene))["daemon"]["warnings"] == {"template": event["reason"]}
    assert await metric(scene, daemon, 'warning{check="template"}') == 1
    assert await launched(scene) == "1Gi"
    assert daemon.count("pod_template_wrong") == 1
    file.write(MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"
    assert await readyz(scene, daemon) == "[+]template ok"
    assert await metric(scene, daemon, 'warning{check="template"}') == 0


async def test_a_mistake_is_told_before_a_launch(scene: Scene, file: File) -> None:
    daemon = await file.daemon(scene)
    file.write("spec: {volumes: [{name: certs}]}")
    await daemon.line("spec.volumes[0].name cannot be certs")
    assert await scene.count("jobs") == 0


async def test_one_chaincode_gets_more_memory(scene: Scene, file: File) -> None:
    sections = [("'*_1.?'", "2Gi"), ("large_1.0", "4Gi"), ("'large_*'", "3Gi")]
    text = MEMORY.format("1Gi") + "chaincodes:\n"
    for label, limit in sections:
        text += f"  - label: {label}\n" + "".join(f"    {line}\n" for line in MEMORY.format(limit).splitlines())
    file.write(text)
    await file.daemon(scene)
    limits = {label: await launched(scene, await scene.package(label)) for label in ("a_2.0", "a_1.0", "large_1.0")}
    assert limits == {"a_2.0": "1Gi", "a_1.0": "2Gi", "large_1.0": "4Gi"}


# What runs goes on


@pytest.mark.parametrize("text", [MEMORY.format("2Gi"), MISSPELT])
async def test_a_chaincode_that_runs_goes_on_whatever_the_template_says(scene: Scene, file: File, text: str) -> None:
    daemon = await file.daemon(scene)
    ticking = await Ticking.make(scene)
    run = await scene.call("run", ticking.package)
    await run.line("line 2")
    job = await scene.only("jobs")
    file.write(text)
    await kill(daemon)
    passed_on = run.count("line ")
    daemon = await file.daemon(scene)
    await daemon.line("pod_template_accepted" if text != MISSPELT else "pod_template_refused")
    await run.line(f"line {passed_on + 3}")
    assert (await scene.only("jobs"))["metadata"]["uid"] == job["metadata"]["uid"]
    assert memory(await scene.only("pods")) == "1Gi"
    ticking.end()
    assert await run.wait() == 0
    assert_whole(run)
    assert len(ticking.pids) == 1


@pytest.mark.parametrize("changed", [True, False])
async def test_a_launch_reuses_no_job_of_another_template(scene: Scene, file: File, changed: bool) -> None:
    await file.daemon(scene, NODE_ROLE="chaincode")
    package = await scene.package()
    first = await scene.call("run", package)
    await first.line(HELD_UP)
    text = file.path.read_text()
    file.write(MEMORY.format("2Gi") if changed else text + "# a word more\n")
    second = await scene.call("run", package)
    assert await first.wait() == 1
    await second.line(HELD_UP)
    await scene.cluster.switch("PATCH", "environment", {"nodeLabels": {"fabric-builder-k8s-role": "chaincode"}})
    assert memory(await scene.running_pod()) == ("2Gi" if changed else "1Gi")
    assert second.count(GOES_ON) == (0 if changed else 1)
    assert await second.terminate() == 0


async def test_a_section_for_others_does_not_keep_a_job_from_being_reused(scene: Scene, file: File) -> None:
    await file.daemon(scene, NODE_ROLE="chaincode")
    package = await scene.package()
    first = await scene.call("run", package)
    await first.line(HELD_UP)
    file.write(MEMORY.format("1Gi") + "chaincodes: [{label: 'other_*', spec: {priorityClassName: high}}]")
    second = await scene.call("run", package)
    await second.line(GOES_ON)
    assert await second.terminate() == 0


# Tried out on the API server


async def test_what_the_api_server_refuses_is_told_at_start_with_the_field(scene: Scene, file: File) -> None:
    file.write(MISSPELT)
    daemon = await file.daemon(scene)
    line = await daemon.line("pod_template_refused")
    assert REFUSAL.encode() in line
    reason = json.loads(line)["reason"]
    assert reason.startswith("the Kubernetes API refuses a job made with the common part: Job in version")
    assert await readyz(scene, daemon) == f"[!]template warning: {reason}"
    assert await scene.count("jobs") == 0
    code, lines = await scene.said("run", await scene.package())
    assert code == 1
    assert 'unknown field "spec.template.spec.containers[0].resuorces"' in lines[-1]
    file.write(MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"
    await daemon.line("pod_template_accepted")
    assert await readyz(scene, daemon) == "[+]template ok"


async def test_what_the_api_server_refuses_at_a_change_does_not_stay_in_use(scene: Scene, file: File) -> None:
    daemon = await file.daemon(scene)
    await daemon.line("pod_template_accepted")
    file.write(MISSPELT)
    daemon.send(signal.SIGHUP)
    line = await daemon.line("pod_template_refused")
    assert REFUSAL.encode() in line
    assert b". The template of before stays in use" in line
    assert await launched(scene) == "1Gi"
    file.write(MEMORY.format("2Gi"))
    assert await launched(scene) == "2Gi"


async def test_each_section_is_tried_out(scene: Scene, file: File) -> None:
    section = "".join(f"    {line}\n" for line in MISSPELT.splitlines())
    file.write(MEMORY.format("1Gi") + "chaincodes:\n  - label: first\n  - label: basic_*\n" + section)
    daemon = await file.daemon(scene)
    line = await daemon.line("pod_template_refused")
    assert b"a job made with chaincodes[1] (basic_*): " in line
    assert (await scene.state())["requests"]["create jobs"] == 2  # the sections come from the least precise on
    assert await launched(scene, await scene.package("other")) == "1Gi"


async def test_plain_settings_are_tried_out_too(scene: Scene) -> None:
    daemon = await scene.daemon(MEMORY_LIMIT="1Gi")
    await daemon.line("pod_template_accepted")
    assert await scene.count("jobs") == 0


async def test_without_any_of_both_nothing_is_asked_for(scene: Scene) -> None:
    daemon = await scene.daemon()
    assert (await scene.said("run", await scene.package(script="exit 0")))[0] == 0
    assert (await scene.state())["requests"]["create jobs"] == 1
    assert daemon.count("pod_template") == 0
    assert await readyz(scene, daemon) == "[+]template ok"


async def test_what_the_api_server_only_warns_of_is_a_warning(scene: Scene, file: File) -> None:
    """Under Pod Security the Job is taken, and its pod would be refused."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    headers = {"Content-Type": "application/merge-patch+json"}
    path = f"/api/v1/namespaces/{scene.cluster.namespace}"
    assert (await scene.cluster.request("PATCH", path, {"metadata": {"labels": labels}}, headers=headers)).status == 200
    well = "spec: {securityContext: {runAsNonRoot: true}}"
    file.write(MEMORY.format("1Gi") + f"chaincodes:\n  - label: well_*\n    {well}")
    daemon = await file.daemon(scene)
    event = json.loads(await daemon.line("pod_template_warning"))
    assert event["level"] == "warning"
    assert event["reason"].startswith(
        'the Kubernetes API warns of a job made with the common part: would violate PodSecurity "restricted:latest": '
        "runAsNonRoot != true"
    )
    await daemon.line("pod_template_accepted")
    assert daemon.count("pod_template_warning") == 1
    assert await readyz(scene, daemon) == f"[!]template warning: {event['reason']}"
    file.write(well)
    daemon.send(signal.SIGHUP)
    await daemon.line("pod_template_accepted", 2)
    assert await readyz(scene, daemon) == "[+]template ok"


OTHERS: list[dict[str, Any]] = [
    {"code": 403},
    {
        "code": 403,
        "reason": "Forbidden",
        "message": 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: '
        "count/jobs.batch=5, limited: count/jobs.batch=5",
    },
    {
        "code": 422,
        "reason": "Invalid",
        "message": "jobs.batch \"x\" is forbidden: ValidatingAdmissionPolicy 'images' with binding 'all' denied"
        " request: only images of our own registry",
    },
    {
        "code": 400,
        "reason": "BadRequest",
        "message": 'admission webhook "images.example" does not support dry run',
    },
    {
        "code": 400,
        "reason": "BadRequest",
        "message": 'admission webhook "images.example" denied the request: no such image',
    },
]


@pytest.mark.parametrize("refusal", OTHERS, ids=["rights", "quota", "policy", "dry run", "webhook"])
async def test_a_refusal_that_is_not_about_the_template_is_no_mistake(
    scene: Scene, file: File, refusal: dict[str, Any]
) -> None:
    await scene.fault(verb="create", resource="jobs", times=None, action={"do": "status", **refusal})
    daemon = await file.daemon(scene)
    assert json.loads(await daemon.line("pod_template_untried"))["level"] == "info"
    await scene.cluster.switch("DELETE", "faults")
    assert await launched(scene) == "1Gi"
    assert daemon.count("pod_template_refused") == 0
    assert await readyz(scene, daemon) == "[+]template ok"


async def test_an_api_server_that_is_away_is_asked_when_it_is_back(scene: Scene, file: File) -> None:
    await scene.fault(verb="create", resource="jobs", times=2, action={"do": "status", "code": 503})
    daemon = await file.daemon(scene, pace=5)
    assert json.loads(await daemon.line("pod_template_untried"))["level"] == "info"
    await daemon.line("pod_template_accepted")
    assert daemon.count("pod_template_untried") == 1


async def test_no_launch_waits_for_it(scene: Scene, file: File) -> None:
    """An answer to it never comes."""
    await scene.fault(verb="create", resource="jobs", times=1, action={"do": "hang"})
    daemon = await file.daemon(scene, REQUEST_TIMEOUT="1h")
    await scene.asked("create jobs")
    assert await launched(scene) == "1Gi"
    assert daemon.count("pod_template_accepted") == 0
    assert await daemon.terminate() == 0


async def test_a_change_is_tried_out_though_the_answer_to_the_last_one_is_awaited(scene: Scene, file: File) -> None:
    await scene.fault(
        verb="create", resource="jobs", times=None, action={"do": "status", "code": 503, "retryAfter": 3600}
    )
    daemon = await file.daemon(scene, pace=20)
    await daemon.line("pod_template_untried")
    await scene.cluster.switch("DELETE", "faults")
    file.write(MISSPELT)
    await daemon.line("pod_template_refused")


async def test_nothing_of_it_is_left_and_no_watch_tells_of_it(scene: Scene, file: File) -> None:
    daemon = await file.daemon(scene)
    await daemon.line("pod_template_accepted")
    state = await scene.state()
    assert (state["objects"]["jobs"], state["objects"]["pods"]) == (0, 0)
    assert (await status(scene))["chaincodes"] == []
    await eventually(lambda: daemon.count("watch_synced") == 2)
