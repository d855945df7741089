"""The four programs as the peer calls them, played by small scripts that say what they see."""

import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from k8s_builder_lab.demo.builder import BuildError, ExternalBuilder, PeerConnection, open_builder
from k8s_builder_lab.demo.peer import LaunchError, open_peer
from k8s_builder_lab.demo.unpack import Package
from tests.demo.archives import archive
from tests.peer.neighbours import Journal

pytestmark = pytest.mark.anyio

METADATA = b'{"type":"k8s","label":"basic_1.0"}'
PACKAGE = Package("basic_1.0:abc", "basic_1.0", METADATA, archive({"image.json": b"{}"}))
CONNECTION = PeerConnection("127.0.0.1:7052", "Org1MSP", "certificate", "key", "root")


@asynccontextmanager
async def builder_of(directory: Path, journal: Journal, **scripts: str) -> AsyncIterator[ExternalBuilder]:
    (directory / "bin").mkdir()
    for program in ("detect", "build", "release", "run"):
        path = directory / "bin" / program
        path.write_text("#!/bin/sh\n" + scripts.get(program, "exit 0\n"))
        path.chmod(0o755)
    (directory / "peer").mkdir()
    environ = {"PATH": "/usr/bin:/bin", "CORE_PEER_ID": "peer0", "HOME": "/home"}
    async with open_builder(directory, environ, directory / "peer", journal, ["CORE_PEER_ID"]) as builder:
        yield builder


async def test_each_program_gets_its_directories_and_only_what_is_propagated(tmp_path: Path) -> None:
    journal = Journal()
    seen = 'echo "$(basename $0) $(for d; do basename $d; done | xargs) $(env | cut -d= -f1 | sort | xargs)" >&2\n'
    scripts = dict.fromkeys(("detect", "build", "release"), seen)
    async with builder_of(tmp_path, journal, **scripts) as builder:
        await builder.install(PACKAGE)
        # sh sets PWD by itself.
        assert journal.lines == [
            "detect src metadata CORE_PEER_ID PATH PWD",
            "build src metadata bld CORE_PEER_ID PATH PWD",
            "release bld release CORE_PEER_ID PATH PWD",
        ]
        await builder.install(PACKAGE)
        assert len(journal.lines) == 3, "a package is built once"


async def test_the_directories_are_the_peers_own_and_gone_after_the_build(tmp_path: Path) -> None:
    journal = Journal()
    scripts = {
        "detect": 'stat -c "%a %n" $(dirname $1) $1 $2 $2/metadata.json $1/image.json >&2\n',
        "build": "echo made > $3/image.json\n",
        "release": "mkdir $2/statedb; cp $1/image.json $2/statedb\n",
    }
    async with builder_of(tmp_path, journal, **scripts) as builder:
        await builder.install(PACKAGE)
        modes = [line.partition(" ")[0] for line in journal.lines]
        assert modes == ["700", "700", "700", "700", "644"]
        built = builder.built(PACKAGE.package_id)
        assert (built / "bld" / "image.json").read_text() == "made\n"
        assert (built / "release" / "statedb" / "image.json").read_text() == "made\n"
        assert json.loads((built / "build-info.json").read_bytes()) == {"builder_name": "k8s_builder"}
        assert stat.S_IMODE(built.stat().st_mode) == 0o700
        assert [path.name for path in (tmp_path / "peer").iterdir()] == ["externalbuilder"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("detect", "no external builder detected basic_1.0:abc"),
        ("build", "failed to build basic_1.0:abc: exit status 3"),
        ("release", "failed to release basic_1.0:abc: exit status 3"),
    ],
)
async def test_a_program_that_fails_fails_the_installation(tmp_path: Path, program: str, reason: str) -> None:
    async with builder_of(tmp_path, Journal(), **{program: "exit 3\n"}) as builder:
        with pytest.raises(BuildError, match=reason):
            await builder.install(PACKAGE)
        assert not builder.built(PACKAGE.package_id).exists()


async def test_run_gets_a_chaincode_json_that_lasts_as_long_as_it(tmp_path: Path) -> None:
    journal = Journal()
    script = "stat -c %a $2 $2/chaincode.json >&2; cat $2/chaincode.json >&2; echo >&2; echo $2 >&2\n"
    async with builder_of(tmp_path, journal, run=script) as builder:
        await builder.install(PACKAGE)
        session = await builder.start(PACKAGE.package_id, CONNECTION)
        assert await session.wait() == 0
        *modes, document, directory = journal.lines
        assert modes == ["700", "600"]
        assert json.loads(document) == {
            "chaincode_id": "basic_1.0:abc",
            "peer_address": "127.0.0.1:7052",
            "client_cert": "certificate",
            "client_key": "key",
            "root_cert": "root",
            "mspid": "Org1MSP",
        }
    assert not await anyio.Path(directory).exists()


async def test_a_chaincode_that_is_not_installed_cannot_run(tmp_path: Path) -> None:
    async with builder_of(tmp_path, Journal()) as builder:
        with pytest.raises(BuildError, match="not installed"):
            await builder.start("other:abc", CONNECTION)


async def test_a_run_that_cannot_be_started_fails_the_launch(tmp_path: Path) -> None:
    async with builder_of(tmp_path, Journal()) as builder:
        await builder.install(PACKAGE)
        (tmp_path / "bin" / "run").unlink()
        async with open_peer(builder) as peer:
            with pytest.raises(LaunchError, match="error starting container: builder run failed to start"):
                await peer.launch(PACKAGE.package_id)
        assert [path.name for path in (tmp_path / "peer").iterdir()] == ["externalbuilder"]


async def test_leaving_kills_what_is_still_alive(tmp_path: Path) -> None:
    journal = Journal()
    async with builder_of(tmp_path, journal, run="trap '' TERM; echo up >&2; while :; do sleep 1; done\n") as builder:
        await builder.install(PACKAGE)
        session = await builder.start(PACKAGE.package_id, CONNECTION)
        await journal.has("up")
    assert await session.wait() == -9
