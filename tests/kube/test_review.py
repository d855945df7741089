"""What is asked of an API server before anything is launched, and what odd answers mean."""

import time
from email.utils import formatdate
from pathlib import Path

import pytest

from k8s_builderd.kube import review
from k8s_builderd.kube.api import Api
from k8s_builderd.kube.errors import Forbidden, Unavailable
from k8s_builderd.kube.resources import JOBS, PODS, SECRETS
from k8s_builderd.kube.rights import RIGHTS, Right
from tests.embedded.cluster import Cluster, job, secret
from tests.kube.rogue import Reply, Request, rogue

pytestmark = pytest.mark.anyio


async def test_an_api_server_is_known_by_its_version_and_its_clock(api: Api) -> None:
    assert await review.reach(api) == review.Server("v1.36.2+embedded", 0.0)


@pytest.mark.parametrize(
    ("ahead", "least", "most"), [(0.0, 0.0, 0.0), (3600.0, 3598.0, 3601.0), (-3600.0, -3601.0, -3598.0)]
)
async def test_a_clock_is_read_from_the_date_header(kubeconfig: Path, ahead: float, least: float, most: float) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, {"gitVersion": "v1.2.3"}, Date=formatdate(time.time() + ahead, usegmt=True))

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        found = await review.reach(api)
    assert found.ahead is not None
    assert least <= found.ahead <= most


@pytest.mark.parametrize("date", ["", "yesterday"])
async def test_a_date_that_is_none_tells_no_clock(kubeconfig: Path, date: str) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, {}, **({"Date": date} if date else {}))

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        assert await review.reach(api) == review.Server("", None)


async def test_a_page_of_a_proxy_is_no_api_server(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        await reply.whole(200, b"<html>Sign in</html>")

    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        for ask in (review.reach(api), review.exists(api, SECRETS, "s1"), review.names(api, SECRETS, "app=x")):
            with pytest.raises(Unavailable, match="not a valid Kubernetes API response"):
                await ask


@pytest.mark.parametrize("right", RIGHTS, ids=str)
async def test_a_right_is_there_or_not(cluster: Cluster, api: Api, right: Right) -> None:
    assert (await review.may(api, right)).allowed is True
    await cluster.switch("POST", "rights", {"without": [str(right)]})
    assert (await review.may(api, right)).allowed is False


async def test_what_is_tried_is_not_created(cluster: Cluster, api: Api) -> None:
    assert await review.try_create(api, JOBS, job("tried")) == []
    assert (await cluster.list("jobs"))["items"] == []


async def test_of_a_secret_no_more_than_its_name_comes(kubeconfig: Path) -> None:
    async def answer(request: Request, reply: Reply) -> None:
        accepted.append(request.headers["accept"])
        await reply.whole(200, {"metadata": {"name": "s1"}, "items": [{"metadata": {"name": "s1"}}]})

    accepted: list[str] = []
    async with rogue(answer) as server, Api.open(str(server.kubeconfig(kubeconfig)), "ns") as api:
        await review.exists(api, SECRETS, "s1")
        assert await review.names(api, SECRETS, "app=x") == ["s1"]
    assert [text.partition(";g=")[0] for text in accepted] == [
        "application/json;as=PartialObjectMetadata",
        "application/json;as=PartialObjectMetadataList",
    ]


async def test_names_are_those_that_the_selector_chooses(cluster: Cluster, api: Api) -> None:
    for name in ("s1", "s2"):
        await cluster.create(secret(name))
    await cluster.patch("secrets", "s2", {"metadata": {"labels": {"app": "x"}}})
    assert await review.names(api, SECRETS, "app=x") == ["s2"]
    assert await review.names(api, PODS, "app=x") == []
    await cluster.switch("POST", "rights", {"without": ["list secrets"]})
    with pytest.raises(Forbidden):
        await review.names(api, SECRETS, "app=x")
