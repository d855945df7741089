"""The virtual time itself."""

import anyio
import pytest

from tests.simulation.loop import Simulation, Stuck


def test_time_goes_by_without_waiting() -> None:
    sim = Simulation()
    seen: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        seen.append((name, round(anyio.current_time(), 3)))

    sim.spawn(sleeper, "long", 86400.0)
    sim.spawn(sleeper, "short", 0.5)
    sim.after(60, seen.append, ("timer", 60.0))
    sim.advance(100_000)
    assert seen == [("short", 0.5), ("timer", 60.0), ("long", 86400.0)]
    sim.close()


def test_scopes_of_anyio_hold() -> None:
    sim = Simulation()

    async def limited() -> float:
        with anyio.move_on_after(7):
            await anyio.sleep_forever()
        return anyio.current_time()

    assert sim.run(limited()) == pytest.approx(7)
    sim.close()


def test_waiting_for_what_never_comes_is_an_error() -> None:
    sim = Simulation()
    with pytest.raises(Stuck):
        sim.run(anyio.sleep_forever())
    sim.close()


def test_what_nobody_catches_is_kept() -> None:
    sim = Simulation()

    async def breaks() -> None:
        raise KeyError("here")

    sim.spawn(breaks)
    sim.advance(1)
    assert [str(error) for error in sim.errors] == ["'here'"]
    assert sim.tasks == []
    sim.close()
