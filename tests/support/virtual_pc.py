"""A machine as in tests/support/machine.py, on trio's clock and without threads: nothing waits for real."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.local import World
from mirrorfs.errors import DiskFull
from mirrorfs.ports import Store
from tests.sim.world import InlineOffload
from tests.support.machine import Machine
from tests.support.trio_clock import TrioClock


class FillingDisk(LocalDisk):
    """A disk that is full for some files that are written whole."""

    full_for = ""
    """A part of their paths; empty: for none."""
    refused = 0

    def write_whole(self, path: str, data: bytes) -> None:
        if self.full_for and self.full_for in path:
            self.refused += 1
            raise DiskFull("The local disk is full.")
        super().write_whole(path, data)


class VirtualPc(Machine):
    """For tests that take `autojump_clock`."""

    def __init__(self, root: Path, stores: Sequence[Store], *, seed: int = 3) -> None:
        """`seed`: of its entropy; PCs that share stores need different ones."""
        super().__init__(root, stores)
        self.disk = FillingDisk(root)
        self.clock = TrioClock()
        draw = random.Random(seed)
        self.world = World(self.disk, self.clock, draw.randbytes, InlineOffload(draw))
