"""What a launch is told while it waits, and how its end is judged, by what a real cluster said in each case.

test_diagnosis.json holds, of what Kubernetes 1.36 was seen to say, the fields that we read: for each scenario its watch
events of Job, pod and Events, in order and with their seconds, without those that change nothing for us. digest.py
makes it.
"""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.kube.objects import Event, InvolvedObject
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.diagnosis import Diagnosis, degraded, diagnose, stage
from k8s_builderd.runs.observed import Observed
from k8s_builderd.runs.verdict import TAIL, Verdict, left_behind, verdict

OBSERVED: dict[str, list[Any]] = json.loads(Path(__file__).with_suffix(".json").read_text())
NO_NODE = (
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. no new claims to deallocate,"
    " preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
)
WRONG = "localhost/busybox@sha256:" + "0" * 64
AT = datetime.fromisoformat("2026-11-23T06:58:23+00:00")


class Told:
    """One launch's watches played to it, and what it would have been told: each distinct cause once."""

    def __init__(self) -> None:
        self.observed = Observed()
        self.events: dict[str, Event] = {}
        self.found: dict[str, tuple[float, Diagnosis]] = {}
        self.stages: dict[Category, float] = {}
        self.verdicts: list[tuple[float, Verdict]] = []
        self.degraded: dict[str, tuple[float, Diagnosis]] = {}

    def play(self, at: float, kind: str, change: str, body: Any) -> None:
        observed = self.observed
        if kind == "Event":
            event = msgspec.convert(body, Event)
            self.events[event.metadata.name] = event
        elif kind == "Job":
            job = msgspec.convert(body, Job)
            observed.fold(Deleted(job) if change == "DELETED" else Applied(job), 0.0)
        else:
            pod = msgspec.convert(body, Pod)
            observed.fold(Deleted(pod) if change == "DELETED" else Applied(pod), 0.0)
        events = self.events.values()
        found = verdict(observed, events, pods_known=True)
        if found is not None:
            self.verdicts.append((at, found))
        elif not observed.started:
            for diagnosis in diagnose(observed.pod, events):
                self.found.setdefault(diagnosis.cause, (at, diagnosis))
            self.stages.setdefault(stage(observed.pod, events).category, at)
        elif observed.pod is not None and not observed.told_to_end:
            for diagnosis in degraded(observed.pod):
                self.degraded.setdefault(diagnosis.cause, (at, diagnosis))


def played(scenario: str) -> Told:
    told = Told()
    for change in OBSERVED[scenario]:
        told.play(*change)
    return told


# What holds it up


INIT_IMAGE = "localhost/nowhere@sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("scenario", "at", "category", "text"),
    [
        (
            "wrong-digest",
            1.2,
            Category.IMAGE_PULL,
            f'the image cannot be pulled (ErrImagePull): failed to pull and unpack image "{WRONG}": failed to resolve'
            f' reference "{WRONG}": failed to do request: Head "http://localhost/v2/busybox/manifests/sha256:'
            + "0"
            * 64
            + '": dial tcp 127.0.0.1:80: connect: connection refused. Check name and digest in image.json, and the'
            " service account's imagePullSecrets",
        ),
        (
            "unschedulable",
            0.08,
            Category.UNSCHEDULABLE,
            f"the pod cannot be scheduled: {NO_NODE} Label a node fabric-builder-k8s-role=<role>, or correct"
            " FABRIC_K8S_BUILDER_NODE_ROLE or FABRIC_K8S_BUILDER_NODE_NAME",
        ),
        (
            "out-of-cpu",
            0.02,
            Category.UNSCHEDULABLE,
            "the pod cannot be scheduled: 0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate,"
            " preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling. Add capacity, or lower"
            " the requests in the pod template",
        ),
        (
            "missing-secret",
            0.27,
            Category.VOLUME_MOUNT,
            'a volume cannot be mounted: MountVolume.SetUp failed for volume "certs" : secret "missing-secret" not'
            " found. k8s-builderd creates it, and the kubelet retries",
        ),
        (
            "bad-env-source",
            0.84,
            Category.CONTAINER_CONFIG,
            'the container cannot be created (CreateContainerConfigError): secret "nowhere" not found. Create it, or'
            " correct the pod template",
        ),
        (
            "missing-service-account",
            0.05,
            Category.SERVICE_ACCOUNT_MISSING,
            'the pod cannot be created: pods "missing-service-account-" is forbidden: error looking up service account'
            ' rec/nobody: serviceaccount "nobody" not found. Create it, or correct FABRIC_K8S_BUILDER_SERVICE_ACCOUNT',
        ),
        (
            "quota",
            0.09,
            Category.QUOTA_EXCEEDED,
            'the pod cannot be created: pods "quota-mqplp" is forbidden: exceeded quota: none, requested: pods=1, used:'
            " pods=0, limited: pods=0. Raise the quota, or set what it counts under resources in the pod template",
        ),
        (
            "init-image-missing",
            0.62,
            Category.INIT_CONTAINER_IMAGE_PULL,
            "the image of init container init cannot be pulled (ErrImagePull): failed to pull and unpack image"
            f' "{INIT_IMAGE}": failed to resolve reference "{INIT_IMAGE}": failed to do request: Head'
            f' "http://localhost/v2/nowhere/manifests/sha256:{"ab" * 32}": dial tcp 127.0.0.1:80: connect: connection'
            " refused. Correct it where it comes from: the pod template, or an admission webhook",
        ),
        (
            "invalid-image-name",
            1.22,
            Category.INVALID_IMAGE_NAME,
            'the image name is not valid: Failed to apply default image tag "Not A Name@sha256:'
            + "0" * 64
            + '": couldn\'t parse image name "Not A Name@sha256:'
            + "0" * 64
            + '": invalid reference format: repository name (library/Not A Name@sha256) must be lowercase. Correct the'
            " name in image.json and install the package again",
        ),
    ],
)
def test_what_holds_a_launch_up_is_told_once_in_the_clusters_own_words(
    scenario: str, at: float, category: Category, text: str
) -> None:
    told = played(scenario)
    [(when, diagnosis)] = told.found.values()
    assert (when, diagnosis.category, diagnosis.text) == (at, category, text)
    assert diagnosis.hopeless == (category is Category.INVALID_IMAGE_NAME)
    assert told.verdicts == []


@pytest.mark.parametrize(
    "scenario",
    [
        "bad-command",
        "drained",
        "exits-3",
        "init-exits-1",
        "init-slow",
        "job-deleted-while-running",
        "liveness-kills",
        "native-sidecar",
        "needs-a-capability",
        "never-ready",
        "node-lost-pod-forced",
        "oom-killed",
        "pod-deleted-while-running",
        "pod-evicted",
        "second-container",
        "sidecar-fails",
        "succeeds",
    ],
)
def test_what_is_not_held_up_is_told_nothing(scenario: str) -> None:
    assert played(scenario).found == {}


def pod(spec: dict[str, Any] | None = None, **status: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "p", "uid": "u"}, "spec": spec or {}, "status": status}, Pod)


def waiting(reason: str, message: str | None = None) -> Pod:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=[{"name": "chaincode", "state": state}])


def event(reason: str, message: str | None, container: str = "") -> Event:
    involved = InvolvedObject(f"spec.containers{{{container}}}") if container else None
    return Event(Meta(), reason=reason, message=message, involved_object=involved)


def causes(*rounds: list[Diagnosis]) -> dict[str, str]:
    """Return what is told over several looks: the first text of each cause."""
    told: dict[str, str] = {}
    for diagnoses in rounds:
        for diagnosis in diagnoses:
            told.setdefault(diagnosis.cause, diagnosis.text)
    return told


def test_an_image_pull_that_is_tried_again_and_again_is_one_cause() -> None:
    backoff = f'Back-off pulling image "x": ErrImagePull: {"dial tcp: connection refused"}'
    told = causes(
        diagnose(waiting("ErrImagePull", "dial tcp: connection refused")),
        diagnose(waiting("ImagePullBackOff", backoff)),
        diagnose(waiting("ErrImagePull", "dial tcp: i/o timeout")),
        diagnose(waiting("ImagePullBackOff", 'Back-off pulling image "x"')),
    )
    assert len(told) == 1
    assert "dial tcp: connection refused" in next(iter(told.values()))


def test_a_back_off_that_is_seen_first_tells_why_it_backs_off() -> None:
    [found] = diagnose(waiting("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: no such host'))
    assert "(ImagePullBackOff): no such host." in found.text


def test_two_causes_are_two_lines() -> None:
    told = causes(
        diagnose(pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "R", "message": "no cpu"}])),
        diagnose(pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "R", "message": "no memory"}])),
        diagnose(waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")),
    )
    assert len(told) == 3
    assert "FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT" in [*told.values()][-1]


def test_a_sandbox_that_fails_again_and_again_is_one_cause() -> None:
    """Each attempt of the kubelet has a sandbox with an id of its own, which stands in the message."""
    words = 'Failed to create pod sandbox: rpc error: desc = failed to setup network for sandbox "{}": no IP left'
    told = causes(
        *(diagnose(None, [event("FailedCreatePodSandBox", words.format(digit * 64))]) for digit in "0123"),
    )
    assert len(told) == 1


def test_a_refused_pod_is_one_cause_whatever_name_each_attempt_has() -> None:
    words = 'Error creating: pods "basic-{}" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot'
    told = causes(*(diagnose(None, [event("FailedCreate", words.format(name))]) for name in ("mqplp", "nkq2m")))
    assert len(told) == 1


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
def test_what_every_launch_goes_through_is_not_told(reason: str) -> None:
    assert diagnose(waiting(reason)) == []


@pytest.mark.parametrize(
    "reason", ["Scheduled", "Pulling", "Pulled", "Created", "Started", "SuccessfulCreate", "Failed"]
)
def test_events_that_say_nothing_new_are_not_told(reason: str) -> None:
    assert diagnose(None, [event(reason, "words")]) == []


@pytest.mark.parametrize(
    "found", [diagnose(waiting("CreateContainerError")), diagnose(None, [event("FailedMount", None)])]
)
def test_a_cause_without_words_says_that_none_were_given(found: list[Diagnosis]) -> None:
    assert ["no reason given" in diagnosis.text for diagnosis in found] == [True]


def test_a_sidecar_that_an_admission_plugin_has_added_is_not_the_chaincode() -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    assert diagnose(pod(containerStatuses=[{"name": "istio-proxy", "state": state}])) == []


# How it ended


@pytest.mark.parametrize(
    ("scenario", "at", "code", "category", "text"),
    [
        ("succeeds", 3.34, 0, Category.COMPLETED, "the chaincode ended with exit code 0"),
        ("exits-3", 2.27, 1, Category.EXIT_CODE, "the chaincode ended with exit code 3"),
        (
            "oom-killed",
            1.89,
            1,
            Category.OOM_KILLED,
            "the chaincode ran out of memory (OOMKilled, exit code 137). Raise its memory limit of 16Mi in"
            " the pod template",
        ),
        (
            "bad-command",
            0.94,
            1,
            Category.START_ERROR,
            "the chaincode could not be started (StartError, exit code 128): failed to create containerd task: failed"
            " to create shim task: OCI runtime create failed: runc create failed: unable to start container process:"
            ' exec: "/no/such/program": stat /no/such/program: no such file or directory: unknown. Check the image\'s'
            " entrypoint, and command in the pod template",
        ),
        (
            "pod-deleted-while-running",
            5.26,
            1,
            Category.POD_DELETED,
            "the chaincode was killed by signal 9 (exit code 137), because its pod was deleted",
        ),
        (
            "drained",
            3.38,
            1,
            Category.DRAINED,
            "the chaincode ended with exit code 0, because its pod was evicted (EvictionByEvictionAPI): Eviction API:"
            " evicting",
        ),
        (
            "liveness-kills",
            2.56,
            1,
            Category.LIVENESS_PROBE,
            "the chaincode ended with exit code 0, because the kubelet killed it: liveness probe failed. Check"
            " livenessProbe in the pod template",
        ),
        (
            "node-lost-pod-forced",
            6.08,
            1,
            Category.POD_FORCE_DELETED,
            "the pod was force-deleted while the chaincode was running. If its node node1 does not answer, the"
            " process may keep running until the node is back",
        ),
        (
            "init-exits-1",
            1.43,
            1,
            Category.INIT_CONTAINER_FAILED,
            "init container init failed with exit code 1, so the chaincode never started. See its log: kubectl logs"
            " init-exits-1-qzbpv -c init",
        ),
        (
            "second-container",
            2.15,
            1,
            Category.EXIT_CODE,
            "the chaincode ended with exit code 1. Still running in its pod: proxy",
        ),
        ("native-sidecar", 1.99, 1, Category.EXIT_CODE, "the chaincode ended with exit code 1"),
        ("needs-a-capability", 0.96, 1, Category.EXIT_CODE, "the chaincode ended with exit code 1"),
    ],
)
def test_the_verdict_is_the_same_from_the_containers_end_on(
    scenario: str, at: float, code: int, category: Category, text: str
) -> None:
    """It is asked for when the log has ended, and that is any time after the container has."""
    told = played(scenario)
    assert told.verdicts[0] == (at, Verdict(code, category, text))
    assert {found.text for _, found in told.verdicts} == {text}


@pytest.mark.parametrize(
    "scenario", ["init-slow", "job-deleted-while-running", "never-ready", "pod-evicted", "sidecar-fails"]
)
def test_a_chaincode_that_may_run_has_no_verdict(scenario: str) -> None:
    """Its Job is deleted, its pod told to end, its neighbour failed, its probe fails: it goes on for all that."""
    told = played(scenario)
    assert told.verdicts == []
    assert told.observed.started
    assert not told.observed.ended


def test_an_image_that_needs_a_capability_is_told_what_it_runs_without() -> None:
    told = played("needs-a-capability")
    found = verdict(
        told.observed, pods_known=True, last_lines=b"starting\nchown: /tmp/x: Operation not permitted\nbye\n"
    )
    assert found == Verdict(
        1,
        Category.MISSING_CAPABILITY,
        "the chaincode ended with exit code 1: Operation not permitted. Its container runs without capabilities. If it"
        " needs one, add it in FABRIC_K8S_BUILDER_POD_TEMPLATE, or set FABRIC_K8S_BUILDER_SECURITY_PROFILE=compatible",
    )


# What is wrong although it runs

UNREADY = (
    "the chaincode runs, but its readiness probe does not succeed. It keeps running, and the peer does not ask. Correct"
    " readinessProbe in the pod template, or leave it out"
)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        (
            "sidecar-fails",
            [
                (
                    1.86,
                    Category.SIDECAR_FAILED,
                    "container proxy failed (Error, exit code 7), and the chaincode keeps running. See its log: kubectl"
                    " logs sidecar-fails-6r7l8 -c proxy",
                )
            ],
        ),
        ("never-ready", [(0.51, Category.NOT_READY, UNREADY)]),
        ("native-sidecar", []),
        ("init-slow", []),
        ("needs-a-capability", []),
        ("pod-evicted", []),
    ],
)
def test_what_is_wrong_with_a_pod_whose_chaincode_runs_is_told(scenario: str, expected: list[object]) -> None:
    told = played(scenario).degraded.values()
    assert [(at, found.category, found.text) for at, found in told] == expected


SIDECAR = {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}], "containers": [{"name": "chaincode"}]}
NEIGHBOUR = {"containers": [{"name": "proxy"}, {"name": "chaincode"}]}
UP = {"name": "chaincode", "state": {"running": {}}, "ready": True}


def neighbour(spec: dict[str, Any], last: dict[str, Any] | None = None, **state: Any) -> list[Diagnosis]:
    status = {"name": "proxy", "state": state, **({"lastState": last} if last else {})}
    where = "initContainerStatuses" if spec is SIDECAR else "containerStatuses"
    return degraded(
        pod(spec, **{"containerStatuses": [UP], where: [status, *([UP] if where != "initContainerStatuses" else [])]})
    )


@pytest.mark.parametrize(
    ("spec", "state", "text"),
    [
        (NEIGHBOUR, {"terminated": {"exitCode": 0, "reason": "Completed"}}, None),
        (NEIGHBOUR, {"running": {}}, None),
        (NEIGHBOUR, {"waiting": {"reason": "ContainerCreating"}}, None),
        (
            NEIGHBOUR,
            {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
            "container proxy failed (OOMKilled, exit code 137), and the chaincode keeps running. See its log: kubectl"
            " logs p -c proxy",
        ),
        (
            NEIGHBOUR,
            {"waiting": {"reason": "ErrImagePull", "message": "not found"}},
            "the image of container proxy cannot be pulled (ErrImagePull): not found. Correct it where it comes from:"
            " the pod template, or an admission webhook",
        ),
        (
            SIDECAR,
            {"terminated": {"exitCode": 7}},
            "sidecar proxy failed (exit code 7), and the chaincode keeps running. See its log: kubectl logs p -c proxy",
        ),
        (
            SIDECAR,
            {"waiting": {"reason": "CrashLoopBackOff"}},
            "sidecar proxy keeps failing. See its log: kubectl logs p -c proxy --previous",
        ),
        (SIDECAR, {"terminated": {"exitCode": 0}}, None),
    ],
)
def test_a_neighbour_that_fails_is_told_once_however_it_fails(
    spec: dict[str, Any], state: dict[str, Any], text: str | None
) -> None:
    found = neighbour(spec, **state)
    expected = [] if text is None else [Diagnosis(Category.SIDECAR_FAILED, "beside proxy", text)]
    assert found == expected


def test_an_init_container_that_has_done_its_work_is_no_neighbour() -> None:
    spec = {"initContainers": [{"name": "init"}], "containers": [{"name": "chaincode"}]}
    init = {"name": "init", "state": {"terminated": {"exitCode": 1}}}
    assert degraded(pod(spec, initContainerStatuses=[init], containerStatuses=[UP])) == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ({"state": {"running": {}}, "ready": False, "started": True}, True),
        ({"state": {"running": {}}, "ready": False}, True),
        ({"state": {"running": {}}, "ready": False, "started": False}, False),
        ({"state": {"running": {}}, "ready": True, "started": True}, False),
        ({"state": {"running": {}}}, False),
        ({"state": {"waiting": {"reason": "ContainerCreating"}}, "ready": False}, False),
    ],
)
def test_a_chaincode_is_unready_by_its_readiness_probe_alone(status: dict[str, Any], *, told: bool) -> None:
    found = degraded(pod(containerStatuses=[{"name": "chaincode", **status}]))
    assert [each.text for each in found] == ([UNREADY] if told else [])


NO_CAPABILITIES = {
    "nodeName": "node1",
    "containers": [{"name": "chaincode", "securityContext": {"capabilities": {"drop": ["ALL"]}}}],
}


def terminated(code: int, finished: datetime = AT, **more: Any) -> Any:
    return {"exitCode": code, "startedAt": AT.isoformat(), "finishedAt": finished.isoformat(), **more}


def seen(
    state: Any,
    *,
    job_gone: bool = False,
    asked: datetime | None = None,
    grace: int = 2,
    spec: dict[str, Any] | None = None,
    gone: bool = False,
    owners: tuple[dict[str, str], ...] = (),
    **status: Any,
) -> Observed:
    """Return what is known of a pod whose container is in that state; `asked` is when somebody deleted the pod."""
    meta: dict[str, Any] = {"name": "p", "uid": "u", "ownerReferences": owners, "labels": {"job-name": "j"}}
    if asked is not None:
        meta["deletionTimestamp"] = (asked + timedelta(seconds=grace)).isoformat()
        meta["deletionGracePeriodSeconds"] = grace
    containers = [{"name": "chaincode", "state": state}] if state else []
    body = {"metadata": meta, "spec": spec or {}, "status": {"containerStatuses": containers, **status}}
    observed = Observed()
    found = msgspec.convert(body, Pod)
    observed.fold(Applied(found), 0.0)
    if gone:
        observed.fold(Deleted(found), 0.0)
    observed.job_gone = job_gone
    return observed


def judged(state: Any, *, events: tuple[Event, ...] = (), last_lines: bytes = b"", **known: Any) -> Verdict:
    """Judge a container's end."""
    found = verdict(
        seen({"terminated": state} if state else None, **known), events, pods_known=True, last_lines=last_lines
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    "words",
    [
        b"chown: /tmp/x: Operation not permitted",
        b'sudo: The "no new privileges" flag is set, which prevents sudo from running as root.',
        b"listen tcp :80: bind: permission denied",
        b"Error: listen EACCES: permission denied 0.0.0.0:80",
        b"nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)",
        b"su-exec: setgroups: Operation not permitted",
    ],
)
def test_what_a_denied_process_says_is_known(words: bytes) -> None:
    found = judged(terminated(1), spec=NO_CAPABILITIES, last_lines=words + b"\n")
    assert found.category is Category.MISSING_CAPABILITY


@pytest.mark.parametrize(
    ("state", "spec", "words"),
    [
        (terminated(1), NO_CAPABILITIES, b"rpc error: code = PermissionDenied desc = permission denied"),
        (terminated(1, AT + timedelta(seconds=11)), NO_CAPABILITIES, b"chown: Operation not permitted"),
        (terminated(1), {"containers": [{"name": "chaincode"}]}, b"chown: Operation not permitted"),
        (terminated(1), NO_CAPABILITIES, b"chown: Operation not permitted\n" + b"." * TAIL),
    ],
    ids=["another permission", "not within seconds", "nothing dropped", "long ago"],
)
def test_a_capability_is_named_only_where_the_words_and_the_time_say_so(state: Any, spec: Any, words: bytes) -> None:
    found = judged(state, spec=spec, last_lines=words)
    assert found == Verdict(1, Category.EXIT_CODE, "the chaincode ended with exit code 1")


def test_a_chaincode_that_succeeds_is_not_told_of_capabilities() -> None:
    found = judged(terminated(0), spec=NO_CAPABILITIES, last_lines=b"chown: Operation not permitted\n")
    assert found.category is Category.COMPLETED


OTHER_PLATFORM = (
    "The image was built for another platform than its node node1. Build it for that platform, or select other"
    " nodes in the pod template"
)


@pytest.mark.parametrize("code", [1, 255])
def test_a_binary_of_another_architecture_is_told_by_the_log(code: int) -> None:
    found = judged(terminated(code), spec={"nodeName": "node1"}, last_lines=b"exec /chaincode: exec format error\n")
    text = f"the chaincode ended with exit code {code}: exec format error. {OTHER_PLATFORM}"
    assert found == Verdict(1, Category.IMAGE_ARCHITECTURE, text)


def test_a_binary_of_another_architecture_is_told_by_the_runtime() -> None:
    state = terminated(128, reason="StartError", message="exec user process caused: exec format error")
    spec = {"nodeName": "node1", "nodeSelector": {"kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux"}}
    text = (
        "the chaincode could not be started (StartError, exit code 128): exec user process caused: exec format error. "
        + OTHER_PLATFORM.replace("node1", "node1 (arm64)")
    )
    assert judged(state, spec=spec) == Verdict(1, Category.IMAGE_ARCHITECTURE, text)


def test_a_process_without_a_limit_that_ran_out_of_memory_is_told_to_have_one() -> None:
    assert judged(terminated(137, reason="OOMKilled")).text == (
        "the chaincode ran out of memory (OOMKilled, exit code 137). Set a memory limit, or reserve memory"
        " with requests in the pod template"
    )


def test_a_job_deleted_by_someone_is_why_its_chaincode_ended() -> None:
    found = judged(terminated(143), job_gone=True, asked=AT)
    text = "the chaincode was killed by signal 15 (exit code 143), because its job was deleted"
    assert found == Verdict(1, Category.JOB_DELETED, text)


def test_a_chaincode_that_obeys_a_deletion_with_0_has_not_succeeded() -> None:
    found = judged(terminated(0), job_gone=True, asked=AT)
    text = "the chaincode ended with exit code 0, because its job was deleted"
    assert found == Verdict(1, Category.JOB_DELETED, text)


@pytest.mark.parametrize("ahead", [-60, 0, 60])
def test_a_chaincode_that_ended_before_its_pod_was_told_to_ended_by_itself(ahead: int) -> None:
    """It was seen so. The clock of the node, which may go wrong, is not compared with the API server's."""
    observed = seen({"terminated": terminated(0, AT + timedelta(seconds=ahead))})
    later = seen({"terminated": terminated(0, AT + timedelta(seconds=ahead))}, asked=AT)
    assert later.pod is not None
    observed.fold(Applied(later.pod), 0.0)
    observed.job_gone = True
    found = verdict(observed, pods_known=True)
    assert found == Verdict(0, Category.COMPLETED, "the chaincode ended with exit code 0")


def disrupted(reason: str, message: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": message}]


@pytest.mark.parametrize(
    ("reason", "message", "category", "words"),
    [
        ("EvictionByEvictionAPI", "Eviction API: evicting", Category.DRAINED, "its pod was evicted"),
        ("DeletionByTaintManager", "Taint manager: deleting", Category.EVICTED, "its pod was evicted"),
        ("PreemptionByScheduler", "default-scheduler: preempting", Category.PREEMPTED, "its pod was preempted"),
        ("SomethingNew", "words", Category.EVICTED, "its pod was evicted"),
        (
            "TerminationByKubelet",
            "Pod was terminated in response to imminent node shutdown.",
            Category.NODE_SHUTDOWN,
            "its node was shut down",
        ),
    ],
)
def test_a_disruption_is_told_with_its_reason(reason: str, message: str, category: Category, words: str) -> None:
    found = judged(terminated(143), asked=AT, conditions=disrupted(reason, message))
    text = f"the chaincode was killed by signal 15 (exit code 143), because {words} ({reason}): {message}"
    assert found == Verdict(1, category, text)


@pytest.mark.parametrize(
    ("message", "category", "words"),
    [
        ("Pod was terminated in response to imminent node shutdown.", Category.NODE_SHUTDOWN, "its node was shut down"),
        ("Pod was preempted by Kubelet to accommodate a critical pod.", Category.PREEMPTED, "its pod was preempted"),
        ("The node was low on resource: memory.", Category.EVICTED, "its pod was evicted"),
    ],
)
def test_an_end_by_the_kubelet_is_told_before_the_phase_has_its_reason(
    message: str, category: Category, words: str
) -> None:
    """The kubelet deletes nothing, and says the pod's reason together with its last phase only."""
    found = judged(terminated(143), conditions=disrupted("TerminationByKubelet", message))
    text = f"the chaincode was killed by signal 15 (exit code 143), because {words} (TerminationByKubelet): {message}"
    assert found == Verdict(1, category, text)


def test_an_eviction_that_was_not_carried_out_did_not_end_the_chaincode() -> None:
    found = judged(terminated(0), conditions=disrupted("EvictionByEvictionAPI", "Eviction API: evicting"))
    assert found == Verdict(0, Category.COMPLETED, "the chaincode ended with exit code 0")


@pytest.mark.parametrize(
    ("reason", "message", "category", "words"),
    [
        ("Evicted", "The node was low on resource: memory.", Category.EVICTED, "its pod was evicted"),
        ("Preempting", "Preempted in order to admit critical pod", Category.PREEMPTED, "its pod was preempted"),
        (
            "Terminated",
            "Pod was terminated in response to imminent node shutdown.",
            Category.NODE_SHUTDOWN,
            "its node was shut down",
        ),
        (
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
            Category.DEADLINE_EXCEEDED,
            "its pod exceeded its activeDeadlineSeconds",
        ),
    ],
)
def test_an_end_by_the_kubelet_is_told_with_its_message(
    reason: str, message: str, category: Category, words: str
) -> None:
    found = judged(terminated(137), phase="Failed", reason=reason, message=message)
    assert (found.code, found.category) == (1, category)
    assert found.text.endswith(f"because {words} ({reason}): {message}")


def test_a_pod_that_its_node_does_not_admit_never_started() -> None:
    message = "Pod was rejected: Node didn't have enough resource: cpu"
    assert judged(None, phase="Failed", reason="OutOfcpu", message=message) == Verdict(
        1,
        Category.NODE_REJECTED,
        f"the chaincode never started, because its node rejected the pod (OutOfcpu): {message}",
    )


RUNNING = {"running": {"startedAt": AT.isoformat()}}


def test_a_pod_that_vanished_is_told_without_an_exit_code() -> None:
    found = verdict(seen(RUNNING, gone=True), pods_known=True)
    text = "the chaincode's exit code is not known, because its pod was removed"
    assert found == Verdict(1, Category.POD_GONE, text)
    found = verdict(seen(RUNNING, gone=True, job_gone=True, asked=AT), pods_known=True)
    text = "the chaincode's exit code is not known, because its job was deleted"
    assert found == Verdict(1, Category.JOB_DELETED, text)
    found = verdict(seen(None, gone=True, asked=AT), pods_known=True)
    assert found == Verdict(1, Category.POD_DELETED, "the chaincode never started, because its pod was deleted")


def test_a_pod_that_failed_without_a_word_is_told_as_such() -> None:
    text = "the chaincode never started, because its pod failed without giving a reason"
    assert judged(None, phase="Failed") == Verdict(1, Category.POD_GONE, text)


def test_a_process_on_a_lost_node_may_go_on() -> None:
    known = seen(
        RUNNING,
        asked=AT,
        grace=2,
        gone=True,
        spec={"nodeName": "node1"},
        conditions=disrupted("DeletionByTaintManager", "Taint manager: deleting due to NoExecute taint"),
    )
    found = verdict(known, [event("NodeNotReady", "Node is not ready")], pods_known=True)
    assert found == Verdict(
        1,
        Category.NODE_LOST,
        "node node1 does not answer, and its pod was removed. The process may keep running until it is back",
    )


def test_a_pod_of_a_node_that_is_gone_is_told_as_lost() -> None:
    known = seen(RUNNING, phase="Failed", conditions=disrupted("DeletionByPodGC", "PodGC: node no longer exists"))
    found = verdict(known, pods_known=True)
    assert found == Verdict(
        1,
        Category.NODE_LOST,
        "the chaincode's exit code is not known, because its node was lost (DeletionByPodGC): PodGC: node no longer"
        " exists",
    )


@pytest.mark.parametrize(
    ("message", "category", "probe"),
    [
        ("Liveness probe failed: dial tcp: connection refused", Category.LIVENESS_PROBE, "livenessProbe"),
        ("Startup probe failed: dial tcp: connection refused", Category.STARTUP_PROBE, "startupProbe"),
    ],
)
def test_a_probe_that_ended_a_chaincode_is_told_by_events_alone(message: str, category: Category, probe: str) -> None:
    events = (event("Unhealthy", message, "chaincode"), event("Killing", "Stopping container chaincode", "chaincode"))
    found = judged(terminated(0), events=events)
    assert (found.code, found.category) == (1, category)
    assert found.text == (
        f"the chaincode ended with exit code 0, because the kubelet killed it: {message[0].lower()}{message[1:]}. Check"
        f" {probe} in the pod template"
    )


@pytest.mark.parametrize(
    "events",
    [
        (event("Unhealthy", "Liveness probe failed: x", "chaincode"),),
        (
            event("Unhealthy", "Readiness probe failed: x", "chaincode"),
            event("Killing", "Stopping container chaincode", "chaincode"),
        ),
        (
            event("Unhealthy", "Liveness probe failed: x", "proxy"),
            event("Killing", "Stopping container proxy", "proxy"),
        ),
        (event("TaintManagerEviction", "Cancelling deletion of Pod rec/basic"),),
    ],
    ids=["not killed", "readiness", "another container", "taken back"],
)
def test_an_event_that_ended_nothing_is_no_cause(events: tuple[Event, ...]) -> None:
    assert judged(terminated(0), events=events) == Verdict(
        0, Category.COMPLETED, "the chaincode ended with exit code 0"
    )


def test_a_deletion_counts_more_than_a_probe_that_failed_before() -> None:
    events = (event("Unhealthy", "Liveness probe failed: x", "chaincode"), event("Killing", "Stopping", "chaincode"))
    assert judged(terminated(143), events=events, asked=AT).category is Category.POD_DELETED


@pytest.mark.parametrize(("code", "number"), [(129, 1), (134, 6), (137, 9), (139, 11), (143, 15), (192, 64)])
def test_an_exit_code_of_a_signal_names_it(code: int, number: int) -> None:
    text = f"the chaincode was killed by signal {number} (exit code {code})"
    assert judged(terminated(code)) == Verdict(1, Category.SIGNAL, text)


@pytest.mark.parametrize("code", [1, 127, 128, 193, 254, 255])
def test_an_exit_code_of_no_signal_is_only_told(code: int) -> None:
    """255 is what a program's own -1 comes to; signals end at 64."""
    text = f"the chaincode ended with exit code {code}"
    assert judged(terminated(code)) == Verdict(1, Category.EXIT_CODE, text)


def test_what_the_chaincode_left_as_its_termination_message_is_told() -> None:
    assert judged(terminated(2, message="panic: nil map")).text == (
        "the chaincode ended with exit code 2: panic: nil map"
    )


@pytest.mark.parametrize(
    ("started", "text"),
    [
        (AT.isoformat(), "the chaincode ended, but its node does not know how (ContainerStatusUnknown)"),
        (None, "the chaincode never started (ContainerStatusUnknown)"),
    ],
)
def test_an_end_that_the_node_does_not_know_is_told_as_such(started: str | None, text: str) -> None:
    state = {**terminated(137, reason="ContainerStatusUnknown"), "startedAt": started}
    assert judged(state) == Verdict(1, Category.CONTAINER_STATUS_UNKNOWN, text)


# Init containers


def initialising(state: dict[str, Any], *, policy: str = "Never", own: str | None = None, **more: Any) -> Pod:
    """Return a pod that is at its init container `wait`."""
    spec = {"restartPolicy": policy, "initContainers": [{"name": "wait", "restartPolicy": own, **more}]}
    return pod(
        spec,
        phase="Pending",
        initContainerStatuses=[{"name": "wait", "state": state}],
        containerStatuses=[{"name": "chaincode", "state": {"waiting": {"reason": "PodInitializing"}}}],
    )


@pytest.mark.parametrize(
    ("policy", "own", "more", "for_good"),
    [
        ("Never", None, {}, True),
        ("OnFailure", "Never", {}, True),
        ("OnFailure", None, {}, False),
        ("Never", "Always", {}, False),
        ("Never", "OnFailure", {}, False),
        ("Never", "Never", {"restartPolicyRules": [{"action": "Restart"}]}, False),
    ],
)
def test_an_init_container_that_is_started_again_has_not_failed_for_good(
    policy: str, own: str | None, more: dict[str, Any], for_good: bool
) -> None:
    found = initialising({"terminated": terminated(1)}, policy=policy, own=own, **more)
    assert found.never_starts("chaincode") is for_good


def test_an_init_container_that_has_succeeded_holds_nothing_up() -> None:
    assert not initialising({"terminated": terminated(0)}).never_starts("chaincode")


def test_a_container_never_starts_where_its_pod_has_ended_or_it_ended_unstarted() -> None:
    assert pod(phase="Failed").never_starts("chaincode")
    ended = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}
    assert pod(containerStatuses=[{"name": "chaincode", "state": ended}]).never_starts("chaincode")
    assert not pod(containerStatuses=[{"name": "chaincode", "state": RUNNING}], phase="Failed").never_starts(
        "chaincode"
    )


def test_an_init_container_that_could_not_be_run_is_told_with_the_runtimes_words() -> None:
    observed = Observed()
    state = terminated(128, reason="StartError", message='exec: "/no/such": no such file or directory')
    observed.fold(Applied(initialising({"terminated": state})), 0.0)
    assert verdict(observed, pods_known=True) == Verdict(
        1,
        Category.INIT_CONTAINER_FAILED,
        'init container wait failed (StartError): exec: "/no/such": no such file or directory, so the chaincode never'
        " started. See its log: kubectl logs p -c wait",
    )


def test_an_init_container_that_failed_is_the_cause_also_where_its_job_is_gone() -> None:
    observed = Observed()
    observed.fold(Applied(initialising({"terminated": terminated(1)})), 0.0)
    observed.job_gone = True
    found = verdict(observed, pods_known=True)
    assert found is not None
    assert found.category is Category.INIT_CONTAINER_FAILED


def test_a_pod_that_is_deleted_while_its_init_container_runs_was_deleted() -> None:
    observed = Observed()
    body = msgspec.to_builtins(initialising({"terminated": terminated(137)}))
    body["metadata"] |= {"deletionTimestamp": AT.isoformat(), "deletionGracePeriodSeconds": 2}
    observed.fold(Applied(msgspec.convert(body, Pod)), 0.0)
    text = "the chaincode never started, because its pod was deleted"
    assert verdict(observed, pods_known=True) == Verdict(1, Category.POD_DELETED, text)


@pytest.mark.parametrize(
    ("reason", "category", "text"),
    [
        ("ErrImagePull", Category.INIT_CONTAINER_IMAGE_PULL, "the image of init container wait cannot be pulled (ErrI"),
        ("InvalidImageName", Category.INIT_CONTAINER_IMAGE_PULL, "the image of init container wait cannot be pulled"),
        (
            "CreateContainerConfigError",
            Category.INIT_CONTAINER_CONFIG,
            "init container wait cannot be created (CreateContainerConfigError): words",
        ),
    ],
)
def test_what_an_init_container_waits_for_is_told_as_the_chaincodes_is(
    reason: str, category: Category, text: str
) -> None:
    [found] = diagnose(initialising({"waiting": {"reason": reason, "message": "words"}}))
    assert found.category is category
    assert found.text.startswith(text)
    assert not found.hopeless


def test_a_sidecar_that_fails_again_and_again_is_told_with_its_exit_code() -> None:
    body = msgspec.to_builtins(initialising({"waiting": {"reason": "CrashLoopBackOff"}}, own="Always"))
    body["status"]["initContainerStatuses"] = [
        {
            "name": "wait",
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
            "lastState": {"terminated": {"exitCode": 7}},
        }
    ]
    [found] = diagnose(msgspec.convert(body, Pod))
    assert found.category is Category.INIT_CONTAINER_FAILED
    assert found.text == (
        "sidecar wait keeps failing, last with exit code 7. See its log: kubectl logs p -c wait --previous"
    )


# How far it has come


def test_each_stage_of_a_launch_says_who_is_waited_for() -> None:
    placed = {"nodeName": "node1"}
    creating = {"waiting": {"reason": "ContainerCreating"}}
    chaincode = [{"name": "chaincode", "state": creating}]
    pulling = [event("Pulling", "x", "chaincode")]
    stages = [
        stage(None, created=False),
        stage(None),
        stage(pod()),
        stage(pod(placed)),
        stage(pod(placed, containerStatuses=chaincode), pulling),
        stage(pod(placed, containerStatuses=chaincode), [*pulling, event("Pulled", "x", "chaincode")]),
    ]
    assert [(found.category, found.text) for found in stages] == [
        (Category.API_UNAVAILABLE, "the Kubernetes API has not answered the request to create the job yet"),
        (
            Category.POD_NOT_CREATED,
            "no pod has been created for the job yet: check that kube-controller-manager is running",
        ),
        (Category.POD_NOT_SCHEDULED, "no node has been chosen for the pod yet: check that kube-scheduler is running"),
        (Category.POD_NOT_STARTED, "node node1 has not started the pod yet: check that its kubelet is running"),
        (Category.IMAGE_PULLING, "the image is being pulled by node node1"),
        (Category.CONTAINER_CREATING, "the container is being created. For more, run kubectl describe pod p"),
    ]
    assert len({found.cause for found in stages}) == len(stages)
    assert stage(None, created=False, refusal="it refuses").text == "it refuses"


def test_a_slow_init_container_is_named() -> None:
    assert played("init-slow").stages[Category.INIT_CONTAINER_RUNNING] == 0.49
    body = initialising(RUNNING)
    found = stage(msgspec.structs.replace(body, spec=msgspec.structs.replace(body.spec, node_name="node1")))
    assert (found.category, found.text) == (
        Category.INIT_CONTAINER_RUNNING,
        "init container wait is running; the chaincode starts after it",
    )


@pytest.mark.parametrize(
    ("started", "category"), [(False, Category.SIDECAR_NOT_STARTED), (True, Category.CONTAINER_CREATING)]
)
def test_a_sidecar_holds_a_launch_up_until_it_has_started(started: bool, category: Category) -> None:
    found = stage(
        pod(
            {"nodeName": "node1", "initContainers": [{"name": "proxy", "restartPolicy": "Always"}]},
            initContainerStatuses=[{"name": "proxy", "state": RUNNING, "started": started}],
            containerStatuses=[{"name": "chaincode", "state": {"waiting": {"reason": "PodInitializing"}}}],
        )
    )
    assert found.category is category
    if not started:
        assert found.text == "sidecar proxy has not started yet: its startup probe has not succeeded"


def test_the_image_of_an_init_container_that_is_pulled_is_named() -> None:
    assert played("init-image-missing").stages[Category.IMAGE_PULLING] == 0.42


# What has been overcome


def test_a_refused_pod_that_was_created_after_all_holds_nothing_up() -> None:
    events = [event("FailedCreate", 'Error creating: pods "x-" is forbidden: exceeded quota: none')]
    assert [found.category for found in diagnose(None, events)] == [Category.QUOTA_EXCEEDED]
    assert diagnose(pod(), events) == []


@pytest.mark.parametrize("reason", ["FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"])
def test_what_a_pod_needs_first_holds_nothing_up_once_its_image_is_pulled(reason: str) -> None:
    events = [event(reason, "words")]
    assert len(diagnose(waiting("ContainerCreating"), events)) == 1
    assert diagnose(waiting("ContainerCreating"), [*events, event("Pulling", "x", "chaincode")]) == []
    assert [found.category for found in diagnose(waiting("ErrImagePull", "x"), events)] == [Category.IMAGE_PULL]


@pytest.mark.parametrize(
    ("words", "category", "remedy"),
    [
        (
            'pods "x-" is forbidden: failed quota: compute: must specify limits.cpu',
            Category.QUOTA_EXCEEDED,
            "Raise the quota, or set what it counts under resources in the pod template",
        ),
        (
            'pods "x-" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true (pod or container'
            ' "chaincode" must set securityContext.runAsNonRoot=true)',
            Category.POD_SECURITY,
            "Set FABRIC_K8S_BUILDER_RUN_AS_NON_ROOT=true",
        ),
        (
            'pods "x-" is forbidden: violates PodSecurity "baseline:latest": hostPath volumes',
            Category.POD_SECURITY,
            "Correct the pod template, or the namespace's Pod Security level",
        ),
        (
            'pods "x-" is forbidden: maximum memory usage per Container is 64Mi, but limit is 128Mi',
            Category.LIMIT_RANGE,
            "Correct resources in the pod template",
        ),
        ('admission webhook "policy.example" denied the request: no', Category.ADMISSION_REFUSED, "no"),
        (
            "Internal error occurred: failed calling webhook: connection refused",
            Category.FAILED_CREATE,
            "connection refused",
        ),
    ],
)
def test_a_refusal_is_told_by_who_refuses(words: str, category: Category, remedy: str) -> None:
    [found] = diagnose(None, [event("FailedCreate", f"Error creating: {words}")])
    assert found.category is category
    assert found.text.startswith(f"the pod cannot be created: {words}")
    assert found.text.endswith(remedy)


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}.", "Add a toleration to the pod template"),
        (
            "0/2 nodes are available: 1 node(s) had untolerated taint {a: b}, 1 node(s) didn't match Pod's node"
            " affinity/selector.",
            "Label a node fabric-builder-k8s-role=<role>",
        ),
        (
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match Pod's node affinity/selector.",
            "Add capacity, or lower the requests in the pod template",
        ),
        ("Scheduling is blocked due to non-empty scheduling gates", "Find out who sets schedulingGates on the pod"),
    ],
)
def test_the_schedulers_words_come_with_what_to_do(words: str, remedy: str) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    [found] = diagnose(pod(conditions=[condition]))
    assert found.text.startswith(f"the pod cannot be scheduled: {words.rstrip('.')}. {remedy}")


@pytest.mark.parametrize(
    "words",
    [
        "rpc error: failed to pull and unpack image: no match for platform in manifest: not found",
        "no matching manifest for linux/arm64/v8 in the manifest list entries",
        'choosing image instance: no image found in image index for architecture "arm64", variant "v8", OS "linux"',
    ],
)
def test_an_image_that_does_not_exist_for_the_platform_is_told_as_such(words: str) -> None:
    [found] = diagnose(
        pod(
            {"nodeName": "node1"},
            containerStatuses=[
                {"name": "chaincode", "state": {"waiting": {"reason": "ErrImagePull", "message": words}}}
            ],
        )
    )
    assert found.category is Category.IMAGE_ARCHITECTURE
    assert found.text == (
        f"the image is not available for the platform of its node node1: {words}. Push it for that platform, or select"
        " other nodes in the pod template"
    )


@pytest.mark.parametrize(
    ("reason", "category"),
    [
        ("ErrImageNeverPull", Category.IMAGE_PULL),
        ("ImageInspectError", Category.IMAGE_PULL),
        ("CreateContainerError", Category.CREATE_CONTAINER),
        ("RunContainerError", Category.CREATE_CONTAINER),
    ],
)
def test_every_reason_to_wait_has_a_category(reason: str, category: Category) -> None:
    [found] = diagnose(waiting(reason, "words"))
    assert (found.category, found.hopeless) == (category, False)
    assert "words" in found.text


# What is not known


def jobless(*conditions: dict[str, str], gone: bool = False, pods_known: bool = True, **more: Any) -> Verdict | None:
    """Judge a Job that never had a pod."""
    observed = Observed()
    body = {"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": conditions}}
    job = msgspec.convert(body, Job)
    observed.fold(Deleted(job) if gone else Applied(job), 0.0)
    return verdict(observed, pods_known=pods_known, **more)


FAILED = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}
AFTER_ITS_POD = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "Job has reached"}
COMPLETE = {"type": "Complete", "status": "True", "reason": "CompletionsReached", "message": "Reached"}


@pytest.mark.parametrize(("conditions", "gone"), [((FAILED,), False), ((AFTER_ITS_POD,), False), ((), True)])
@pytest.mark.parametrize("knew_pod", [False, True])
def test_while_the_pods_are_not_known_there_is_no_verdict(
    conditions: tuple[dict[str, str], ...], gone: bool, knew_pod: bool
) -> None:
    assert jobless(*conditions, gone=gone, pods_known=False, knew_pod=knew_pod) is None


def test_a_job_that_goes_on_has_no_verdict() -> None:
    assert jobless() is None


def test_a_job_that_failed_without_a_pod_says_why() -> None:
    text = "the chaincode's job failed before it had a pod: DeadlineExceeded: Job was active too long"
    assert jobless(FAILED) == Verdict(1, Category.JOB_FAILED, text)


def test_a_job_deleted_before_it_had_a_pod_says_so() -> None:
    assert jobless(gone=True) == Verdict(1, Category.JOB_DELETED, "the chaincode's job was deleted before it had a pod")


@pytest.mark.parametrize(
    ("conditions", "knew_pod"), [((AFTER_ITS_POD,), False), ((COMPLETE,), False), ((), True), ((FAILED,), True)]
)
def test_a_pod_that_nobody_saw_has_been_there_all_the_same(
    conditions: tuple[dict[str, str], ...], knew_pod: bool
) -> None:
    """A Job with a backoffLimit of 0 reaches it by a pod that failed, and completes by one that succeeded."""
    text = "the chaincode's pod was removed before its exit code and the rest of its log were read"
    assert jobless(*conditions, knew_pod=knew_pod) == Verdict(1, Category.POD_GONE, text)


JOB = {"kind": "Job", "name": "j", "uid": "j"}


@pytest.mark.parametrize(
    ("known", "left"),
    [
        (seen(RUNNING, job_gone=True), True),
        (seen(RUNNING, job_gone=False), False),
        (seen(RUNNING, job_gone=True, owners=(JOB,)), False),
        (seen(RUNNING, job_gone=True, asked=AT), False),
        (seen(RUNNING, job_gone=True, gone=True), False),
        (seen({"terminated": terminated(0)}, job_gone=True), False),
    ],
    ids=["orphaned", "job there", "about to be deleted", "told to end", "pod gone", "ended"],
)
def test_a_chaincode_whose_job_was_deleted_without_it_is_told_as_running(known: Observed, left: bool) -> None:
    found = left_behind(known)
    assert (found is not None) == left
    if found is not None:
        assert found.category is Category.JOB_ORPHANED
        assert found.text == (
            "its job was deleted without its pod (--cascade=orphan), so the chaincode keeps running. To end it, run"
            " kubectl delete pod/p secret/j"
        )


def test_a_chaincode_without_its_job_that_ends_ended_by_itself() -> None:
    found = verdict(seen({"terminated": terminated(3)}, job_gone=True), pods_known=True)
    assert found == Verdict(1, Category.EXIT_CODE, "the chaincode ended with exit code 3")


def test_a_deletion_is_seen_in_the_last_word_of_a_pod_alone() -> None:
    """A daemon that starts late sees only what the kubelet's own removal has left of the deletion."""
    *_, last = [body for _, kind, _, body in OBSERVED["pod-deleted-while-running"] if kind == "Pod"]
    told = Told()
    told.play(0, "Pod", "ADDED", last)
    text = "the chaincode was killed by signal 9 (exit code 137), because its pod was deleted"
    assert told.verdicts == [(0, Verdict(1, Category.POD_DELETED, text))]


def test_an_eviction_that_only_an_event_tells_of_is_told() -> None:
    events = (event("Pulled", "x"), event("Evicted", "The node was low on resource: memory."))
    assert judged(terminated(0), events=events) == Verdict(
        1,
        Category.EVICTED,
        "the chaincode ended with exit code 0, because its pod was evicted (Evicted): The node was low on resource:"
        " memory.",
    )


def test_every_scenario_that_was_recorded_is_held_to() -> None:
    assert set(OBSERVED) <= set(re.findall(r'"([a-z0-9-]+)"', Path(__file__).read_text()))
