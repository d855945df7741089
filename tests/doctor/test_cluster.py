"""The cluster's checks against an embedded cluster, over HTTP; and what is decided without it, as tables."""

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k8s_builder.doctor import cluster as room
from k8s_builder.doctor import namespace, quota, sample
from k8s_builder.doctor.result import Result
from k8s_builder_lab.embedded.server import Options
from k8s_builderd.fabric.template import PodTemplate
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import Forbidden, Invalid, Unavailable
from k8s_builderd.kube.review import Quota, Server
from k8s_builderd.kube.rights import RIGHTS
from k8s_builderd.settings import Settings
from tests.doctor.results import told
from tests.embedded.cluster import PATIENCE, Cluster, embedded, job, secret
from tests.kube.rogue import Reply, Request, rogue

pytestmark = pytest.mark.anyio

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
async def cluster(anyio_backend: str, kubeconfig: Path) -> AsyncIterator[Cluster]:
    async with embedded(Options(kubeconfig=kubeconfig, pace=0)) as cluster:
        yield cluster


def settings(kubeconfig: Path, **more: Any) -> Settings:
    return msgspec.structs.replace(
        Settings.load({"KUBECONFIG_PATH": str(kubeconfig), "FABRIC_K8S_BUILDER_NAMESPACE": "default"}), **more
    )


async def found(kubeconfig: Path, **more: Any) -> list[Result]:
    return await check(settings(kubeconfig, **more))


async def check(settings: Settings, **options: float) -> list[Result]:
    return await room.check(settings, sample.launch(settings, sample.IMAGE, {}), **options)


async def around(cluster: Cluster, **environment: Any) -> None:
    await cluster.switch("PATCH", "environment", environment)


async def without(cluster: Cluster, *rights: str) -> None:
    await cluster.switch("POST", "rights", {"without": [*rights]})


async def one(kubeconfig: Path, check: str, **more: Any) -> tuple[str, str, str]:
    [result] = told(await found(kubeconfig, **more), check)
    return result


async def test_a_cluster_with_all_that_is_needed_is_well(cluster: Cluster, kubeconfig: Path) -> None:
    results = await found(kubeconfig)
    assert {each.status.value for each in results} == {"ok"}
    assert told(results, "identity") == [("ok", "this is embedded to the API server", "")]
    assert [seen for _, seen, _ in told(results, "permission")] == [
        f"may {right} in namespace default" for right in RIGHTS
    ]
    state = await cluster.switch("GET", "state")
    assert set(state["objects"].values()) == {0}  # nothing was created


# The API server


async def test_an_api_server_that_is_not_there_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.switch("POST", "outage", {"on": True})
    results = await found(kubeconfig)
    [(status, seen, remedy)] = told(results, "api")
    assert (status, seen.startswith(f"{cluster.server}: cannot get version: the Kubernetes API does not")) == (
        "failure",
        True,
    )
    assert remedy.startswith("Check the address, the network between")
    assert told(results, "permission") == [("skipped", "the API server cannot be asked", "")]
    assert len(results) == 2


async def test_a_token_that_is_not_known_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.switch("POST", "tokens", {"tokens": ["another"]})
    results = await found(kubeconfig)
    [(status, seen, remedy)] = told(results, "api")
    assert (status, "Unauthorized" in seen) == ("failure", True)
    assert remedy.startswith("Check the service account's token or the kubeconfig's user")


async def test_where_there_is_no_kubeconfig_it_is_told(tmp_path: Path) -> None:
    [result] = await found(tmp_path / "none")
    assert (result.check, result.status.value) == ("api", "failure")
    assert "must name a kubeconfig that can be used" in result.seen
    assert "set KUBECONFIG_PATH" in result.remedy


async def test_an_api_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        file = tmp_path / "kubeconfig"
        file.write_bytes(
            msgspec.json.encode(
                {
                    "current-context": "x",
                    "clusters": [{"name": "x", "cluster": {"server": address}}],
                    "users": [{"name": "x", "user": {"token": "t0ken"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                }
            )
        )
        results = await check(settings(file), patience=0.2)
    [(status, seen, _)] = told(results, "api")
    assert (status, seen.endswith("does not answer (no answer in time)")) == ("failure", True)


async def test_a_check_that_is_not_answered_does_not_hold_up_the_others(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.switch("POST", "faults", {"resource": "selfsubjectreviews", "times": None, "action": {"do": "hang"}})
    patience, others = 0.25, {""}
    while others != {"ok"} and patience < PATIENCE:  # a slow machine needs longer for the answers that come
        patience *= 2
        results = await check(settings(kubeconfig), patience=patience)
        others = {each.status.value for each in results if each.check != "identity"}
    assert others == {"ok"}
    [(status, seen, remedy)] = told(results, "identity")
    assert (status, "no answer in time" in seen, remedy) == ("failure", True, "See the API server; try again")


async def test_a_check_of_many_slow_requests_is_ended(cluster: Cluster, kubeconfig: Path) -> None:
    for resource, delay in (("jobs", 0.6), ("secrets", 0.6), ("pods", 0.6)):
        rule = {"verb": "create", "resource": resource, "times": None, "delay": delay, "action": {"do": "hang"}}
        await cluster.switch("POST", "faults", rule)
    results = await check(settings(kubeconfig), patience=0.5)
    assert told(results, "job") == [
        ("failure", "the API server takes too long to answer", "See the API server; try again")
    ]


async def test_an_api_server_before_1_28_does_not_tell_who_we_are(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.switch(
        "POST",
        "faults",
        {
            "resource": "selfsubjectreviews",
            "action": {"do": "status", "code": 404, "reason": "NotFound", "message": "not here"},
        },
    )
    assert (await one(kubeconfig, "identity"))[0] == "skipped"


@pytest.mark.parametrize(
    ("ahead", "status", "words"),
    [
        (None, "skipped", "has not told"),
        (0.0, "ok", "agrees"),
        (4.0, "ok", "agrees"),
        (90.4, "warning", "90 s ahead of this one"),
        (-3600.0, "warning", "3600 s behind this one"),
    ],
)
def test_clocks_that_differ_are_told(ahead: float | None, status: str, words: str) -> None:
    result = room.clock(Server("", ahead))
    assert (result.status.value, words in result.seen, bool(result.remedy)) == (status, True, status == "warning")


@pytest.mark.parametrize(
    ("offset", "words"),
    [(120, r".* is 1(19|2[01]) s ahead of this one"), (-120, r".* is 1(19|2[01]) s behind this one")],
)
async def test_the_clock_of_the_api_server_is_read(
    cluster: Cluster, kubeconfig: Path, offset: float, words: str
) -> None:
    await around(cluster, apiClock=offset)
    status, seen, _ = await one(kubeconfig, "clock")
    assert status == "warning"
    assert re.match(words, seen), seen


# Permissions


@pytest.mark.parametrize("right", RIGHTS, ids=str)
async def test_a_right_that_is_missing_is_told(cluster: Cluster, kubeconfig: Path, right: Any) -> None:
    await without(cluster, str(right))
    results = await found(kubeconfig)
    wrong = [each for each in told(results, "permission") if each[0] != "ok"]
    [(status, seen, remedy)] = wrong
    assert (status, seen.startswith(f"may not {right} in namespace default")) == (
        "failure" if right.needed else "warning",
        True,
    )
    assert remedy == "Apply deploy/role and its RoleBinding in that namespace"


# What the daemon need not be allowed to see


async def test_with_the_rights_of_the_role_alone_what_cannot_be_seen_is_skipped(
    cluster: Cluster, kubeconfig: Path
) -> None:
    more = ["get namespaces", "get serviceaccounts", "list resourcequotas", "list nodes", "get secrets", "list secrets"]
    await without(cluster, *more, "create pods")
    results = await found(kubeconfig, environment={"FABRIC_K8S_BUILDER_NODE_ROLE": "chaincode"})
    skipped = {each.check for each in results if each.status == "skipped"}
    assert skipped == {"namespace", "service-account", "pull-secret", "node-role", "pod", "quota", "leftovers"}
    assert {each.status.value for each in results} == {"ok", "skipped"}
    assert all("not allowed" in each.seen or "not known" in each.seen for each in results if each.status == "skipped")
    [(_, seen, _)] = told(results, "pod-security")
    assert seen == "the API server warns of nothing"


# The namespace


async def test_a_namespace_that_is_not_there_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    results = await found(kubeconfig, namespace="nowhere")
    [(status, seen, remedy)] = told(results, "namespace")
    assert (status, seen) == ("failure", "namespace nowhere does not exist")
    assert "correct FABRIC_K8S_BUILDER_NAMESPACE" in remedy
    for check in ("job", "secret"):
        [(status, seen, remedy)] = told(results, check)
        assert (status, 'namespaces "nowhere" not found' in seen) == ("failure", True)
        assert remedy.startswith("Create the namespace")
    assert told(results, "pod-security")[0][0] == "skipped"


async def test_a_service_account_that_is_not_there_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    results = await found(kubeconfig, environment={"FABRIC_K8S_BUILDER_SERVICE_ACCOUNT": "chaincode"})
    [(status, seen, remedy)] = told(results, "service-account")
    assert (status, seen) == ("failure", "service account chaincode does not exist in default")
    assert "FABRIC_K8S_BUILDER_SERVICE_ACCOUNT" in remedy
    [(status, seen, remedy)] = told(results, "pod")  # admission's own answer
    assert (status, 'serviceaccount "chaincode" not found' in seen) == ("failure", True)
    assert remedy == "Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT"


async def test_pull_secrets_are_looked_for_and_never_read(cluster: Cluster, kubeconfig: Path) -> None:
    await around(cluster, imagePullSecrets=["registry", "gone"])
    await cluster.create(secret("registry", {"password": "s3cret"}))
    template = {"spec": {"imagePullSecrets": [{"name": "mine"}, {"name": "registry"}]}}
    results = await found(kubeconfig, pod_template=PodTemplate(template))
    assert [(status, seen) for status, seen, _ in told(results, "pull-secret")] == [
        ("warning", "pull secret mine does not exist in default"),
        ("ok", "pull secret registry exists"),
    ]
    results += (others := await found(kubeconfig))
    assert [(status, seen) for status, seen, _ in told(others, "pull-secret")] == [
        ("ok", "pull secret registry exists"),
        ("warning", "pull secret gone does not exist in default"),
    ]
    assert "s3cret" not in str(results)


async def test_the_pull_secrets_of_the_template_are_looked_for_without_the_service_account(
    cluster: Cluster, kubeconfig: Path
) -> None:
    await without(cluster, "get serviceaccounts")
    results = await found(kubeconfig, pod_template=PodTemplate({"spec": {"imagePullSecrets": [{"name": "mine"}]}}))
    assert [status for status, _, _ in told(results, "pull-secret")] == ["warning"]


async def test_a_pull_secret_that_may_not_be_seen_is_skipped(cluster: Cluster, kubeconfig: Path) -> None:
    await around(cluster, imagePullSecrets=["registry"])
    await without(cluster, "get secrets")
    status, seen, _ = await one(kubeconfig, "pull-secret")
    assert (status, seen) == ("skipped", "not allowed to look for secret registry, and the daemon need not be")


async def test_a_role_without_nodes_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    role = {"FABRIC_K8S_BUILDER_NODE_ROLE": "chaincode"}
    status, seen, remedy = await one(kubeconfig, "node-role", environment=role)
    assert (status, seen) == ("failure", "no node has the label fabric-builder-k8s-role=chaincode")
    assert remedy.startswith("Label a node fabric-builder-k8s-role=chaincode")
    await around(cluster, nodeLabels={"fabric-builder-k8s-role": "chaincode"})
    assert (await one(kubeconfig, "node-role", environment=role))[0] == "ok"
    await around(cluster, nodeCordoned=True)
    status, seen, remedy = await one(kubeconfig, "node-role", environment=role)
    assert (status, "are cordoned" in seen, remedy) == ("failure", True, "Uncordon one of them")


async def test_a_quota_without_room_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    await around(cluster, podQuota=0)
    results = await found(kubeconfig)
    [(status, seen, remedy)] = told(results, "quota")
    assert (status, seen) == ("failure", "quota none has no room for a launch: pods 0 used of 0")
    assert remedy.startswith("Raise the quota")
    [(status, seen, remedy)] = told(results, "pod")
    assert (status, "exceeded quota" in seen, remedy) == ("failure", True, "Raise the quota of the namespace")
    await around(cluster, podQuota=1)
    assert (await one(kubeconfig, "quota"))[:2] == ("ok", "quota none has room for a launch")


async def test_what_the_go_builder_has_left_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    left = {"app.kubernetes.io/created-by": "fabric-builder-k8s"}
    for number in range(4):
        await cluster.create(job(f"old-{number}", labels=left))
    await cluster.create(job("ours", labels={**left, "app.kubernetes.io/instance": "peer0"}))
    jobs, secrets = told(await found(kubeconfig), "leftovers")
    assert jobs[:2] == ("warning", "4 jobs of the Go builder: old-0, old-1, old-2, ...")
    assert "kubectl -n default delete jobs -l 'app.kubernetes.io/created-by=fabric-builder-k8s,!app.kub" in jobs[2]
    assert secrets == ("ok", "no secrets of the Go builder", "")


# Admission


async def test_a_namespace_that_refuses_chaincodes_pods_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    await cluster.request("PATCH", "/api/v1/namespaces/default", {"metadata": {"labels": RESTRICTED}}, headers=headers)
    results = await found(kubeconfig)
    [(status, seen, remedy)] = told(results, "pod-security")
    assert status == "failure"
    assert seen.startswith('the namespace enforces restricted, and pods would be refused: would violate PodSecurity "')
    assert "FABRIC_K8S_BUILDER_SECURITY_PROFILE=restricted" in remedy
    assert told(results, "job")[0][0] == "ok"  # of Jobs the API server only warns
    [(status, seen, _)] = told(results, "pod")
    assert (status, 'violates PodSecurity "restricted:latest"' in seen) == ("failure", True)
    well = Settings.load({"FABRIC_K8S_BUILDER_SECURITY_PROFILE": "restricted"}).security_profile
    results = await found(kubeconfig, security_profile=well)
    assert {each.status.value for each in results} == {"ok"}


async def test_a_template_that_the_api_refuses_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    template = {"spec": {"initContainers": [{"name": "wait"}]}}
    results = await found(kubeconfig, pod_template=PodTemplate(template))
    [(status, seen, remedy)] = told(results, "job")
    assert (status, "initContainers[0].image: Required value" in seen) == ("failure", True)
    assert remedy == "Correct FABRIC_K8S_BUILDER_POD_TEMPLATE"
    assert told(results, "pod-security") == [
        ("skipped", "the dry run of the Job was refused, so nothing is known of its pods", "")
    ]


async def test_a_policy_that_refuses_the_job_is_told_in_its_words(cluster: Cluster, kubeconfig: Path) -> None:
    words = 'admission webhook "policy.example.com" denied the request: only our registry'
    fault = {"verb": "create", "resource": "jobs", "action": {"do": "status", "code": 403, "message": words}}
    await cluster.switch("POST", "faults", fault)
    status, seen, remedy = await one(kubeconfig, "job")
    assert (status, seen) == ("failure", f"cannot create jobs.batch: {words}")
    assert "try --image with one of yours" in remedy


async def test_an_api_server_that_tells_nobody_its_version_is_reached_all_the_same(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(403, {"message": "no", "reason": "Forbidden"})

    async with rogue(answer) as server:
        results = await check(settings(server.kubeconfig(kubeconfig)))
    assert told(results, "api") == [("ok", f"{server.server} answers", "")]
    assert told(results, "clock") == [("skipped", "the API server has not told its time", "")]


async def test_another_warning_is_passed_on(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        if request.path.endswith("/jobs"):
            assert (request.query["dryRun"], request.query["fieldValidation"]) == ("All", "Strict")
            await reply.whole(201, {}, Warning='299 - "policy \\"x\\": no limits", 299 - "second"')
        elif request.method == "GET":
            await reply.whole(403, {"message": "no", "reason": "Forbidden"})
        else:
            await reply.whole(201, {"status": {"allowed": False}})

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "default") as api:
        results = await namespace.admission(api, sample.launch(settings(kubeconfig), sample.IMAGE, {}))
    remedy = "Correct the pod template"
    assert told(results, "job")[1:] == [
        ("warning", 'the API server warns: policy "x": no limits', remedy),
        ("warning", "the API server warns: second", remedy),
    ]
    assert told(results, "pod-security") == [("ok", "the API server warns of nothing", "")]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (Invalid('admission webhook "x" does not support dry run'), "skipped", "does not take part in dry runs"),
        (
            Forbidden('x is forbidden: User "u" cannot create resource "jobs"', verb="create", resource="jobs.batch"),
            "skipped",
            "not allowed to try: cannot create jobs.batch",
        ),
        (Forbidden("jobs.batch is forbidden: exceeded quota: q"), "failure", "exceeded quota"),
        (Unavailable("etcd"), "failure", "etcd"),
    ],
)
def test_a_refusal_of_the_dry_run_is_told_as_what_it_is(error: Any, status: str, words: str) -> None:
    result = namespace.refused("job", error)
    assert (result.status.value, words in result.seen, bool(result.remedy)) == (status, True, status == "failure")


BASELINE = 'would violate PodSecurity "baseline:latest": privileged (container "x" must not set it)'
VIOLATION = 'would violate PodSecurity "restricted:latest": runAsNonRoot != true'


@pytest.mark.parametrize(
    ("labels", "warnings", "status", "words"),
    [
        (None, None, "skipped", "nothing is known"),
        (None, [], "ok", "warns of nothing"),
        (None, [VIOLATION], "warning", "may refuse the pods"),
        ({}, [], "ok", "enforces: privileged"),
        ({"enforce": "baseline"}, [], "ok", "enforces: baseline"),
        ({"enforce": "baseline"}, [BASELINE], "failure", "enforces baseline, and pods would be refused"),
        ({"enforce": "restricted"}, [VIOLATION], "failure", "enforces restricted, and pods would be refused"),
        ({"enforce": "unheard-of"}, [VIOLATION], "failure", "pods would be refused"),
        ({"enforce": "baseline", "warn": "restricted"}, [VIOLATION], "warning", "enforces baseline only"),
        ({"enforce": "restricted", "warn": "privileged"}, [], "skipped", "so the dry run tells nothing"),
        ({"enforce": "restricted", "warn": "restricted"}, [], "ok", "enforces: restricted"),
    ],
)
def test_the_level_of_the_namespace_decides(
    labels: dict[str, str] | None, warnings: list[str] | None, status: str, words: str
) -> None:
    full = None if labels is None else {f"pod-security.kubernetes.io/{mode}": level for mode, level in labels.items()}
    result = namespace.pod_security(full, warnings)
    assert (result.status.value, words in result.seen, result.seen) == (status, True, result.seen)
    assert bool(result.remedy) == (status in {"failure", "warning"})
    # All profiles meet baseline: only the template can break it.
    assert ("SECURITY_PROFILE" in result.remedy) == (bool(warnings) and warnings != [BASELINE])


# Quota


def quotas(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> list[Quota]:
    body = {"metadata": {"name": "q"}, "spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}
    return [msgspec.convert(body, Quota)]


POD = {
    "containers": [
        {"name": "chaincode", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": 1, "memory": "256Mi"}}},
        {"name": "proxy", "resources": {"limits": {"memory": "64Mi"}}},
    ]
}


@pytest.mark.parametrize(
    ("hard", "used", "status"),
    [
        ({"pods": "10"}, {"pods": "9"}, "ok"),
        ({"pods": "10"}, {"pods": "10"}, "failure"),
        ({"count/jobs.batch": "3"}, {"count/jobs.batch": "3"}, "failure"),
        ({"secrets": "1"}, {}, "ok"),
        ({"requests.memory": "1Gi"}, {"requests.memory": "704Mi"}, "ok"),
        ({"requests.memory": "1Gi"}, {"requests.memory": "705Mi"}, "failure"),
        ({"limits.memory": "319Mi"}, {}, "failure"),
        ({"requests.cpu": "1"}, {}, "warning"),  # the proxy says nothing of cpu
        ({"services": "0"}, {}, "ok"),
    ],
)
def test_a_quota_has_room_or_not(hard: dict[str, str], used: dict[str, str], status: str) -> None:
    [result] = quota.quota(quotas(hard, used), quota.demand(POD))
    assert (result.status.value, result.check, bool(result.remedy)) == (status, "quota", status != "ok")


def test_a_quota_of_some_pods_only_is_left_alone() -> None:
    scopes: list[dict[str, Any]] = [{"scopes": ["Terminating"]}, {"scopeSelector": {"matchExpressions": []}}]
    for spec in scopes:
        [result] = quota.quota(quotas({"pods": "0"}, **spec), quota.demand(POD))
        assert (result.status.value, "its scopes" in result.seen) == ("ok", True)


async def test_a_namespace_that_is_being_deleted_is_told(cluster: Cluster, kubeconfig: Path) -> None:
    await cluster.switch("PATCH", "components", {"kube-controller-manager": False})  # who would empty it
    await cluster.request("DELETE", "/api/v1/namespaces/default")
    results = await found(kubeconfig)
    [(status, seen, remedy)] = told(results, "namespace")
    assert (status, seen) == ("failure", "namespace default is being deleted")
    assert remedy.startswith("Create it again")
    [(status, seen, remedy)] = told(results, "job")
    assert (status, "it is being terminated" in seen) == ("failure", True)
    assert remedy.startswith("The namespace is being deleted: create it again")


def test_what_the_peer_forwards_is_tried() -> None:
    launch = sample.launch(
        Settings.load({"FABRIC_K8S_BUILDER_NODE_ROLE": "daemon"}),
        sample.IMAGE,
        {"FABRIC_K8S_BUILDER_SERVICE_ACCOUNT": "chaincode", "FABRIC_K8S_BUILDER_NODE_ROLE": "peer"},
    )
    assert launch.pod["spec"]["serviceAccountName"] == "chaincode"
    assert launch.node_role == "daemon"
    assert not re.search("PRIVATE|CERTIFICATE", str(launch))
