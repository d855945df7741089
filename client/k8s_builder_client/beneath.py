"""Files below a directory, reached one component at a time so that no link on the way is followed."""

import _stat
import posix

from .call import shown

_CHUNK = 1 << 16


class CopyError(Exception):
    """Raised when a `Y` frame was not obeyed; the message names the file and the reason."""


def open_file(directory: int, path: bytes, flags: int, *, make_parents: bool = False) -> int:
    """Open `path`, relative to the descriptor `directory`, and return its descriptor.

    No component may be a link, empty, `.` or `..`. With `make_parents` missing directories are made. Raises OSError.
    """
    *parents, name = path.split(b"/")
    here = posix.dup(directory)
    try:
        for parent in parents:
            if make_parents:
                try:  # noqa: SIM105 - contextlib costs too much to import
                    posix.mkdir(_plain(parent), 0o777, dir_fd=here)
                except FileExistsError:
                    pass
            below = posix.open(_plain(parent), posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW, dir_fd=here)
            posix.close(here)
            here = below
        # O_NONBLOCK: to open a FIFO would wait for somebody to write to it.
        return posix.open(_plain(name), flags | posix.O_NOFOLLOW | posix.O_NONBLOCK, 0o644, dir_fd=here)
    finally:
        posix.close(here)


def _plain(component: bytes) -> bytes:
    if component in (b"", b".", b"..") or b"\0" in component:
        raise PermissionError(1, "the path leads out of its directory")
    return component


class Copies:
    """Obeys `Y` frames: copies files that this client listed itself from its input to its output directory."""

    def __init__(self, source: bytes, destination: bytes, listed: "set[bytes]") -> None:
        self._source = source
        self._destination = destination
        self._listed = listed
        self._done = set()  # type: set[tuple[bytes, bytes]]

    def copy(self, source: bytes, destination: bytes) -> None:
        """Copy one file; again after a reconnect is not an error. Raises CopyError."""
        if (source, destination) in self._done:
            return
        try:
            if source not in self._listed:
                raise PermissionError(1, "this program has not listed that file")
            self._copy(source, destination)
        except OSError as error:
            raise CopyError(
                "Error copying %s to %s in %s: %s"
                % (_shown(source), _shown(destination), _shown(self._destination), error.strerror)
            ) from None
        self._done.add((source, destination))

    def _copy(self, source: bytes, destination: bytes) -> None:
        descriptors = []  # type: list[int]
        try:
            descriptors.append(posix.open(self._source, posix.O_RDONLY | posix.O_DIRECTORY))
            descriptors.append(posix.open(self._destination, posix.O_RDONLY | posix.O_DIRECTORY))
            reader = open_file(descriptors[0], source, posix.O_RDONLY)
            descriptors.append(reader)
            if not _stat.S_ISREG(posix.fstat(reader).st_mode):
                raise OSError(0, "no longer a regular file")
            writer = open_file(
                descriptors[1], destination, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, make_parents=True
            )
            descriptors.append(writer)
            while True:
                chunk = posix.read(reader, _CHUNK)
                if not chunk:
                    return
                while chunk:
                    chunk = chunk[posix.write(writer, chunk) :]
        finally:
            for descriptor in descriptors:
                posix.close(descriptor)


def _shown(path: bytes) -> str:
    return shown(path[:1024])
