"""What somebody may ask before a launch: the same tests against the embedded cluster and a real API server."""

import re
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from .cluster import Cluster, job, secret

pytestmark = pytest.mark.anyio

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
SUBJECTS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
METADATA = "application/json;as={};g=meta.k8s.io;v=v1"


async def review(api: Cluster, verb: str, group: str, resource: str, subresource: str = "") -> dict[str, Any]:
    attributes = {"namespace": api.namespace, "verb": verb, "group": group, "resource": resource}
    spec = {"resourceAttributes": {**attributes, "subresource": subresource}}
    told = {"resourceAttributes": {name: value for name, value in spec["resourceAttributes"].items() if value}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec}
    answer = await api.request("POST", REVIEWS, body)
    assert (answer.status, answer.body["kind"], answer.body["spec"]) == (201, "SelfSubjectAccessReview", told)
    status: dict[str, Any] = answer.body["status"]
    return status


async def test_an_access_review_says_what_is_allowed(api: Cluster) -> None:
    assert (await review(api, "create", "batch", "jobs"))["allowed"] is True
    assert (await review(api, "get", "", "pods", "log"))["allowed"] is True


async def test_an_access_review_says_what_is_not_allowed(stranger: Cluster) -> None:
    assert (await review(stranger, "create", "batch", "jobs"))["allowed"] is False
    assert (await review(stranger, "get", "", "pods", "log"))["allowed"] is False


async def test_who_asks_is_told(api: Cluster) -> None:
    answer = await api.request(
        "POST", SUBJECTS, {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    )
    assert (answer.status, answer.body["kind"]) == (201, "SelfSubjectReview")
    user = answer.body["status"]["userInfo"]
    assert user["username"]
    assert "system:authenticated" in user["groups"]


@pytest.mark.parametrize(
    ("method", "path", "subject", "what"),
    [
        ("POST", "/apis/batch/v1/namespaces/{}/jobs", "jobs.batch", 'create resource "jobs" in API group "batch"'),
        ("GET", "/api/v1/namespaces/{}/secrets/s1", 'secrets "s1"', 'get resource "secrets" in API group ""'),
        ("GET", "/api/v1/namespaces/{}/pods/p1/log", 'pods "p1"', 'get resource "pods/log" in API group ""'),
        ("GET", "/api/v1/namespaces/{}", 'namespaces "{}"', 'get resource "namespaces" in API group ""'),
        (
            "GET",
            "/api/v1/namespaces/{}/resourcequotas",
            "resourcequotas",
            'list resource "resourcequotas" in API group ""',
        ),
        ("GET", "/api/v1/nodes", "nodes", 'list resource "nodes" in API group ""'),
    ],
)
async def test_what_is_not_allowed_is_refused_in_rbacs_words(
    stranger: Cluster, method: str, path: str, subject: str, what: str
) -> None:
    namespace = stranger.namespace
    answer = await stranger.request(method, path.format(namespace), job("j1") if method == "POST" else None)
    assert (answer.status, answer.body["reason"]) == (403, "Forbidden")
    where = f'in the namespace "{namespace}"' if "{}" in path else "at the cluster scope"
    words = f'{subject.format(namespace)} is forbidden: User ".*" cannot {what} {where}'
    assert re.fullmatch(words, answer.body["message"]), answer.body["message"]


async def test_a_dry_run_answers_as_a_creation_and_creates_nothing(api: Cluster) -> None:
    async with api.watch("jobs") as watch:
        for _ in range(2):
            answer = await api.request("POST", api.path("jobs"), job("tried"), params={"dryRun": "All"})
            metadata = answer.body["metadata"]
            assert (answer.status, metadata["name"], "resourceVersion" in metadata) == (201, "tried", False)
            assert metadata["uid"]
            assert answer.body["spec"]["completionMode"] == "NonIndexed"
        assert (await api.request("GET", api.path("jobs", "tried"))).status == 404
        await api.create(job("made"))
        assert (await watch.next())["object"]["metadata"]["name"] == "made"
    answer = await api.request("POST", api.path("jobs"), job("made"), params={"dryRun": "All"})
    assert (answer.status, answer.body["reason"]) == (409, "AlreadyExists")
    answer = await api.request("POST", api.path("secrets"), secret("Upper"), params={"dryRun": "All"})
    assert answer.status == 422


async def test_there_is_no_other_dry_run_than_of_all(api: Cluster) -> None:
    answer = await api.request("POST", api.path("jobs"), job("tried"), params={"dryRun": "Some"})
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert 'dryRun: Unsupported value: ["Some"]: supported values: "All"' in answer.body["message"]


ALL = (
    'would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "chaincode" must set'
    ' securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "chaincode" must set'
    ' securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "chaincode" must set'
    ' securityContext.runAsNonRoot=true), seccompProfile (pod or container "chaincode" must set'
    ' securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")'
)
WELL: dict[str, Any] = {
    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "runAsNonRoot": True},
    "container": {"securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}},
}


async def test_of_a_job_whose_pods_would_be_refused_the_api_warns(restricted: Cluster) -> None:
    answer = await restricted.request("POST", restricted.path("jobs"), job("tried"), params={"dryRun": "All"})
    assert answer.status == 201
    escaped = ALL.replace('"', '\\"')
    assert answer.headers.getall("Warning") == [f'299 - "{escaped}"']
    answer = await restricted.request("POST", restricted.path("jobs"), job("tried", **WELL), params={"dryRun": "All"})
    assert (answer.status, answer.headers.getall("Warning", [])) == (201, [])


async def test_a_pod_that_the_level_does_not_allow_is_refused(restricted: Cluster) -> None:
    spec = {"containers": [{"name": "chaincode", "image": "localhost/x"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec}
    answer = await restricted.request("POST", restricted.path("pods"), pod, params={"dryRun": "All"})
    assert (answer.status, answer.body["reason"]) == (403, "Forbidden")
    assert answer.body["message"] == f'pods "tried" is forbidden: {ALL.replace("would violate", "violates")}'
    assert answer.body["details"] == {"name": "tried", "kind": "pods"}


async def test_only_the_metadata_comes_where_no_more_is_wanted(api: Cluster) -> None:
    await api.create(secret("s1", {"key": "s3cret"}))
    headers = {"Accept": METADATA.format("PartialObjectMetadata")}
    answer = await api.request("GET", api.path("secrets", "s1"), headers=headers)
    assert (answer.status, answer.body["kind"], answer.body["apiVersion"]) == (
        200,
        "PartialObjectMetadata",
        "meta.k8s.io/v1",
    )
    assert answer.body["metadata"]["name"] == "s1"
    assert answer.body.keys() == {"kind", "apiVersion", "metadata"}
    headers = {"Accept": METADATA.format("PartialObjectMetadataList")}
    answer = await api.request("GET", api.path("secrets"), headers=headers)
    assert (answer.status, answer.body["kind"]) == (200, "PartialObjectMetadataList")
    assert [item["metadata"]["name"] for item in answer.body["items"]] == ["s1"]
    assert all("data" not in item for item in answer.body["items"])


async def test_a_namespace_is_told(api: Cluster) -> None:
    answer = await api.request("GET", f"/api/v1/namespaces/{api.namespace}")
    assert (answer.status, answer.body["kind"], answer.body["apiVersion"]) == (200, "Namespace", "v1")
    assert answer.body["metadata"]["labels"]["kubernetes.io/metadata.name"] == api.namespace
    assert answer.body["status"] == {"phase": "Active"}
    answer = await api.request("GET", "/api/v1/namespaces/nowhere")
    assert (answer.status, answer.body["message"]) == (404, 'namespaces "nowhere" not found')


async def test_what_is_not_around_is_an_empty_list_or_a_404(api: Cluster) -> None:
    path = f"/api/v1/namespaces/{api.namespace}"
    answer = await api.request("GET", "/api/v1/nodes", params={"labelSelector": "fabric-builder-k8s-role=none"})
    assert (answer.status, answer.body["kind"], answer.body["items"]) == (200, "NodeList", [])
    answer = await api.request("GET", f"{path}/resourcequotas")
    assert (answer.status, answer.body["kind"], answer.body["items"]) == (200, "ResourceQuotaList", [])
    answer = await api.request("GET", f"{path}/serviceaccounts/none")
    assert (answer.status, answer.body["message"]) == (404, 'serviceaccounts "none" not found')


async def test_every_answer_says_what_time_it_is(api: Cluster) -> None:
    for path in ("/version", api.path("jobs"), api.path("jobs", "none")):
        answer = await api.request("GET", path)
        assert parsedate_to_datetime(answer.headers["Date"]).tzinfo is not None


async def test_a_token_that_is_not_known_is_refused_everywhere(api: Cluster) -> None:
    answer = await api.request("GET", "/version", headers={"Authorization": "Bearer wrong"})
    assert (answer.status, answer.body["reason"]) == (401, "Unauthorized")
