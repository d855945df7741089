"""Counts and times what happens, for /metrics. No names of chaincodes or peers: their number has no bound.

Every label has a small fixed set of values, so that the size of an answer does not grow with the number of chaincodes.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata

import anyio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily

UNCATEGORIZED = "Other"
"""The category of what has none of its own."""

OUTCOMES = ("started", "failed", "stopped", "yielded")
"""How a launch ends: its container runs; it never will; its client took it back; another launch takes its place."""

REJECTIONS = ("connections", "protocol", "timeout", "uid")
"""Why a call is turned away: too many connections, a broken rule or bound, not complete in time, a user not allowed."""

LOG_LOSSES = ("lost", "rotated")
"""What costs lines of a log: the rest of an ended one that could not be had; a file that was rotated away."""

LAUNCH_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 180)
"""Seconds: a Job is asked for in tens of milliseconds, and START_TIMEOUT is 3 minutes."""

REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

LAG_INTERVAL = 0.5
"""Seconds between two looks at how late the event loop is."""


class Metrics:
    """The daemon's counters, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter
        self._registry = CollectorRegistry()
        self._calls = self._counter("calls", "Calls of the four programs", "stage", "code")
        self._rejected = self._counter("calls_rejected", "Connections turned away before their call", "reason")
        self._launches = self._counter("launches", "Launches, by how they ended", "outcome", "category")
        self._to_job = self._histogram(
            "launch_job_seconds", "Time from the request of a launch to its Job", LAUNCH_BUCKETS
        )
        self._to_running = self._histogram(
            "launch_running_seconds", "Time from the request of a launch to its running container", LAUNCH_BUCKETS
        )
        self._ends = self._counter("chaincode_ends", "Chaincodes that ended without the daemon's doing", "category")
        self._deleted = self._counter("jobs_deleted", "Jobs deleted", "reason")
        self._log_bytes = self._counter("log_bytes", "Bytes of log passed on")
        self._log_lines = self._counter("log_lines", "Lines of log passed on")
        self._log_interruptions = self._counter("log_interruptions", "Logs that could not be read on", "reason")
        self._watch_restarts = self._counter("watch_restarts", "Watches that began anew", "resource", "reason")
        self._requests = self._counter("api_requests", "Requests to the API server", "verb", "resource", "code")
        self._request_seconds = self._histogram(
            "api_request_seconds", "Time that the API server took to answer", REQUEST_BUCKETS, "verb", "resource"
        )
        self._retries = self._counter("api_retries", "Requests made again after a failure", "verb", "resource")
        self._lag = self._histogram("event_loop_lag_seconds", "How late the event loop wakes a task", LAG_BUCKETS)
        # A counter that appears with its first event has no increase to be seen: what can be counted begins at 0.
        for reason in REJECTIONS:
            self._rejected.labels(reason)
        for reason in LOG_LOSSES:
            self._log_interruptions.labels(reason)
        for outcome in OUTCOMES:
            self._launches.labels(outcome, "" if outcome != "failed" else UNCATEGORIZED)

    def describe_process(self) -> None:
        """Add the daemon's version, and what Prometheus' clients tell of every process: memory, CPU, descriptors."""
        Info("k8s_builderd_build", "The daemon's version", registry=self._registry).info(
            {"version": _version(), "python": platform.python_version()}
        )
        ProcessCollector(registry=self._registry)

    def expect(self, categories: Iterable[str], reasons: Iterable[str]) -> None:
        """Show what may be counted with 0, so that its first time is an increase.

        :param categories: of launches that fail and of ends.
        :param reasons: of deletions.
        """
        for category in categories:
            self._launches.labels("failed", category)
            self._ends.labels(category)
        for reason in reasons:
            self._deleted.labels(reason)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for at each look."""
        Gauge(f"k8s_builderd_{name}", help_text, registry=self._registry).set_function(value)

    def gauges(self, name: str, help_text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        """Add a gauge for each value of a label; all of them are asked for at once at each look."""
        self._registry.register(_Gauges(f"k8s_builderd_{name}", help_text, label, values))

    def called(self, stage: str, code: int) -> None:
        """Count one call that ended with this exit code."""
        self._calls.labels(stage, str(code)).inc()

    def rejected(self, reason: str) -> None:
        """Count one connection that was turned away, for one of `REJECTIONS`."""
        self._rejected.labels(reason).inc()

    def job_created(self, seconds: float) -> None:
        """Take in how long it took from the request of a launch to its Job."""
        self._to_job.observe(seconds)

    def running(self, seconds: float) -> None:
        """Take in how long it took from the request of a launch to its running container."""
        self._to_running.observe(seconds)

    def launched(self, outcome: str, category: str | None = None) -> None:
        """Count one launch that ended in one of `OUTCOMES`; one that failed has a category."""
        self._launches.labels(outcome, (category or UNCATEGORIZED) if outcome == "failed" else "").inc()

    def ended(self, category: str) -> None:
        """Count one chaincode that had run and has ended."""
        self._ends.labels(category).inc()

    def deleted(self, reason: str) -> None:
        """Count one decision to delete a Job."""
        self._deleted.labels(reason).inc()

    def logged(self, lines: int, size: int) -> None:
        """Count lines of a chaincode's log that were passed on, and their bytes."""
        self._log_bytes.inc(size)
        self._log_lines.inc(lines)

    def log_interrupted(self, reason: str) -> None:
        """Count one interruption of a log, for `ApiError.kind` or one of `LOG_LOSSES`."""
        self._log_interruptions.labels(reason).inc()

    def watch_restarted(self, resource: str, reason: str) -> None:
        """Count one watch that begins anew."""
        self._watch_restarts.labels(resource, reason).inc()

    def requested(self, verb: str, resource: str, code: str, seconds: float | None) -> None:
        """Count one request to the API server; one without a time counts only."""
        self._requests.labels(verb, resource, code).inc()
        if seconds is not None:
            self._request_seconds.labels(verb, resource).observe(seconds)

    def retried(self, verb: str, resource: str) -> None:
        """Count one request that is made again because it failed."""
        self._retries.labels(verb, resource).inc()

    async def measure_lag(self) -> None:
        """Take in how late the event loop is, now and then, until cancelled."""
        while True:
            due = anyio.current_time() + LAG_INTERVAL
            await anyio.sleep_until(due)
            self._lag.observe(max(0.0, anyio.current_time() - due))

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"k8s_builderd_{name}", help_text, labels, registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"k8s_builderd_{name}", help_text, labels, buckets=buckets, registry=self._registry)


class _Gauges:
    def __init__(self, name: str, help_text: str, label: str, values: Callable[[], Mapping[str, float]]) -> None:
        self._name = name
        self._help_text = help_text
        self._label = label
        self._values = values

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._help_text, labels=[self._label])
        for value, number in self._values().items():
            family.add_metric([value], number)
        yield family


def _version() -> str:
    try:
        return metadata.version("k8s-builderd")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
