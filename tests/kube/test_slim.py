"""What is imported of kubernetes_asyncio works without its models, and nobody else finds it without them."""

import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: what has been imported once stays so.
PRELUDE = """
import asyncio, importlib, json, os, sys, tempfile
from k8s_builderd.kube import slim

def imported():
    return [name for name in sys.modules if name.split(".")[0] == "kubernetes_asyncio"]

def works(loaded):
    configuration, config = loaded
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "config")
        with open(path, "w") as file:
            json.dump({
                "current-context": "c",
                "clusters": [{"name": "k", "cluster": {"server": "https://api.example:6443", "tls-server-name": "n"}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            }, file)
        found = configuration.Configuration()
        asyncio.run(config.load_kube_config(config_file=path, client_configuration=found, persist_config=False))
        assert found.host == "https://api.example:6443" and found.tls_server_name == "n"
        settings = asyncio.run(found.auth_settings())
        assert settings["BearerToken"]["value"] == "Bearer secret"
        assert found.proxy is None and found.proxy_headers is None and found.verify_ssl
        for name in ("token", "ca.crt"):
            with open(os.path.join(directory, name), "w") as file:
                file.write("in a pod")
        config.incluster_config.SERVICE_TOKEN_FILENAME = os.path.join(directory, "token")
        config.incluster_config.SERVICE_CERT_FILENAME = os.path.join(directory, "ca.crt")
        os.environ.update(KUBERNETES_SERVICE_HOST="10.0.0.1", KUBERNETES_SERVICE_PORT="443")
        found = configuration.Configuration()
        config.load_incluster_config(client_configuration=found)
        assert found.host == "https://10.0.0.1:443"
        assert asyncio.run(found.auth_settings())["BearerToken"]["value"] == "Bearer in a pod"

def whole(loaded):
    return "kubernetes_asyncio.client.models" in sys.modules and (
        loaded[0] is sys.modules["kubernetes_asyncio.client.configuration"]
    )

def refuse(name, times):
    class Refusing:
        def find_spec(self, asked, path=None, target=None):
            nonlocal times
            if asked == name and times:
                times -= 1
                raise RuntimeError("another layout")
    sys.meta_path.insert(0, Refusing())
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_it_works_and_nothing_of_it_is_left_for_others_to_find() -> None:
    run("""
loaded = slim.load()
assert imported() == []
works(loaded)
assert imported() == []
assert slim.load() is loaded
""")


def test_whoever_imports_the_package_afterwards_has_the_whole_of_it() -> None:
    run("""
loaded = slim.load()
import kubernetes_asyncio.client, kubernetes_asyncio.config, kubernetes_asyncio.dynamic
assert kubernetes_asyncio.client.V1Pod().to_dict()
assert isinstance(kubernetes_asyncio.client.ApiClient, type) and kubernetes_asyncio.client.ApiClient is not object
assert kubernetes_asyncio.config.load_kube_config and kubernetes_asyncio.__version__
works(loaded)
""")


def test_where_somebody_has_imported_the_package_that_one_is_used() -> None:
    run("""
import kubernetes_asyncio.client
before = imported()
loaded = slim.load()
assert whole(loaded)
assert set(before) <= set(imported())
works(loaded)
""")


@pytest.mark.parametrize(
    "name",
    ["kubernetes_asyncio", "kubernetes_asyncio.client.configuration", "kubernetes_asyncio.config.kube_config"],
)
def test_another_layout_costs_memory_and_nothing_else(name: str) -> None:
    run(f"""
refuse({name!r}, times=1)
loaded = slim.load()
assert whole(loaded)
works(loaded)
""")


def test_a_package_that_is_not_there_is_an_import_error() -> None:
    run("""
refuse("kubernetes_asyncio", times=9)
try:
    slim.load()
except Exception:
    assert imported() == []
else:
    raise AssertionError
""")


def test_both_ways_the_daemon_finds_its_credentials(tmp_path: Path) -> None:
    """As above, through the room that uses it."""
    run(f"""
import anyio
from k8s_builderd.errors import SettingsError
from k8s_builderd.kube.api import Api

async def opens():
    try:
        async with Api.open({str(tmp_path / "none")!r}, "ns"):
            raise AssertionError
    except SettingsError as error:
        assert "KUBECONFIG_PATH" in str(error)

anyio.run(opens)
slim.load.cache_clear()
import kubernetes_asyncio.client
anyio.run(opens)
assert whole(slim.load())
""")
