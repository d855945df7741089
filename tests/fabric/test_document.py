"""A document is JSON or YAML, and holds what JSON can say; a mistake is told with its place."""

import json
from typing import Any

import pytest

from k8s_builderd.fabric.document import decode

BILLIONS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, 2.5, "x", null, true]}', {"a": [1, 2.5, "x", None, True]}),
        ('{\n\t"a": "\\/\\ud83d\\ude00"\n}', {"a": "/\U0001f600"}),  # only JSON has these
        ("\ufeffa: 1", {"a": 1}),
        ("---\na: 1\n...\n", {"a": 1}),
        ("# a comment\na: b # another\n", {"a": "b"}),
        ("{a: [b, c]}", {"a": ["b", "c"]}),
        ("a: yes\nb: off\nc: 'yes'\nd: y", {"a": True, "b": False, "c": "yes", "d": "y"}),
        ("a: ~\nb: null\nc:\nd: ''", {"a": None, "b": None, "c": None, "d": ""}),
        (
            "a: 0o17\nb: 017\nc: 08\nd: 0x1f\ne: -5\nf: 1_000",
            {"a": "0o17", "b": 15, "c": "08", "d": 31, "e": -5, "f": 1000},
        ),
        (
            "a: 0.5\nb: .5\nc: 1.\nd: 1e3\ne: 1.5e+3\nf: 1.0.0",
            {"a": 0.5, "b": 0.5, "c": 1.0, "d": "1e3", "e": 1500.0, "f": "1.0.0"},
        ),
        # Numbers and dates to YAML 1.1, words to everybody else.
        (
            "a: 12:30\nb: 2026-11-26\nc: .inf\nd: .nan\ne: 1:2.5",
            {"a": "12:30", "b": "2026-11-26", "c": ".inf", "d": ".nan", "e": "1:2.5"},
        ),
        ("a: 250m\nb: 64Mi", {"a": "250m", "b": "64Mi"}),
        (
            "x: &small {cpu: 1}\na: *small\nb:\n  <<: *small\n  memory: 2",
            {"x": {"cpu": 1}, "a": {"cpu": 1}, "b": {"cpu": 1, "memory": 2}},
        ),
        ("x: &x {cpu: 1}\nb:\n  <<: *x\n  cpu: 2", {"x": {"cpu": 1}, "b": {"cpu": 2}}),
        ("a: |\n  one\n  two\n", {"a": "one\ntwo\n"}),
        ("'1': a\n\"true\": b", {"1": "a", "true": "b"}),
    ],
)
def test_what_is_read(text: str, value: Any) -> None:
    found = decode(text.encode())
    assert json.loads(json.dumps(found)) == found == value


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "it is empty"),
        ("# nothing\n", "it is empty"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\nb: [", "line 2, column 5: expected the node content, but found '<stream end>'"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' stands twice"),
        ("a:\n- b: 1\n  b: 1", "line 3, column 3: the key 'b' stands twice"),
        ("1: a", "line 1, column 1: a key must be a string: put it in quotes"),
        ("a: {true: b}", "line 1, column 5: a key must be a string: put it in quotes"),
        ("a: {[a]: b}", "line 1, column 5: a key must be a string: put it in quotes"),
        ("a: &a [*a]", "line 1, column 4: an anchor holds itself"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("a: !!binary aGVsbG8=", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: !!python/name:os.system", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: !!timestamp 2026-11-26", "line 1, column 4: could not determine a constructor for the tag"),
        ("a: 1\n---\na: 2", "line 2, column 1: expected a single document in the stream, but found another document"),
        ("a: !!int x", "line 1, column 4: the value does not fit !!int"),
        ("a: !!int ''", "line 1, column 4: the value does not fit !!int"),
        ("a: !!bool maybe", "line 1, column 4: the value does not fit !!bool"),
        ("a:\n- !!float ''", "line 2, column 3: the value does not fit !!float"),
        ("a: 1.0e999", "line 1, column 4: the value does not fit !!float"),  # JSON has no infinity
        ("a: " + "9" * 5000, "line 1, column 4: the value does not fit !!int"),
        ("a: {!!str [a]: b}", "line 1, column 5: a key must be a string: put it in quotes"),
        # YAML takes each half for a character. In JSON there are only pairs.
        (r'a: "\ud83d\ude00"', "line 1, column 4: half of a surrogate pair is no text"),
        (r'"\ud800": a', "line 1, column 1: half of a surrogate pair is no text"),
        (BILLIONS, "line 1, column 10: with its aliases it has more than 1000000 values"),
        ("a: \0", "unacceptable character #x0000: special characters are not allowed"),
        ("a:\n\t- b", "line 2, column 1: found character '\\t' that cannot start any token"),
        # What begins as JSON is told in JSON's words.
        ('{"a": 1,,}', "JSON is malformed: "),
        ('{"a": [1, 2}', "JSON is malformed: "),
        ('["a', "Input data was truncated"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=r".+") as error:
        decode(text.encode())
    assert str(error.value).startswith(fault)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfea", b"a: \xff", "a: 1".encode("utf-16")])
def test_what_is_no_utf_8_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it is not UTF-8 text$"):
        decode(content)
