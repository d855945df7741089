"""What `k8s-builder status` prints, and that docs/operations.md shows just that."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from k8s_builder import table
from k8s_builder.commands.status import CLEAR_BELOW, CLEAR_LINE, HOME, screen
from k8s_builderd.gateway.stages.status import About
from k8s_builderd.runs.overview import Chaincode, Deletion, Problem, Unclaimed
from k8s_builderd.runs.record import State

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
NOW = datetime(2026, 11, 26, 3, 0, tzinfo=UTC)
ABOUT = About(
    version="0.1.0",
    namespace="fabric",
    instance="peer0-org1-0",
    started=NOW - timedelta(hours=3, minutes=10),
    now=NOW,
    checks={"socket": None, "jobs": None, "pods": None, "owner": None},
    connections=3,
)
RUNNING = Chaincode(
    label="basic_1.0",
    package_id="basic_1.0:6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45",
    state=State.RUNNING,
    since=NOW - timedelta(days=2, hours=4),
    peer_id="peer0.org1",
    job="hlfcc-basic10-q3gdklotbs5im-bcdfg",
    pod="hlfcc-basic10-q3gdklotbs5im-bcdfg-x7k2p",
    node="node-a",
    client_pid=211,
    log_lines=48211,
    log_bytes=5_731_204,
    log_interruptions=1,
    last_problem=Problem(
        NOW - timedelta(minutes=12),
        "its log broke off: cannot get pods/log: the Kubernetes API does not answer (Server disconnected)",
    ),
    deletion=None,
    unclaimed=None,
)
PENDING = msgspec.structs.replace(
    RUNNING,
    label="assets_2",
    package_id="assets_2:a64e0af5fb1c9e0b0d7f24c2f7d9a4b50ad8c35e0a29b14fa0f9f7a5a5b0c1d2",
    state=State.PENDING,
    since=NOW - timedelta(seconds=41),
    job="hlfcc-assets2-4pm7yq2nwxk3e-hjk2m",
    pod="hlfcc-assets2-4pm7yq2nwxk3e-hjk2m-9wqzd",
    node="node-b",
    client_pid=498,
    log_lines=0,
    log_bytes=0,
    log_interruptions=0,
    last_problem=Problem(
        NOW - timedelta(seconds=3),
        "the image cannot be pulled (ImagePullBackOff): Back-off pulling image. Check name and digest in image.json,"
        " and the service account's imagePullSecrets",
    ),
)


def document(*chaincodes: Chaincode, about: About = ABOUT) -> dict[str, Any]:
    """Return what the command makes of the daemon's answer."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode({"daemon": about, "chaincodes": chaincodes}))
    return found


def row(chaincode: Chaincode, **arguments: Any) -> dict[str, str]:
    heading, line = table.chaincodes(document(chaincode), **arguments)
    return dict(zip(re.split(" {3,}", heading), re.split(" {3,}", line), strict=True))


# The page


def test_the_example_of_the_page_is_what_the_code_prints() -> None:
    [example] = re.findall(
        r"```console\n\$ kubectl -n NS exec POD -c k8s-builderd -- k8s-builder status\n(.*?)```", OPERATIONS, re.DOTALL
    )
    shown = document(PENDING, RUNNING)
    assert example.splitlines() == [table.about(shown), "", *table.chaincodes(shown)]


def test_the_columns_of_the_page_are_those_that_are_printed() -> None:
    heading = re.split(" {3,}", table.chaincodes(document(RUNNING), rates=True)[0])
    assert re.findall(r"^\| `([A-Z /]+)`", OPERATIONS, re.MULTILINE) == heading


@pytest.mark.parametrize("kind", [About, Chaincode])
def test_the_fields_of_the_page_are_those_that_are_told(kind: type[msgspec.Struct]) -> None:
    heading = {About: "`daemon`", Chaincode: "`chaincodes`"}[kind]
    listed = re.search(rf"^\| {heading} \| .*?\n\n", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert listed
    fields = [re.findall("`([a-z_]+)`", line.split(" | ")[0]) for line in listed[0].splitlines()[2:] if line]
    assert [name for names in fields for name in names] == list(kind.__struct_fields__)


# Cells


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "119m"),
        (7200, "2h"),
        (11400, "3h10m"),
        (172799, "47h59m"),
        (172800, "2d"),
        (187200, "2d4h"),
        (-5, "0s"),
    ],
)
def test_an_age_is_as_kubectl_has_it(seconds: int, shown: str) -> None:
    assert table.age(NOW, (NOW - timedelta(seconds=seconds)).isoformat()) == shown


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (102_400, "100 KiB"), (1 << 50, "1024 TiB"), (None, "-")],
)
def test_a_size_has_a_unit(number: int | None, shown: str) -> None:
    assert table.size(number) == shown


def test_what_is_about_to_change_stands_in_the_state() -> None:
    replace = msgspec.structs.replace
    assert row(RUNNING)["STATE"] == "running"
    unclaimed = replace(RUNNING, client_pid=None, unclaimed=Unclaimed("orphan", 48.4))
    assert row(unclaimed)["STATE"] == "running (orphan, 48s left)"
    assert row(unclaimed)["CLIENT"] == "-"
    deleting = replace(RUNNING, deletion=Deletion("stopped", accepted=False, error="cannot delete jobs.batch: away"))
    assert row(deleting)["STATE"] == "running (deleting: stopped)"
    assert row(deleting)["LAST PROBLEM"] == "not deleted yet: cannot delete jobs.batch: away"


def test_rates_are_of_one_launch_between_two_looks() -> None:
    later = msgspec.structs.replace(ABOUT, now=NOW + timedelta(seconds=2))
    more = msgspec.structs.replace(RUNNING, log_lines=48221, log_bytes=5_731_204 + 4096)
    heading, line = table.chaincodes(document(more, about=later), document(RUNNING), rates=True)
    found = dict(zip(re.split(" {3,}", heading), re.split(" {3,}", line), strict=True))
    assert (found["LINES/S"], found["BYTES/S"]) == ("5.0", "2.0 KiB/s")
    assert row(RUNNING, before=None, rates=True)["LINES/S"] == "-"
    assert row(PENDING, before=document(RUNNING), rates=True)["LINES/S"] == "-"
    # Another daemon has counted anew, and one that is over is not counted.
    assert row(RUNNING, before=document(more, about=later), rates=True)["BYTES/S"] == "-"
    past = msgspec.structs.replace(RUNNING, log_lines=None, log_bytes=None, log_interruptions=None)
    assert row(past, before=document(RUNNING), rates=True)["LINES/S"] == "-"


def test_nobody_elses_words_write_to_the_terminal() -> None:
    said = msgspec.structs.replace(RUNNING, last_problem=Problem(NOW, "denied by \x1b[2Jwebhook\nx"), peer_id="a\x07b")
    lines = table.chaincodes(document(said))
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_a_check_that_fails_is_told() -> None:
    about = msgspec.structs.replace(ABOUT, checks={"socket": None, "pods": "cannot watch pods: away"})
    assert table.about(document(about=about)).endswith(", not ready: pods: cannot watch pods: away")


def test_a_warning_is_told_of_a_daemon_that_is_ready() -> None:
    about = msgspec.structs.replace(ABOUT, warnings={"template": "spec.volumes[0].name cannot be certs", "other": None})
    told = document(about=about)
    assert table.about(told).endswith(", ready, template: spec.volumes[0].name cannot be certs")
    del told["daemon"]["warnings"]  # as a daemon of before has it
    assert table.about(told).endswith(", ready")


def test_a_screen_is_drawn_over_and_never_larger_than_the_terminal() -> None:
    lines = [f"line {number} " + "x" * 200 for number in range(50)]
    drawn = screen(lines, 80, 24)
    assert drawn.startswith(HOME)
    assert drawn.endswith(CLEAR_BELOW)
    shown = drawn.removeprefix(HOME).removesuffix(CLEAR_BELOW).split("\n")
    assert len(shown) == 24
    assert all(len(line.removesuffix(CLEAR_LINE)) <= 80 and line.endswith(CLEAR_LINE) for line in shown)
    assert shown[-1] == "27 more" + CLEAR_LINE
    assert screen(["one"], 80, 24) == f"{HOME}one{CLEAR_LINE}{CLEAR_BELOW}"
