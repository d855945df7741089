"""Plays at random, in virtual time, what may happen to peers, daemons and their cluster; it must always come out well.

    python -m benchmarks.simulation --seconds 600 --seed 1

Each play is some thousand virtual seconds and takes a fraction of one. What is wrong is printed with the play that
shows it, made as short as it goes. Exit code 1: something is wrong.
"""

import time
from collections import Counter
from collections.abc import Sequence
from random import Random

import click

from tests.simulation.play import Act, Play, Setting

LONGEST = 25
FEW = 5
"""Different kinds of wrong after which there is enough to do."""


def draw(random: Random, without: frozenset[str]) -> list[Act]:
    """Return a play at random; every other act is a request or some time that goes by."""
    names = [name for name in Play.names() if name not in without]
    common = ["wait", "ask", "ask_and_wait"]
    acts: list[Act] = []
    for _ in range(random.randint(3, LONGEST)):
        name = random.choice(common if random.random() < 0.5 else names)
        acts.append((name, random.randrange(100), random.randrange(100), random.randrange(100)))
    return acts


def failure(setting: Setting, seed: int, acts: Sequence[Act]) -> tuple[str, str]:
    """Play, and return what was wrong, in one line and in full; empty if nothing was."""
    play = Play(setting, seed)
    try:
        play.play(acts)
    except AssertionError as error:
        text = str(error)
        return kind(text), text
    finally:
        play.close()
    return "", ""


def kind(text: str) -> str:
    """Return a failure without what is different each time."""
    first = text.splitlines()[0].partition(" ")[2]
    words = ["#" if any(sign.isdecimal() for sign in word) else word for word in first.split()]
    return " ".join(words)[:160]


def shortened(setting: Setting, seed: int, acts: Sequence[Act], wanted: str) -> tuple[Sequence[Act], str]:
    """Leave out of a play what the failure does not need."""
    text = ""
    size = max(len(acts) // 2, 1)
    while size:
        at = 0
        while at < len(acts):
            fewer = [*acts[:at], *acts[at + size :]]
            found, full = failure(setting, seed, fewer)
            if found == wanted:
                acts, text = fewer, full
            else:
                at += size
        size //= 2
    return acts, text


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long to play.")
@click.option("--seed", default=0, show_default=True, help="The first play.")
@click.option("--without", multiple=True, help="An act that is left out.")
@click.option("--apart", is_flag=True, help="Each daemon has an instance of its own.")
@click.option("--trace/--no-trace", default=False, help="Print all that happened in the shortest play.")
def main(seconds: float, seed: int, without: tuple[str, ...], apart: bool, trace: bool) -> None:
    """Play for a while."""
    end = time.monotonic() + seconds
    plays = 0
    wrong: Counter[str] = Counter()
    while time.monotonic() < end and len(wrong) < FEW:
        random = Random(seed + plays)  # noqa: S311 - repeatable, keeps no secret
        setting, acts = Setting.draw(random, apart=apart), draw(random, frozenset(without))
        found, full = failure(setting, seed + plays, acts)
        plays += 1
        if not found:
            continue
        wrong[found] += 1
        if wrong[found] == 1:
            fewer, text = shortened(setting, seed + plays - 1, acts, found)
            shown = (text or full).splitlines()
            click.echo(f"\nWRONG in play {seed + plays - 1}: {shown[0]}")
            click.echo(f"Play({setting}, {seed + plays - 1}).play({list(fewer)})")
            if trace:
                click.echo("\n".join(shown[1:]))
    click.echo(f"\n{plays} plays, {sum(wrong.values())} of them wrong")
    for text, count in wrong.most_common():
        click.echo(f"{count:6} {text}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
