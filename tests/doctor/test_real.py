"""The cluster's checks against a real API server, where KUBEBUILDER_ASSETS names one."""

import json
from pathlib import Path

import pytest

from k8s_builder.doctor import cluster as room
from k8s_builder.doctor import sample
from k8s_builder.doctor.result import Result
from k8s_builderd.settings import Settings
from tests.doctor.results import told
from tests.embedded.conftest import real as real  # the fixture
from tests.embedded.realserver import STRANGER, TOKEN, RealServer

pytestmark = pytest.mark.anyio


async def found(server: RealServer, folder: Path, namespace: str, token: str = TOKEN, **settings: str) -> list[Result]:
    file = folder / "kubeconfig"
    document = {
        "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": server.server, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "x", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    }
    file.write_text(json.dumps(document))
    environment = {f"FABRIC_K8S_BUILDER_{name}": value for name, value in settings.items()}
    known = Settings.load({"KUBECONFIG_PATH": str(file), "FABRIC_K8S_BUILDER_NAMESPACE": namespace, **environment})
    return await room.check(known, sample.launch(known, sample.IMAGE, {}))


async def test_whoever_may_do_all_finds_all_but_a_service_account(real: RealServer, tmp_path: Path) -> None:
    real.namespace("doctor-1")
    results = await found(real, tmp_path, "doctor-1")
    # Nobody makes one beside a bare API server.
    assert {each.check for each in results if each.status != "ok"} == {"service-account"}
    assert told(results, "identity") == [("ok", "this is contract to the API server", "")]


async def test_a_stranger_is_told_what_is_missing(real: RealServer, tmp_path: Path) -> None:
    real.namespace("doctor-2")
    results = await found(real, tmp_path, "doctor-2", STRANGER, NODE_ROLE="chaincode")
    assert [status for status, _, _ in told(results, "permission")].count("failure") == 10
    assert told(results, "permission")[0][1] == "may not create jobs.batch in namespace doctor-2"
    others = [each for each in results if each.check not in {"permission", "api", "clock", "identity"}]
    assert {each.status.value for each in others} == {"skipped"}


async def test_under_restricted_the_profile_decides(real: RealServer, tmp_path: Path) -> None:
    real.namespace("doctor-3", **{"pod-security.kubernetes.io/enforce": "restricted"})
    results = await found(real, tmp_path, "doctor-3")
    assert told(results, "pod-security")[0][0] == told(results, "pod")[0][0] == "failure"
    results = await found(real, tmp_path, "doctor-3", SECURITY_PROFILE="restricted")
    assert told(results, "pod-security")[0][0] == told(results, "pod")[0][0] == "ok"


async def test_a_namespace_that_is_not_there_is_told(real: RealServer, tmp_path: Path) -> None:
    results = await found(real, tmp_path, "nowhere")
    assert told(results, "namespace")[0][:2] == ("failure", "namespace nowhere does not exist")
    assert told(results, "job")[0][0] == "failure"
