"""Writes docs/reference/command-line.md from the commands themselves.

python docs/render_command_line.py
"""

import re
import sys
from pathlib import Path

import click

from k8s_builder.main import main as k8s_builder
from k8s_builderd.__main__ import main as k8s_builderd

PAGE = Path(__file__).parent / "reference" / "command-line.md"
HEAD = """# Command line

<!-- Written by docs/render_command_line.py: change the commands, not this page. -->

Both commands are in the daemon's image and in the Python package. The exit code is 0, or 1 with the reason on standard
error; 2 if the command line itself is wrong.
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render())
    sys.stdout.write(f"{PAGE}\n")


def render() -> str:
    """Return the page: what each command is for, and its arguments and options."""
    return "\n".join([HEAD, *_sections("k8s-builderd", k8s_builderd, 2), *_sections("k8s-builder", k8s_builder, 2)])


def _sections(name: str, command: click.Command, level: int) -> list[str]:
    context = click.Context(command, info_name=name)
    parts = [f"{'#' * level} {name}\n"]
    arguments = [part for part in command.collect_usage_pieces(context) if part != "[OPTIONS]"]
    parts.append(f"    {' '.join([name, *arguments])}\n")
    parts.append(_prose(command.help or "") + "\n")
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    if rows := [row for option in options if (row := option.get_help_record(context)) and "--help" not in row[0]]:
        parts.append("| option | |\n| --- | --- |")
        parts += [f"| `{names}` | {_cell(words)} |" for names, words in rows]
        parts.append("")
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            parts += _sections(f"{name} {each}", found, level + 1)
    return parts


def _prose(words: str) -> str:
    """Return a help text without click's marks, its paragraphs on one line each."""
    paragraphs = re.split(r"\n\s*\n", words.split("\f")[0].strip())
    return "\n\n".join(" ".join(paragraph.replace("\b", "").split()) for paragraph in paragraphs)


def _cell(words: str) -> str:
    return " ".join(words.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
