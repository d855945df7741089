"""A model of a Kubernetes cluster, as far as a launch sees it: objects with one resourceVersion, and who acts on them.

Job controller, garbage collector, scheduler and kubelets act after a while, and each can be made slow, be stopped and
go on again. What a container really does is known here, whatever the API says of it. The times are those measured on a
real cluster (one node, Kubernetes 1.36).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any

from tests.simulation.loop import Simulation

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
BOOKMARKS = 60.0
CHAINCODE = "fabric-builder-k8s-ccid"
MSPID = "fabric-builder-k8s-mspid"
ADDRESS = "fabric-builder-k8s-peeraddress"
PEER_ID = "fabric-builder-k8s-peerid"
TOKEN = "fabric-builder-k8s-run"
PEER_PROCESS = "fabric-builder-k8s-peer"

Object = dict[str, Any]
Key = tuple[str, str, str, str]


def launch_key(meta: Object) -> Key:
    """Return what all launches of one chaincode by one peer have in common."""
    notes = meta.get("annotations") or {}
    return notes.get(CHAINCODE, ""), notes.get(MSPID, ""), notes.get(ADDRESS, ""), notes.get(PEER_ID, "")


def stamp(seconds: float, *, exact: bool = False) -> str:
    """Return a time as Kubernetes writes it: whole seconds, or nanoseconds in a log."""
    at = EPOCH + timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f000Z" if exact else "%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Program:
    """What the process in a container does."""

    exits_after: float | None = None
    code: int = 1
    obeys: bool = True
    """Whether it ends when it gets SIGTERM."""
    ends_with_stream: bool = True
    """Whether it ends when the peer closes its stream."""
    connects_after: float = 0.3
    prints_every: float = 3.0
    aside: bool = False
    """Whether a second container in the pod goes on for ever."""
    ready_after: float | None = 0.0
    """Seconds after which its readiness probe succeeds; None: never."""


@dataclass
class Image:
    """What can be changed of all containers that are started from now on."""

    there: bool = True
    program: Program = field(default_factory=Program)


class Actor:
    """Somebody in the cluster who acts after a while, and who can be stopped: then all of it waits."""

    def __init__(self, sim: Simulation, random: Random) -> None:
        self.sim = sim
        self.slowness = 1.0
        self.down = False
        self._random = random
        self._held: list[Callable[[], None]] = []

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after about so many seconds."""
        self.sim.after(seconds * self.slowness * self._random.uniform(0.7, 1.3), self._act, action)

    def _act(self, action: Callable[[], None]) -> None:
        if self.down:
            self._held.append(action)
        else:
            action()

    def resume(self) -> None:
        """Go on, with all that has been held up."""
        self.down = False
        self.slowness = 1.0
        held, self._held = self._held, []
        for action in held:
            self.later(0.02, action)


class Container:
    """A chaincode's container, as it really is."""

    def __init__(self, pod: "PodWorker", program: Program) -> None:
        self.pod = pod
        self.program = program
        self.key = launch_key(pod.meta)
        self.token = pod.meta["annotations"][TOKEN]
        self.peer_process = pod.meta["annotations"][PEER_PROCESS]
        self.started_at = pod.sim.now
        self.ended_at: float | None = None
        self.code = 0
        self.lines: list[tuple[str, bytes]] = []
        """Timestamp and text of all that it has printed."""
        self.printed: list[Callable[[], None]] = []
        self.ends: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        return self.ended_at is None

    @property
    def name(self) -> str:
        return self.pod.name

    def print(self, count: int = 1) -> None:
        """Print lines, with timestamps that may go back a little, as they do where two streams mix."""
        node = self.pod.node
        for _ in range(count):
            at = self.pod.sim.now + node.clock + self.pod.random.choice([0, 0, -0.004, 0.001])
            self.lines.append((stamp(at, exact=True), f"{self.name} line {len(self.lines)}".encode()))
        self._told()

    def _told(self) -> None:
        for tell in list(self.printed):
            tell()

    def run(self) -> None:
        """Begin."""
        self.print(self.pod.random.randint(1, 3))
        self.pod.sim.after(self.program.prints_every, self._prints)
        if self.program.exits_after is not None:
            self.pod.sim.after(self.program.exits_after, self.exit, self.program.code)

    def _prints(self) -> None:
        if self.alive:
            self.print(self.pod.random.randint(1, 2))
            self.pod.sim.after(self.program.prints_every, self._prints)

    def exit(self, code: int) -> None:
        """End, if it has not ended."""
        if not self.alive:
            return
        self.print()
        self.ended_at, self.code = self.pod.sim.now, code
        self._told()
        for end in list(self.ends):
            end()
        self.pod.container_ended()

    def signal(self, grace: float) -> None:
        """Get SIGTERM, and SIGKILL after the grace."""
        if self.program.obeys:
            self.pod.sim.after(0.2, self.exit, 143)
        self.pod.sim.after(grace, self.exit, 137)


class Node(Actor):
    """A kubelet, and the clock of its machine."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        super().__init__(cluster.sim, cluster.random)
        self.cluster = cluster
        self.name = name
        self.clock = 0.0
        """By how many seconds it is ahead of the other machines' clocks."""


class PodWorker:
    """What one kubelet does for one pod."""

    def __init__(self, cluster: "Cluster", pod: Object, node: Node) -> None:
        self.cluster = cluster
        self.sim = cluster.sim
        self.random = cluster.random
        self.node = node
        self.meta = pod["metadata"]
        self.secret = pod["spec"]["volumes"][0]["secret"]["secretName"]
        self.job_uid = cluster.job_of[self.meta["uid"]]
        self.grace = float(pod["spec"]["terminationGracePeriodSeconds"])
        self.container: Container | None = None
        self._terminating = False
        self._done = False
        self._ready = False
        node.later(0.45, self._prepare)

    @property
    def name(self) -> str:
        return str(self.meta["name"])

    @property
    def object(self) -> Object | None:
        found = self.cluster.find("pods", self.name)
        return found if found is not None and found["metadata"]["uid"] == self.meta["uid"] else None

    def _prepare(self) -> None:
        if self._terminating or self._done or self.object is None:
            return
        if self.cluster.find("secrets", self.secret) is None:
            self.cluster.event(self.object, "FailedMount", f'secret "{self.secret}" not found')
            self.node.later(0.7, self._prepare)
        elif not self.cluster.image.there:
            self._waiting("ErrImagePull", "rpc error: code = NotFound: the image is not there")
            self.node.later(2.0, self._prepare)
        else:
            self.container = Container(self, self.cluster.image.program)
            self.cluster.started(self.container)
            self.container.run()
            self.node.later(0.05, self._tell_running)

    def _waiting(self, reason: str, message: str) -> None:
        self._report({"waiting": {"reason": reason, "message": message}}, "Pending")

    def _time(self, at: float) -> str:
        return stamp(at + self.node.clock)

    def _tell_running(self) -> None:
        container = self.container
        if container is not None and container.alive:
            self._report({"running": {"startedAt": self._time(container.started_at)}}, "Running")
            if container.program.ready_after and not self._ready:
                self.node.later(container.program.ready_after, self._become_ready)

    def _become_ready(self) -> None:
        self._ready = True
        self._tell_running()

    @property
    def _is_ready(self) -> bool:
        return self._ready or self.container is None or self.container.program.ready_after == 0

    def container_ended(self) -> None:
        self.node.later(0.4, self._tell_ended)

    def _tell_ended(self) -> None:
        container = self.container
        if container is None or container.ended_at is None:
            return
        terminated = {
            "exitCode": container.code,
            "reason": "Completed" if container.code == 0 else "Error",
            "startedAt": self._time(container.started_at),
            "finishedAt": self._time(container.ended_at),
        }
        self._report({"terminated": terminated}, "Running")
        if not container.program.aside or self._terminating:
            self.node.later(1.1, self._finish)

    def _finish(self) -> None:
        self._done = True
        state = None
        if self.container is None:
            state = {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown"}}
        phase = "Succeeded" if self.container is not None and self.container.code == 0 else "Failed"
        self._report(state, phase)
        if self._terminating:
            self.node.later(0.4, lambda: self.cluster.remove("pods", self.name, self.meta["uid"]))

    def _report(self, state: Object | None, phase: str) -> None:
        pod = self.object
        if pod is None:
            return
        status = {**pod["status"], "phase": phase}
        if state is not None:
            status["containerStatuses"] = [
                {"name": "chaincode", "state": state, "ready": "running" in state and self._is_ready}
            ]
        self.cluster.update("pods", {**pod, "status": status})

    def terminate(self) -> None:
        """Take in that the pod is to end, or is gone."""
        self.node.later(0.04, self._terminate)

    def _terminate(self) -> None:
        if self._terminating:
            return
        self._terminating = True
        if self.container is None or self._done:
            self.node.later(0.3, self._finish)
        elif self.container.alive:
            self.container.signal(self.grace)
        else:
            self.node.later(1.1, self._finish)


@dataclass(frozen=True)
class Change:
    """One entry of the history that watches tell."""

    version: int
    at: float
    type: str
    plural: str
    labels: Mapping[str, str]
    before: Mapping[str, str]
    """The labels that the object had until then."""
    content: bytes


class Cluster:
    """All objects of one namespace, and who acts on them."""

    def __init__(self, sim: Simulation, random: Random) -> None:
        self.sim = sim
        self.random = random
        self.version = 1
        self.oldest = 0
        """Watches from before this version have expired."""
        self.objects: dict[str, dict[str, Object]] = {name: {} for name in ("jobs", "pods", "secrets", "events")}
        self.history: list[Change] = []
        self.image = Image()
        self.schedulable = True
        self.refuses_pods = False
        self.controller = Actor(sim, random)
        self.scheduler = Actor(sim, random)
        self.nodes = [Node(self, f"node{n}") for n in range(2)]
        self.workers: dict[str, PodWorker] = {}
        self.containers: list[Container] = []
        """All that were ever started."""
        self.changed: list[Callable[[Change], None]] = []
        self.on_start: list[Callable[[Container], None]] = []
        self.abandoned: set[str] = set()
        """The uids of pods that were cut off from their Job by a person (`--cascade=orphan`)."""
        self.job_of: dict[str, str] = {}
        """The uid of the Job that each pod was made for, by the pod's."""
        self.told_running: dict[str, float] = {}
        """When the API was first told of each pod, by uid, that its container runs."""
        self._count = 0

    # Objects

    def find(self, plural: str, name: str) -> Object | None:
        """Return an object."""
        return self.objects[plural].get(name)

    def add(self, plural: str, body: Object) -> Object:
        """Create an object."""
        self._count += 1
        meta = {**body["metadata"], "uid": f"uid-{self._count}", "creationTimestamp": stamp(self.sim.now)}
        made = {**body, "metadata": meta, "status": body.get("status", {})}
        self._put("ADDED", plural, made)
        if plural == "jobs":
            uid = meta["uid"]
            self.controller.later(0.02, lambda: self._make_pod(uid))
        self.controller.later(0.15, lambda: self._collect(plural, meta["name"], meta["uid"]))
        return made

    def update(self, plural: str, changed: Object) -> None:
        """Take in the new state of an object that is there."""
        self._put("MODIFIED", plural, changed)
        if any("running" in it["state"] for it in changed["status"].get("containerStatuses") or ()):
            self.told_running.setdefault(changed["metadata"]["uid"], self.sim.now)
        if plural == "pods" and changed["status"].get("phase") in {"Succeeded", "Failed"}:
            self._pod_is_over(changed)

    def remove(self, plural: str, name: str, uid: str) -> None:
        """Have an object gone at once."""
        found = self.find(plural, name)
        if found is None or found["metadata"]["uid"] != uid:
            return
        self._put("DELETED", plural, found)
        if plural == "pods":
            self._pod_is_over(found)
        if plural in {"jobs", "pods"}:
            self.controller.later(0.03, lambda: self._collect_of(uid))

    def _put(self, kind: str, plural: str, item: Object) -> None:
        self.version += 1
        meta = {**item["metadata"], "resourceVersion": str(self.version)}
        item = {**item, "metadata": meta}
        known = self.objects[plural].get(meta["name"], item)
        if kind == "DELETED":
            del self.objects[plural][meta["name"]]
        else:
            self.objects[plural][meta["name"]] = item
        labels = meta.get("labels") or {}
        before = known["metadata"].get("labels") or {}
        change = Change(self.version, self.sim.now, kind, plural, labels, before, json.dumps(item).encode())
        self.history.append(change)
        for tell in list(self.changed):
            tell(change)

    def event(self, item: Object, reason: str, message: str) -> None:
        """Write an event about an object, one for each reason."""
        about = item["metadata"]
        name = f"{about['name']}.{reason}"
        if name not in self.objects["events"]:
            involved = {"uid": about["uid"], "name": about["name"]}
            self.add(
                "events",
                {"metadata": {"name": name}, "involvedObject": involved, "reason": reason, "message": message},
            )

    def owned(self, uid: str) -> list[tuple[str, Object]]:
        """Return what an object owns."""
        return [
            (plural, item)
            for plural, items in self.objects.items()
            for item in list(items.values())
            if any(owner["uid"] == uid for owner in item["metadata"].get("ownerReferences") or ())
        ]

    def pod_of(self, job_uid: str) -> Object | None:
        """Return the pod of a Job."""
        return next((item for plural, item in self.owned(job_uid) if plural == "pods"), None)

    # Requests

    def delete(self, plural: str, name: str, *, orphan: bool = False, force: bool = False) -> None:
        """Carry out a deletion as the API server does: what it owns goes after it, in the background."""
        found = self.objects[plural][name]
        meta = found["metadata"]
        if plural == "pods" and "spec" in found and not force:
            if "deletionTimestamp" not in meta:
                grace = found["spec"]["terminationGracePeriodSeconds"]
                marks = {"deletionTimestamp": stamp(self.sim.now + grace), "deletionGracePeriodSeconds": grace}
                self.update("pods", {**found, "metadata": {**meta, **marks}})
                worker = self.workers.get(meta["uid"])
                if worker is not None:
                    worker.terminate()
                else:
                    self.scheduler.sim.after(0.05, self.remove, "pods", name, meta["uid"])
            return
        if plural == "jobs" and self.controller.down:
            if "deletionTimestamp" not in meta:  # its finalizer waits for the controller manager
                self.update("jobs", {**found, "metadata": {**meta, "deletionTimestamp": stamp(self.sim.now)}})
                self.controller.later(0.01, lambda: self.remove("jobs", name, meta["uid"]))
            return
        if orphan:
            for other, item in self.owned(meta["uid"]):
                self.abandoned.add(item["metadata"]["uid"])
                kept = {key: value for key, value in item["metadata"].items() if key != "ownerReferences"}
                self.update(other, {**item, "metadata": kept})
        self.remove(plural, name, meta["uid"])
        if plural == "pods" and (worker := self.workers.get(meta["uid"])) is not None:
            worker.terminate()

    # The controller manager

    def _job(self, uid: str) -> Object | None:
        return next((job for job in self.objects["jobs"].values() if job["metadata"]["uid"] == uid), None)

    def _make_pod(self, uid: str) -> None:
        job = self._job(uid)
        if job is None or "deletionTimestamp" in job["metadata"] or self.pod_of(uid) is not None:
            return
        if self.refuses_pods:
            self.event(job, "FailedCreate", "exceeded quota: pods=0")
            self.controller.later(2.0, lambda: self._make_pod(uid))
            return
        name = job["metadata"]["name"]
        template = job["spec"]["template"]
        meta = {
            **template["metadata"],
            "name": f"{name}-{self.random.randrange(10**5):05d}",
            "labels": {**template["metadata"]["labels"], "job-name": name},
            "ownerReferences": [{"kind": "Job", "name": name, "uid": uid, "controller": True}],
        }
        pod = self.add("pods", {"metadata": meta, "spec": template["spec"], "status": {"phase": "Pending"}})
        self.job_of[pod["metadata"]["uid"]] = uid
        self.update("jobs", {**job, "status": {"active": 1}})
        self.scheduler.later(0.02, lambda: self._bind(meta["name"], pod["metadata"]["uid"]))

    def _pod_is_over(self, pod: Object) -> None:
        for owner in pod["metadata"].get("ownerReferences") or ():
            uid = owner["uid"]
            succeeded = pod["status"].get("phase") == "Succeeded"
            self.controller.later(1.0, partial(self._finish_job, uid, succeeded=succeeded))

    def _finish_job(self, uid: str, *, succeeded: bool) -> None:
        job = self._job(uid)
        if job is None or job["status"].get("conditions"):
            return
        kind = "Complete" if succeeded else "Failed"
        reason = "CompletionsReached" if succeeded else "BackoffLimitExceeded"
        words = (
            "Reached expected number of succeeded pods" if succeeded else "Job has reached the specified backoff limit"
        )
        condition = {"type": kind, "status": "True", "reason": reason, "message": words}
        self.update("jobs", {**job, "status": {"conditions": [condition]}})
        name, ttl = job["metadata"]["name"], job["spec"]["ttlSecondsAfterFinished"]
        self.sim.after(ttl, self.controller.later, 0.02, lambda: self._expire(name, uid))

    def _expire(self, name: str, uid: str) -> None:
        if self._job(uid) is not None:
            self.delete("jobs", name)

    def _collect(self, plural: str, name: str, uid: str) -> None:
        """Delete a new object whose owners are not there."""
        item = self.find(plural, name)
        if item is None or item["metadata"]["uid"] != uid:
            return
        owners = item["metadata"].get("ownerReferences") or ()
        there = {other["metadata"]["uid"] for kind in ("jobs", "pods") for other in self.objects[kind].values()}
        if owners and not any(owner["uid"] in there for owner in owners):
            self.delete(plural, name)

    def _collect_of(self, uid: str) -> None:
        """Delete what an object that is gone has owned."""
        for plural, item in self.owned(uid):
            if item["metadata"]["name"] in self.objects[plural]:
                self.delete(plural, item["metadata"]["name"])

    # The scheduler

    def _bind(self, name: str, uid: str) -> None:
        pod = self.find("pods", name)
        if pod is None or pod["metadata"]["uid"] != uid or "deletionTimestamp" in pod["metadata"]:
            return
        condition: Object = {"type": "PodScheduled", "status": "True"}
        if not self.schedulable:
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/2 nodes are available",
            }
            self.scheduler.later(1.0, lambda: self._bind(name, uid))
        if pod["status"].get("conditions") != [condition]:
            self.update("pods", {**pod, "status": {**pod["status"], "conditions": [condition]}})
        if self.schedulable:
            self.workers[uid] = PodWorker(self, self.objects["pods"][name], self.random.choice(self.nodes))

    # What containers do

    def started(self, container: Container) -> None:
        """Take in that a container runs."""
        self.containers.append(container)
        for tell in self.on_start:
            tell(container)

    def alive(self) -> list[Container]:
        """Return the containers that run."""
        return [container for container in self.containers if container.alive]

    def seen_running_since(self, container: Container) -> float | None:
        """Return since when the API says that a container runs; None where it does not, or no more."""
        name, uid = container.name, container.pod.meta["uid"]
        pod = self.find("pods", name)
        if pod is None or pod["metadata"]["uid"] != uid:
            return None
        for status in pod["status"].get("containerStatuses") or ():
            if "running" in status["state"]:
                return self.told_running.get(uid)
        return None
