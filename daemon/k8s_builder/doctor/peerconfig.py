"""The peer's configuration as the peer reads it: core.yaml, and over it the environment. Fabric uses viper for both.

Keys match in any case. A variable is `CORE_` and the key in upper case, with `_` for each dot; an empty one counts as
not set.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from msgspec import Struct

from k8s_builderd.errors import BuilderError
from k8s_builderd.golang import parse_bool, parse_duration


class CoreYamlError(BuilderError):
    """Raised when a core.yaml cannot be read; nothing of its content is in the text, which may be a password."""


class Found(Struct, frozen=True):
    """A value, and where it comes from."""

    value: Any
    source: str

    @property
    def text(self) -> str:
        """The value as viper's GetString gives it."""
        return "" if self.value is None else str(self.value)


class PeerConfig:
    """What the peer would read."""

    def __init__(self, document: Mapping[str, Any], environment: Mapping[str, str], *, certain: bool) -> None:
        """Put both together.

        :param document: core.yaml's.
        :param environment: the peer's, or what stands for it.
        :param certain: whether that is the peer's own environment.
        """
        self.environment = environment
        self.certain = certain
        self._document = document

    def get(self, key: str) -> Found | None:
        """Return a value by its path, such as `chaincode.startuptimeout`; None where it is not set."""
        name = variable(key)
        if value := self.environment.get(name):
            return Found(value, name)
        found: Any = self._document
        for part in key.lower().split("."):
            if not isinstance(found, Mapping):
                return None
            found = next((value for name, value in found.items() if str(name).lower() == part), None)
        return None if found is None else Found(found, f"{key} in core.yaml")

    def duration(self, key: str, default: float) -> tuple[float, str]:
        """Return the seconds of a duration, and where it comes from. A number without a unit is nanoseconds.

        :raises ValueError: if it is none.
        """
        found = self.get(key)
        if found is None:
            return default, "Fabric's default"
        text = found.text
        return parse_duration(text if re.search("[nsu\N{MICRO SIGN}mh]", text) else f"{text}ns"), found.source

    def flag(self, key: str) -> bool:
        """Return a truth value, false where it is none or not set."""
        found = self.get(key)
        try:
            return found is not None and parse_bool(found.text.strip())
        except ValueError:
            return False


def variable(key: str) -> str:
    """Return the variable that overrides a key of core.yaml."""
    return f"CORE_{key.replace('.', '_').upper()}"


def read_core_yaml(data: bytes) -> dict[str, Any]:
    """Parse core.yaml.

    :raises CoreYamlError: if it is no YAML, or no object.
    """
    document = load_yaml(data)
    if not isinstance(document, dict):
        raise CoreYamlError("it holds no object at its top")
    return document


def load_yaml(data: bytes | str) -> Any:
    """Return what a YAML document says.

    :raises CoreYamlError: if it is none.
    """
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise CoreYamlError(f"it is not valid YAML{where}") from None
    except (ValueError, LookupError, TypeError, RecursionError):  # a date such as 2026-02-30, `!!bool maybe`
        raise CoreYamlError("it is not valid YAML") from None


def read_environment(text: str) -> dict[str, str]:
    """Parse what `env` prints. A line that begins with no name goes on with the value before it."""
    environment: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and re.fullmatch("[A-Za-z_][A-Za-z0-9_.-]*", name):
            environment[last := name] = value
        elif last:
            environment[last] += f"\n{line}"
    return environment
