"""An embedded cluster of each test's own, and our way of asking it."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from k8s_builder_lab.embedded.images import Image
from k8s_builder_lab.embedded.server import Options
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.tls import Loop
from tests.embedded.cluster import IMAGE, Cluster, embedded


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Return the event loop that the daemon has."""
    return "asyncio", {"loop_factory": Loop}


@pytest.fixture(autouse=True, scope="session")
def plain_tracebacks() -> Iterator[None]:
    """Have a mistake's traceback be printed as Python prints it: rich takes half a second for each."""
    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])
    yield
    structlog.configure(**before)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
async def cluster(anyio_backend: str, kubeconfig: Path) -> AsyncIterator[Cluster]:
    images = {
        IMAGE: Image(command=["sleep", "3600"]),
        **{f"localhost/{clock}": Image(clock=clock) for clock in ("exact", "jitter", "coarse")},
    }
    options = Options(kubeconfig=kubeconfig, images=images, path=os.environ["PATH"], pace=0.02, bookmark_interval=0.2)
    async with embedded(options) as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster, kubeconfig: Path) -> AsyncIterator[Api]:
    async with Api.open(str(kubeconfig), cluster.namespace) as api:
        yield api
