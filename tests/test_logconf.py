"""What the daemon's log shows of an error: where it was, never what the variables held."""

import subprocess
import sys

import pytest

BREAKS = """
import sys
import structlog
from k8s_builderd import logconf
from k8s_builderd.fabric.package import Chaincode
from k8s_builderd.gateway.protocol import Request

logconf.configure(sys.argv[1], debug=True)
chaincode = Chaincode("basic:00", "peer:7052", "certificate", "SECRET-KEY", "root", "Org1MSP")
request = Request("run", 7, {}, {"chaincode.json": b"SECRET-KEY"}, {}, (), b"SECRET-TOKEN", "")

def breaks(plan, call):
    key = plan.client_key
    raise ValueError("broken")

try:
    breaks(chaincode, request)
except ValueError:
    structlog.get_logger("test").exception("launch_crashed")
from rich.pretty import pretty_repr
print(pretty_repr([chaincode, request]), file=sys.stderr)
"""


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_shows_neither_key_nor_token(log_format: str) -> None:
    ended = subprocess.run([sys.executable, "-c", BREAKS, log_format], capture_output=True, text=True, check=True)
    assert "broken" in ended.stderr
    assert "SECRET" not in ended.stderr
