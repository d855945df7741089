"""A small Kubernetes API server that runs pods as local processes, for a laptop with nothing installed and for tests.

It is a process of its own and imports nothing of the daemon. It keeps Jobs, Pods, Secrets and Events and behaves as
a real cluster was seen to behave where the daemon can notice. It has no field ownership, no discovery, no OpenAPI and
no schema validation, and it restarts no container. Where a request needs what it does not have, it says so with a 4xx
instead of guessing.
"""
