"""Pods as local processes: environment and certs, exit codes, deletion and grace, owners, TTL, late Secrets."""

import os
import signal
from pathlib import Path

import anyio
import pytest

from k8s_builder_lab.embedded.objects import Object

from .cluster import (
    DIGEST,
    IMAGE,
    PATIENCE,
    Cluster,
    certs,
    container_state,
    ended,
    job,
    owner_reference,
    running,
    secret,
)

pytestmark = pytest.mark.anyio


async def exit_state(cluster: Cluster, name: str) -> dict[str, object]:
    pod = await cluster.pod_when(name, ended)
    state: dict[str, object] = container_state(pod)["terminated"]
    return state


async def log_of(cluster: Cluster, name: str) -> bytes:
    """Return the whole log of a Job's pod, once it has ended."""
    pod = await cluster.pod_when(name, ended)
    return await cluster.log(pod["metadata"]["name"], follow="true")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until_dead(pid: int) -> None:
    with anyio.fail_after(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 (nobody tells of the end of another's process)
            await anyio.sleep(0.02)


async def process_of(cluster: Cluster, name: str) -> int:
    """Return the process of the only container that runs, once the pod tells of it."""
    await cluster.pod_when(name, running)
    (pid,) = (await cluster.switch("GET", "state"))["processes"]
    return int(pid)


async def test_the_certs_are_private_files_to_which_the_paths_point(cluster: Cluster) -> None:
    owner = await cluster.create(
        job(
            "j1",
            "sh",
            "-c",
            'echo "$CORE_FILE $OTHER"; cat "$CORE_FILE"; stat -c %a "$CORE_FILE" "$CORE_DIR"; env | cut -d= -f1 | sort',
            volumes=certs("j1")["volumes"],
            container={
                **certs("j1")["container"],
                "env": [
                    {"name": "CORE_FILE", "value": "/etc/hyperledger/fabric/peer.crt"},
                    {"name": "CORE_DIR", "value": "/etc/hyperledger/fabric"},
                    {"name": "OTHER", "value": "/etc/hyperledger/fabricated"},
                    {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                ],
            },
        )
    )
    await cluster.create(secret("j1", {"peer.crt": "PEM\n"}, owner=owner))
    first, content, mode, folder, *names = (await log_of(cluster, "j1")).decode().splitlines()
    file, other = first.split(" ")
    assert file.endswith("/peer.crt")
    assert not file.startswith("/etc")
    assert other == "/etc/hyperledger/fabricated"
    assert (content, mode, folder) == ("PEM", "600", "700")
    # The shell itself adds PWD and such.
    assert {name for name in names if name not in {"PWD", "SHLVL", "_", "OLDPWD"}} == {
        *("CORE_DIR", "CORE_FILE", "HOME", "OTHER", "PATH", "POD", "TMPDIR")
    }


async def test_a_secret_that_comes_late_lets_the_pod_start(cluster: Cluster) -> None:
    await cluster.create(job("j1", "echo", "started", **certs("j1")))
    async with cluster.watch("events", fieldSelector="reason=FailedMount") as watch:
        await watch.next()
    await cluster.create(secret("j1"))
    assert await log_of(cluster, "j1") == b"started\n"


async def test_a_secret_right_after_the_job_costs_no_failed_mount(cluster: Cluster) -> None:
    await cluster.create(job("j1", "true", **certs("j1")))
    await cluster.create(secret("j1"))
    await cluster.pod_when("j1", ended)
    assert (await cluster.list("events", fieldSelector="reason=FailedMount"))["items"] == []


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        ("kill -9 $$$$", 137, "Error"),
        ("kill -15 $$$$", 143, "Error"),
        ("no-such-program", 127, "Error"),
    ],
)
async def test_exit_codes_are_a_container_runtimes(cluster: Cluster, script: str, code: int, reason: str) -> None:
    await cluster.create(job("j1", "sh", "-c", script))
    state = await exit_state(cluster, "j1")
    assert (state["exitCode"], state["reason"]) == (code, reason)


async def test_without_a_command_the_image_says_what_runs(cluster: Cluster) -> None:
    images = {"localhost/greeter": {"command": ["echo", "hello"], "env": {"A": "b"}}}
    await cluster.switch("PATCH", "environment", {"extraImages": images})
    await cluster.create(job("j1", container={"image": f"localhost/greeter@{DIGEST}"}))
    await cluster.create(
        job(
            "j2",
            container={
                "image": f"localhost/greeter@{DIGEST}",
                "args": ["$(X)", "$(Y)"],
                "env": [{"name": "X", "value": "x"}],
            },
        )
    )
    assert await log_of(cluster, "j1") == b"hello\n"
    assert await log_of(cluster, "j2") == b"x $(Y)\n"


async def test_the_end_of_the_first_process_takes_its_children_along(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.create(job("j1", "sh", "-c", f"sleep 3600 & echo $! > {tmp_path}/child; exit 0"))
    assert (await exit_state(cluster, "j1"))["exitCode"] == 0
    await until_dead(int((tmp_path / "child").read_text()))


async def test_a_deleted_job_takes_secret_pod_and_process_along(cluster: Cluster) -> None:
    owner = await cluster.create(job("j1", "sleep", "3600", **certs("j1")))
    await cluster.create(secret("j1", owner=owner))
    pid = await process_of(cluster, "j1")
    pod = await cluster.pod_of("j1")
    async with cluster.watch("pods", fieldSelector=f"metadata.name={pod['metadata']['name']}") as watch:
        await cluster.delete("jobs", "j1")
        events = await watch.until(lambda event: event["type"] == "DELETED")
    marked = next(event["object"] for event in events if "deletionTimestamp" in event["object"]["metadata"])
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 2, "the pod's own grace"
    state = container_state(events[-1]["object"])["terminated"]
    assert (state["exitCode"], state["reason"]) == (143, "Error")
    await cluster.gone("secrets", "j1")
    assert not alive(pid)
    assert (await cluster.switch("GET", "state"))["processes"] == []


async def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    pid = await process_of(cluster, "j1")
    pod = await cluster.pod_of("j1")
    async with cluster.open(cluster.path("pods", pod["metadata"]["name"], "log"), follow="true") as log:
        assert await log.content.readline() == b"ready\n"
        async with cluster.watch("pods", fieldSelector=f"metadata.name={pod['metadata']['name']}") as watch:
            began = anyio.current_time()
            await cluster.delete("jobs", "j1")
            events = await watch.until(lambda event: event["type"] == "DELETED")
        assert await log.content.read() == b""
    assert anyio.current_time() - began >= 2
    assert container_state(events[-1]["object"])["terminated"]["exitCode"] == 137
    assert not alive(pid)


async def test_grace_0_removes_the_object_before_the_process_is_gone(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"))
    pid = await process_of(cluster, "j1")
    name = (await cluster.pod_of("j1"))["metadata"]["name"]
    async with cluster.open(cluster.path("pods", name, "log"), follow="true") as log:
        assert await log.content.readline() == b"ready\n"
        began = anyio.current_time()
        answer = await cluster.request("DELETE", cluster.path("pods", name), {"gracePeriodSeconds": 0})
        assert (answer.status, answer.body["metadata"]["deletionGracePeriodSeconds"]) == (200, 0)
        await cluster.gone("pods", name)  # as soon as its Job has counted it
        await until_dead(pid)
        assert anyio.current_time() - began >= 2, "the time that a kubelet gives the process of any pod"


async def test_a_pending_pod_of_a_deleted_job_goes(cluster: Cluster) -> None:
    images = {"localhost/never": {"command": ["true"], "behaviour": "pending"}}
    await cluster.switch("PATCH", "environment", {"extraImages": images})
    await cluster.create(job("j1", container={"image": f"localhost/never@{DIGEST}"}))
    pod = await cluster.pod_when("j1", lambda pod: "waiting" in container_state(pod))
    answer = await cluster.request("GET", cluster.path("pods", pod["metadata"]["name"], "log"))
    assert answer.status == 400
    message = f'container "chaincode" in pod "{pod["metadata"]["name"]}" is waiting to start: ContainerCreating'
    assert (answer.body["message"], answer.body["reason"]) == (message, "BadRequest")
    async with cluster.watch("pods", resourceVersion=pod["metadata"]["resourceVersion"]) as watch:
        await cluster.delete("jobs", "j1")
        deleted = (await watch.until(lambda event: event["type"] == "DELETED"))[-1]["object"]
    # A container that never was is told as ended all the same: a kubelet could not find it.
    assert deleted["status"]["phase"] == "Failed"
    assert container_state(deleted)["terminated"] == {
        "exitCode": 137,
        "reason": "ContainerStatusUnknown",
        "message": "The container could not be located when the pod was terminated",
        "startedAt": None,
        "finishedAt": None,
    }
    conditions = {each["type"]: each.get("reason") for each in deleted["status"]["conditions"]}
    assert conditions["Ready"] == "ContainersNotReady"


async def test_a_pod_deleted_after_it_succeeded_has_succeeded(cluster: Cluster) -> None:
    await cluster.create(job("j1", "true"))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    await cluster.delete("pods", pod["metadata"]["name"])
    async with cluster.watch("jobs", fieldSelector="metadata.name=j1") as watch:
        events = await watch.until(lambda event: len(event["object"]["status"].get("conditions") or []) == 2)
    assert [each["type"] for each in events[-1]["object"]["status"]["conditions"]] == ["SuccessCriteriaMet", "Complete"]


async def test_a_pods_end_takes_the_jobs_that_it_owns_along(cluster: Cluster) -> None:
    peer = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "peer"},
        "spec": {
            "containers": [{"name": "peer", "image": f"localhost/forever@{DIGEST}"}],
            "terminationGracePeriodSeconds": 1,
        },
    }
    owner = await cluster.create(peer)
    owned = job("j1", "sleep", "3600")
    owned["metadata"]["ownerReferences"] = [owner_reference(owner)]
    await cluster.create(owned)
    pod = await cluster.pod_when("j1", running)
    assert (await cluster.delete("pods", "peer")).status == 200
    await cluster.gone("pods", "peer")
    await cluster.gone("jobs", "j1")
    await cluster.gone("pods", pod["metadata"]["name"])
    assert (await cluster.switch("GET", "state"))["processes"] == []


@pytest.mark.parametrize("wrong", ["uid", "name"])
async def test_a_wrong_owner_deletes_the_job_at_birth(cluster: Cluster, wrong: str) -> None:
    right = owner_reference(await cluster.create(secret("owner")))
    orphan = job("j1", "sleep", "3600")
    orphan["metadata"]["ownerReferences"] = [{**right, wrong: "00000000-0000-0000-0000-000000000000"}]
    await cluster.create(orphan)
    await cluster.gone("jobs", "j1")


async def test_an_owner_of_an_unknown_kind_is_not_taken_to_be_gone(cluster: Cluster) -> None:
    owned = job("j1", "true")
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "peer", "uid": "u", "controller": True}
    ]
    await cluster.create(owned)
    await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert (await cluster.get("jobs", "j1"))["metadata"]["name"] == "j1"


async def test_a_finished_job_goes_after_its_time_and_takes_all_along(cluster: Cluster) -> None:
    short = job("j1", "true", **certs("j1"))
    short["spec"]["ttlSecondsAfterFinished"] = 1
    await cluster.create(secret("j1", owner=await cluster.create(short)))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    for plural, name in (("jobs", "j1"), ("pods", pod["metadata"]["name"]), ("secrets", "j1")):
        await cluster.gone(plural, name)


async def test_a_refused_pod_is_made_once_admission_allows_it(cluster: Cluster) -> None:
    await cluster.switch("PATCH", "environment", {"refusePods": 'violates PodSecurity "restricted:latest": x'})
    await cluster.create(job("j1", "true"))
    async with cluster.watch("events", fieldSelector="reason=FailedCreate") as watch:
        message = (await watch.next())["object"]["message"]
    assert 'is forbidden: violates PodSecurity "restricted:latest": x' in message
    await cluster.switch("PATCH", "environment", {"refusePods": ""})
    await cluster.pod_when("j1", ended)


async def test_a_node_that_gets_the_label_takes_the_pod(cluster: Cluster) -> None:
    await cluster.create(job("j1", "true", nodeSelector={"role": "peers"}))
    await cluster.pod_when("j1", lambda pod: pod["status"].get("conditions"))
    await cluster.switch("PATCH", "environment", {"nodeLabels": {"role": "peers"}})
    await cluster.pod_when("j1", ended)


async def test_a_taint_wants_its_toleration(cluster: Cluster) -> None:
    await cluster.switch("PATCH", "environment", {"nodeTaints": ["role=peers:NoSchedule"]})
    toleration = {"key": "role", "operator": "Equal", "value": "peers", "effect": "NoSchedule"}
    await cluster.create(job("tolerant", "true", tolerations=[toleration]))
    await cluster.create(job("other", "true"))
    await cluster.pod_when("tolerant", ended)
    pod = await cluster.pod_when("other", lambda pod: pod["status"].get("conditions"))
    (condition,) = pod["status"]["conditions"]
    assert (condition["status"], condition["reason"]) == ("False", "Unschedulable")
    assert "untolerated taint {role: peers}" in condition["message"]


async def test_an_image_that_runs_as_root_is_refused_where_root_is_not_wanted(cluster: Cluster) -> None:
    images = {"localhost/root": {"command": ["true"], "runsAsRoot": True}}
    await cluster.switch("PATCH", "environment", {"extraImages": images})
    await cluster.create(
        job("j1", container={"image": f"localhost/root@{DIGEST}", "securityContext": {"runAsNonRoot": True}})
    )
    pod = await cluster.pod_when("j1", lambda pod: container_state(pod).get("waiting", {}).get("message"))
    assert container_state(pod)["waiting"]["reason"] == "CreateContainerConfigError"


async def test_an_image_that_appears_ends_the_back_off(cluster: Cluster) -> None:
    await cluster.create(job("j1", container={"image": f"localhost/later@{DIGEST}"}))
    await cluster.pod_when("j1", lambda pod: container_state(pod).get("waiting", {}).get("reason") == "ErrImagePull")
    await cluster.switch("PATCH", "environment", {"extraImages": {"localhost/later": {"command": ["true"]}}})
    assert (await exit_state(cluster, "j1"))["exitCode"] == 0


async def test_a_node_short_of_memory_evicts_and_the_pod_stays(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    pid = await process_of(cluster, "j1")
    name = (await cluster.pod_of("j1"))["metadata"]["name"]
    await cluster.switch("POST", f"pods/default/{name}/evict", {"message": "The node was low on resource: memory."})
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Failed")
    assert (pod["status"]["reason"], pod["status"]["message"]) == ("Evicted", "The node was low on resource: memory.")
    assert container_state(pod)["terminated"]["exitCode"] in {137, 143}
    disruption = next(each for each in pod["status"]["conditions"] if each["type"] == "DisruptionTarget")
    assert disruption["reason"] == "TerminationByKubelet"
    assert not alive(pid)
    async with cluster.watch("jobs", fieldSelector="metadata.name=j1") as watch:
        await watch.until(lambda event: len(event["object"]["status"].get("conditions") or []) == 2)
    assert (await cluster.get("pods", name))["status"]["phase"] == "Failed"


async def test_several_containers_end_the_pod_together(cluster: Cluster) -> None:
    containers = [
        {"name": name, "image": f"{IMAGE}@{DIGEST}", "command": ["sh", "-c", f"echo {name}; exit {code}"]}
        for name, code in (("a", 0), ("b", 4))
    ]
    await cluster.create(job("j1", containers=containers))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] in {"Failed", "Succeeded"})
    assert pod["status"]["phase"] == "Failed"
    for name in ("a", "b"):
        assert await cluster.log(pod["metadata"]["name"], container=name) == f"{name}\n".encode()


async def test_a_process_that_somebody_kills_is_told_as_killed(cluster: Cluster) -> None:
    await cluster.create(job("j1", "sleep", "3600"))
    os.kill(await process_of(cluster, "j1"), signal.SIGKILL)
    state = await exit_state(cluster, "j1")
    assert (state["exitCode"], state["reason"]) == (137, "Error")


TERM = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done"


def container(name: str, script: str, **fields: object) -> Object:
    return {"name": name, "image": f"{IMAGE}@{DIGEST}", "command": ["sh", "-c", script], **fields}


def states(pod: Object) -> dict[str, str]:
    """Return what each container of the pod does: waiting, running or terminated."""
    statuses = [
        each for field in ("initContainerStatuses", "containerStatuses") for each in pod["status"].get(field, [])
    ]
    return {each["name"]: next(iter(each["state"])) for each in statuses}


def ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))


async def test_init_containers_run_one_after_another_before_the_rest(cluster: Cluster, tmp_path: Path) -> None:
    steps = [
        container("first", f"sleep 0.1; echo first >> {tmp_path}/order; echo from first"),
        container("second", f"echo second >> {tmp_path}/order"),
    ]
    await cluster.create(job("j1", "sh", "-c", f"echo main >> {tmp_path}/order", initContainers=steps))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert (tmp_path / "order").read_text() == "first\nsecond\nmain\n"
    assert await cluster.log(pod["metadata"]["name"], container="first") == b"from first\n"
    assert [each["ready"] for each in pod["status"]["initContainerStatuses"]] == [True, True]


async def test_after_a_failed_init_container_the_rest_never_begins_and_has_no_log(cluster: Cluster) -> None:
    await cluster.create(job("j1", "true", initContainers=[container("init", "echo no luck; exit 3")]))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Failed")
    assert states(pod) == {"init": "terminated", "chaincode": "waiting"}
    name = pod["metadata"]["name"]
    assert await cluster.log(name, container="init", follow="true") == b"no luck\n"
    answer = await cluster.request("GET", cluster.path("pods", name, "log"), params={"container": "chaincode"})
    message = f'container "chaincode" in pod "{name}" is waiting to start: PodInitializing'
    assert (answer.status, answer.body["message"]) == (400, message)


async def test_a_pod_that_is_deleted_while_it_initializes_goes_without_having_begun(cluster: Cluster) -> None:
    await cluster.create(job("j1", "true", initContainers=[container("init", TERM)]))
    pod = await cluster.pod_when("j1", lambda pod: states(pod).get("init") == "running")
    async with cluster.watch("pods", resourceVersion=pod["metadata"]["resourceVersion"]) as watch:
        await cluster.delete("jobs", "j1")
        deleted = (await watch.until(lambda event: event["type"] == "DELETED"))[-1]["object"]
    assert deleted["status"]["phase"] in {"Failed", "Succeeded"}
    assert states(deleted)["init"] == "terminated"
    assert (await cluster.switch("GET", "state"))["processes"] == []


async def test_each_containers_log_ends_with_that_container(cluster: Cluster) -> None:
    both = [container("chaincode", "echo short; exit 1"), container("proxy", TERM)]
    await cluster.create(job("j1", containers=both))
    pod = await cluster.pod_when("j1", lambda pod: states(pod) == {"chaincode": "terminated", "proxy": "running"})
    name = pod["metadata"]["name"]
    assert pod["status"]["phase"] == "Running"
    async with cluster.open(cluster.path("pods", name, "log"), follow="true", container="proxy") as proxy:
        assert await cluster.log(name, container="chaincode", follow="true") == b"short\n"
        assert await proxy.content.readline() == b"up\n"
        with anyio.move_on_after(0.2) as scope:
            await proxy.content.read()
        assert scope.cancelled_caught
    assert "conditions" not in (await cluster.get("jobs", "j1"))["status"], "and so its TTL does not begin"
    await cluster.delete("jobs", "j1")
    await cluster.gone("pods", name)


async def test_a_container_whose_image_is_missing_does_not_keep_the_others(cluster: Cluster) -> None:
    missing = {**container("proxy", TERM), "image": f"localhost/later@{DIGEST}"}
    await cluster.create(job("j1", containers=[missing, container("chaincode", TERM)]))
    pod = await cluster.pod_when("j1", lambda pod: states(pod) == {"proxy": "waiting", "chaincode": "running"})
    assert pod["status"]["phase"] == "Pending", "as long as one waits"
    await cluster.switch("PATCH", "environment", {"extraImages": {"localhost/later": {}}})
    pod = await cluster.pod_when("j1", lambda pod: states(pod) == {"proxy": "running", "chaincode": "running"})
    assert pod["status"]["phase"] == "Running"


async def test_a_sidecar_starts_before_and_ends_after_the_containers(cluster: Cluster, tmp_path: Path) -> None:
    script = f"trap 'echo proxy ends >> {tmp_path}/order; exit 0' TERM; sleep 0.2; touch {tmp_path}/up; {TERM[22:]}"
    probe = {"exec": {"command": ["test", "-e", f"{tmp_path}/up"]}, "periodSeconds": 1, "failureThreshold": 60}
    proxy = container("proxy", script, restartPolicy="Always", startupProbe=probe)
    main = f"test -e {tmp_path}/up && echo main >> {tmp_path}/order"
    await cluster.create(job("j1", "sh", "-c", main, initContainers=[proxy]))
    pod = await cluster.pod_when("j1", lambda pod: states(pod).get("proxy") == "running")
    (status,) = pod["status"]["initContainerStatuses"]
    assert (status["started"], status["ready"], states(pod)["chaincode"]) == (False, False, "waiting")
    await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    assert (tmp_path / "order").read_text() == "main\nproxy ends\n"


async def test_a_sidecar_that_ignores_sigterm_is_killed_after_the_pods_grace(cluster: Cluster) -> None:
    proxy = container("proxy", "trap '' TERM; while :; do sleep 0.05; done", restartPolicy="Always")
    await cluster.create(job("j1", "true", initContainers=[proxy]))
    pod = await cluster.pod_when("j1", lambda pod: pod["status"]["phase"] == "Succeeded")
    (status,) = pod["status"]["initContainerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 137


async def test_readiness_comes_and_goes_with_its_probe(cluster: Cluster, tmp_path: Path) -> None:
    probe = {"exec": {"command": ["test", "-e", f"{tmp_path}/ready"]}, "periodSeconds": 1, "failureThreshold": 1}
    await cluster.create(job("j1", "sh", "-c", TERM, container={"readinessProbe": probe}))
    await cluster.pod_when("j1", lambda pod: running(pod) and not ready(pod))
    (tmp_path / "ready").touch()
    await cluster.pod_when("j1", ready)
    (tmp_path / "ready").unlink()
    await cluster.pod_when("j1", lambda pod: not ready(pod))


@pytest.mark.parametrize("kind", ["startup", "liveness"])
async def test_an_unhealthy_container_is_killed_and_only_events_say_why(cluster: Cluster, kind: str) -> None:
    command = ["sh", "-c", "echo not well >&2; exit 1"]
    probe = {"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1}
    script = "trap '' TERM; while :; do sleep 0.05; done"
    await cluster.create(job("j1", "sh", "-c", script, container={f"{kind}Probe": probe}))
    state = await exit_state(cluster, "j1")
    assert (state["exitCode"], state["reason"]) == (137, "Error")
    events = (await cluster.list("events"))["items"]
    messages = {each["reason"]: each["message"] for each in events if each["involvedObject"]["kind"] == "Pod"}
    assert messages["Unhealthy"] == f"{kind.capitalize()} probe failed: not well\n"
    assert messages["Killing"] == "Stopping container chaincode"


@pytest.mark.parametrize("command", [["/no/such/program"], ["sleep", "3600"]])
async def test_a_probe_that_cannot_run_or_takes_too_long_has_failed(cluster: Cluster, command: list[str]) -> None:
    probe = {"exec": {"command": command}, "periodSeconds": 1}
    await cluster.create(job("j1", "sh", "-c", TERM, container={"readinessProbe": probe}))
    async with cluster.watch("events", fieldSelector="reason=Unhealthy") as watch:
        assert (await watch.next())["object"]["message"].startswith("Readiness probe failed: ")
    assert len((await cluster.switch("GET", "state"))["processes"]) == 1


async def test_a_probe_of_another_kind_succeeds(cluster: Cluster) -> None:
    probe = {"tcpSocket": {"port": 1}}
    await cluster.create(job("j1", "sh", "-c", TERM, container={"readinessProbe": probe}))
    await cluster.pod_when("j1", ready)


async def test_the_environment_comes_from_secrets_too(cluster: Cluster) -> None:
    await cluster.create(secret("s1", {"a": "from a", "b": "from b"}))
    environment = [
        {"name": "ONE", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "a"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "s1", "key": "c", "optional": True}}},
        {"name": "NOWHERE", "valueFrom": {"configMapKeyRef": {"name": "c1", "key": "c", "optional": True}}},
    ]
    sources = [{"prefix": "ALL_", "secretRef": {"name": "s1"}}, {"configMapRef": {"name": "c1", "optional": True}}]
    script = 'echo "$ONE ${NONE-none} ${NOWHERE-nowhere} $ALL_b"'
    await cluster.create(job("j1", "sh", "-c", script, container={"env": environment, "envFrom": sources}))
    assert await log_of(cluster, "j1") == b"from a none nowhere from b\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secretKeyRef": {"name": "s1", "key": "b"}}, "couldn't find key b in Secret default/s1"),
        ({"secretKeyRef": {"name": "s2", "key": "b"}}, 'secret "s2" not found'),
        ({"configMapKeyRef": {"name": "c1", "key": "b"}}, 'configmap "c1" not found'),
    ],
)
async def test_what_the_environment_lacks_is_told_and_waited_for(
    cluster: Cluster, source: Object, message: str
) -> None:
    await cluster.create(secret("s1", {"a": "x"}))
    await cluster.create(job("j1", "true", container={"env": [{"name": "X", "valueFrom": source}]}))
    pod = await cluster.pod_when("j1", lambda pod: "message" in container_state(pod).get("waiting", {}))
    waiting = {"reason": "CreateContainerConfigError", "message": message}
    assert container_state(pod)["waiting"] == waiting
    if "s2" in message:
        await cluster.create(secret("s2", {"b": "y"}))
        await cluster.pod_when("j1", ended)


async def test_a_node_holds_as_many_cores_as_it_has(cluster: Cluster) -> None:
    await cluster.switch("PATCH", "environment", {"nodeCpu": 2})
    resources = {"resources": {"requests": {"cpu": "1500m"}}}
    await cluster.create(job("first", "sh", "-c", TERM, container=resources))
    await cluster.pod_when("first", running)
    await cluster.create(job("second", "true", container=resources))
    pod = await cluster.pod_when("second", lambda pod: pod["status"].get("conditions"))
    assert pod["status"]["conditions"][0]["message"].startswith("0/1 nodes are available: 1 Insufficient cpu.")
    await cluster.delete("jobs", "first")
    await cluster.pod_when("second", ended)
