"""How much of the local disk may be used: three levels, so that space never ends by surprise.

Below `soft`, what would grow the volume is refused; what the kernel has already accepted still fits.
Below `hard`, only removals, the journal and the index go on.
"""

from __future__ import annotations

from mirrorfs.engine.state import MIB
from mirrorfs.ports import Clock, Disk

SOFT_BYTES = 512 * MIB
HARD_BYTES = 128 * MIB
SOFT_SHARE = 10
"""On small disks: one part in so many of the disk."""
HARD_SHARE = 32
LOOK_EVERY_NS = 250_000_000
RESERVE_PATH = "reserve"
"""A file that only takes space: removed where the journal or a recovery would find none."""


class SpaceGuard:
    """A cached look at the free space of the disk that holds the log."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        self._disk = disk
        self._clock = clock
        self.total_bytes = disk.total_bytes()
        self.soft_bytes = min(SOFT_BYTES, self.total_bytes // SOFT_SHARE)
        self.hard_bytes = min(HARD_BYTES, self.total_bytes // HARD_SHARE)
        self._looked_ns = 0
        self._free = 0

    def free_bytes(self) -> int:
        """Free bytes, as of at most a quarter of a second ago."""
        now = self._clock.boottime_ns()
        if now - self._looked_ns >= LOOK_EVERY_NS or not self._looked_ns:
            self._free = self._disk.free_bytes()
            self._looked_ns = now
        return self._free

    def look_again(self) -> None:
        """Space was freed, or much was taken: the next look is a new one."""
        self._looked_ns = 0

    def soft(self, *, extra_bytes: int = 0) -> bool:
        """Whether less than the soft reserve would be left after writing extra_bytes more."""
        return self.free_bytes() - extra_bytes < self.soft_bytes

    def hard(self) -> bool:
        """Whether less than the hard reserve is left."""
        return self.free_bytes() < self.hard_bytes
