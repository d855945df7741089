"""/readyz tells what the open watches do not: a token that is revoked, a right that is gone, a deleted namespace.

Each is played with the watches open, as a real API server leaves them; none of it ends a chaincode.
"""

import re

import anyio
import pytest

from tests.daemon.chaincodes import Ticking, eventually
from tests.daemon.scene import Running, Scene
from tests.daemon.test_health import becomes
from tests.embedded.cluster import PATIENCE

pytestmark = pytest.mark.anyio

OFTEN = "100ms"
NEVER = "1h"


class Ticks:
    """A chaincode whose log a daemon follows, and both watches: what has to go on."""

    def __init__(self, scene: Scene, ticking: Ticking, run: Running, daemon: Running) -> None:
        self.scene = scene
        self.ticking = ticking
        self.run = run
        self.daemon = daemon

    @classmethod
    async def start(cls, scene: Scene, daemon: Running) -> "Ticks":
        ticking = await Ticking.make(scene, "ticking")
        run = await scene.call("run", ticking.package)
        await run.line("line 2")
        await becomes(scene, daemon, "/readyz", 200)
        return cls(scene, ticking, run, daemon)

    async def go_on(self) -> None:
        """Assert that all of it goes on, unchanged."""
        assert (await self.scene.state())["streams"] == {"watch": 2, "log": 1}
        assert self.daemon.count("watch_interrupted") == 0
        assert self.daemon.count("job_deleted") == 0
        assert len(self.ticking.pids) == 1
        before = len(self.run.lines)
        await self.run.until(lambda lines: len(lines) > before + 2)


async def says(scene: Scene, daemon: Running, words: str) -> str:
    """Wait until the daemon is not ready for this reason, and return all that it says."""
    text = ""
    with anyio.fail_after(PATIENCE):
        while words not in text:
            text = await becomes(scene, daemon, "/readyz", 503)
    return text


async def rights(scene: Scene, *without: str, incomplete: bool = False) -> None:
    await scene.cluster.switch("POST", "rights", {"without": [*without], "incomplete": incomplete})


async def test_a_revoked_token_is_told_although_the_watches_are_open(scene: Scene) -> None:
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    ticks = await Ticks.start(scene, daemon)
    await scene.cluster.switch("POST", "tokens", {"tokens": []})
    text = await becomes(scene, daemon, "/readyz", 503)
    assert "[+]jobs ok" in text
    assert "[+]pods ok" in text
    assert re.search(r"\[-]access failed: cannot \w+ \S+: Unauthorized", text)
    assert "Check the service account's token" in text
    await daemon.line("access_lost")
    await ticks.go_on()
    await scene.cluster.switch("POST", "tokens", {"tokens": [scene.cluster.token]})
    await becomes(scene, daemon, "/readyz", 200)
    await daemon.line("access_ok")
    await ticks.go_on()


@pytest.mark.parametrize(
    ("without", "told"),
    [
        ("create jobs.batch", "missing: create jobs.batch, in the namespace default."),
        ("get pods/log", "missing: get pods/log, in the namespace default."),
        ("* pods", "missing: get pods, list pods, watch pods."),
        ("* jobs.batch,* pods,* pods/log,* secrets", "missing: all rights."),
    ],
)
@pytest.mark.parametrize("incomplete", [False, True], ids=["listed", "asked one by one"])
async def test_a_right_that_is_taken_away_is_told_although_the_watches_are_open(
    scene: Scene, without: str, told: str, *, incomplete: bool
) -> None:
    await rights(scene, incomplete=incomplete)
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    ticks = await Ticks.start(scene, daemon)
    await rights(scene, *without.split(","), incomplete=incomplete)
    text = await says(scene, daemon, told)
    assert "[+]jobs ok" in text
    assert "Check the Role of the daemon's service account" in text
    await ticks.go_on()
    await rights(scene, incomplete=incomplete)
    await becomes(scene, daemon, "/readyz", 200)
    await ticks.go_on()


async def test_a_right_that_nobody_needs_is_not_missed(scene: Scene) -> None:
    await rights(scene, "* events", "get namespaces", "delete pods", "get secrets")
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    await becomes(scene, daemon, "/readyz", 200)
    await scene.asked("create selfsubjectrulesreviews", 5)
    assert (await scene.health(daemon, "/readyz"))[0] == 200
    assert daemon.count("access_lost") == 0


async def test_a_launch_that_is_refused_counts_at_once_and_so_does_one_that_is_not(scene: Scene) -> None:
    daemon = await scene.daemon(ACCESS_INTERVAL=NEVER, pace=10)
    await becomes(scene, daemon, "/readyz", 200)
    await scene.asked("create selfsubjectrulesreviews")
    await rights(scene, "create jobs.batch")
    refused = await scene.call("run", await scene.package("refused"))
    text = await becomes(scene, daemon, "/readyz", 503)
    assert "create jobs.batch" in text
    assert await refused.wait() == 1
    assert (await scene.health(daemon, "/readyz"))[0] == 503
    await rights(scene)
    run = await scene.call("run", await scene.package("granted"))
    await run.line("Running chaincode")
    assert (await scene.health(daemon, "/readyz"))[0] == 200


async def test_a_refusal_by_a_quota_is_no_missing_right(scene: Scene) -> None:
    message = 'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1'
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN, pace=10)
    await becomes(scene, daemon, "/readyz", 200)
    action = {"do": "status", "code": 403, "reason": "Forbidden", "message": message}
    await scene.fault(verb="create", resource="jobs", times=None, action=action)
    assert (await scene.said("run", await scene.package()))[0] == 1
    assert (await scene.health(daemon, "/readyz"))[0] == 200


async def test_a_namespace_that_is_deleted_is_told_although_the_watches_are_open(scene: Scene) -> None:
    """A ClusterRole's rights do not go with the namespace, and lists of it are empty then, not refused."""
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    ticks = await Ticks.start(scene, daemon)
    await scene.cluster.switch("PATCH", "components", {"kube-controller-manager": False})
    assert (await scene.cluster.request("DELETE", "/api/v1/namespaces/default")).status == 200
    await says(scene, daemon, "[-]access failed: the namespace default is being deleted: create it again")
    await ticks.go_on()
    await scene.cluster.switch("PATCH", "components", {"kube-controller-manager": True})
    await says(scene, daemon, "[-]access failed: the namespace default does not exist")
    assert await ticks.run.wait() == 1, "the cluster has deleted its job"
    assert daemon.count("watch_interrupted") == 0
    assert (await scene.state())["streams"]["watch"] == 2
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    assert (await scene.cluster.request("POST", "/api/v1/namespaces", namespace)).status == 201
    await becomes(scene, daemon, "/readyz", 200)
    assert (await scene.said("run", await scene.package("again", script="exit 0")))[0] == 0


async def test_a_namespace_that_a_launch_has_found_gone_is_tried_until_it_is_back(scene: Scene) -> None:
    """Who may not look at the namespace knows of it by what is refused."""
    await rights(scene, "get namespaces")
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    await becomes(scene, daemon, "/readyz", 200)
    assert (await scene.cluster.request("DELETE", "/api/v1/namespaces/default")).status == 200

    async def gone() -> bool:
        return (
            await scene.cluster.request("POST", scene.cluster.path("jobs"), {"metadata": {"name": "x"}})
        ).status == 404

    await eventually(gone)
    assert (await scene.state())["requests"].get("create secrets", 0) == 0, "nobody but a launch finds out"
    code, said = await scene.said("run", await scene.package())
    assert code == 1
    assert 'namespaces "default" not found' in said[-1]
    text = await becomes(scene, daemon, "/readyz", 503)
    # What the launch was told, or what the first try after it was.
    assert re.search(r'\[-]access failed: cannot create (jobs\.batch|secrets): namespaces "default" not found', text)
    asked = (await scene.state())["requests"].get("create secrets", 0)
    await scene.asked("create secrets", asked + 3)
    assert (await scene.health(daemon, "/readyz"))[0] == 503
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
    assert (await scene.cluster.request("POST", "/api/v1/namespaces", namespace)).status == 201
    await becomes(scene, daemon, "/readyz", 200)
    assert await scene.count("secrets") == 0


async def test_where_reviews_are_refused_a_list_tells_what_it_can(scene: Scene) -> None:
    reviews = "create selfsubjectrulesreviews.authorization.k8s.io"
    await rights(scene, reviews)
    daemon = await scene.daemon(ACCESS_INTERVAL=OFTEN)
    await becomes(scene, daemon, "/readyz", 200)
    await rights(scene, reviews, "list jobs.batch")
    text = await becomes(scene, daemon, "/readyz", 503)
    assert "[-]access failed: cannot list jobs.batch" in text
    assert "[+]jobs ok" in text
    await rights(scene, reviews)
    await becomes(scene, daemon, "/readyz", 200)


async def test_an_idle_daemon_asks_one_question_an_interval(scene: Scene) -> None:
    daemon = await scene.daemon(ACCESS_INTERVAL=NEVER)
    await becomes(scene, daemon, "/readyz", 200)
    run = await scene.call("run", await scene.package())
    await run.line("Running chaincode")
    requests = (await scene.state())["requests"]
    assert requests["create selfsubjectrulesreviews"] == 1
    assert "create selfsubjectaccessreviews" not in requests
