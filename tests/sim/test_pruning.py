"""Seeds of the simulation of pruning that run with every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.pruning import PruningSimulation

# Stores that fail are said to; the simulation judges what comes of it.
pytestmark = pytest.mark.expects_warnings(".*")


@pytest.mark.parametrize("first", (0, 3))
def test_nothing_that_is_kept_is_lost(first: int, fast_directory: Path) -> None:
    collected = merged = deleted = 0
    for seed in range(first, first + 3):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        simulation = PruningSimulation(seed, directory)
        simulation.run()
        collected += simulation.collected
        merged += simulation.merged
        deleted += simulation.deleted
    assert collected and merged and deleted
