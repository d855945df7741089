"""What the peer image's build makes of a core.yaml."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.wheel import ROOT
from tests.test_docs import VARIABLES

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

VM = """vm:

    # Endpoint of the vm management system.
    endpoint: unix:///var/run/docker.sock

    docker:
        tls:
            enabled: false
"""
FABRIC_2_5 = f"""{VM}
chaincode:
    id:
        path:
    # List of directories to treat as external builders.
    externalBuilders:
        - name: ccaas_builder
          path: /opt/hyperledger/ccaas_builder
          propagateEnvironment:
              - CHAINCODE_AS_A_SERVICE_BUILDER_CONFIG

    installTimeout: 300s
"""
NO_BUILDERS = f"{VM}\nchaincode:\n  externalBuilders: []\n  installTimeout: 300s\n"
ITEMS_BELOW_A_COMMENT = f"""chaincode:
  externalBuilders:

      # the first

    - path: /a
      name: a
      propagateEnvironment: [A]
  installTimeout: 300s
{VM}"""
AS_DEEP_AS_THE_KEY = "chaincode:\n  externalBuilders:\n  - name: a\n    path: /a\n  installTimeout: 300s\n"


def add(text: str, directory: Path) -> tuple[int, str]:
    """Return the exit code and the file's text; the error, if there is one."""
    file = directory / "core.yaml"
    file.write_text(text)
    command = [sys.executable, str(ROOT / "deploy/add-builder"), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr or file.read_text()


@pytest.mark.parametrize("text", [FABRIC_2_5, NO_BUILDERS, ITEMS_BELOW_A_COMMENT, AS_DEEP_AS_THE_KEY])
def test_the_builder_comes_first_and_nothing_else_changes(text: str, tmp_path: Path) -> None:
    returned, after = add(text, tmp_path)
    assert returned == 0, after
    before, found = yaml.safe_load(text), yaml.safe_load(after)
    if "vm" in before:
        before["vm"]["endpoint"] = None
    [builder, *others] = found["chaincode"].pop("externalBuilders")
    assert others == before["chaincode"].pop("externalBuilders")
    assert found == before
    assert (builder["name"], builder["path"]) == ("k8s_builder", "/opt/hyperledger/k8s_builder")


def test_all_that_the_programs_and_the_daemon_read_is_propagated(tmp_path: Path) -> None:
    [builder, _] = yaml.safe_load(add(FABRIC_2_5, tmp_path)[1])["chaincode"]["externalBuilders"]
    assert set(builder["propagateEnvironment"]) == {
        *VARIABLES,
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
    }


def test_the_go_builders_entry_is_not_doubled(tmp_path: Path) -> None:
    returned, said = add(add(FABRIC_2_5, tmp_path)[1], tmp_path)
    assert (returned, said) == (1, "There is a builder k8s_builder in this core.yaml already\n")
