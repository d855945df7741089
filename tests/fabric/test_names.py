"""Names and labels are those of the Go builder, and always ones that Kubernetes takes."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.fabric.names import (
    SAFE_ALPHABET,
    PackageId,
    hash_label_value,
    job_name,
    label_value_fault,
    name_prefix_fault,
    object_name,
    package_id,
    run_hash,
    safe_label,
)

VECTORS = Path(__file__).parents[1] / "vectors"
OBJECT_NAMES: list[dict[str, Any]] = json.loads((VECTORS / "object-names.json").read_text())
LABEL_VALUES: list[dict[str, Any]] = json.loads((VECTORS / "label-values.json").read_text())

deterministic = settings(derandomize=True, deadline=None, database=None)
texts = st.text(max_size=80)
prefixes = st.from_regex(r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?", fullmatch=True).filter(lambda text: len(text) <= 30)


@pytest.mark.parametrize("vector", OBJECT_NAMES, ids=lambda vector: f"{vector['prefix']}/{vector['chaincode_id'][:20]}")
def test_object_names_are_those_of_the_go_builder(vector: dict[str, Any]) -> None:
    identity = package_id(vector["chaincode_id"])
    assert identity == PackageId(vector["package_label"], vector["package_hash"])
    assert hash_label_value(identity.hash) == vector["hash_label_value"]
    name = object_name(
        vector["prefix"],
        vector["peer_id"],
        vector["peer_address"],
        vector["mspid"],
        vector["chaincode_id"],
        vector["suffix_length"],
    )
    assert name == vector["object_name"]


@pytest.mark.parametrize("vector", LABEL_VALUES, ids=lambda vector: vector["value"][:20])
def test_label_values_and_prefixes_are_valid_where_kubernetes_says_so(vector: dict[str, Any]) -> None:
    assert (label_value_fault(vector["value"]) is None) == vector["valid_label_value"]
    assert (name_prefix_fault(vector["value"]) is None) == vector["valid_name_prefix"]


def test_a_chaincode_id_without_a_colon_has_neither_label_nor_hash() -> None:
    assert package_id("basic") == PackageId("", "")
    assert str(package_id("a:b:c")) == "a:b:c"


@pytest.mark.parametrize("value", ["a\n", "a-", "é", "a b"])
def test_the_fault_of_a_label_value_is_in_kubernetes_own_words(value: str) -> None:
    assert label_value_fault(value) == (
        "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
        "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for "
        "validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
    )


def test_the_length_of_a_label_value_counts_in_bytes_and_comes_first() -> None:
    assert label_value_fault("é" * 32) == "must be no more than 63 bytes"
    assert label_value_fault("a" * 63) is None


def test_the_faults_of_a_prefix_go_on_after_the_name_of_its_variable() -> None:
    assert name_prefix_fault("p" * 31) == "must be a maximum of 30 characters"
    assert name_prefix_fault("1prefix") == (
        "must be a valid DNS-1035 label: a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
        "start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', "
        "regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
    )


def test_a_prefix_may_end_with_a_dash_but_for_the_rest_follows_the_rule() -> None:
    assert name_prefix_fault("prefix-") is None
    for bad in ("-", "", "a_-", "1-", "a\n"):
        assert name_prefix_fault(bad) is not None


def test_one_token_always_gives_one_job_name() -> None:
    digest = hashlib.sha256(b"token").hexdigest()
    name = job_name("hlfcc-basic-abc", digest)
    assert name == job_name("hlfcc-basic-abc", digest)
    assert re.fullmatch(f"hlfcc-basic-abc-[{SAFE_ALPHABET}]{{5}}", name)
    others = {job_name("x", hashlib.sha256(bytes([number])).hexdigest()) for number in range(200)}
    assert len(others) > 195


@deterministic
@given(prefixes, texts, texts, texts, texts)
def test_every_launch_gets_a_name_that_kubernetes_takes(
    prefix: str, peer_id: str, peer_address: str, mspid: str, chaincode_id: str
) -> None:
    name = object_name(prefix, peer_id, peer_address, mspid, chaincode_id)
    job = job_name(name, hashlib.sha256(name.encode()).hexdigest())
    assert len(job) <= 63
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job)
    assert label_value_fault(job) is None


@deterministic
@given(st.text())
def test_a_safe_label_keeps_only_safe_characters_and_is_safe_itself(label: str) -> None:
    safe = safe_label(label)
    assert re.fullmatch("[-0-9a-z]*", safe)
    assert safe_label(safe) == safe


@deterministic
@given(texts, texts)
def test_a_run_hash_has_13_characters_and_depends_on_the_order_of_its_parts_alone(first: str, second: str) -> None:
    hashed = run_hash("hlfcc", first, second, "Org1MSP", "a:b")
    assert re.fullmatch("[a-z2-7]{13}", hashed)
    assert hashed == run_hash("hlfcc", first + second, "", "Org1MSP", "a:b")


@deterministic
@given(st.binary(min_size=32, max_size=32))
def test_every_package_hash_is_a_label_value(digest: bytes) -> None:
    assert label_value_fault(hash_label_value(digest.hex())) is None


def test_a_hash_that_is_not_hexadecimal_is_refused() -> None:
    with pytest.raises(ValueError, match="hex"):
        hash_label_value("xyz")
