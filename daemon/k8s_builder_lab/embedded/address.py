"""Where an embedded cluster listens, and the kubeconfig that says so."""

import os
import tempfile
from pathlib import Path
from typing import Any

import msgspec

_NAME = "embedded"


class Address(msgspec.Struct, frozen=True):
    """How to reach an embedded cluster.

    server: URL of the Kubernetes API.
    control: URL of the switches (control.py); it answers during an outage of the API.
    token: the bearer token for both.
    namespace: the one that the kubeconfig's context names.
    """

    server: str
    control: str
    token: str
    namespace: str

    def write(self, path: Path) -> None:
        """Write a kubeconfig: readable by this user only, and either whole or not there.

        It is JSON, which every reader of YAML takes. The control URL stands in it as an extension of the cluster.

        :raises OSError: it cannot be written
        """
        extension = {"name": _NAME, "extension": {"control": self.control}}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": _NAME,
            "clusters": [{"name": _NAME, "cluster": {"server": self.server, "extensions": [extension]}}],
            "users": [{"name": _NAME, "user": {"token": self.token}}],
            "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": _NAME, "namespace": self.namespace}}],
        }
        # mkstemp makes the file with mode 0600.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> "Address":
        """Read what `write` wrote.

        :raises OSError: it cannot be read
        :raises ValueError: it is not the kubeconfig of an embedded cluster
        """
        try:
            document: dict[str, Any] = msgspec.json.decode(path.read_bytes())
            cluster = document["clusters"][0]["cluster"]
            return cls(
                cluster["server"],
                cluster["extensions"][0]["extension"]["control"],
                document["users"][0]["user"]["token"],
                document["contexts"][0]["context"]["namespace"],
            )
        except (msgspec.DecodeError, KeyError, IndexError, TypeError):
            raise ValueError(f"{path} is not the kubeconfig of an embedded cluster") from None
