"""`release`: has the CouchDB indexes copied, and nothing else of META-INF."""

from k8s_builderd.fabric.package import files_to_release
from k8s_builderd.gateway.connection import Connection
from k8s_builderd.gateway.protocol import Request


async def serve(request: Request, connection: Connection) -> int:
    """Have the files copied that the peer looks for.

    :raises PackageError: if META-INF holds a path that cannot be trusted.
    """
    for source, destination in files_to_release((entry.kind, entry.path) for entry in request.paths):
        await connection.copy(source, destination)
    return 0
