"""Makes the package that `peer lifecycle chaincode install` takes."""

import json
from collections.abc import Mapping
from pathlib import Path

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric.package import IMAGE_FILE, META_INF, METADATA_FILE, Image, check_image, check_label

from .archive import tar_gz
from .inspection import CODE_FILE, inspect_package

_META_INF_SIZE = 64 * 1024 * 1024


def make_package(label: str, image: Image, meta_inf: Mapping[str, bytes]) -> bytes:
    """Return the package's bytes, which are the same on every machine.

    :param meta_inf: the files that come with the image, by their paths, which begin with `META-INF/`
    :raises PackageError: where the peer would refuse to install the package, or `build` to build it
    """
    check_label(label)
    check_image(image)
    code = tar_gz({IMAGE_FILE: _json(name=image.name, digest=image.digest), **meta_inf})
    package = tar_gz({METADATA_FILE: _json(type="k8s", label=label), CODE_FILE: code})
    # What others' packages are judged by holds for our own.
    for problem in inspect_package(package).problems:
        raise problem
    return package


def read_meta_inf(directory: Path) -> dict[str, bytes]:
    """Return the files below a META-INF directory by their paths in the package.

    :raises PackageError: where there is something else than files and directories, which the peer refuses,
        or more than 64 MiB
    :raises OSError: where something cannot be read
    """
    files: dict[str, bytes] = {}
    size = 0
    for path in sorted(directory.rglob("*")):
        inside = f"{META_INF}/{path.relative_to(directory).as_posix()}"
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise PackageError(inside, "must be a file or a directory: the peer refuses links and anything else")
        if path.is_file():
            size += path.stat().st_size
            if size > _META_INF_SIZE:
                raise PackageError(META_INF, f"must contain at most {_META_INF_SIZE // 1024 // 1024} MiB")
            files[inside] = path.read_bytes()
    return files


def _json(**fields: str) -> bytes:
    """Return a JSON document: sorted, without spaces, in ASCII, and ended as people's editors would."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"
