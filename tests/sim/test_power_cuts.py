"""Seeds of the simulation that run with every test; scripts/simulate runs as many as wanted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.simulation import Fault, Simulation

# The simulation itself judges every warning: one that no fault of the seed explains is a violation.
pytestmark = pytest.mark.expects_warnings(".*")

SEEDS_PER_TEST = 10


@pytest.mark.parametrize("first", range(0, 120, SEEDS_PER_TEST))
def test_the_prefix_rule_holds_after_kills_and_power_cuts(first: int, fast_directory: Path) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        Simulation(seed, _empty(fast_directory, seed)).run()


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.ONE_ERROR, Fault.DEAD])
def test_the_prefix_rule_holds_on_a_failing_disk(fault: Fault, fast_directory: Path) -> None:
    for seed in range(1_000_000, 1_000_000 + SEEDS_PER_TEST):
        Simulation(seed, _empty(fast_directory, seed), faults=(fault,)).run()


def _empty(parent: Path, seed: int) -> Path:
    directory = parent / f"seed-{seed}"
    directory.mkdir()
    return directory
