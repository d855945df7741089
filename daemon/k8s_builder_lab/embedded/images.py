"""What stands where a registry would: a table from image name to the local command that plays the image."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

_NAME = re.compile(
    r"(?:(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*)(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


class Image(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """One image.

    command: the program and its arguments; a container's own `command` and `args` replace it as usual.
    env: what the image itself sets; the container's env wins.
    digests: those that exist; another is a wrong digest. Empty: every digest exists.
    behaviour: `runs`; `pending` (its container is being created for ever); `oom` (a death by a SIGKILL that the
      cluster did not send is told as OOMKilled).
    pull_seconds: how long pulling takes, never scaled by the timings.
    clock: of the log's timestamps. `exact`; `jitter` (goes backwards by up to 4.7 ms, as measured where stdout and
      stderr mix); `coarse` (all lines of one second have one timestamp).
    runs_as_root: a pod with runAsNonRoot and without runAsUser gets CreateContainerConfigError.
    """

    command: list[str] = msgspec.field(default_factory=list)
    env: dict[str, str] = msgspec.field(default_factory=dict)
    digests: list[str] = msgspec.field(default_factory=list)
    behaviour: Literal["runs", "pending", "oom"] = "runs"
    pull_seconds: float = 0
    clock: Literal["exact", "jitter", "coarse"] = "exact"
    runs_as_root: bool = False


Images = Mapping[str, Image]


class PullError(Exception):
    """An image that cannot be had; `invalid_name` says that no waiting will help."""

    def __init__(self, message: str, *, invalid_name: bool = False) -> None:
        super().__init__(message)
        self.invalid_name = invalid_name


def load(source: Images | Path) -> Images:
    """Return the table; a file is JSON, image name to Image, and is read anew each time.

    :raises ValueError: the file is not such a table
    :raises OSError: the file cannot be read
    """
    if not isinstance(source, Path):
        return source
    try:
        return msgspec.json.decode(source.read_bytes(), type=dict[str, Image])
    except msgspec.DecodeError as error:
        raise ValueError(f"{source}: {error}") from None


def pull(images: Images, reference: str) -> Image:
    """Return the image that `reference` (name, or name@digest) means.

    :raises PullError: the name is no name, there is no such image, or it has no such digest
    """
    name, _, digest = reference.partition("@")
    if not _NAME.fullmatch(name) or ("@" in reference and not _DIGEST.fullmatch(digest)):
        raise PullError(
            f'Failed to apply default image tag "{reference}": couldn\'t parse image name "{reference}": '
            "invalid reference format",
            invalid_name=True,
        )
    image = images.get(name)
    if image is None or (image.digests and digest not in image.digests):
        raise PullError(
            f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}": '
            f"{reference}: not found"
        )
    return image
