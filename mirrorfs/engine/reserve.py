"""Space kept back on the local disk, for the journal of a disk that ran full."""

from __future__ import annotations

from typing import Final

from mirrorfs.engine.space import RESERVE_PATH, SpaceGuard
from mirrorfs.engine.state import MIB
from mirrorfs.ports import Disk, Offload

RESERVE_BYTES: Final = 16 * MIB


class Reserve:
    """A file that only takes space. Used by the writer task alone."""

    def __init__(self, disk: Disk, space: SpaceGuard, offload: Offload) -> None:
        self._disk = disk
        self._space = space
        self._offload = offload
        self._there = False

    async def restore(self) -> None:
        """Keep the space back again, while there is plenty. Raises DiskError."""
        self._disk.remove(RESERVE_PATH)
        if self._space.soft(extra_bytes=RESERVE_BYTES):
            return

        def fill() -> None:
            file = self._disk.create(RESERVE_PATH)
            file.write(bytes(RESERVE_BYTES), offset=0)
            file.sync()
            file.close()

        await self._offload.run(fill)
        self._there = True

    def spend(self) -> None:
        """Give the space to the journal. Raises DiskError."""
        if self._there:
            self._disk.remove(RESERVE_PATH)
            self._there = False
