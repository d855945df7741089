"""`detect`, `build` and `release` (and what `run` refuses) called as the peer does: exit codes, lines, files copied."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from tests.daemon.chaincodes import Ticking, chaincode_lines
from tests.daemon.scene import ARGUMENTS, DIGEST, Package, Running, Scene, open_scene

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """A scene and a daemon for all of these tests, none of which may leave an object in the cluster."""
    async with open_scene(tmp_path_factory.mktemp("stages")) as scene:
        await scene.daemon()
        yield scene
        assert await scene.count("jobs") == 0
        assert await scene.count("secrets") == 0


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


async def test_a_k8s_package_is_detected_built_and_released(shared: Scene) -> None:
    package = await shared.package()
    (package.root / "output/image.json").unlink()
    package.write("source/META-INF/statedb/couchdb/indexes/owner.json", {"index": {}})
    assert await shared.said("detect", package) == (0, ["Detected k8s chaincode: basic_1.0"])
    assert await shared.said("build", package) == (0, [])
    assert files(package.root / "output") == ["META-INF/statedb/couchdb/indexes/owner.json", "image.json"]
    assert await shared.said("release", package) == (0, [])
    assert files(package.root / "release") == ["statedb/couchdb/indexes/owner.json"]
    assert await shared.count("jobs") == 0


@pytest.mark.parametrize("kind", ["k8s", "K8S", "K8s"])
async def test_the_type_is_compared_without_case(shared: Scene, kind: str) -> None:
    package = await shared.package()
    package.metadata({"type": kind, "label": "basic"})
    assert await shared.said("detect", package) == (0, ["Detected k8s chaincode: basic"])


@pytest.mark.parametrize("document", [{"type": "golang", "label": "basic"}, {"type": "ccaas", "label": "k8s"}, {}])
async def test_a_package_of_another_type_is_left_alone_in_silence(shared: Scene, document: object) -> None:
    package = await shared.package()
    package.metadata({"path": "", **document} if isinstance(document, dict) else document)
    code, lines = await shared.said("detect", package)
    assert code == 1
    assert lines == [] or document == {}


async def test_a_package_of_another_type_needs_no_daemon(scene: Scene) -> None:
    package = await scene.package()
    package.metadata({"type": "golang", "label": "basic"})
    assert await scene.said("detect", package, FABRIC_K8S_BUILDER_CONNECT_TIMEOUT="1h") == (1, [])


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (None, "metadata.json cannot be read: No such file or directory"),
        (b'{"type": "k8s", ', "metadata.json must be valid JSON: line 1"),
        (b'["k8s"]', "metadata.json must be a JSON object, not an array"),
        ({"type": "k8s"}, "metadata.json: field 'label' is missing or empty"),
        ({"type": "k8s", "label": ""}, "metadata.json: field 'label' is missing or empty"),
        ({"type": "k8s", "label": 7}, "metadata.json: field 'label' must be a string, not a number"),
        ({"type": ["k8s"], "label": "basic"}, "metadata.json: field 'type' must be a string, not an array"),
        (b"\xef\xbb\xbf" + b'{"type": "k8s", "label": "a"}', "metadata.json must not begin with a byte order mark"),
    ],
)
@pytest.mark.parametrize("program", ["detect", "build"])
async def test_a_bad_metadata_json_is_told_with_file_field_and_rule(
    shared: Scene, program: str, document: object, rule: str
) -> None:
    package = await shared.package()
    if document is None:
        (package.root / "metadata/metadata.json").unlink()
    else:
        package.metadata(document)
    code, [line] = await shared.said(program, package)
    assert code == 1
    assert rule in line


@pytest.mark.parametrize("label", ["-basic", "basic.", "b+c", "x" * 64])
async def test_build_refuses_a_label_that_kubernetes_refuses(shared: Scene, label: str) -> None:
    package = await shared.package()
    package.metadata({"type": "k8s", "label": label})
    code, [line] = await shared.said("build", package)
    assert code == 1
    assert "metadata.json: field 'label' must be" in line


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (None, "image.json cannot be read: No such file or directory"),
        (b"{", "image.json must be valid JSON"),
        ({"name": "localhost/cc"}, "image.json: field 'digest' is missing or empty"),
        ({"digest": DIGEST}, "image.json: field 'name' is missing or empty"),
        ({"name": "localhost/cc", "digest": "sha256:12"}, "image.json: field 'digest' must"),
        ({"name": "localhost/cc", "digest": DIGEST.upper()}, "image.json: field 'digest' must"),
        ({"name": "localhost/cc:", "digest": DIGEST}, "image.json: field 'name' must"),
        ({"name": "localhost/CC", "digest": DIGEST}, "image.json: field 'name' must"),
        ({"name": f"localhost/cc@{DIGEST}", "digest": DIGEST}, "image.json: field 'name' must"),
    ],
)
@pytest.mark.parametrize("program", ["build", "run"])
async def test_a_bad_image_json_is_told_and_leaves_nothing_behind(
    shared: Scene, program: str, document: object, rule: str
) -> None:
    package = await shared.package()
    if document is None:
        for directory in ("source", "output"):
            (package.root / directory / "image.json").unlink()
    else:
        package.image(document)
    code, [line] = await shared.said(program, package)
    assert code == 1
    assert rule in line
    assert await shared.count("jobs") == 0
    assert await shared.count("secrets") == 0


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        (None, "chaincode.json cannot be read: No such file or directory"),
        (b"{", "chaincode.json must be valid JSON"),
        ({}, "chaincode.json: field 'chaincode_id' must not be missing or empty"),
    ],
)
async def test_a_bad_chaincode_json_is_told_and_leaves_nothing_behind(
    shared: Scene, document: object, rule: str
) -> None:
    package = await shared.package()
    if document is None:
        (package.root / "run/chaincode.json").unlink()
    else:
        package.write("run/chaincode.json", document)
    code, [line] = await shared.said("run", package)
    assert code == 1
    assert rule in line
    assert await shared.count("jobs") == 0


async def test_no_line_shows_the_key(scene: Scene, daemon: Running) -> None:
    package = await scene.package()
    package.connect(chaincode_id="no hash", client_key="very secret key")
    code, lines = await scene.said("run", package)
    assert code == 1
    assert "very secret" not in "".join(lines)
    assert await daemon.terminate() == 0
    assert b"very secret" not in b"".join(daemon.lines)


@pytest.mark.parametrize("program", sorted(ARGUMENTS))
async def test_a_wrong_number_of_arguments_names_those_expected(scene: Scene, program: str) -> None:
    expected = {
        "detect": "Expected CHAINCODE_SOURCE_DIR and CHAINCODE_METADATA_DIR arguments",
        "build": "Expected CHAINCODE_SOURCE_DIR, CHAINCODE_METADATA_DIR and BUILD_OUTPUT_DIR arguments",
        "release": "Expected BUILD_OUTPUT_DIR and RELEASE_OUTPUT_DIR arguments",
        "run": "Expected BUILD_OUTPUT_DIR and RUN_METADATA_DIR arguments",
    }
    for arguments in ([], ["/"], ["/"] * 4):
        running = await scene.execute(program, *arguments)
        assert await running.wait() == 1
        [line] = running.lines
        assert line.decode() == f"{program} [{running.pid}]: {expected[program]}"


async def test_run_without_a_peer_id_says_so(shared: Scene) -> None:
    package = await shared.package()
    code, lines = await shared.said("run", package, CORE_PEER_ID="")
    assert (code, lines) == (1, ["Expected CORE_PEER_ID environment variable"])
    assert await shared.count("jobs") == 0


COUNTING = [
    "META-INF/statedb/couchdb/indexes/a.json",
    "META-INF/statedb/couchdb/collections/one/indexes/b.json",
    "META-INF/statedb/couchdb/collections/two/indexes/c.json",
]
NOT_COUNTING = [
    "META-INF/root.json",
    "META-INF/statedb/couchdb/d.json",
    "META-INF/statedb/couchdb/indexes/readme.txt",
    "META-INF/statedb/couchdb/indexes/UPPER.JSON",
    "META-INF/statedb/couchdb/indexes/deep/e.json",
    "META-INF/statedb/couchdb/collections/f.json",
    "META-INF/statedb/couchdb/collections/indexes/g.json",
    "META-INF/statedb/couchdb/collections/one/two/indexes/h.json",
    "META-INF/statedb/leveldb/indexes/i.json",
    "META-INF/other/indexes/j.json",
]


async def test_build_copies_all_of_meta_inf_and_release_the_indexes_only(shared: Scene) -> None:
    package = await shared.package()
    (package.root / "output/image.json").unlink()
    for number, path in enumerate(COUNTING + NOT_COUNTING):
        package.write(f"source/{path}", {"number": number})
    package.write("source/main.go", b"not for Kubernetes")
    (package.root / "source/META-INF/empty").mkdir()
    await anyio.Path(package.root / "source/META-INF/statedb/couchdb/indexes/link.json").symlink_to("/etc/passwd")
    assert await shared.said("build", package) == (0, [])
    assert files(package.root / "output") == sorted([*COUNTING, *NOT_COUNTING, "image.json"])
    assert await shared.said("release", package) == (0, [])
    assert files(package.root / "release") == sorted(path.removeprefix("META-INF/") for path in COUNTING)
    for path in COUNTING:
        copied = package.root / "release" / path.removeprefix("META-INF/")
        assert copied.read_bytes() == (package.root / "source" / path).read_bytes()


async def test_what_the_go_builder_left_is_released_and_run(scene: Scene, daemon: Running) -> None:
    package = await scene.package(script="echo hello")
    package.write("output/META-INF/statedb/couchdb/indexes/a.json", {})
    assert await scene.said("release", package) == (0, [])
    assert files(package.root / "release") == ["statedb/couchdb/indexes/a.json"]
    code, lines = await scene.said("run", package)
    assert (code, lines[1]) == (0, "hello")


async def test_a_tag_beside_the_digest_is_refused_by_build_and_run_as_the_go_builder_does(
    scene: Scene, daemon: Running
) -> None:
    """That builder's `build` has taken it, and the package id cannot change without a new approval of the channel."""
    package = await scene.package()
    image = f"{package.image_name}:1.0"
    await scene.cluster.switch(
        "PATCH", "environment", {"extraImages": {image: {"command": ["/bin/sh", "-c", "echo hello"]}}}
    )
    package.image({"name": image, "digest": DIGEST})
    code, [line] = await scene.said("build", package)
    assert (code, "image.json: field 'name' must not contain a tag" in line) == (1, True)
    code, lines = await scene.said("run", package)
    assert (code, lines[2]) == (0, "hello")
    assert lines[0] == ("image.json names the tag '1.0' and a digest. Kubernetes uses the digest and ignores the tag")
    [container] = (await scene.only("jobs"))["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{image}@{DIGEST}"


async def test_an_address_of_the_peer_that_no_pod_can_reach_is_told_once(scene: Scene, daemon: Running) -> None:
    ticking = await Ticking.make(scene)
    ticking.package.connect(peer_address="0.0.0.0:7052")
    run = await scene.call("run", ticking.package)
    line = await run.line("CORE_PEER_CHAINCODEADDRESS")
    assert (
        b"The peer tells the chaincode to connect to 0.0.0.0:7052, which only works on the peer's own machine" in line
    )
    await run.line("line 2")
    assert await daemon.terminate() == 0
    await scene.daemon()
    await run.line("line ", len(chaincode_lines(run)) + 5)  # which the second daemon passes on
    assert await run.terminate() == 0
    assert run.count("CORE_PEER_CHAINCODEADDRESS") == 1


async def test_a_package_without_meta_inf_releases_nothing(shared: Scene) -> None:
    package: Package = await shared.package()
    assert await shared.said("release", package) == (0, [])
    assert files(package.root / "release") == []
