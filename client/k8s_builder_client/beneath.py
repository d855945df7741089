"""Files below a directory, reached one component at a time so that no link on the way is followed."""

import os
import stat

_CHUNK = 1 << 16


class CopyError(Exception):
    """Raised when a `Y` frame was not obeyed; the message names the file and the reason."""


def open_file(directory: int, path: bytes, flags: int, *, make_parents: bool = False) -> int:
    """Open `path`, relative to the descriptor `directory`, and return its descriptor.

    No component may be a link, empty, `.` or `..`. With `make_parents` missing directories are made. Raises OSError.
    """
    *parents, name = path.split(b"/")
    here = os.dup(directory)
    try:
        for parent in parents:
            if make_parents:
                try:  # noqa: SIM105 - contextlib costs too much to import
                    os.mkdir(_plain(parent), 0o777, dir_fd=here)
                except FileExistsError:
                    pass
            below = os.open(_plain(parent), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        # O_NONBLOCK: to open a FIFO would wait for somebody to write to it.
        return os.open(_plain(name), flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=here)
    finally:
        os.close(here)


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
            descriptors.append(os.open(self._source, os.O_RDONLY | os.O_DIRECTORY))
            descriptors.append(os.open(self._destination, os.O_RDONLY | os.O_DIRECTORY))
            reader = open_file(descriptors[0], source, os.O_RDONLY)
            descriptors.append(reader)
            if not stat.S_ISREG(os.fstat(reader).st_mode):
                raise OSError(0, "no longer a regular file")
            writer = open_file(descriptors[1], destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, make_parents=True)
            descriptors.append(writer)
            while True:
                chunk = os.read(reader, _CHUNK)
                if not chunk:
                    return
                while chunk:
                    chunk = chunk[os.write(writer, chunk) :]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _shown(path: bytes) -> str:
    return os.fsdecode(path[:1024])
