"""Image references are judged by the distribution project's grammar, each fault with its one rule."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.fabric.imageref import (
    Reference,
    digest_fault,
    name_fault,
    split_host,
    split_reference,
    tag_fault,
    tagged_name_fault,
)


@pytest.mark.parametrize(
    "name",
    [
        "cc",
        "org/cc",
        "ghcr.io/org/cc",
        "localhost/cc",
        "localhost:5000/cc",
        "registry.example.com:5000/a/b/c/d",
        "REGISTRY.example.com/cc",
        "Registry/cc",
        "10.0.0.1:5000/cc",
        "[2001:db8::1]:5000/cc",
        "[::1]/cc",
        "org/a.b_c__d--e/f---g",
        "xn--n3h.example/cc",
        "a" * 255,
    ],
)
def test_repository_names_pass(name: str) -> None:
    assert name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "must not be empty"),
        ("cc:1.0", "must not contain a tag"),
        ("localhost:5000", "must not contain a tag"),
        ("ghcr.io:443/org/cc:latest", "must not contain a tag"),
        ("cc@sha256:00", "must not contain a digest"),
        ("cc:1@sha256:00", "must not contain a digest"),
        ("https://ghcr.io/cc", "must not begin with a scheme"),
        ("docker://cc", "must not begin with a scheme"),
        ("org/CC", "must be lower case"),
        ("CC", "must be lower case"),
        ("ghcr.io/Org/cc", "must be lower case"),
        ("a" * 256, "must be at most 255 characters"),
        ("org/c c", "must not contain white space"),
        ("cc\n", "must not contain white space"),
        ("/cc", "must not begin or end with '/'"),
        ("cc/", "must not begin or end with '/'"),
        ("a//b", "must not begin or end with '/'"),
        ("org/-cc", "must have lower-case letters and digits"),
        ("org/cc-", "must have lower-case letters and digits"),
        ("org/c..c", "must have lower-case letters and digits"),
        ("org/c___c", "must have lower-case letters and digits"),
        ("org/c._c", "must have lower-case letters and digits"),
        ("org/größe", "must have lower-case letters and digits"),
        ("org/c٣", "must have lower-case letters and digits"),
        ("-host.example/cc", "must begin with a host name"),
        ("host_name.example/cc", "must begin with a host name"),
        ("host.example:/cc", "number from 1 to 65535"),
        ("host.example:http/cc", "number from 1 to 65535"),
        ("host.example:0/cc", "number from 1 to 65535"),
        ("host.example:65536/cc", "number from 1 to 65535"),
        ("[::1/cc", "must begin with a host name"),
    ],
)
def test_other_names_are_refused_with_the_rule(name: str, rule: str) -> None:
    fault = name_fault(name)
    assert fault is not None
    assert fault.startswith(rule) or rule in fault


@pytest.mark.parametrize("digest", ["sha256:" + "0123456789abcdef" * 4, "sha512:" + "0123456789abcdef" * 8])
def test_digests_pass(digest: str) -> None:
    assert digest_fault(digest) is None


@pytest.mark.parametrize(
    ("digest", "rule"),
    [
        ("", "must begin with 'sha256:' or 'sha512:'"),
        ("latest", "must begin with 'sha256:' or 'sha512:'"),
        ("a" * 64, "must begin with 'sha256:' or 'sha512:'"),
        ("md5:" + "a" * 32, "must begin with 'sha256:' or 'sha512:'"),
        ("SHA256:" + "a" * 64, "must begin with 'sha256:' or 'sha512:'"),
        ("sha256:" + "A" * 64, "must be lower case"),
        ("sha256:" + "a" * 63, "must have 64 hexadecimal digits after 'sha256:', not 63"),
        ("sha256:" + "a" * 128, "must have 64 hexadecimal digits after 'sha256:', not 128"),
        ("sha512:" + "a" * 64, "must have 128 hexadecimal digits after 'sha512:', not 64"),
        ("sha256:", "must have 64 hexadecimal digits after 'sha256:', not 0"),
        ("sha256:" + "g" * 64, "must have only hexadecimal digits after 'sha256:'"),
        ("sha256:" + "a" * 64 + "\n", "must have only hexadecimal digits after 'sha256:'"),
    ],
)
def test_other_digests_are_refused_with_the_rule(digest: str, rule: str) -> None:
    assert digest_fault(digest) == rule


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("cc", Reference("cc")),
        ("cc:1", Reference("cc", "1")),
        ("cc@sha256:0", Reference("cc", "", "sha256:0")),
        ("localhost:5000/cc", Reference("localhost:5000/cc")),
        ("localhost:5000/cc:1@sha256:0", Reference("localhost:5000/cc", "1", "sha256:0")),
    ],
)
def test_a_reference_is_split_into_name_tag_and_digest(text: str, reference: Reference) -> None:
    assert split_reference(text) == reference


def test_the_host_is_told_from_the_path_as_docker_does() -> None:
    assert split_host("org/cc") == ("", "org/cc")
    assert split_host("localhost/cc") == ("localhost", "cc")
    assert split_host("ghcr.io/org/cc") == ("ghcr.io", "org/cc")
    assert split_host("ghcr.io") == ("", "ghcr.io")


@pytest.mark.parametrize("name", ["cc", "cc:1", "ghcr.io/org/cc:v1.0_RC-2", "localhost:5000/cc", "localhost:5000/cc:1"])
def test_a_name_may_have_a_tag_where_that_is_allowed(name: str) -> None:
    assert tagged_name_fault(name) is None


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("cc:", "must have a tag that is at most 128 letters"),
        ("cc:.a", "must have a tag that is at most 128 letters"),
        ("cc:1:2", "must have a tag that is at most 128 letters"),
        ("CC:1", "must be lower case"),
        ("cc:1@sha256:00", "must not contain a digest"),
        ("cc@sha256:00", "must not contain a digest"),
        ("https://cc:1", "must not begin with a scheme"),
        (":1", "must not be empty"),
        ("", "must not be empty"),
    ],
)
def test_a_name_with_a_tag_is_judged_by_the_same_rules(name: str, rule: str) -> None:
    assert (tagged_name_fault(name) or "").startswith(rule)


def test_tags_are_judged() -> None:
    assert tag_fault("v1.0_RC-2") is None
    for bad in ("", ".a", "-a", "a" * 129, "a/b", "a\n"):
        assert tag_fault(bad) is not None


@settings(derandomize=True, deadline=None, database=None)
@given(st.one_of(st.text(max_size=40), st.text("aB0.:/@-_[]", max_size=20)))
def test_a_name_that_passes_can_be_put_together_with_a_digest_and_split_again(name: str) -> None:
    if name_fault(name) is None:
        assert split_reference(f"{name}@sha256:0") == Reference(name, "", "sha256:0")
        assert re.fullmatch(r"[!-~]+", name)
