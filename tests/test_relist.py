"""A thousand daemons whose API server restarts: their lists come apart from each other."""

import pytest

from benchmarks.relist import DAEMONS, RESOURCES, most_on_return, requests


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_daemons_do_not_come_back_at_once(seed: int) -> None:
    """Seconds are virtual here. The first watches break together; whoever retries is spread further each time."""
    away = 20.0
    arrivals = requests(away=away, seed=seed)
    together = requests(away=away, seed=seed, jitter=False)
    returning = [count for tenth, count in arrivals.items() if tenth >= away * 10]
    assert sum(returning) >= DAEMONS * RESOURCES
    # Each watch comes once within 5 s, with a list and a watch: spread evenly 80 in 0.1 s.
    assert max(returning) == most_on_return(arrivals, away)
    assert max(returning) <= 4 * DAEMONS * RESOURCES / 50
    assert most_on_return(together, away) >= DAEMONS * RESOURCES
