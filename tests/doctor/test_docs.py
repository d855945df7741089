"""docs/doctor.md has every check, and every line and remedy that the doctor prints; and no other."""

import ast
import re
from collections.abc import Iterator

from k8s_builder.commands import doctor
from k8s_builder.doctor.result import Status, ok
from tests.test_docs import ROOT, called, code, docstrings, literals, read, rows, section

SOURCES = [ROOT / "daemon/k8s_builder/commands/doctor.py", *(ROOT / "daemon/k8s_builder/doctor").glob("*.py")]
TREES = [ast.parse(path.read_text()) for path in SOURCES]
FINDINGS = {"ok", "warning", "failure", "skipped", "_surely"}
TABLES = (
    "Socket and daemon",
    "The API server",
    "The namespace of the Jobs",
    "The client programs",
    "The peer's core.yaml",
)


STABLE = {
    "settings",
    "socket",
    "daemon",
    "version",
    "ready",
    "daemon-namespace",
    "api",
    "clock",
    "identity",
    "permission",
    "namespace",
    "service-account",
    "pull-secret",
    "node-role",
    "job",
    "secret",
    "pod",
    "pod-security",
    "quota",
    "leftovers",
    "programs",
    "programs-version",
    "python",
    "call",
    "go-builder",
    "core-yaml",
    "peer-environment",
    "builder",
    "propagate",
    "order",
    "vm-endpoint",
    "address",
    "listen-address",
    "startup-timeout",
    "install-timeout",
}
"""What scripts look for: a name may be added, and none goes."""


def checks() -> set[str]:
    """Return the names of all checks, which stand in the code as the first text of a finding."""
    found = set()
    for tree in TREES:
        for call in called(tree, FINDINGS):
            names = [it.value for it in call.args if isinstance(it, ast.Constant) and isinstance(it.value, str)]
            found |= {name for name in names[:1] if re.fullmatch("[a-z-]+", name)}
    return found


def test_every_check_has_a_row_and_every_row_a_check() -> None:
    documented = {name for table in TABLES for row in rows(section("doctor.md", table)) for name in code(row[0])}
    # Those that are given their name by their caller.
    assert documented == checks() | {"job", "secret", "pod", "pod-security", "builder", "go-builder"}
    assert documented >= STABLE
    assert max(map(len, documented)) <= doctor._CHECK


LOOKED_FOR = {"does not support dry run", "the host of"}
"""What is looked for in others' words, and what stands in a line that is ok."""


def sentences() -> Iterator[str]:
    """Return what is said of everything that is not ok, cut where something is put in."""
    for tree in TREES:
        silent = docstrings(tree)
        for call in called(tree, {"ok", "option", "compile", "fullmatch"}):
            silent |= {id(node) for node in ast.walk(call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and any(isinstance(it, ast.In) for it in node.ops):  # others' words
                silent.add(id(node.left))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in silent:
                yield from (text.strip(" .,;:()`'") for part in literals(node) for text in part.split(". "))


def test_every_line_and_every_remedy_is_in_the_page() -> None:
    page = read("doctor.md").replace("`", "")
    said = {text.replace("`", "") for text in sentences()}
    assert {text for text in said if len(text.split()) > 2 and text not in page} == LOOKED_FOR


def test_what_the_page_quotes_is_said() -> None:
    said = "\n".join(text for tree in TREES for text in literals(tree)).replace("`", "")
    quoted = {
        part.strip(" .,;:()")
        for table in TABLES
        for row in rows(section("doctor.md", table))
        for cell in row[1:]
        for line in code(cell)
        for part in re.split("…|: |^chaincode.externalBuilders |^/opt/k8s-builder ", line)
    }
    assert [part for part in sorted(quoted) if len(part.split()) > 2 and part not in said] == []


def test_the_json_document_is_what_the_page_says() -> None:
    fields, results = section("doctor.md", "For scripts").split("| field of a result |")
    assert [code(row[0])[0] for row in rows(fields)] == list(doctor.document([]))
    [result] = doctor.document([ok("socket", "x")])["results"]
    assert [code(row[0])[0] for row in rows("| field of a result |" + results)] == list(result)
    assert f"| `format` | {doctor.FORMAT} |" in fields
    table = section("doctor.md", "k8s-builder doctor")
    assert [code(row[0])[0] for row in rows(table)] == list(Status)


def test_the_options_are_those_of_the_command() -> None:
    table = rows(section("doctor.md", "Where to run it"))
    documented = {word.split()[0] for row in table for word in code(row[0])}
    options = {option for parameter in doctor.doctor.params for option in parameter.opts}
    assert documented == {option for option in options if option.startswith("--")}
    [only] = [parameter for parameter in doctor.doctor.params if parameter.name == "only"]
    assert list(doctor.ROOMS) == list(getattr(only.type, "choices", ()))
