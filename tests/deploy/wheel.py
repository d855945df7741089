"""Wheels as `pip install` and the image's build make them, and Pythons that have nothing else of this project."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(tree: Path, destination: Path) -> Path:
    """Build the wheel of a source tree and return it."""
    code = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(destination)]
    done = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    return destination / done.stdout.split()[-1]


def context(destination: Path, containerfile: str = "Containerfile") -> Path:
    """Copy what the Containerfile's .dockerignore lets into the image's build, and return where it is."""
    patterns = (ROOT / f"deploy/{containerfile}.dockerignore").read_text().splitlines()
    rules = [rule for rule in patterns if rule and not rule.startswith("#")]
    assert rules[0] == "*", "only what a later rule names has to be looked at"
    named = [ROOT / rule[1:] for rule in rules if rule.startswith("!")]
    for file in sorted(file for one in named for file in (one, *one.rglob("*"))):
        relative = file.relative_to(ROOT)
        if file.is_file() and not _is_ignored(relative, rules):
            (destination / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, destination / relative)
    return destination


def _is_ignored(path: Path, rules: list[str]) -> bool:
    """Say so as Docker does: the last rule that matches the path, or a directory above it, counts."""
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        above = [path, *path.parents][:-1]
        if any(fnmatch(str(one), pattern) or fnmatch(f"/{one}", pattern.replace("**", "*")) for one in above):
            ignored = not rule.startswith("!")
    return ignored


def unpack(wheel: Path, destination: Path) -> Path:
    """Unpack a wheel as pip does, and return where it is."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(destination)
        for info in archive.infolist():
            if mode := info.external_attr >> 16 & 0o777:
                (destination / info.filename).chmod(mode)
    return destination


def python(installed: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Call Python with an unpacked wheel and what it depends on, but without what is installed for these tests."""
    paths = dict.fromkeys([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return subprocess.run(
        [sys.executable, "-S", *arguments],  # -S: editable installations are not found
        env={"PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
        capture_output=True,
        text=True,
    )
