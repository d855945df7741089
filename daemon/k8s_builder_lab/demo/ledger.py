"""A world state in memory, and the simulation of a transaction on it. No I/O."""

from collections.abc import Iterator


class Ledger:
    """The committed keys and values of each namespace (each chaincode's own)."""

    def __init__(self) -> None:
        self._namespaces: dict[str, dict[str, bytes]] = {}

    def state(self, namespace: str) -> dict[str, bytes]:
        """Return the committed state of a namespace; changing it changes the ledger."""
        return self._namespaces.setdefault(namespace, {})

    def simulate(self, namespace: str) -> "Simulator":
        """Begin a transaction."""
        return Simulator(self.state(namespace))


class Simulator:
    """One transaction: it reads what is committed, never its own writes, which wait for `commit`."""

    def __init__(self, committed: dict[str, bytes]) -> None:
        self._committed = committed
        self._writes: dict[str, bytes | None] = {}

    def get(self, key: str) -> bytes:
        """Return the committed value; empty where there is none, as the peer answers it."""
        return self._committed.get(key, b"")

    def put(self, key: str, value: bytes) -> None:
        """Write a value. Raises ValueError for the empty key, as Fabric's ledger refuses it."""
        if not key:
            raise ValueError("key must not be an empty string")
        self._writes[key] = value

    def delete(self, key: str) -> None:
        """Delete a key."""
        self._writes[key] = None

    def scan(self, start: str, end: str) -> Iterator[tuple[str, bytes]]:
        """Yield keys and values from `start` up to and without `end`, in the order of their bytes.

        An empty `end` is the end of the namespace.
        """
        for key, value in sorted(self._committed.items(), key=lambda entry: entry[0].encode()):
            if key.encode() >= start.encode() and (not end or key.encode() < end.encode()):
                yield key, value

    def commit(self) -> None:
        """Make the writes the ledger's own."""
        for key, value in self._writes.items():
            if value is None:
                self._committed.pop(key, None)
            else:
                self._committed[key] = value
        self._writes.clear()
