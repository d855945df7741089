"""What an API server meets when it has restarted: many daemons that list anew. A model in virtual time."""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from random import Random

from k8s_builderd.backoff import delays

DAEMONS = 1000
RESOURCES = 2
AWAY = 20.0
"""Seconds for which nothing listens."""


def requests(*, daemons: int = DAEMONS, away: float = AWAY, seed: int = 1, jitter: bool = True) -> Counter[int]:
    """Return how many requests arrive in each tenth of a second since the API server went away.

    A daemon's two watches break as it goes, and each tries again by `kube.watch`'s own delays until it is back: a list
    that is answered is followed by a watch, and that is all.

    :param jitter: False for delays that are drawn from nothing: what it would be without.
    """
    random, order = Random(seed), count()  # noqa: S311
    arrivals: Counter[int] = Counter()
    events: list[tuple[float, int, Iterator[float]]] = []
    for _ in range(daemons * RESOURCES):
        pauses = delays(0.2, 5.0, random if jitter else _Middle())
        heapq.heappush(events, (next(pauses), next(order), pauses))
    while events:
        at, _, pauses = heapq.heappop(events)
        arrivals[int(at * 10)] += 1
        if at < away:
            heapq.heappush(events, (at + next(pauses), next(order), pauses))
        else:
            arrivals[int(at * 10)] += 1  # the list is answered, the watch follows
    return arrivals


class _Middle(Random):  # noqa: S311
    def uniform(self, a: float, b: float) -> float:
        """Return the middle."""
        return (a + b) / 2


def rates(arrivals: Counter[int], seconds: Sequence[float]) -> list[tuple[float, float]]:
    """Return the requests in each second, by the second."""
    return [(second, float(sum(arrivals[int(second * 10) + tenth] for tenth in range(10)))) for second in seconds]


def most_on_return(arrivals: Counter[int], away: float = AWAY) -> int:
    """Return the most requests in a tenth of a second since the API server is back."""
    return max(number for tenth, number in arrivals.items() if tenth >= away * 10)
