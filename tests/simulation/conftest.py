"""A world for each story."""

from collections.abc import Iterator

import pytest

from tests.simulation.world import World


@pytest.fixture
def world() -> Iterator[World]:
    with World(7) as world:
        yield world
