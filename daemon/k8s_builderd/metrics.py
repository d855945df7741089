"""Counts what happens, for /metrics. No names of chaincodes or peers: their number has no bound."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest


class Metrics:
    """The daemon's counters, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter
        self._registry = CollectorRegistry()
        self._calls = Counter(
            "k8s_builderd_calls", "Calls of the four programs", ("stage", "code"), registry=self._registry
        )
        self._deleted = Counter("k8s_builderd_jobs_deleted", "Jobs deleted", ("reason",), registry=self._registry)
        self._ended = Counter(
            "k8s_builderd_launches_ended", "Launches that failed or ended", ("category",), registry=self._registry
        )
        self._log_bytes = Counter("k8s_builderd_log_bytes", "Bytes of log passed on", registry=self._registry)

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for at each look."""
        Gauge(f"k8s_builderd_{name}", help_text, registry=self._registry).set_function(value)

    def called(self, stage: str, code: int) -> None:
        """Count one call that ended with this exit code."""
        self._calls.labels(stage, str(code)).inc()

    def deleted(self, reason: str) -> None:
        """Count one decision to delete a Job."""
        self._deleted.labels(reason).inc()

    def ended(self, category: str) -> None:
        """Count one launch that failed, or chaincode that ended, for a cause of this category."""
        self._ended.labels(category).inc()

    def logged(self, size: int) -> None:
        """Count bytes of chaincode's log passed on."""
        self._log_bytes.inc(size)

    def exposition(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self._registry)
