"""`detect`: says whether a package is ours. Silent where it is not, because the peer asks for every package."""

from k8s_builderd.fabric.package import METADATA_FILE, decode_metadata, is_k8s
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request


async def serve(request: Request, connection: Connection) -> int:
    """Return 0 for a package of type k8s, else 1.

    :raises PackageError: if metadata.json cannot be read.
    """
    metadata = decode_metadata(request.document(METADATA_FILE))
    if not is_k8s(metadata):
        return 1
    await connection.say(f"Detected k8s chaincode: {metadata.label}")
    return 0
