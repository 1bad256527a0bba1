"""Seeds of the simulation with two stores that run with every test; more: scripts/simulate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.mirrors import MirrorSimulation

# Stores that fail are said to; the simulation judges what comes of it.
pytestmark = pytest.mark.expects_warnings(".*")

SEEDS_PER_TEST = 5


@pytest.mark.parametrize("first", range(0, 30, SEEDS_PER_TEST))
def test_nothing_that_was_said_to_be_safe_is_lost(first: int, fast_directory: Path) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        MirrorSimulation(seed, directory).run()


def test_what_is_referred_to_again_is_not_lost_either(fast_directory: Path) -> None:
    found_bytes = 0
    for seed in range(5):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        simulation = MirrorSimulation(seed, directory, copies=0.6)
        simulation.run()
        found_bytes += simulation.found_bytes
    assert found_bytes
