"""The settings of 16a85a5 are still read, by the same sides, and stand for the same where nothing is set."""

from pathlib import Path

import pytest

from k8s_builder_client.call import Call
from k8s_builderd.settings import PEER_ID, Settings, launch_settings
from tests.test_docs import read_by_client, read_by_daemon
from tests.upgrade.golden import SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_still_read(name: str, tmp_path: Path) -> None:
    readers = {
        side for side, read in (("daemon", read_by_daemon()), ("client", read_by_client(tmp_path))) if name in read
    }
    assert readers == ({"daemon", "client"} if SETTINGS[name]["read by"] == "both" else {SETTINGS[name]["read by"]})


@pytest.mark.parametrize("name", [name for name, one in SETTINGS.items() if one["default"]])
def test_its_default_is_what_it_was(name: str) -> None:
    given = {name: SETTINGS[name]["default"]}
    assert Settings.load(given).__class__ is Settings
    peer = {PEER_ID: "peer0"}
    assert launch_settings(peer | given) == launch_settings(peer)
    call, then = (
        Call("run", [b"a", b"b"], {}),
        Call("run", [b"a", b"b"], {k.encode(): v.encode() for k, v in given.items()}),
    )
    assert (call.socket_path, call.connect_timeout, call.debug) == (then.socket_path, then.connect_timeout, then.debug)
    today, before = (vars_of(Settings.load(one)) for one in ({}, given))
    assert today == before


def vars_of(settings: Settings) -> dict[str, object]:
    return {name: getattr(settings, name) for name in settings.__struct_fields__ if name != "environment"}
