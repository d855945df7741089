"""The documents of a package are read as Go reads them, and what is wrong is told with file, field and rule."""

import json
import re
import traceback
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k8s_builderd.errors import PackageError
from k8s_builderd.fabric.package import (
    Chaincode,
    Image,
    Metadata,
    check_label,
    decode_built_image,
    decode_chaincode,
    decode_image,
    decode_metadata,
    files_to_build,
    files_to_release,
    is_k8s,
)

deterministic = settings(derandomize=True, deadline=None, database=None)
DIGEST = "sha256:" + "0123456789abcdef" * 4
HASH = "6f98c4bb29414771312eddd1a813eef583df2121c235c4797792f141a46d4b45"
CHAINCODE = {
    "chaincode_id": f"basic_1.0:{HASH}",
    "peer_address": "peer0.org1.example.com:7052",
    "client_cert": "-----CERT-----",
    "client_key": "-----SECRET-----",
    "root_cert": "-----ROOT-----",
    "mspid": "CongaOrgMSP-é",
}


def metadata_error(document: bytes) -> str:
    with pytest.raises(PackageError) as caught:
        decode_metadata(document)
    assert caught.value.file == "metadata.json"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("document", "metadata"),
    [
        (b'{"type":"k8s","label":"basic_1.0"}', Metadata("k8s", "basic_1.0")),
        (b' {"type":"K8S","label":"a","path":null,"more":[1,{"type":"x"}]}\r\n\t', Metadata("K8S", "a")),
        (b'{"TYPE":"k8s","Label":"a"}', Metadata("k8s", "a")),
        (b'{"type":"k8s","label":"a","label":"b"}', Metadata("k8s", "b")),
        (b'{"label":"a","LABEL":"b","label":"c","type":"k8s"}', Metadata("k8s", "c")),
        (b'{"label":"a","LABEL":"b","type":"k8s"}', Metadata("k8s", "b")),
        (b'{"label":"a","label":null,"type":"k8s"}', Metadata("k8s", "a")),
        (rb'{"type":"\u006b8s","label":"\u0061"}', Metadata("k8s", "a")),
        ('{"type":"\N{KELVIN SIGN}8s","label":"a"}'.encode(), Metadata("\N{KELVIN SIGN}8s", "a")),
        (b'{"type":"k8s","label":"a","note":"caf\xe9"}', Metadata("k8s", "a")),
        (b'{"type":"k8s","label":"a","huge":' + b"9" * 50_000 + b',"big":1e999999}', Metadata("k8s", "a")),
        (b'{"type":"golang"}', Metadata("golang", "")),
    ],
)
def test_metadata_is_read_as_go_reads_it(document: bytes, metadata: Metadata) -> None:
    assert decode_metadata(document) == metadata


@pytest.mark.parametrize("word", ["k8s", "K8S", "K8s", "k8S", "\N{KELVIN SIGN}8s"])
def test_the_type_is_compared_without_case(word: str) -> None:
    assert is_k8s(Metadata(word, "a"))


@pytest.mark.parametrize("word", ["", "k8", "golang", " k8s", "k8s\0"])
def test_other_types_are_not_ours(word: str) -> None:
    assert not is_k8s(Metadata(word, "a"))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"", "metadata.json must be valid JSON: line 1, column 1"),
        (b'{"type":"k8s"', "line 1, column 14"),
        (b'{"type":"k8s",}', "must be valid JSON"),
        (b'{"type":"k8s","label":"a"} x', "must be valid JSON"),
        (b"{'type':'k8s'}", "must be valid JSON"),
        (b'{"type":"k8s","label":"a\nb"}', "must be valid JSON"),
        (b'{"x":NaN}', "neither NaN nor Infinity"),
        (b'{"x":-Infinity}', "neither NaN nor Infinity"),
        (b"[]", "must be a JSON object, not an array"),
        (b'"k8s"', "must be a JSON object, not a string"),
        (b"12", "must be a JSON object, not a number"),
        (b"true", "must be a JSON object, not true or false"),
        (b"null", "field 'type' is missing or empty; the file must contain 'label' and 'type'"),
        (b"{}", "field 'type' is missing or empty"),
        (b'{"type":"k8s"}', "field 'label' is missing or empty; the file must contain 'label' and 'type'"),
        (b'{"type":"k8s","label":""}', "field 'label' is missing or empty"),
        (b'{"type":"k8s","label":null}', "field 'label' is missing or empty"),
        (b'{"type":"k8s","label":5}', "field 'label' must be a string, not a number"),
        (b'{"type":"k8s","label":5,"label":"a"}', "field 'label' must be a string, not a number"),
        (b'{"type":["k8s"],"label":"a"}', "field 'type' must be a string, not an array"),
        (b'{"type":{"k8s":1},"label":"a"}', "field 'type' must be a string, not an object"),
        (b'{"type":false,"label":"a"}', "field 'type' must be a string, not true or false"),
        (b'\xef\xbb\xbf{"type":"k8s","label":"a"}', "must not begin with a byte order mark"),
        ('{"type":"k8s","label":"a"}'.encode("utf-16"), "must be UTF-8"),
        ('{"type":"k8s","label":"a"}'.encode("utf-16-le"), "must be UTF-8"),
        ('{"type":"k8s","label":"a"}'.encode("utf-32-be"), "must be UTF-8"),
        (b"[" * 60_000, "with less nesting"),
        (b'{"a":' * 10_000, "with less nesting"),
        (b'{"type":"k8s","label":"' + b"a" * 64 * 1024 + b'"}', "must be at most 65,536 bytes"),
    ],
)
def test_metadata_that_cannot_be_read_is_told_with_the_rule(document: bytes, said: str) -> None:
    assert said in metadata_error(document)


@pytest.mark.parametrize("label", ["basic_1.0", "A", "42", "a.b-c_d", "x" * 63])
def test_labels_that_kubernetes_takes_as_a_value_pass(label: str) -> None:
    check_label(label)


@pytest.mark.parametrize(
    ("label", "rule"),
    [
        ("", "must not be empty; it is ''"),
        ("x" * 64, "must be no more than 63 bytes"),
        ("a+b", "must be a valid Kubernetes label value: a valid label must be an empty string or consist of"),
        ("basic-", "must start and end with an alphanumeric character"),
        ("Größe", r"it is 'Gr\xf6\xdfe'"),
        ("a\ud800", r"it is 'a\ud800'"),
    ],
)
def test_other_labels_are_refused_with_the_rule(label: str, rule: str) -> None:
    with pytest.raises(PackageError, match=re.escape(rule)) as caught:
        check_label(label)
    assert (caught.value.file, caught.value.field) == ("metadata.json", "label")


def test_half_a_surrogate_pair_becomes_the_replacement_character() -> None:
    assert decode_metadata(rb'{"type":"k8s","label":"a\ud800"}').label == "a\N{REPLACEMENT CHARACTER}"
    assert decode_metadata(rb'{"type":"k8s","label":"\ud83d\ude00"}').label == "\N{GRINNING FACE}"


def test_an_image_is_read_with_its_reference() -> None:
    image = decode_image(json.dumps({"Name": "ghcr.io/org/cc", "DIGEST": DIGEST, "tag": 1}).encode())
    assert image == Image("ghcr.io/org/cc", DIGEST)
    assert image.reference == f"ghcr.io/org/cc@{DIGEST}"


def test_the_long_s_folds_to_s_as_in_go() -> None:
    document = f'{{"name":"cc","dige\N{LATIN SMALL LETTER LONG S}t":"{DIGEST}"}}'
    assert decode_image(document.encode()).digest == DIGEST


@pytest.mark.parametrize(
    ("document", "field", "said"),
    [
        ({"digest": DIGEST}, "name", "is missing or empty; the file must contain 'name' and 'digest'"),
        ({"name": "cc"}, "digest", "is missing or empty; the file must contain 'name' and 'digest'"),
        ({"name": "", "digest": DIGEST}, "name", "is missing or empty"),
        ({"name": "cc", "digest": 1}, "digest", "must be a string, not a number"),
        ({"name": "cc:1", "digest": DIGEST}, "name", "must not contain a tag"),
        ({"name": f"cc@{DIGEST}", "digest": DIGEST}, "name", "must not contain a digest"),
        ({"name": "cc", "digest": "latest"}, "digest", "must begin with 'sha256:' or 'sha512:'"),
        ({"name": "x" * 300, "digest": DIGEST}, "name", "and 220 more characters"),
    ],
)
def test_an_image_that_cannot_be_used_is_told_with_field_and_rule(
    document: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(PackageError, match=re.escape(said)) as caught:
        decode_image(json.dumps(document).encode())
    assert (caught.value.file, caught.value.field) == ("image.json", field)


@pytest.mark.parametrize(
    ("name", "digest", "tag"),
    [
        ("ghcr.io/org/cc", DIGEST, ""),
        ("ghcr.io/org/cc:1.0", DIGEST, "1.0"),
        ("localhost:5000/cc", "sha384:" + "a" * 96, ""),
        ("cc:latest", "sha512:" + "a" * 128, "latest"),
    ],
)
def test_what_a_build_has_left_may_be_all_that_kubernetes_runs(name: str, digest: str, tag: str) -> None:
    image = decode_built_image(json.dumps({"name": name, "digest": digest}).encode())
    assert (image.reference, image.tag) == (f"{name}@{digest}", tag)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"name": "cc:1"}, "field 'digest' is missing or empty"),
        ({"name": "cc:1", "digest": DIGEST.upper()}, "field 'digest' must begin with"),
        ({"name": "cc:1", "digest": "sha256:" + "A" * 64}, "field 'digest' must be lower case"),
        ({"name": "CC:1", "digest": DIGEST}, "field 'name' must be lower case"),
        ({"name": "cc:", "digest": DIGEST}, "field 'name' must have a tag that is at most 128"),
        ({"name": f"cc@{DIGEST}", "digest": DIGEST}, "field 'name' must not contain a digest"),
    ],
)
def test_what_kubernetes_would_not_run_is_refused_all_the_same(document: dict[str, Any], said: str) -> None:
    """Kubernetes says InvalidImageName to upper-case letters, so it never ran under the Go builder either."""
    with pytest.raises(PackageError, match=re.escape(said)):
        decode_built_image(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("address", "reachable"),
    [
        ("peer0.org1.example.com:7052", True),
        ("10.0.0.1:7052", True),
        ("[2001:db8::1]:7052", True),
        ("localhost.example.com:7052", True),
        ("0.0.0.0:7052", False),
        ("127.0.0.1:7052", False),
        ("127.1.2.3:7052", False),
        ("[::]:7052", False),
        ("[::1]:7052", False),
        ("[::ffff:127.0.0.1]:7052", False),
        ("localhost:7052", False),
        ("peer.localhost:7052", False),
        (":7052", False),
    ],
)
def test_an_address_that_leads_each_machine_to_itself_is_known(address: str, reachable: bool) -> None:
    assert Chaincode("a:b", address, "", "", "", "Org1MSP").reachable is reachable


def test_chaincode_json_is_read() -> None:
    chaincode = decode_chaincode(json.dumps(CHAINCODE).encode())
    assert chaincode == Chaincode(**CHAINCODE)
    assert chaincode.tls


def test_a_peer_without_tls_leaves_all_three_pem_texts_empty() -> None:
    document = CHAINCODE | {"client_cert": "", "client_key": "", "root_cert": None}
    chaincode = decode_chaincode(json.dumps(document).encode())
    assert not chaincode.tls
    assert chaincode.root_cert == ""


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"chaincode_id": ""}, "chaincode_id", "must not be missing or empty"),
        ({"peer_address": None}, "peer_address", "must not be missing or empty"),
        ({"mspid": ""}, "mspid", "must not be missing or empty"),
        ({"mspid": "a\0b"}, "mspid", "must have printable characters only"),
        ({"chaincode_id": "basic"}, "chaincode_id", "must be the package's label, a colon and 64 hexadecimal digits"),
        ({"chaincode_id": f":{HASH}"}, "chaincode_id", "must be the package's label"),
        ({"chaincode_id": "basic:"}, "chaincode_id", "must be the package's label"),
        ({"chaincode_id": "basic:xyz"}, "chaincode_id", "must be the package's label"),
        ({"chaincode_id": f"a:b:{HASH}"}, "chaincode_id", "valid Kubernetes label value"),
        ({"client_cert": ""}, "client_cert", "must not be missing or empty where another"),
        ({"client_key": None}, "client_key", "must not be missing or empty where another"),
        ({"root_cert": ""}, "root_cert", "must not be missing or empty where another"),
        ({"client_key": ["-----SECRET-----"]}, "client_key", "must be a string, not an array"),
    ],
)
def test_a_launch_that_cannot_be_is_told_with_field_and_rule(changed: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(PackageError, match=re.escape(said)) as caught:
        decode_chaincode(json.dumps(CHAINCODE | changed).encode())
    assert (caught.value.file, caught.value.field) == ("chaincode.json", field)
    assert "SECRET" not in everything_about(caught.value)


@pytest.mark.parametrize("cut", [1, 30, 120, 200, 260])
def test_no_error_about_a_broken_chaincode_json_holds_any_of_it(cut: int) -> None:
    document = json.dumps(CHAINCODE).encode()
    for broken in (document[:cut], document[:cut] + b"\x01" + document[cut:], document + b"x", b"[" + document + b"]"):
        with pytest.raises(PackageError) as caught:
            decode_chaincode(broken)
        assert "SECRET" not in everything_about(caught.value)
        assert caught.value.__context__ is None


def test_a_chaincode_shows_no_key_where_it_is_printed() -> None:
    chaincode = Chaincode(**CHAINCODE)
    for shown in (repr(chaincode), str(chaincode), f"{chaincode}", repr([chaincode])):
        assert "-----" not in shown
        assert "basic_1.0" in shown


def everything_about(error: BaseException) -> str:
    """What a log could hold of an error, its causes and their attributes included."""
    told = []
    chain: BaseException | None = error
    while chain is not None:
        told += ["".join(traceback.format_exception(chain)), repr(chain), repr(vars(chain)), repr(chain.args)]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(told)


PATHS = [
    ("d", "META-INF"),
    ("d", "META-INF/statedb"),
    ("f", "META-INF/statedb/couchdb/indexes/indexOwner.json"),
    ("f", "META-INF/statedb/couchdb/indexes/.json"),
    ("f", "META-INF/statedb/couchdb/indexes/.hidden.json"),
    ("f", "META-INF/statedb/couchdb/indexes/UPPER.JSON"),
    ("f", "META-INF/statedb/couchdb/indexes/test.txt"),
    ("d", "META-INF/statedb/couchdb/indexes/dir.json"),
    ("o", "META-INF/statedb/couchdb/indexes/link.json"),
    ("f", "META-INF/statedb/couchdb/indexes/below/indexOwner.json"),
    ("f", "META-INF/statedb/couchdb/collections/assets/indexes/a.json"),
    ("f", "META-INF/statedb/couchdb/collections/assets/indexes/below/a.json"),
    ("f", "META-INF/statedb/couchdb/collections/assets/a.json"),
    ("f", "META-INF/statedb/couchdb/collections/a.json"),
    ("f", "META-INF/statedb/couchdb/collections/x/y/indexes/a.json"),
    ("f", "META-INF/statedb/couchdb/collectionsd/assets/indexes/a.json"),
    ("f", "META-INF/statedb/couchdb/indexed/a.json"),
    ("f", "META-INF/statedb/couchdb/root.json"),
    ("f", "META-INF/statedb/leveldb/indexes/a.json"),
    ("f", "META-INF/test/test.txt"),
    ("f", "META-INFORMATION/statedb/couchdb/indexes/a.json"),
    ("f", "image.json"),
]


def test_release_hands_over_the_indexes_and_nothing_else() -> None:
    released = [
        "statedb/couchdb/collections/assets/indexes/a.json",
        "statedb/couchdb/indexes/.hidden.json",
        "statedb/couchdb/indexes/.json",
        "statedb/couchdb/indexes/indexOwner.json",
    ]
    assert files_to_release(PATHS) == [(f"META-INF/{path}", path) for path in released]


def test_build_copies_every_regular_file_below_meta_inf() -> None:
    expected = sorted(path for kind, path in PATHS if kind == "f" and path.startswith("META-INF/"))
    assert files_to_build(PATHS) == expected
    assert files_to_build([]) == []


@pytest.mark.parametrize(
    "path",
    ["/META-INF/a", "META-INF/../a", "..", "META-INF//a", "META-INF/a/", "META-INF/./a", "META-INF/a\0.json", ""],
)
def test_a_path_that_leads_outside_is_refused(path: str) -> None:
    for decide in (files_to_build, files_to_release):
        with pytest.raises(PackageError, match="META-INF holds the path"):
            decide([("f", path)])


def test_meta_inf_must_be_a_directory() -> None:
    with pytest.raises(PackageError, match="META-INF must be a directory"):
        files_to_build([("f", "META-INF")])


names = st.sampled_from(["META-INF", "statedb", "couchdb", "indexes", "collections", "a", "b.json", ".json", ".."])
trees = st.lists(st.tuples(st.sampled_from("fdo"), st.lists(names, min_size=1, max_size=8).map("/".join)), max_size=30)


@deterministic
@given(trees)
def test_whatever_the_tree_what_is_copied_was_listed_as_a_file_and_stays_inside(tree: list[tuple[str, str]]) -> None:
    listed = {path for kind, path in tree if kind == "f"}
    try:
        built, released = files_to_build(tree), files_to_release(tree)
    except PackageError:
        assert any(".." in path.split("/") or (path == "META-INF" and kind != "d") for kind, path in tree)
        return
    assert set(built) <= listed
    assert {source for source, _ in released} <= set(built)
    for source, destination in released:
        assert source == f"META-INF/{destination}"
        assert re.fullmatch(r"statedb/couchdb/(collections/[^/]+/)?indexes/[^/]*\.json", destination)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from(["type", "Type", "label", "LABEL", "x", "name", "digest"]), json_values)


@deterministic
@given(st.one_of(st.binary(), documents.map(lambda value: json.dumps(value).encode())))
def test_no_document_raises_anything_but_a_package_error_of_one_line(document: bytes) -> None:
    for decode in (decode_metadata, decode_image, decode_chaincode):
        said = ""
        try:
            decode(document)
        except PackageError as error:
            said = str(error)
        assert said.isprintable()
