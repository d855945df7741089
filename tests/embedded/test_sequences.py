"""What a launch looks like from outside, in each way that it goes, compared with a recorded cluster (observed.json)."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from k8s_builder_lab.embedded.images import Image
from k8s_builder_lab.embedded.objects import Object
from k8s_builder_lab.embedded.server import Options

from .cluster import DIGEST, IMAGE, OTHER_DIGEST, PATIENCE, Cluster, certs, embedded, job, secret
from .conftest import OPTIONS
from .sequences import Facts, recorded, reduce

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
RECORDINGS = HERE.parents[2] / "shared" / "observed"
EXPECTED: dict[str, Facts] = json.loads((HERE / "observed.json").read_bytes())

Step = Callable[[Cluster, str], Awaitable[None]]


class Launch:
    """One Job on an embedded cluster, and all that the three watches said of it."""

    def __init__(self, cluster: Cluster, expected: Facts) -> None:
        self.cluster = cluster
        self.expected = expected
        self.seen: list[dict[str, Any]] = []
        self._news = anyio.Event()

    async def follow(self, plural: str, version: str) -> None:
        async with self.cluster.watch(plural, resourceVersion=version) as watch:
            while True:
                event = await watch.next()
                self.seen.append({"kind": event["object"]["kind"], **event})
                self._news.set()

    async def until(self, wanted: Callable[[Facts], bool]) -> Facts:
        """Return the facts once they are as wanted, or as they are when patience ends."""
        facts: Facts = {}
        with anyio.move_on_after(PATIENCE):
            while True:
                news = self._news = anyio.Event()
                if self.seen and any(event["kind"] == "Job" for event in self.seen):
                    facts = reduce(self.seen)
                    if wanted(facts):
                        break
                await news.wait()
        return facts

    def complete(self, facts: Facts) -> bool:
        return all(len(facts[part]) >= len(expected) for part, expected in self.expected.items())


async def let_it_end(cluster: Cluster, scenario: str) -> None:
    (Path(cluster.scratch) / "go").touch()


async def delete_job(cluster: Cluster, scenario: str) -> None:
    assert (await cluster.delete("jobs", scenario)).status == 200


async def delete_pod(cluster: Cluster, scenario: str) -> None:
    name = (await cluster.pod_of(scenario))["metadata"]["name"]
    answer = await cluster.request("DELETE", cluster.path("pods", name), {"gracePeriodSeconds": 1})
    assert answer.status == 200
    assert answer.body["metadata"]["deletionGracePeriodSeconds"] == 1


async def evict_pod(cluster: Cluster, scenario: str) -> None:
    name = (await cluster.pod_of(scenario))["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    answer = await cluster.request("POST", cluster.path("pods", name, "eviction"), eviction)
    assert (answer.status, answer.body["status"]) == (201, "Success")


async def drain(cluster: Cluster, scenario: str) -> None:
    """Evict the pod; the Job looks at it when it has ended, as it did in the recording."""
    await cluster.switch("PATCH", "components", {"kube-controller-manager": False})
    await evict_pod(cluster, scenario)
    await cluster.pod_when(scenario, lambda pod: pod["metadata"].get("deletionGracePeriodSeconds") == 0)
    await cluster.switch("PATCH", "components", {"kube-controller-manager": True})


async def lose_the_node(cluster: Cluster, scenario: str) -> None:
    """Freeze the kubelet, force the deletion, and have the node back once the Job has failed."""
    await cluster.switch("PATCH", "components", {"kubelet": False})
    name = (await cluster.pod_of(scenario))["metadata"]["name"]
    answer = await cluster.request("DELETE", cluster.path("pods", name), {"gracePeriodSeconds": 0})
    assert (answer.status, answer.body["metadata"]["deletionGracePeriodSeconds"]) == (200, 0)
    async with cluster.watch("jobs", fieldSelector=f"metadata.name={scenario}") as watch:
        await watch.until(lambda event: len(event["object"]["status"].get("conditions") or []) == 2)
    await cluster.switch("PATCH", "components", {"kubelet": True})


async def end_unseen(cluster: Cluster, scenario: str) -> None:
    """Have the pod run and end while the Job does not look at it: in the recording it was too quick to be ready."""
    await cluster.pod_of(scenario)
    await cluster.switch("PATCH", "components", {"kube-controller-manager": False})
    await cluster.switch("PATCH", "components", {"kube-scheduler": True})
    await let_it_end(cluster, scenario)
    await cluster.pod_when(scenario, lambda pod: pod["status"]["phase"] == "Failed")
    await cluster.switch("PATCH", "components", {"kube-controller-manager": True})


async def nothing(cluster: Cluster, scenario: str) -> None:
    pass


WAITS = "until [ -e go ]; do sleep 0.05; done"
IGNORES = ("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done")
AFFINITY = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "role", "operator": "In", "values": ["peers"]}]}]
        }
    }
}


GOES_ON = ("sh", "-c", "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done")
ALWAYS_FAILS = {"exec": {"command": ["false"]}, "timeoutSeconds": 1, "periodSeconds": 1, "successThreshold": 1}


def launch(scenario: str, *command: str, **pod: Any) -> Object:
    mounted = certs(scenario)
    mounted["container"] |= pod.pop("container", {})
    return job(scenario, *command, **{"terminationGracePeriodSeconds": 30, **mounted, **pod})


def beside(name: str, *command: str, image: str = IMAGE, **container: Any) -> Object:
    """Return another container."""
    return {"name": name, "image": f"{image}@{DIGEST}", "command": [*command], **container}


def launch_with(scenario: str, second: Object, *command: str) -> Object:
    """Return a Job with two containers."""
    made = launch(scenario, *command)
    made["spec"]["template"]["spec"]["containers"].append(second)
    return made


SCENARIOS: dict[str, tuple[Callable[[str], Object], Step]] = {
    "succeeds": (lambda go: launch("succeeds", "sh", "-c", f"cd {go}; {WAITS}"), let_it_end),
    "exits-3": (lambda go: launch("exits-3", "sh", "-c", f"cd {go}; {WAITS}; exit 3"), let_it_end),
    "oom-killed": (
        lambda go: launch(
            "oom-killed", "sh", "-c", f"cd {go}; {WAITS}; kill -9 $$$$", container={"image": f"localhost/oom@{DIGEST}"}
        ),
        let_it_end,
    ),
    "bad-command": (lambda go: launch("bad-command", "/no/such/program"), nothing),
    "wrong-digest": (
        lambda go: launch("wrong-digest", container={"image": f"{IMAGE}@{OTHER_DIGEST}"}),
        nothing,
    ),
    "invalid-image-name": (
        lambda go: launch("invalid-image-name", container={"image": f"Not A Name@{OTHER_DIGEST}"}),
        nothing,
    ),
    "missing-secret": (lambda go: launch("missing-secret", "sleep", "1"), nothing),
    "missing-service-account": (lambda go: launch("missing-service-account", serviceAccountName="nobody"), nothing),
    "quota": (lambda go: launch("quota"), nothing),
    "unschedulable": (lambda go: launch("unschedulable", affinity=AFFINITY), nothing),
    "job-deleted-while-running": (lambda go: launch("job-deleted-while-running", *IGNORES), delete_job),
    "pod-deleted-while-running": (lambda go: launch("pod-deleted-while-running", *IGNORES), delete_pod),
    "pod-evicted": (lambda go: launch("pod-evicted", *IGNORES), evict_pod),
    "init-image-missing": (
        lambda go: launch(
            "init-image-missing", *GOES_ON, initContainers=[beside("init", "true", image="localhost/nowhere")]
        ),
        nothing,
    ),
    "init-exits-1": (
        lambda go: launch(
            "init-exits-1", *GOES_ON, initContainers=[beside("init", "sh", "-c", "echo no luck; exit 1")]
        ),
        nothing,
    ),
    "init-slow": (
        lambda go: launch("init-slow", *GOES_ON, initContainers=[beside("init", "sleep", "0.2")]),
        nothing,
    ),
    "second-container": (
        lambda go: launch_with("second-container", beside("proxy", *GOES_ON), "sh", "-c", f"cd {go}; {WAITS}; exit 1"),
        let_it_end,
    ),
    "sidecar-fails": (
        lambda go: launch_with("sidecar-fails", beside("proxy", "sh", "-c", f"cd {go}; {WAITS}; exit 7"), *GOES_ON),
        let_it_end,
    ),
    "native-sidecar": (
        lambda go: launch(
            "native-sidecar",
            "sh",
            "-c",
            f"cd {go}; {WAITS}; exit 1",
            initContainers=[beside("proxy", *GOES_ON, restartPolicy="Always")],
        ),
        let_it_end,
    ),
    "never-ready": (
        lambda go: launch("never-ready", *GOES_ON, container={"readinessProbe": ALWAYS_FAILS}),
        nothing,
    ),
    "liveness-kills": (
        lambda go: launch("liveness-kills", *GOES_ON, container={"livenessProbe": ALWAYS_FAILS}),
        nothing,
    ),
    "drained": (lambda go: launch("drained", *GOES_ON, terminationGracePeriodSeconds=2), drain),
    "node-lost-pod-forced": (lambda go: launch("node-lost-pod-forced", *GOES_ON), lose_the_node),
    "needs-a-capability": (
        # Nothing takes a local process its capabilities: it says what it would say.
        lambda go: launch(
            "needs-a-capability", "sh", "-c", f"cd {go}; {WAITS}; echo chown: Operation not permitted >&2; exit 1"
        ),
        end_unseen,
    ),
    "bad-env-source": (
        lambda go: launch(
            "bad-env-source",
            *GOES_ON,
            container={"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "nowhere", "key": "x"}}}]},
        ),
        nothing,
    ),
    "out-of-cpu": (
        lambda go: launch("out-of-cpu", *GOES_ON, container={"resources": {"requests": {"cpu": "64"}}}),
        nothing,
    ),
}


@pytest.fixture(params=SCENARIOS)
async def scenario(request: pytest.FixtureRequest, anyio_backend: str) -> str:
    return str(request.param)


@pytest.fixture
async def stage(scenario: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    options: Options = msgspec.structs.replace(
        OPTIONS,
        images={IMAGE: Image(["true"], digests=[DIGEST]), "localhost/oom": Image(["true"], behaviour="oom")},
        pod_quota=0 if scenario == "quota" else None,
    )
    async with embedded(options) as cluster:
        cluster.scratch = str(tmp_path)
        yield cluster


async def test_a_launch_is_told_as_a_real_cluster_tells_it(scenario: str, stage: Cluster) -> None:
    expected = EXPECTED[scenario]
    make, step = SCENARIOS[scenario]
    run = Launch(stage, expected)
    version = (await stage.list("jobs"))["metadata"]["resourceVersion"]
    async with anyio.create_task_group() as tg:
        for plural in ("jobs", "pods", "events"):
            tg.start_soon(run.follow, plural, version)
        if scenario != "missing-secret":
            await stage.create(secret(scenario))
        await stage.switch("PATCH", "components", {"kube-scheduler": step is not end_unseen})
        await stage.create(make(stage.scratch))
        if step not in {nothing, end_unseen}:
            await run.until(lambda facts: ["job ready"] in facts["turns"])
        await step(stage, scenario)
        facts = await run.until(run.complete)
        tg.cancel_scope.cancel()
    for part, told in expected.items():
        assert facts[part][: len(told)] == told, part


def test_every_recorded_scenario_is_played() -> None:
    assert SCENARIOS.keys() == EXPECTED.keys()


def test_the_expectation_is_what_was_recorded() -> None:
    if not RECORDINGS.is_dir():
        pytest.skip("the recordings are not beside this checkout")
    assert recorded(RECORDINGS) == EXPECTED
