"""What the API answers: the same tests against the embedded cluster and a real API server.

Statuses and bodies are those that were recorded from a cluster of Kubernetes 1.36.
"""

import base64

import anyio
import pytest

from k8s_builder_lab.embedded.objects import Object

from .cluster import DIGEST, IMAGE, Cluster, certs, job, owner_reference, secret

pytestmark = pytest.mark.anyio

QUALIFIED = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an"
EXAMPLES = (
    "'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start"


def status(code: int, reason: str, message: str, **details: object) -> dict[str, object]:
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return body | {"reason": reason, "code": code} | ({"details": details} if details else {})


def pod(name: str, **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "main", "image": f"{IMAGE}@{DIGEST}"}]},
    }


def event(name: str, **fields: object) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name},
        "reason": "Tried",
        "message": "a test tried",
        "type": "Normal",
        **fields,
    }


async def test_a_created_job_comes_back_with_its_defaults(api: Cluster) -> None:
    created = await api.create(job("j1", "true", **certs("j1")))
    metadata, spec = created["metadata"], created["spec"]
    assert (created["kind"], created["apiVersion"], created["status"]) == ("Job", "batch/v1", {})
    assert (metadata["name"], metadata["namespace"], metadata["generation"]) == ("j1", api.namespace, 1)
    assert int(metadata["resourceVersion"]) > 0
    assert metadata["creationTimestamp"].endswith("Z")
    uid = metadata["uid"]
    assert spec["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    assert spec["template"]["metadata"]["labels"] == {
        "app": "j1",
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "j1",
        "controller-uid": uid,
        "job-name": "j1",
    }
    template = spec.pop("template")["spec"]
    assert spec == {
        "parallelism": 1,
        "completions": 1,
        "backoffLimit": 0,
        "selector": spec["selector"],
        "manualSelector": False,
        "ttlSecondsAfterFinished": 300,
        "completionMode": "NonIndexed",
        "suspend": False,
        "podReplacementPolicy": "TerminatingOrFailed",
    }
    assert template == {
        "volumes": [{"name": "certs", "secret": {"secretName": "j1", "defaultMode": 420}}],
        "containers": [
            {
                "name": "chaincode",
                "image": f"{IMAGE}@{DIGEST}",
                "command": ["true"],
                "resources": {},
                "volumeMounts": [{"name": "certs", "readOnly": True, "mountPath": "/etc/hyperledger/fabric"}],
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 2,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    }


async def unreadable(api: Cluster, body: Object, validation: str = "Strict") -> str:
    """Return why a Job is refused with 400."""
    answer = await api.request("POST", api.path("jobs"), body, params={"fieldValidation": validation})
    assert (answer.status, answer.body["reason"]) == (400, "BadRequest")
    message: str = answer.body["message"]
    start = 'Job in version "v1" cannot be handled as a Job: '
    assert message.startswith(start)
    return message.removeprefix(start)


async def test_an_unknown_field_is_refused_where_that_is_asked_for(api: Cluster) -> None:
    body = job("j1", "true", container={"resuorces": {}, "resources": {"limit": {}}}, hostnames=[])
    body["spec"]["nope"] = 1
    told = await unreadable(api, body)
    assert told.startswith("strict decoding error: unknown field ")
    assert set(told.removeprefix("strict decoding error: ").split(", ")) == {
        'unknown field "spec.nope"',
        'unknown field "spec.template.spec.containers[0].resources.limit"',
        'unknown field "spec.template.spec.containers[0].resuorces"',
        'unknown field "spec.template.spec.hostnames"',
    }
    for validation in ({"fieldValidation": "Ignore"}, {}):
        await api.create(body, params={**validation, "dryRun": "All"})


@pytest.mark.parametrize(
    ("quantity", "told"),
    [
        ("64KM", "unable to parse quantity's suffix"),
        ("64MB", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        ("one", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
        ("1 Gi", "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"),
    ],
)
@pytest.mark.parametrize("validation", ["Strict", "Ignore"])
async def test_what_is_no_quantity_is_refused(api: Cluster, quantity: str, told: str, validation: str) -> None:
    resources = {"limits": {"memory": quantity}}
    assert told in await unreadable(api, job("j1", "true", container={"resources": resources}), validation)
    volumes = [{"name": "tmp", "emptyDir": {"sizeLimit": quantity}}]
    assert told in await unreadable(api, job("j1", "true", volumes=volumes), validation)


@pytest.mark.parametrize("quantity", ["64Mi", "1e9", "0.5Gi", 5, 1.5, None])
async def test_what_is_a_quantity_is_taken(api: Cluster, quantity: object) -> None:
    await api.create(job("j1", "true", container={"resources": {"requests": {"memory": quantity}}}))


async def test_a_taken_name_is_a_409(api: Cluster) -> None:
    await api.create(job("j1"))
    answer = await api.request("POST", api.path("jobs"), job("j1"))
    assert answer.status == 409
    expected = status(409, "AlreadyExists", 'jobs.batch "j1" already exists', name="j1", group="batch", kind="jobs")
    assert answer.body == expected


async def test_a_missing_namespace_is_a_404_of_the_namespace(api: Cluster) -> None:
    answer = await api.request("POST", api.path("jobs", namespace="nowhere"), job("x"))
    assert answer.status == 404
    expected = status(404, "NotFound", 'namespaces "nowhere" not found', name="nowhere", kind="namespaces")
    assert answer.body == expected
    assert (await api.request("GET", api.path("jobs", namespace="nowhere"))).body["items"] == []


async def test_bad_labels_are_a_422_that_names_each(api: Cluster) -> None:
    bad = job("bad", labels={"app": "fine"})
    bad["metadata"]["labels"] = {"bad label": "x y"}
    answer = await api.request("POST", api.path("jobs"), bad)
    assert (answer.status, answer.body["reason"], answer.body["code"]) == (422, "Invalid", 422)
    details = answer.body["details"]
    assert (details["name"], details["group"], details["kind"]) == ("bad", "batch", "Job")
    first, second = details["causes"]
    assert first["field"] == second["field"] == "metadata.labels"
    assert first["reason"] == second["reason"] == "FieldValueInvalid"
    assert first["message"].startswith(f'Invalid value: "bad label": {QUALIFIED}')
    assert second["message"].startswith(f'Invalid value: "x y": {VALUE}')
    assert answer.body["message"] == (
        f'Job.batch "bad" is invalid: [metadata.labels: {first["message"]}, metadata.labels: {second["message"]}]'
    )


@pytest.mark.parametrize("name", ["Upper", "under_score", "-dash", "x" * 254])
async def test_a_bad_name_is_a_422(api: Cluster, name: str) -> None:
    answer = await api.request("POST", api.path("secrets"), secret(name))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert [cause["field"] for cause in answer.body["details"]["causes"]] == ["metadata.name"]
    assert answer.body["message"].startswith(f'Secret "{name}" is invalid: metadata.name: Invalid value')


async def test_a_jobs_name_has_to_fit_a_label(api: Cluster) -> None:
    answer = await api.request("POST", api.path("jobs"), job("x" * 64, labels={"app": "x"}))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    await api.create(job("x" * 63, labels={"app": "x"}))


async def test_a_label_longer_than_63_characters_is_a_422(api: Cluster) -> None:
    answer = await api.request("POST", api.path("jobs"), job("j1", labels={"app": "x" * 64}))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert "must be no more than 63 bytes" in answer.body["message"]


async def test_what_is_not_json_or_of_another_namespace_or_kind_is_a_400(api: Cluster) -> None:
    headers = {"Content-Type": "application/json"}
    assert (await api.request("POST", api.path("jobs"), data=b"{", headers=headers)).status == 400
    elsewhere = job("j1")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    assert (await api.request("POST", api.path("jobs"), elsewhere)).status == 400
    assert (await api.request("POST", api.path("jobs"), secret("s1"))).status == 400
    number = secret("s1")
    number["metadata"]["labels"] = {"a": 1}
    assert (await api.request("POST", api.path("secrets"), number)).status == 400


async def test_what_is_not_there_is_a_404(api: Cluster) -> None:
    expected = status(404, "NotFound", 'jobs.batch "none" not found', name="none", group="batch", kind="jobs")
    assert (await api.request("GET", api.path("jobs", "none"))).body == expected
    assert (await api.delete("jobs", "none")).body == expected
    log = await api.request("GET", api.path("pods", "none", "log"))
    assert log.body == status(404, "NotFound", 'pods "none" not found', name="none", kind="pods")


async def test_a_deleted_job_is_gone_at_once(api: Cluster) -> None:
    created = await api.create(job("j1"))
    answer = await api.delete("jobs", "j1")
    assert answer.status == 200
    assert answer.body == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {"name": "j1", "group": "batch", "kind": "jobs", "uid": created["metadata"]["uid"]},
    }
    assert (await api.delete("jobs", "j1")).status == 404


async def test_a_deletion_may_be_bound_to_a_uid(api: Cluster) -> None:
    created = await api.create(job("j1"))
    other = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    answer = await api.request("DELETE", api.path("jobs", "j1"), other)
    assert (answer.status, answer.body["reason"]) == (409, "Conflict")
    assert answer.body["details"] == {"name": "j1", "group": "batch", "kind": "Job"}
    right = {"preconditions": {"uid": created["metadata"]["uid"]}, "propagationPolicy": "Background"}
    assert (await api.request("DELETE", api.path("jobs", "j1"), right)).status == 200


async def test_what_has_a_finalizer_stays_until_it_is_taken_away(api: Cluster) -> None:
    kept = job("j1")
    kept["metadata"]["finalizers"] = ["example.com/wait"]
    await api.create(kept)
    version = (await api.list("jobs"))["metadata"]["resourceVersion"]
    answer = await api.delete("jobs", "j1")
    assert (answer.status, answer.body["kind"]) == (200, "Job"), "the object, as it is not gone"
    metadata = answer.body["metadata"]
    assert (metadata["deletionGracePeriodSeconds"], metadata["generation"]) == (0, 2)
    assert metadata["deletionTimestamp"].endswith("Z")
    again = await api.delete("jobs", "j1")
    assert (again.status, again.body["metadata"]["resourceVersion"]) == (200, metadata["resourceVersion"])
    assert (await api.patch("jobs", "j1", {"metadata": {"finalizers": None}})).status == 200
    assert (await api.request("GET", api.path("jobs", "j1"))).status == 404
    async with api.watch("jobs", resourceVersion=version) as watch:
        marked, deleted = [await watch.next() for _ in range(2)]
    assert [event["type"] for event in (marked, deleted)] == ["MODIFIED", "DELETED"]
    assert deleted["object"]["metadata"]["finalizers"] == ["example.com/wait"], "as it was before"


@pytest.mark.parametrize(
    ("policy", "finalizers"),
    [("Orphan", ["orphan"]), ("Foreground", ["foregroundDeletion"]), (None, ["orphan"])],
)
async def test_a_policy_that_wants_something_done_about_dependants_is_a_finalizer(
    api: Cluster, policy: str | None, finalizers: list[str]
) -> None:
    await api.create(job("j1"))
    query = {"propagationPolicy": policy} if policy else {}
    answer = await api.request("DELETE", api.path("jobs", "j1"), params=query)
    assert (answer.status, answer.body["metadata"]["finalizers"]) == (200, finalizers)
    assert (await api.get("jobs", "j1"))["metadata"]["deletionGracePeriodSeconds"] == 0


async def test_a_policy_that_there_is_not_is_a_422(api: Cluster) -> None:
    await api.create(job("j1"))
    answer = await api.request("DELETE", api.path("jobs", "j1"), params={"propagationPolicy": "Sometimes"})
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert 'propagationPolicy: Unsupported value: "Sometimes": supported values: ' in answer.body["message"]
    await api.get("jobs", "j1")


async def test_a_pod_goes_through_a_deletion_timestamp_also_with_no_grace(api: Cluster) -> None:
    await api.create(pod("p1"))
    version = (await api.list("pods"))["metadata"]["resourceVersion"]
    await api.delete("pods", "p1")
    async with api.watch("pods", resourceVersion=version) as watch:
        events = await watch.until(lambda event: event["type"] == "DELETED")
    assert [event["type"] for event in events] == ["MODIFIED", "DELETED"]
    assert events[0]["object"]["metadata"]["deletionGracePeriodSeconds"] == 0


async def test_a_pod_with_a_node_is_only_marked_and_its_grace_only_gets_shorter(api: Cluster) -> None:
    placed = pod("p1")
    placed["spec"] = {**placed["spec"], "nodeName": "node1", "terminationGracePeriodSeconds": 20}
    await api.create(placed)

    async def grace(**query: int) -> int:
        answer = await api.request("DELETE", api.path("pods", "p1"), params=query)
        assert answer.status == 200
        return int(answer.body["metadata"]["deletionGracePeriodSeconds"])

    graces = [await grace(), await grace(gracePeriodSeconds=5), await grace(gracePeriodSeconds=10), await grace()]
    assert graces == [20, 5, 5, 5]
    assert (await api.get("pods", "p1"))["metadata"]["generation"] == 2
    assert await grace(gracePeriodSeconds=0) == 0
    assert (await api.request("GET", api.path("pods", "p1"))).status == 404


async def test_a_pods_finalizer_keeps_it_also_when_its_deletion_is_forced(api: Cluster) -> None:
    tracked = pod("p1")
    tracked["metadata"] = {"name": "p1", "finalizers": ["batch.kubernetes.io/job-tracking"]}
    await api.create(tracked)
    answer = await api.request("DELETE", api.path("pods", "p1"), {"gracePeriodSeconds": 0})
    assert (answer.status, answer.body["metadata"]["deletionGracePeriodSeconds"]) == (200, 0)
    await api.get("pods", "p1")
    assert (await api.patch("pods", "p1", {"metadata": {"finalizers": []}})).status == 200
    assert (await api.request("GET", api.path("pods", "p1"))).status == 404


async def test_init_containers_and_probes_get_their_defaults(api: Cluster) -> None:
    probe = {"exec": {"command": ["true"]}}
    made = job("j1", "true", container={"readinessProbe": probe, "livenessProbe": {**probe, "periodSeconds": 3}})
    made["spec"]["template"]["spec"]["initContainers"] = [
        {"name": "init", "image": f"{IMAGE}@{DIGEST}"},
        {"name": "proxy", "image": f"{IMAGE}@{DIGEST}", "restartPolicy": "Always", "startupProbe": probe},
    ]
    spec = (await api.create(made))["spec"]["template"]["spec"]
    filled = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3, **probe}
    (container,), (init, proxy) = spec["containers"], spec["initContainers"]
    assert container["readinessProbe"] == filled
    assert container["livenessProbe"] == {**filled, "periodSeconds": 3}
    assert proxy["startupProbe"] == filled
    for each in (init, proxy):
        assert (each["resources"], each["imagePullPolicy"]) == ({}, "IfNotPresent")
        assert each["terminationMessagePath"] == "/dev/termination-log"


async def test_an_init_container_wants_a_name_and_an_image(api: Cluster) -> None:
    for field in ("name", "image"):
        bad = job("j1", initContainers=[{"name": "init", "image": f"{IMAGE}@{DIGEST}", field: ""}])
        answer = await api.request("POST", api.path("jobs"), bad)
        assert answer.status == 422
        (cause, *_) = answer.body["details"]["causes"]
        assert cause["field"] == f"spec.template.spec.initContainers[0].{field}"


async def test_a_pod_without_a_node_is_deleted_at_once_and_comes_back_as_it_was(api: Cluster) -> None:
    created = await api.create(pod("p1"))
    answer = await api.delete("pods", "p1")
    assert answer.status == 200
    assert (answer.body["kind"], answer.body["metadata"]["uid"]) == ("Pod", created["metadata"]["uid"])
    assert (await api.request("GET", api.path("pods", "p1"))).status == 404


async def test_a_created_pod_is_pending_and_knows_its_service_account(api: Cluster) -> None:
    created = await api.create(pod("p1"))
    assert created["status"]["phase"] == "Pending"
    spec = created["spec"]
    assert (spec["restartPolicy"], spec["terminationGracePeriodSeconds"]) == ("Always", 30)
    assert (spec["priority"], spec["enableServiceLinks"]) == (0, True)


async def test_a_list_tells_its_resource_version_and_leaves_out_what_is_not_meant(api: Cluster) -> None:
    await api.create(job("j2", labels={"app": "a", "x": ""}))
    await api.create(job("j1", labels={"app": "a"}))
    await api.create(job("j3", labels={"app": "b"}))

    async def names(**query: str) -> list[str]:
        listed = await api.list("jobs", **query)
        assert (listed["kind"], listed["apiVersion"]) == ("JobList", "batch/v1")
        assert int(listed["metadata"]["resourceVersion"]) > 0
        assert all("kind" not in item for item in listed["items"])
        return [item["metadata"]["name"] for item in listed["items"]]

    assert await names() == ["j1", "j2", "j3"]
    assert await names(labelSelector="app=a") == ["j1", "j2"]
    assert await names(labelSelector="app==a,x=") == ["j2"]
    assert await names(labelSelector="app=a,!x") == ["j1"]
    assert await names(labelSelector="app!=a") == ["j3"]
    assert await names(labelSelector="x") == ["j2"]
    assert await names(fieldSelector="metadata.name=j3") == ["j3"]
    assert await names(fieldSelector="metadata.name!=j3") == ["j1", "j2"]
    assert await names(labelSelector="app=none") == []


async def test_a_bad_selector_is_a_400(api: Cluster) -> None:
    for query in ({"labelSelector": "=="}, {"fieldSelector": "spec.parallelism=1"}, {"fieldSelector": "nonsense"}):
        assert (await api.request("GET", api.path("jobs"), params=query)).status == 400


async def test_events_are_found_by_what_they_are_about(api: Cluster) -> None:
    about = {"kind": "Job", "namespace": api.namespace, "name": "j1", "uid": "u1"}
    await api.create(event("e1", involvedObject=about, type="Warning"))
    await api.create(event("e2", involvedObject={**about, "kind": "Pod", "uid": "u2"}, reason="Other"))

    async def names(selector: str) -> list[str]:
        listed = await api.list("events", fieldSelector=selector)
        return [item["metadata"]["name"] for item in listed["items"]]

    assert await names("involvedObject.uid=u1") == ["e1"]
    assert await names("involvedObject.kind=Pod") == ["e2"]
    assert await names("involvedObject.name=j1,involvedObject.kind=Job") == ["e1"]
    assert await names("reason=Other") == ["e2"]
    assert await names("type=Warning") == ["e1"]
    assert await names("reason=Other,type=Warning") == []


async def test_a_list_from_the_future_is_a_504_that_asks_to_come_back(api: Cluster) -> None:
    query = {"resourceVersion": "999999999", "resourceVersionMatch": "NotOlderThan"}
    answer = await api.request("GET", api.path("jobs"), params=query)
    assert (answer.status, answer.body["reason"]) == (504, "Timeout")
    assert answer.body["message"].startswith("Timeout: Too large resource version: 999999999, current: ")
    assert answer.body["details"] == {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    assert answer.headers["Retry-After"] == "1"


async def test_a_watch_goes_on_where_the_list_ended(api: Cluster) -> None:
    await api.create(job("j1"))
    listed = await api.list("jobs")
    await api.create(job("j2"))
    async with api.watch("jobs", resourceVersion=listed["metadata"]["resourceVersion"]) as watch:
        first = await watch.next()
        assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "j2")
        assert (first["object"]["kind"], first["object"]["apiVersion"]) == ("Job", "batch/v1")
        await api.delete("jobs", "j2")
        deleted = (await watch.until(lambda event: event["type"] == "DELETED"))[-1]
        assert deleted["object"]["metadata"]["name"] == "j2"
        assert int(deleted["object"]["metadata"]["resourceVersion"]) > int(
            first["object"]["metadata"]["resourceVersion"]
        )


async def test_a_watch_without_a_resource_version_begins_with_what_is_there(api: Cluster) -> None:
    await api.create(secret("s1"))
    async with api.watch("secrets", fieldSelector="metadata.name=s1") as watch:
        assert (await watch.next())["type"] == "ADDED"


async def test_to_a_selecting_watch_a_lost_label_is_a_deletion_and_a_regained_one_an_addition(api: Cluster) -> None:
    await api.create(secret("s1"))
    version = (await api.list("secrets"))["metadata"]["resourceVersion"]
    async with api.watch("secrets", labelSelector="a=b", resourceVersion=version) as watch:
        for value in ("b", "c", "b"):
            assert (await api.patch("secrets", "s1", {"metadata": {"labels": {"a": value}}})).status == 200
        added, deleted, again = [await watch.next() for _ in range(3)]
    assert [event["type"] for event in (added, deleted, again)] == ["ADDED", "DELETED", "ADDED"]
    assert deleted["object"]["metadata"]["labels"] == {"a": "b"}, "the labels that it was selected by"
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in (added, deleted, again)]
    assert versions == sorted(set(versions))


async def test_an_old_resource_version_is_an_error_event_with_410(api: Cluster) -> None:
    answer = await api.request("GET", api.path("jobs"), params={"watch": "true", "resourceVersion": "1"})
    assert answer.status == 200
    assert answer.body["type"] == "ERROR"
    error = answer.body["object"]
    assert (error["kind"], error["status"], error["reason"], error["code"]) == ("Status", "Failure", "Expired", 410)
    assert error["message"].startswith("too old resource version: 1 (")


async def test_a_resource_version_that_is_no_number_is_refused(api: Cluster) -> None:
    answer = await api.request("GET", api.path("jobs"), params={"watch": "true", "resourceVersion": "nonsense"})
    assert answer.status == 500
    assert "nonsense" in answer.body["message"]


async def test_a_watch_from_the_future_is_silent(api: Cluster) -> None:
    async with api.watch("secrets", resourceVersion="999999999", timeoutSeconds="2") as watch:
        await api.create(secret("s1"))
        assert await watch.ends() == b""


async def test_a_watch_ends_cleanly_when_its_time_is_over(api: Cluster) -> None:
    version = (await api.list("jobs"))["metadata"]["resourceVersion"]
    async with api.watch("jobs", resourceVersion=version, timeoutSeconds="1") as watch:
        assert await watch.ends() == b""


async def test_string_data_becomes_data(api: Cluster) -> None:
    created = await api.create(secret("s1", {"peer.crt": "PEM"}))
    assert created["data"] == {"peer.crt": base64.b64encode(b"PEM").decode()}
    assert "stringData" not in created
    assert (created["type"], created["immutable"]) == ("Opaque", True)


async def test_an_immutable_secret_keeps_its_data_but_may_be_owned(api: Cluster) -> None:
    owner = await api.create(job("j1"))
    await api.create(secret("s1", {"peer.crt": "PEM"}))
    answer = await api.patch("secrets", "s1", {"data": {"peer.crt": "eA=="}})
    assert answer.status == 422
    message = "Forbidden: field is immutable when `immutable` is set"
    assert answer.body == status(
        422,
        "Invalid",
        f'Secret "s1" is invalid: data: {message}',
        name="s1",
        kind="Secret",
        causes=[{"reason": "FieldValueForbidden", "message": message, "field": "data"}],
    )
    owned = await api.patch("secrets", "s1", {"metadata": {"ownerReferences": [owner_reference(owner)]}})
    assert owned.status == 200
    assert owned.body["metadata"]["ownerReferences"] == [owner_reference(owner)]


async def test_data_that_is_not_base64_is_a_400(api: Cluster) -> None:
    broken = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s1"}, "data": {"k": "***"}}
    assert (await api.request("POST", api.path("secrets"), broken)).status == 400


async def test_a_secret_answers_its_deletion_with_a_status(api: Cluster) -> None:
    created = await api.create(secret("s1"))
    assert (await api.delete("secrets", "s1")).body["details"] == {
        "name": "s1",
        "kind": "secrets",
        "uid": created["metadata"]["uid"],
    }


async def test_a_patch_of_another_type_is_a_415(api: Cluster) -> None:
    await api.create(secret("s1"))
    headers = {"Content-Type": "text/plain"}
    answer = await api.request("PATCH", api.path("secrets", "s1"), data=b"{}", headers=headers)
    assert (answer.status, answer.body["reason"]) == (415, "UnsupportedMediaType")


async def test_a_pods_status_can_be_set(api: Cluster) -> None:
    await api.create(pod("p1"))
    answer = await api.patch("pods", "p1", {"status": {"reason": "Evicted", "message": "low on memory"}}, "status")
    assert answer.status == 200
    assert answer.body["status"]["reason"] == "Evicted"
    ignored = await api.patch("pods", "p1", {"status": {"reason": "Other"}})
    assert ignored.body["status"]["reason"] == "Evicted", "only the subresource writes the status"


def new_event(api: Cluster, name: str, **fields: object) -> dict[str, object]:
    job = {"kind": "Job", "apiVersion": "batch/v1", "namespace": api.namespace, "name": "j1", "uid": "u1"}
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name},
        "eventTime": "2026-11-26T05:00:00.123456Z",
        "reportingController": "k8s-builderd",
        "reportingInstance": "peer0",
        "action": "Launching",
        "reason": "Launched",
        "regarding": job,
        "note": "a test launched",
        "type": "Normal",
        **fields,
    }


async def test_an_event_of_the_newer_group_is_a_core_event_as_well(api: Cluster) -> None:
    path = f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events"
    body = new_event(api, "e1")
    created = await api.request("POST", path, body)
    assert created.status == 201
    assert created.body | body | {"metadata": created.body["metadata"]} == created.body
    core = await api.get("events", "e1")
    assert core["involvedObject"] == body["regarding"]
    assert (core["message"], core["reportingComponent"], core["eventTime"]) == (
        "a test launched",
        "k8s-builderd",
        "2026-11-26T05:00:00.123456Z",
    )
    assert (core["firstTimestamp"], core["lastTimestamp"], core["source"]) == (None, None, {})
    assert (await api.list("events", fieldSelector="involvedObject.uid=u1"))["items"] != []
    again = await api.request("POST", path, body)
    message = 'events.events.k8s.io "e1" already exists'
    assert again.body == status(409, "AlreadyExists", message, name="e1", group="events.k8s.io", kind="events")


async def test_a_series_is_patched_and_nothing_else(api: Cluster) -> None:
    path = f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events"
    headers = {"Content-Type": "application/merge-patch+json"}
    await api.request("POST", path, new_event(api, "e1"))
    for count in (2, 7):
        series = {"count": count, "lastObservedTime": f"2026-11-26T05:0{count}:00.000000Z"}
        answer = await api.request("PATCH", f"{path}/e1", {"series": series}, headers=headers)
        assert (answer.status, answer.body["series"]) == (200, series)
        assert (await api.get("events", "e1"))["series"] == series
        assert (await api.request("GET", f"{path}/e1")).body["series"] == series
    for patch, field, message in (
        ({"note": "other"}, "message", 'Invalid value: "other": field is immutable'),
        ({"series": {**series, "count": 1}}, "series.count", SERIES),
    ):
        answer = await api.request("PATCH", f"{path}/e1", patch, headers=headers)
        causes = [{"reason": "FieldValueInvalid", "message": message, "field": field}]
        expected = f'Event "e1" is invalid: {field}: {message}'
        assert answer.body == status(422, "Invalid", expected, name="e1", kind="Event", causes=causes)
    missing = await api.request("PATCH", f"{path}/e2", {"series": series}, headers=headers)
    message = 'events.events.k8s.io "e2" not found'
    assert missing.body == status(404, "NotFound", message, name="e2", group="events.k8s.io", kind="events")
    assert (await api.request("GET", f"{path}/e2")).body == missing.body


SERIES = 'Invalid value: "": should be at least 2'


@pytest.mark.parametrize(
    ("fields", "causes"),
    [
        ({"eventTime": None}, [("eventTime", "Required value")]),
        ({"reason": ""}, [("reason", "Required value")]),
        ({"action": ""}, [("action", "Required value")]),
        ({"reportingInstance": ""}, [("reportingInstance", "Required value")]),
        ({"note": "ä" * 513}, [("message", 'Invalid value: "": can have at most 1024 characters')]),
        ({"type": "Bad"}, [("type", 'Invalid value: "": has invalid value: Bad')]),
        ({"deprecatedCount": 3}, [("count", 'Invalid value: "": needs to be unset')]),
        ({"regarding": {}}, [("involvedObject.namespace", 'Invalid value: "": does not match event.namespace')]),
        (
            {"action": "x" * 129, "reason": "y" * 129},
            [(field, 'Invalid value: "": can have at most 128 characters') for field in ("action", "reason")],
        ),
        (
            {"reportingController": "a b"},
            [("reportingController", f'Invalid value: "a b": {QUALIFIED} alphanumeric character (e.g. {EXAMPLES}')],
        ),
        (
            {"reportingController": ""},
            [
                ("reportingController", "Required value"),
                ("reportingController", 'Invalid value: "": name part must be non-empty'),
                ("reportingController", f'Invalid value: "": {QUALIFIED} alphanumeric character (e.g. {EXAMPLES}'),
            ],
        ),
        ({"series": {"count": 2}}, [("series.lastObservedTime", "Required value")]),
    ],
)
async def test_an_event_of_the_newer_group_has_rules(
    api: Cluster, fields: dict[str, object], causes: list[tuple[str, str]]
) -> None:
    path = f"/apis/events.k8s.io/v1/namespaces/{api.namespace}/events"
    answer = await api.request("POST", path, new_event(api, "e1", **fields))
    assert answer.status == 422
    assert [(cause["field"], cause["message"]) for cause in answer.body["details"]["causes"]] == causes


async def test_without_the_token_there_is_a_401(api: Cluster) -> None:
    answer = await api.request("GET", api.path("jobs"), headers={"Authorization": "Bearer wrong"})
    assert answer.status == 401
    assert answer.body == status(401, "Unauthorized", "Unauthorized")


async def test_the_rules_can_be_reviewed(api: Cluster) -> None:
    spec = {"namespace": api.namespace}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": spec}
    answer = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    assert (answer.status, answer.body["kind"]) == (201, "SelfSubjectRulesReview")
    assert {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]} in answer.body["status"]["resourceRules"]
    assert answer.body["status"]["incomplete"] is False


async def test_a_dry_run_creates_nothing(api: Cluster) -> None:
    answer = await api.request("POST", api.path("secrets"), secret("s1"), params={"dryRun": "All"})
    assert (answer.status, answer.body["metadata"]["name"]) == (201, "s1")
    assert (await api.list("secrets"))["items"] == []
    missing = await api.request(
        "POST", api.path("secrets", namespace="nowhere"), secret("s1"), params={"dryRun": "All"}
    )
    assert missing.status == 404


async def test_in_a_namespace_that_is_being_deleted_nothing_is_created(api: Cluster) -> None:
    path = f"/api/v1/namespaces/{api.namespace}"
    assert (await api.request("GET", path)).body["status"]["phase"] == "Active"
    assert (await api.request("DELETE", path)).status == 200
    found = await api.request("GET", path)
    assert (found.status, found.body["status"]["phase"]) == (200, "Terminating")
    assert "deletionTimestamp" in found.body["metadata"]
    answer = await api.request("POST", api.path("jobs"), job("j1"))
    assert answer.body == status(
        403,
        "Forbidden",
        f'jobs.batch "j1" is forbidden: unable to create new content in namespace {api.namespace} because it is being'
        " terminated",
        name="j1",
        group="batch",
        kind="jobs",
        causes=[
            {
                "reason": "NamespaceTerminating",
                "message": f"namespace {api.namespace} is being terminated",
                "field": "metadata.namespace",
            }
        ],
    )
    assert (await api.list("jobs"))["items"] == []


async def test_a_namespace_that_is_not_there_is_a_404(api: Cluster) -> None:
    answer = await api.request("GET", "/api/v1/namespaces/nowhere")
    expected = status(404, "NotFound", 'namespaces "nowhere" not found', name="nowhere", kind="namespaces")
    assert answer.body == expected


async def test_version_and_health_are_told(api: Cluster) -> None:
    version = await api.request("GET", "/version")
    assert {"major", "minor", "gitVersion"} <= version.body.keys()
    for path in ("/livez", "/readyz"):
        answer = await api.request("GET", path)
        assert (answer.status, answer.data) == (200, b"ok")


async def test_an_unknown_path_or_method_is_refused(api: Cluster) -> None:
    assert (await api.request("GET", f"/api/v1/namespaces/{api.namespace}/nonsense")).status == 404
    assert (await api.request("POST", api.path("jobs", "j1"), job("j1"))).status == 405


async def test_a_log_of_a_pod_without_a_node_has_no_content(api: Cluster) -> None:
    await api.create(pod("p1"))
    answer = await api.request("GET", api.path("pods", "p1", "log"))
    assert (answer.status, answer.data) == (204, b"")


async def test_a_log_is_asked_for_with_good_words(api: Cluster) -> None:
    await api.create(pod("p1"))
    path = api.path("pods", "p1", "log")
    assert (await api.request("GET", path, params={"container": "other"})).status == 400
    assert (await api.request("GET", path, params={"sinceTime": "garbage"})).status == 400
    both = await api.request("GET", path, params={"sinceTime": "2026-01-01T00:00:00Z", "sinceSeconds": "1"})
    message = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified"
    assert both.body == status(
        422,
        "Invalid",
        f'PodLogOptions "p1" is invalid: []: {message}',
        name="p1",
        kind="PodLogOptions",
        causes=[{"reason": "FieldValueForbidden", "message": message, "field": "[]"}],
    )
    none = await api.request("GET", path, params={"sinceSeconds": "0"})
    assert none.body["message"] == (
        'PodLogOptions "p1" is invalid: sinceSeconds: Invalid value: 0: must be greater than 0'
    )


async def test_a_pod_with_several_containers_wants_one_named(api: Cluster) -> None:
    two = pod("p1")
    containers = {name: {"name": name, "image": f"{IMAGE}@{DIGEST}"} for name in ("a", "b", "init", "other")}
    two["spec"] = {"containers": [containers["a"], containers["b"]]}
    await api.create(two)
    answer = await api.request("GET", api.path("pods", "p1", "log"))
    assert answer.status == 400
    message = "a container name must be specified for pod p1, choose one of: [a b]"
    assert answer.body == status(400, "BadRequest", message)
    two["metadata"] = {"name": "p2"}
    two["spec"] = {**two["spec"], "initContainers": [containers["init"], containers["other"]]}
    await api.create(two)
    answer = await api.request("GET", api.path("pods", "p2", "log"))
    assert answer.body["message"] == "a container name must be specified for pod p2, choose one of: [init other a b]"
    assert (await api.request("GET", api.path("pods", "p2", "log"), params={"container": "init"})).status == 204
    unknown = await api.request("GET", api.path("pods", "p2", "log"), params={"container": "none"})
    assert (unknown.status, unknown.body["message"]) == (400, "container none is not valid for pod p2")


async def test_an_eviction_of_a_pod_without_a_node_deletes_it(api: Cluster) -> None:
    await api.create(pod("p1"))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p1"}}
    answer = await api.request("POST", api.path("pods", "p1", "eviction"), eviction)
    assert (answer.status, answer.body["status"]) == (201, "Success")
    await api.gone("pods", "p1")


async def test_many_watches_are_served_at_once(api: Cluster) -> None:
    version = (await api.list("secrets"))["metadata"]["resourceVersion"]
    seen = []

    async def follow(started: anyio.Event) -> None:
        async with api.watch("secrets", resourceVersion=version) as watch:
            started.set()
            seen.append((await watch.next())["object"]["metadata"]["name"])

    async with anyio.create_task_group() as tg:
        events = [anyio.Event() for _ in range(30)]
        for each in events:
            tg.start_soon(follow, each)
        for each in events:
            await each.wait()
        await api.create(secret("s1"))
    assert seen == ["s1"] * 30
