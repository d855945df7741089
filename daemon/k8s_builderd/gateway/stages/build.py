"""`build`: checks the package while somebody is there to read it, and has image.json and META-INF copied."""

from k8s_builderd.fabric.package import (
    IMAGE_FILE,
    METADATA_FILE,
    check_label,
    decode_image,
    decode_metadata,
    files_to_build,
)
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request


async def serve(request: Request, connection: Connection) -> int:
    """Have the files copied that `release` and `run` will need.

    :raises PackageError: if a document cannot be used, or META-INF holds a path that cannot be trusted.
    """
    metadata = decode_metadata(request.document(METADATA_FILE))
    check_label(metadata.label)
    decode_image(request.document(IMAGE_FILE))
    files = files_to_build((entry.kind, entry.path) for entry in request.paths)
    for path in (IMAGE_FILE, *files):
        await connection.copy(path, path)
    return 0
