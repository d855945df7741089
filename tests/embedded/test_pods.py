"""Pods as local processes: environment and certs, exit codes, deletion and grace, owners, TTL, late Secrets."""

import os
import signal
from pathlib import Path

import anyio
import pytest

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
