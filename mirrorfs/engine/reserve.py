"""Space kept back on the local disk, for the journal and the index of a disk that ran full.

A journal frame that finds no space is taken back and tried again. A COMMIT of the index cannot be: so the
index gets the space before, where it might find none.
"""

from __future__ import annotations

from typing import Final

from mirrorfs.engine.space import RESERVE_PATH, SpaceGuard
from mirrorfs.engine.state import MIB
from mirrorfs.ports import Disk, Offload

RESERVE_BYTES: Final = 16 * MIB
INDEX_BYTES: Final = 8 * MIB
"""So much a COMMIT of the index may take."""


class Reserve:
    """A file that only takes space. Used by the writer task alone."""

    def __init__(self, disk: Disk, space: SpaceGuard, offload: Offload) -> None:
        self._disk = disk
        self._space = space
        self._offload = offload
        self._there = False
        self._is_spent = False

    async def restore(self) -> None:
        """Keep the space back again, while there is plenty. Raises DiskError."""
        self._disk.remove(RESERVE_PATH)
        self._there = self._is_spent = False
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
            self._there, self._is_spent = False, True

    def spend_for_index(self) -> None:
        """Give the space to the index, if it may need it for a COMMIT. Raises DiskError."""
        if self._there:
            self._space.look_again()
            if self._space.free_bytes() < INDEX_BYTES:
                self.spend()
                self._space.look_again()

    async def restore_spent(self) -> None:
        """The same as `restore`, of what was spent, once there is plenty. Raises DiskError."""
        if self._is_spent and not self._space.soft(extra_bytes=RESERVE_BYTES):
            await self.restore()
