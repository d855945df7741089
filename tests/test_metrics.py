"""The counters by themselves: what they are called, how they count, and what a look at them costs."""

import time

import anyio
import pytest

from k8s_builderd.metrics import LAG_INTERVAL, OUTCOMES, REJECTIONS, Metrics
from k8s_builderd.runs.category import Category
from k8s_builderd.runs.record import Reason
from tests.exposition import Exposition


def shown(metrics: Metrics) -> Exposition:
    return Exposition(metrics.exposition().decode())


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    metrics.describe_process()
    metrics.expect(Category, Reason)
    return metrics


def test_what_can_be_counted_begins_at_0_so_that_its_first_time_is_an_increase(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    for reason in map(str, Reason):
        assert f'k8s_builderd_jobs_deleted_total{{reason="{reason}"}} 0.0' in text
    for reason in REJECTIONS:
        assert f'k8s_builderd_calls_rejected_total{{reason="{reason}"}} 0.0' in text
    for category in [*Category, "Other"]:
        assert f'k8s_builderd_launches_total{{category="{category}",outcome="failed"}} 0.0' in text
    for outcome in set(OUTCOMES) - {"failed"}:
        assert f'k8s_builderd_launches_total{{category="",outcome="{outcome}"}} 0.0' in text


def test_a_launch_that_fails_has_a_category_and_no_other_has(metrics: Metrics) -> None:
    metrics.launched("failed", Category.IMAGE_PULL)
    metrics.launched("failed")
    metrics.launched("started", Category.IMAGE_PULL)
    assert shown(metrics).counted("launches_total") == {
        ("ImagePull", "failed"): 1,
        ("Other", "failed"): 1,
        ("", "started"): 1,
    }


def test_lines_and_bytes_of_a_batch_are_counted_together(metrics: Metrics) -> None:
    metrics.logged(2, 8)
    metrics.logged(1, 9)
    assert shown(metrics)["log_lines_total"] == 3
    assert shown(metrics)["log_bytes_total"] == 17


def test_a_request_without_a_time_is_counted_and_not_timed(metrics: Metrics) -> None:
    metrics.requested("get", "pods/log", "200", None)
    metrics.requested("list", "jobs.batch", "200", 0.02)
    found = shown(metrics)
    assert found.counted("api_requests_total") == {("200", "pods/log", "get"): 1, ("200", "jobs.batch", "list"): 1}
    assert found.counted("api_request_seconds_count") == {("jobs.batch", "list"): 1}


@pytest.mark.parametrize(("seconds", "bucket"), [(0.008, "0.01"), (0.3, "0.5"), (170, "180.0"), (200, "+Inf")])
def test_the_buckets_of_a_launch_reach_from_10_ms_to_3_minutes(metrics: Metrics, seconds: float, bucket: str) -> None:
    metrics.job_created(seconds)
    metrics.running(seconds)
    found = shown(metrics)
    for name in ("launch_job_seconds", "launch_running_seconds"):
        first = next(key for (key,), value in found.counted(f"{name}_bucket").items() if value)
        assert first == bucket


def test_gauges_by_a_label_are_asked_for_at_once(metrics: Metrics) -> None:
    looks = []

    def states() -> dict[str, float]:
        looks.append(1)
        return {"running": 2, "ended": 0}

    metrics.gauges("chaincodes", "Runs by their state", "state", states)
    assert shown(metrics).value("chaincodes", state="running") == 2
    assert len(looks) == 1


def test_version_and_process_are_told(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    assert 'k8s_builderd_build_info{python="3.' in text
    assert "\nprocess_resident_memory_bytes " in text
    assert "_created" not in text


@pytest.mark.anyio
async def test_the_lag_of_the_event_loop_is_what_a_task_that_keeps_it_costs_the_others(metrics: Metrics) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(metrics.measure_lag)
        await anyio.lowlevel.checkpoint()
        time.sleep(LAG_INTERVAL + 0.3)  # noqa: ASYNC251 - what is measured
        while not shown(metrics)["event_loop_lag_seconds_count"]:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert shown(metrics)["event_loop_lag_seconds_sum"] >= 0.29
