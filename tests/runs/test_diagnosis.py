"""What a launch is told while it waits, and how its end is judged, by what a real cluster said in each case.

test_diagnosis.json holds, of what Kubernetes 1.36 was seen to say, the fields that we read: for each scenario its watch
events of Job, pod and Events, in order, without those that change nothing for us.
"""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k8s_builderd.fabric.objects import Job, Meta, Pod
from k8s_builderd.kube.objects import Event
from k8s_builderd.kube.watch import Applied, Deleted
from k8s_builderd.runs.diagnosis import Diagnosis, Verdict, diagnose, verdict
from k8s_builderd.runs.observed import Observed

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
        self.sightings = Observed()
        self.events: list[Event] = []
        self.found: dict[str, Diagnosis] = {}
        self.verdicts: list[Verdict] = []

    def play(self, kind: str, change: str, body: Any) -> None:
        sightings = self.sightings
        if kind == "Event":
            self.events.append(msgspec.convert(body, Event))
        elif kind == "Job":
            job = msgspec.convert(body, Job)
            sightings.fold(Deleted(job) if change == "DELETED" else Applied(job), 0.0)
        else:
            pod = msgspec.convert(body, Pod)
            sightings.fold(Deleted(pod) if change == "DELETED" else Applied(pod), 0.0)
        if not (sightings.started or sightings.ended):
            for diagnosis in diagnose(sightings.pod, self.events):
                self.found.setdefault(diagnosis.cause, diagnosis)
        if sightings.ended:
            self.verdicts.append(verdict(sightings, self.events))


def played(scenario: str) -> Told:
    told = Told()
    for change in OBSERVED[scenario]:
        told.play(*change)
    return told


# What holds it up


@pytest.mark.parametrize(
    ("scenario", "text", "hopeless"),
    [
        (
            "wrong-digest",
            f'the image cannot be pulled (ErrImagePull): failed to pull and unpack image "{WRONG}": failed to resolve'
            f' reference "{WRONG}": failed to do request: Head "http://localhost/v2/busybox/manifests/sha256:'
            + "0"
            * 64
            + '": dial tcp 127.0.0.1:80: connect: connection refused. Check name and digest in image.json, and the'
            " service account's imagePullSecrets",
            False,
        ),
        (
            "unschedulable",
            f"no node takes the pod (Unschedulable): {NO_NODE} Label a node fabric-builder-k8s-role=<role>, or correct"
            " FABRIC_K8S_BUILDER_NODE_ROLE",
            False,
        ),
        (
            "missing-secret",
            'a volume cannot be mounted: MountVolume.SetUp failed for volume "certs" : secret "missing-secret" not'
            " found",
            False,
        ),
        (
            "missing-service-account",
            'the cluster refuses the pod: Error creating: pods "missing-service-account-" is forbidden: error looking'
            ' up service account rec/nobody: serviceaccount "nobody" not found. Create it, or correct'
            " FABRIC_K8S_BUILDER_SERVICE_ACCOUNT",
            False,
        ),
        (
            "quota",
            'the cluster refuses the pod: Error creating: pods "quota-mqplp" is forbidden: exceeded quota: none,'
            " requested: pods=1, used: pods=0, limited: pods=0",
            False,
        ),
        (
            "invalid-image-name",
            'the container cannot start (InvalidImageName): Failed to apply default image tag "Not A Name@sha256:'
            + "0" * 64
            + '": couldn\'t parse image name "Not A Name@sha256:'
            + "0" * 64
            + '": invalid reference format: repository name (library/Not A Name@sha256) must be lowercase. Correct the'
            " name in image.json and install the package anew",
            True,
        ),
    ],
)
def test_what_holds_a_launch_up_is_told_once_in_the_clusters_own_words(
    scenario: str, text: str, hopeless: bool
) -> None:
    [diagnosis] = played(scenario).found.values()
    assert (diagnosis.text, diagnosis.hopeless) == (text, hopeless)


@pytest.mark.parametrize(
    "scenario",
    [
        "bad-command",
        "exits-3",
        "job-deleted-while-running",
        "oom-killed",
        "pod-deleted-while-running",
        "pod-evicted",
        "succeeds",
    ],
)
def test_a_launch_that_comes_up_is_told_nothing(scenario: str) -> None:
    assert played(scenario).found == {}


def pod(**status: Any) -> Pod:
    return msgspec.convert({"metadata": {"name": "p", "uid": "u"}, "status": status}, Pod)


def waiting(reason: str, message: str | None = None) -> Pod:
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=[{"name": "chaincode", "state": state}])


def event(reason: str, message: str | None) -> Event:
    return Event(Meta(), reason=reason, message=message)


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
    ("scenario", "code", "text"),
    [
        ("succeeds", 0, "the chaincode ended with exit code 0"),
        ("exits-3", 1, "the chaincode ended with exit code 3"),
        (
            "oom-killed",
            1,
            "the chaincode was killed for lack of memory (OOMKilled, exit code 137): raise its memory limit",
        ),
        (
            "bad-command",
            1,
            "the chaincode could not be started (StartError, exit code 128): failed to create containerd task: failed"
            " to create shim task: OCI runtime create failed: runc create failed: unable to start container process:"
            ' exec: "/no/such/program": stat /no/such/program: no such file or directory: unknown. Check the image\'s'
            " entrypoint, and the pod template's command",
        ),
        (
            "pod-deleted-while-running",
            1,
            "the chaincode was ended by signal 9 (exit code 137), because its pod was deleted",
        ),
    ],
)
def test_the_verdict_is_the_same_from_the_containers_end_on(scenario: str, code: int, text: str) -> None:
    """It is asked for when the log has ended, and that is any time after the container has."""
    told = played(scenario)
    assert told.verdicts
    assert set(map(msgspec.structs.astuple, told.verdicts)) == {(code, text)}


def test_a_deleted_job_does_not_end_the_chaincode_before_its_container_has_ended() -> None:
    told = played("job-deleted-while-running")
    assert told.verdicts == []
    assert told.sightings.job_gone
    assert told.sightings.started
    assert not told.sightings.ended


def test_an_evicted_pod_runs_until_its_container_has_ended() -> None:
    told = played("pod-evicted")
    assert told.verdicts == []
    assert told.sightings.started
    assert not told.sightings.ended


def terminated(code: int, finished: datetime = AT, **more: Any) -> Any:
    return {"exitCode": code, "finishedAt": finished.isoformat(), **more}


def judged(
    state: Any,
    *,
    job_gone: bool = False,
    asked: datetime | None = None,
    grace: int = 2,
    events: tuple[Event, ...] = (),
    **status: Any,
) -> Verdict:
    """Judge a container's end; `asked` is when somebody deleted the pod."""
    meta: dict[str, Any] = {"name": "p", "uid": "u"}
    if asked is not None:
        meta["deletionTimestamp"] = (asked + timedelta(seconds=grace)).isoformat()
        meta["deletionGracePeriodSeconds"] = grace
    containers = [{"name": "chaincode", "state": {"terminated": state}}] if state else []
    body = {"metadata": meta, "status": {"containerStatuses": containers, **status}}
    sightings = Observed()
    if asked is not None and asked > AT:  # its end was seen before anybody asked for it
        sightings.fold(Applied(msgspec.convert({**body, "metadata": {"name": "p", "uid": "u"}}, Pod)), 0.0)
    sightings.fold(Applied(msgspec.convert(body, Pod)), 0.0)
    sightings.job_gone = job_gone
    return verdict(sightings, events)


def test_a_job_deleted_by_someone_is_why_its_chaincode_ended() -> None:
    found = judged(terminated(143), job_gone=True, asked=AT - timedelta(seconds=1))
    assert found == Verdict(1, "the chaincode was ended by signal 15 (exit code 143), because its job was deleted")


def test_a_chaincode_that_obeys_a_deletion_with_0_has_not_succeeded() -> None:
    found = judged(terminated(0), job_gone=True, asked=AT - timedelta(seconds=1))
    assert found == Verdict(1, "the chaincode ended with exit code 0, because its job was deleted")


def test_a_chaincode_that_ended_before_its_job_was_deleted_ended_by_itself() -> None:
    found = judged(terminated(0), job_gone=True, asked=AT + timedelta(seconds=5))
    assert found == Verdict(0, "the chaincode ended with exit code 0")


def test_an_eviction_is_told_with_its_reason() -> None:
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    found = judged(terminated(143), asked=AT - timedelta(seconds=1), conditions=[condition])
    assert found.text.endswith("because its pod was evicted (EvictionByEvictionAPI): Eviction API: evicting")
    assert found.code == 1


def test_an_eviction_by_the_kubelet_is_told_with_its_message() -> None:
    found = judged(terminated(137), phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert found.text.endswith("because its pod was removed (Evicted): The node was low on resource: memory.")
    assert found.code == 1


def test_a_pod_that_vanished_with_its_node_is_told_without_an_exit_code() -> None:
    assert judged(None).text == ("the chaincode's container is gone: its pod was removed from the cluster")
    assert judged(None, job_gone=True, asked=AT).text == "the chaincode's container is gone: its job was deleted"


@pytest.mark.parametrize(("code", "number"), [(129, 1), (134, 6), (137, 9), (139, 11), (143, 15), (192, 64)])
def test_an_exit_code_of_a_signal_names_it(code: int, number: int) -> None:
    assert judged(terminated(code)).text == f"the chaincode was ended by signal {number} (exit code {code})"


@pytest.mark.parametrize("code", [1, 127, 128, 193, 254, 255])
def test_an_exit_code_of_no_signal_is_only_told(code: int) -> None:
    """255 is what a program's own -1 comes to; signals end at 64."""
    assert judged(terminated(code)) == Verdict(1, f"the chaincode ended with exit code {code}")


def test_what_the_chaincode_left_as_its_termination_message_is_told() -> None:
    assert judged(terminated(2, message="panic: nil map")).text == (
        "the chaincode ended with exit code 2: panic: nil map"
    )


def jobless(*conditions: dict[str, str], gone: bool = False) -> Verdict:
    """Judge a Job that never had a pod."""
    sightings = Observed()
    body = {"metadata": {"name": "j", "uid": "u"}, "status": {"conditions": conditions}}
    job = msgspec.convert(body, Job)
    sightings.fold(Deleted(job) if gone else Applied(job), 0.0)
    return verdict(sightings)


def test_a_job_that_failed_without_a_pod_says_why() -> None:
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded", "message": "Job was active too long"}
    assert jobless(failed) == Verdict(
        1, "the chaincode's job failed without a pod: DeadlineExceeded: Job was active too long"
    )


def test_a_job_deleted_before_it_had_a_pod_says_so() -> None:
    assert jobless(gone=True) == Verdict(1, "the chaincode's job was deleted before its pod was made")


def test_a_deletion_is_seen_in_the_last_word_of_a_pod_alone() -> None:
    """A daemon that starts late sees only what the kubelet's own removal has left of the deletion."""
    *_, last = [body for kind, change, body in OBSERVED["pod-deleted-while-running"] if kind == "Pod"]
    told = Told()
    told.play("Pod", "ADDED", last)
    assert [found.text for found in told.verdicts] == [
        "the chaincode was ended by signal 9 (exit code 137), because its pod was deleted"
    ]


def test_an_eviction_that_only_an_event_tells_of_is_told() -> None:
    events = (event("Pulled", "x"), event("Evicted", "The node was low on resource: memory."))
    assert judged(terminated(0), events=events) == Verdict(
        1,
        "the chaincode ended with exit code 0, because its pod was evicted (Evicted): The node was low on resource:"
        " memory.",
    )
