"""A container's probes: how often to ask, and how many answers of one kind make a verdict.

Only `exec` is known; every other kind of probe always succeeds.
"""

from collections.abc import Awaitable, Callable, Sequence

import anyio

from k8s_builder_lab.embedded.objects import Object

Execute = Callable[[Sequence[str], float], Awaitable[tuple[bool, str]]]
"""Runs a command in the container for at most so many seconds; returns whether it succeeded and what it printed."""


async def ask(
    probe: Object, execute: Execute, failed: Callable[[str], None], decided: Callable[[bool], bool], *, first: float = 0
) -> bool:
    """Ask every `periodSeconds`, the first time after `first` seconds and the probe's own initial delay.

    :param failed: told of each failure, with what the command printed.
    :param decided: told each time that a threshold is reached, and whether by successes; says whether to go on.
    :returns: the verdict that ended it, whether good.
    """
    command: list[str] | None = (probe.get("exec") or {}).get("command")
    count, last = 0, None
    await anyio.sleep(probe.get("initialDelaySeconds", 0) + first)
    while True:
        good, printed = (True, "") if command is None else await execute(command, probe["timeoutSeconds"])
        if not good:
            failed(printed)
        count, last = count + 1 if good == last else 1, good
        if count >= probe["successThreshold" if good else "failureThreshold"] and not decided(good):
            return good
        await anyio.sleep(probe["periodSeconds"])
