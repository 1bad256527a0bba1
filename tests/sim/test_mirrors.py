"""Some seeds of the simulation with two stores; `scripts/simulate --faults stores` runs more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.mirrors import MirrorSimulation

SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_seed(seed: int, fast_directory: Path) -> None:
    MirrorSimulation(seed, fast_directory).run()
