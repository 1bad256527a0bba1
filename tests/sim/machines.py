"""Machines of one simulated practice: each has a disk, an index and a clock of its own, and a past."""

from __future__ import annotations

import random
from pathlib import Path

from tests.sim.disk import SimulatedDisk
from tests.sim.index import SimulatedIndexFiles
from tests.sim.lines import Line
from tests.sim.world import SimulatedClock
from tests.support.volumes import KEYS

HOUR_NS = 3600 * 10**9


class SkewedClock:
    """ports.Clock of one machine: hours off, and set anew now and then."""

    def __init__(self, base: SimulatedClock, rng: random.Random) -> None:
        self._base = base
        self._offset_ns = rng.choice((0, 0, rng.randrange(-30 * HOUR_NS, 30 * HOUR_NS)))
        self._suspended_ns = 0

    def now_ns(self) -> int:
        return self._base.now_ns() + self._offset_ns + self._suspended_ns

    def boottime_ns(self) -> int:
        return self._base.boottime_ns() + self._suspended_ns

    def set(self, rng: random.Random) -> None:
        """Somebody sets the clock, or the time service does."""
        self._offset_ns += rng.choice((-1, 1)) * rng.randrange(1, 5 * HOUR_NS)

    def suspend(self, rng: random.Random) -> None:
        """The machine slept: no task ran, both clocks went on."""
        self._suspended_ns += rng.randrange(1, 2 * HOUR_NS)


class Machine:
    """One PC. What it was told is safe is what its user counts on."""

    def __init__(self, rng: random.Random, base: SimulatedClock, directory: Path, number: int) -> None:
        self.name = f"pc{number}"
        self.disk = SimulatedDisk(random.Random(rng.getrandbits(64)))
        self.files = SimulatedIndexFiles(self.disk, directory / f"index{number}.db", KEYS.index_key)
        self.clock = SkewedClock(base, rng)
        self.line: Line | None = None
        """The states of its last mount; None before the first."""
        self.synced = -1
        """Id of the last state of that line that was synced here."""
        self.may_be_refused = False
        """Another machine was mounted since, or was when this one could not see it."""

    def stop(self) -> None:
        """The process ends now, however."""
        self.files.stop()

    def restart(self, rng: random.Random, *, cut: bool) -> None:
        """After a crash of the machine (cut) or of the process."""
        self.files.restart(rng if cut else None)
        if cut:
            self.disk.power_cut(rng)
        else:
            self.disk.restart()
