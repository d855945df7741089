"""Clusters to test with: embedded ones, and, where KUBEBUILDER_ASSETS says so, a real API server."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from k8s_builder_lab.embedded.images import Image
from k8s_builder_lab.embedded.server import Options

from .cluster import IMAGE, Cluster, embedded, eventually
from .realserver import STRANGER, TOKEN, RealServer, real_server

OPTIONS = Options(
    images={IMAGE: Image(command=["sh", "-c", "exit 0"]), "localhost/forever": Image(command=["sleep", "3600"])},
    path=os.environ.get("PATH", os.defpath),
    pace=0.05,
)

_numbers = itertools.count(1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def cluster(anyio_backend: str) -> AsyncIterator[Cluster]:
    """An embedded cluster of this test's own."""
    async with embedded(OPTIONS) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with real_server(tmp_path_factory.mktemp("real")) as server:
        yield server


@pytest.fixture(params=["embedded", "real"])
async def api(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[Cluster]:
    """A namespace of its own, on an embedded cluster and on a real API server in turn."""
    name = f"contract-{next(_numbers)}"
    if request.param == "real":
        server: RealServer = request.getfixturevalue("real")
        server.namespace(name)
        async with Cluster(server.server, TOKEN, name, tls=server.tls) as cluster:
            yield cluster
    else:
        async with embedded(Options(namespaces=(name,), images=OPTIONS.images, pace=0)) as cluster:
            # Nothing runs beside a bare API server, so nothing does here.
            away = dict.fromkeys(await cluster.switch("GET", "components"), False)
            await cluster.switch("PATCH", "components", away)
            yield cluster


RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.fixture
async def restricted(api: Cluster) -> Cluster:
    """That namespace under Pod Security's level `restricted`."""
    headers = {"Content-Type": "application/merge-patch+json"}
    labels = {"metadata": {"labels": RESTRICTED}}
    answer = await api.request("PATCH", f"/api/v1/namespaces/{api.namespace}", labels, headers=headers)
    assert answer.status == 200, answer.data
    # The admission of a real API server learns of a label by a watch of its own, a moment later.
    spec = {"containers": [{"name": "chaincode", "image": "localhost/x"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}

    async def refuses() -> bool:
        return (await api.request("POST", api.path("pods"), pod, params={"dryRun": "All"})).status == 403

    await eventually(refuses)
    return api


@pytest.fixture
async def stranger(api: Cluster) -> AsyncIterator[Cluster]:
    """The same namespace, as somebody sees it who may do nothing there."""
    if api.control:
        of = ["jobs.batch", "pods/log", "secrets", "namespaces", "nodes", "resourcequotas"]
        await api.switch("POST", "rights", {"without": [f"* {resource}" for resource in of]})
        yield api
    else:
        async with Cluster(api.server, STRANGER, api.namespace, tls=api.tls) as cluster:
            yield cluster
