"""Archives as people and tools make them, entry by entry."""

import gzip
import io
import tarfile


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as writer:
        for entry, content in entries:
            entry.size = len(content)
            writer.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar(*((tarfile.TarInfo(name), content) for name, content in files.items())), mtime=0)


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.mode = mode
    return info
