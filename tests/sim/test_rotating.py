"""Seeds of the simulation with a disk that rotates; `scripts/simulate --faults rotating` runs more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.rotating import RotatingSimulation

SEEDS_PER_TEST = 5


@pytest.mark.parametrize("first", range(0, 15, SEEDS_PER_TEST))
def test_it_holds_everything_in_the_end(first: int, fast_directory: Path) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        directory = fast_directory / f"seed-{seed}"
        directory.mkdir()
        RotatingSimulation(seed, directory).run()


@pytest.mark.parametrize("seed", [236, 471])
def test_nobody_waits_for_a_disk_that_is_left_alone(seed: int, fast_directory: Path) -> None:
    # It was plugged in, and had changes of a PC of which the other stores had nothing: an unmount waited for
    # it (236); it was sent nothing before the next mount (471).
    RotatingSimulation(seed, fast_directory).run()
