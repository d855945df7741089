"""The command for people as a whole: what it offers, and what an installation without the lab says."""

import re

import pytest
from click.testing import CliRunner

from k8s_builder import main as command

LAB = ["demo", "embedded-cluster"]


def test_all_commands_are_offered() -> None:
    done = CliRunner().invoke(command.main, ["--help"])
    assert done.exit_code == 0
    offered = re.findall(r"^  ([a-z-]+) ", done.output.partition("Commands:")[2], re.MULTILINE)
    assert offered == sorted(offered)
    assert {"inspect", "install-client", "package", "packageid", *LAB} <= set(offered)


def test_another_word_is_no_command() -> None:
    done = CliRunner().invoke(command.main, ["pakage"])
    assert done.exit_code == 2
    assert "No such command 'pakage'" in done.output


@pytest.mark.parametrize("name", LAB)
@pytest.mark.parametrize("more", [[], ["--help"], ["--whatever", "x"]])
def test_without_the_lab_its_commands_say_where_they_are(
    monkeypatch: pytest.MonkeyPatch, name: str, more: list[str]
) -> None:
    monkeypatch.setattr(command, "_is_there", lambda package: package != "k8s_builder_lab")
    assert f"{name}  " in CliRunner().invoke(command.main, ["--help"]).output
    done = CliRunner().invoke(command.main, [name, *more])
    assert done.exit_code == 1
    told = (
        f"Error: {name} needs the package k8s_builder_lab, which is not installed: pip install 'k8s-builderd[demo]'\n"
    )
    assert done.output == told
