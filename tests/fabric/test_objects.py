"""What is read of a launch's Job."""

from typing import Any

import msgspec
import pytest

from k8s_builderd.fabric.names import CHAINCODE_ANNOTATION, HOST_ANNOTATION, TOKEN_ANNOTATION
from k8s_builderd.fabric.objects import Job

MADE_WITH = {TOKEN_ANNOTATION: "5e" * 32, CHAINCODE_ANNOTATION: "a:b", HOST_ANNOTATION: "host"}


def job(annotations: dict[str, str], template: Any) -> Job:
    body = {"metadata": {"name": "j", "uid": "u", "annotations": annotations}, "spec": {"template": template}}
    return msgspec.json.decode(msgspec.json.encode(body), type=Job)


@pytest.mark.parametrize("now", [MADE_WITH, {**MADE_WITH, TOKEN_ANNOTATION: "0" * 64, HOST_ANNOTATION: "x"}, {}])
def test_the_annotations_of_its_template_count(now: dict[str, str]) -> None:
    meta = job(now, {"metadata": {"annotations": MADE_WITH}}).metadata
    assert (meta.token_sha256, meta.launch_key.chaincode_id, meta.host) == ("5e" * 32, "a:b", "host")
    assert (meta.name, meta.uid) == ("j", "u")


@pytest.mark.parametrize("template", [{}, {"metadata": {}}, {"metadata": {"annotations": {"x": "y"}}}])
def test_without_these_its_own_do(template: Any) -> None:
    assert job(MADE_WITH, template).metadata.token_sha256 == "5e" * 32
