"""The peer's side of the story: a stand-in for Fabric's peer, a real chaincode, and the demo that brings them together.

What the demo and the tests see of the daemon is its outside: the four programs, the socket, the cluster. Of the other
rooms it imports the error family, what makes a package, and the embedded cluster's kubeconfig; peer, registry, stream,
session and builder import the error family only.
"""
