"""The peer's side of the story: a stand-in for Fabric's peer, a real chaincode, and the demo that brings them together.

It imports nothing of the daemon but its error family: what the demo and the tests see of the daemon is its outside,
the four programs, the socket and the cluster.
"""
