"""Reads an operator's document, in JSON or YAML, as what JSON can say. Pure.

YAML is read as Kubernetes' tools read it (YAML 1.1: `yes` and `on` are truth values), but for what only leads to
mistakes: a key that stands twice or is no string, a date, `1:30` as a number, a tag.
"""

import math
import re
from collections.abc import Iterator
from itertools import count
from typing import Any, ClassVar

import msgspec
import yaml

_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")

MOST_NODES = 1_000_000
"""Nodes of a document, with each alias counted as what it stands for: a few lines of aliases can stand for billions."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # it comes without types
    """Knows no other types than JSON's."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct what a node stands for; a value that does not fit its tag is told with its place."""
        try:
            found = super().construct_object(node, deep)
        except (ValueError, LookupError):  # such as for `!!int x` and `!!bool maybe`
            found = math.inf
        if isinstance(found, float) and math.isinf(found):
            tag = node.tag.removeprefix(_TAG)
            raise yaml.MarkedYAMLError(problem=f"the value does not fit !!{tag}", problem_mark=node.start_mark)
        return found

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        **{_TAG + name: yaml.SafeLoader.yaml_constructors[_TAG + name] for name in _PLAIN},
        None: yaml.SafeLoader.yaml_constructors[None],
    }
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {
        first: [it for it in resolvers if it[0] in {_TAG + "null", _TAG + "bool", _TAG + "merge"}]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    _TAG + "int", re.compile("[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _TAG + "float", re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def decode(content: bytes) -> Any:
    """Return what a file says.

    :raises ValueError: if it is neither JSON nor YAML, or has more than one document; the text says where.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text") from None
    try:
        # First as JSON: YAML has no tabs between its words and reads some of JSON's escapes as others.
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        fault = str(error)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    try:
        return _yaml(text)
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith(("{", "[")):
            raise ValueError(fault) from None
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        what = str(error.problem)
        raise ValueError(where + (f"{error.context}, {what}" if what.startswith("but ") else what)) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise ValueError("it is empty")
        _check(node, (), count(1))
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check(node: yaml.Node, above: tuple[yaml.Node, ...], numbers: Iterator[int]) -> None:
    """Check the keys of a node and of all below it, and that JSON can say its text.

    :param numbers: counts the nodes.
    :raises yaml.MarkedYAMLError: if a key is no string or stands twice, an anchor is within itself, there are too many
        nodes, or there is half of a surrogate pair.
    """
    if node in above:
        raise yaml.MarkedYAMLError(problem="an anchor holds itself", problem_mark=node.start_mark)
    if next(numbers) > MOST_NODES:
        raise yaml.MarkedYAMLError(
            problem=f"with its aliases it has more than {MOST_NODES} values", problem_mark=node.start_mark
        )
    below = (*above, node)
    if isinstance(node, yaml.ScalarNode):
        if _SURROGATE.search(node.value):
            raise yaml.MarkedYAMLError(problem="half of a surrogate pair is no text", problem_mark=node.start_mark)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, below, numbers)
    elif isinstance(node, yaml.MappingNode):
        keys = set()
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                if key.tag != _TAG + "str" or not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(
                        problem="a key must be a string: put it in quotes", problem_mark=key.start_mark
                    )
                if key.value in keys:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!a} stands twice", problem_mark=key.start_mark
                    )
                keys.add(key.value)
                _check(key, below, numbers)
            _check(value, below, numbers)
