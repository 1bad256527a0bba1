"""The filesystem of a mounted volume, as fuse/ sees it: Namespace, Reader and Committer behind one face."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import dataclass

from mirrorfs.engine.committer import DIRTY_MAX, Committer
from mirrorfs.engine.namespace import Namespace
from mirrorfs.engine.reader import Reader
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import DirtyFile, VolumeState
from mirrorfs.errors import FileTooLarge, NoEntry, NoSpaceLeft
from mirrorfs.format.limits import FILE_SIZE_MAX, NAME_MAX
from mirrorfs.ports import Offload

BLOCK_SIZE = 4096
_INODES = 1 << 40


@dataclass(frozen=True, slots=True)
class Statfs:
    """What statvfs tells; blocks are of block_size bytes."""

    block_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


class FileSystem(Namespace):
    """Everything fuse/ calls. Only read, write, fsync and sync await."""

    def __init__(
        self,
        state: VolumeState,
        space: SpaceGuard,
        reader: Reader,
        committer: Committer | None,
        offload: Offload,
        *,
        removable_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            committer: None for a read-only view.
            removable_bytes: what the cache would give up for new data.
        """
        super().__init__(state, space)
        self._reader = reader
        self._committer = committer
        self._offload = offload
        self._removable_bytes = removable_bytes

    @property
    def read_only(self) -> bool:
        """Whether every change is refused."""
        return self._state.read_only

    @property
    def fatal(self) -> str | None:
        """Why writing stopped for good, if it did."""
        return self._state.fatal

    def is_working(self) -> bool:
        """Whether threads are at work for the volume."""
        return self._offload.is_working()

    def has_xattrs(self) -> bool:
        """Whether any inode may have extended attributes."""
        return self._state.index.count_xattrs() > 0

    def statfs(self) -> Statfs:
        """Free space is what the local disk takes now, where every byte written lands first.

        That is what is free there, and what the cache holds of segments that are on every store.
        """
        inodes, allocated = self._state.index.totals()
        there = self._space.free_bytes() + self._removable_bytes()
        free = max(there - self._space.soft_bytes - self._state.dirty_bytes, 0) // BLOCK_SIZE
        used = (allocated + self._state.dirty_bytes + BLOCK_SIZE - 1) // BLOCK_SIZE
        return Statfs(BLOCK_SIZE, used + free, free, free, _INODES, _INODES - inodes, NAME_MAX)

    # --- open files --------------------------------------------------------------------------

    def opened(self, inode: int, *, writable: bool) -> None:
        """A handle was opened. Raises ReadOnlyVolume, WritesStopped, NoSpaceLeft for a writable one."""
        if writable:
            self._check_growth()
            self._state.writers[inode] = self._state.writers.get(inode, 0) + 1

    def released(self, inode: int, *, writable: bool) -> None:
        """A handle was closed. After a truncate the new contents go with the next journal frame."""
        if not writable:
            return
        count = self._state.writers.get(inode, 0) - 1
        if count > 0:
            self._state.writers[inode] = count
            return
        self._state.writers.pop(inode, None)
        if inode in self._state.truncated:
            self._state.truncated.discard(inode)
            if inode in self._state.dirty:
                self._state.named.add(inode)

    def forgotten(self, inode: int) -> None:
        """Neither kernel nor handle refers to the inode any more."""
        self.forget(inode)

    # --- data --------------------------------------------------------------------------------

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """Bytes of a file, short at its end, zeros in holes. Raises ReadFailed."""
        data = await self._reader.read(inode, offset, size)
        if not offset:
            self._state.sense.saw(inode, data)
        return data

    async def write(self, inode: int, offset: int, data: bytes) -> int:
        """Take bytes into memory; they are in the local log after the next commit or fsync.

        Waits only while too much is in memory. Raises NoSpaceLeft, WritesStopped, ReadOnlyVolume.
        """
        state = self._state
        state.check_writable()
        if state.stalled or self._space.hard():
            raise NoSpaceLeft("the local disk is full")
        if offset + len(data) > FILE_SIZE_MAX:
            raise FileTooLarge("file would be too large")
        assert self._committer is not None
        if state.dirty_bytes > DIRTY_MAX:
            await self._committer.wait_for_space()
        row = state.index.get_inode(inode)
        if row is None or not stat.S_ISREG(row.mode):
            raise NoEntry("no such file")
        file = state.dirty.get(inode)
        if file is None:
            file = state.dirty[inode] = DirtyFile(
                inode, uid=row.uid, parent=state.parent_of.get(inode, -inode)
            )
        state.written_ns = state.clock.boottime_ns()
        before = file.ranges.size_bytes
        file.ranges.write(offset, data)
        state.dirty_bytes += file.ranges.size_bytes - before
        file.size = max(file.size, offset + len(data))
        self._committer.poke()
        return len(data)

    async def fsync(self, inode: int) -> None:
        """Make all records so far and this file's data durable in the local log."""
        if self._committer is None:
            return
        self._state.written_ns = self._state.clock.boottime_ns()
        if not self._committer.commit_now(inode):
            await self._committer.commit({inode})

    async def sync(self) -> None:
        """Make everything durable in the local log."""
        if self._committer is not None:
            await self._committer.commit(None)
