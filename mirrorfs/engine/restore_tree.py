"""Making the tree of a restore: names first, and owners, permissions and times when the contents are in.

The engine walks the index; what touches the disk is behind `RestoreTree`, in batches, off the loop.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mirrorfs.engine.restore_select import Selection
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index, Offload

NAMES_PER_BATCH = 1000
INODES_PER_BATCH = 500

NewName = tuple[int, bytes, InodeRow, bool]
"""(inode of the directory, name, the inode itself, whether it has extended attributes)"""
Finished = tuple[InodeRow, Sequence[tuple[bytes, bytes]]]
"""An inode with its extended attributes."""


class NameTree(Protocol):
    """What takes the names of a restore. Methods block and are thread-safe."""

    def make(self, names: Sequence[NewName]) -> list[int]:
        """Make names, parents before children, without contents and with private permissions.

        Files may be made as late as their contents come. A second name of an inode becomes a hard link.
        Returns the inodes that are not to be filled: they cannot be made, or what is there stays.
        """

    def made(self) -> None:
        """All names are there: `write` and `path_of` may be called from now on."""


class RestoreTree(NameTree, Protocol):
    """A directory that becomes the root of the restored tree. Methods block and are thread-safe.

    Nothing that is not made here is ever followed or written to; of what is there before, only files are
    replaced, if the tree was told so. What cannot be made or set is noted and
    passed over; DiskFull and DiskError end the restore.
    """

    @property
    def refused(self) -> Sequence[tuple[str, str]]:
        """(path, reason) of names that could not be made; only so many of the first."""

    @property
    def refused_count(self) -> int:
        """How many names could not be made."""

    @property
    def left_out(self) -> Mapping[str, int]:
        """What kinds of things were not restored, in words for people, and how many of each."""

    @property
    def kept_count(self) -> int:
        """How many names were there before and stay."""

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """Write into a file that `make` made."""

    def give_up(self, inodes: Sequence[int]) -> None:
        """Contents of these files are missing: what they were to replace stays; new ones are incomplete."""

    def unfinished(self, inodes: array[int]) -> array[int]:
        """Those of some inodes, directories not among them, for which `finish` has anything to do."""

    def finish(self, inodes: Sequence[Finished]) -> None:
        """Set owner, extended attributes, permissions and times. Directories after all they hold."""

    def path_of(self, inode: int) -> str:
        """The first name of an inode below the root, for a report; undecodable bytes are escaped."""

    def sync(self) -> None:
        """Make all of it durable."""


@dataclass(frozen=True, slots=True)
class MadeTree:
    """What of the volume is there to be filled and finished."""

    files: array[int]
    """Inodes of everything but directories, once each, sorted."""
    directories: array[int]
    """Inodes of directories, parents before children."""
    regular_count: int
    names: int


class TreeMaker:
    """Walks an index and makes the names that were asked for."""

    def __init__(
        self,
        index: Index,
        tree: NameTree,
        offload: Offload,
        *,
        globs: Sequence[str] = (),
        on_names: Callable[[int], None] = lambda count: None,
    ) -> None:
        """
        Args:
            globs: as of `Selection`.
            on_names: hears of the number of names made so far.
        """
        self._index = index
        self._tree = tree
        self._offload = offload
        self._selection = Selection(index, globs)
        self._on_names = on_names
        self._batch: list[NewName] = []
        self._files = array("q")
        self._directories = array("q", [ROOT_INODE])
        self._linked: set[int] = set()
        self._failed: set[int] = set()
        self._regular = 0
        self._names = 0

    async def run(self) -> MadeTree:
        """Make everything. Raises: DamagedError: the tree is not one. DiskError, DiskFull."""
        for parent, name, row, _ in self._selection:
            self._add(parent, name, row)
            if len(self._batch) >= NAMES_PER_BATCH:
                await self._flush()
        await self._flush()
        self._tree.made()
        failed = self._failed
        files = array("q", sorted(inode for inode in self._files if inode not in failed))
        directories = array("q", (inode for inode in self._directories if inode not in failed))
        return MadeTree(files, directories, self._regular, self._names - len(failed))

    def _add(self, directory: int, name: bytes, row: InodeRow) -> None:
        inode = row.inode
        self._batch.append((directory, name, row, bool(self._index.list_xattrs(inode))))
        if stat.S_ISDIR(row.mode):
            self._directories.append(inode)
            return
        if row.nlink > 1:
            if inode in self._linked:
                return
            self._linked.add(inode)
        self._files.append(inode)
        self._regular += stat.S_ISREG(row.mode)

    async def _flush(self) -> None:
        batch, self._batch = self._batch, []
        failed = set(await self._offload.run(lambda: self._tree.make(batch))) - self._failed
        if failed:
            self._failed |= failed
            self._regular -= len(
                {row.inode for _, _, row, _ in batch if row.inode in failed and stat.S_ISREG(row.mode)}
            )
        self._names += len(batch)
        self._on_names(self._names)


class TreeFinisher:
    """Sets what may be set only when all contents are in: writing changes times, and needs permissions."""

    def __init__(self, index: Index, tree: RestoreTree, offload: Offload) -> None:
        self._index = index
        self._tree = tree
        self._offload = offload

    async def run(self, made: MadeTree, *, on_done: Callable[[int], None]) -> None:
        """Files first, then directories from the bottom up. Raises: DiskError, DiskFull."""
        files = await self._offload.run(lambda: self._tree.unfinished(made.files))
        done = len(made.files) - len(files)
        for inodes in (files, made.directories[::-1]):
            for start in range(0, len(inodes), INODES_PER_BATCH):
                batch = [
                    item for inode in inodes[start : start + INODES_PER_BATCH] for item in self._item(inode)
                ]
                await self._finish(batch)
                done += len(batch)
                on_done(done)

    async def _finish(self, batch: list[Finished]) -> None:
        await self._offload.run(lambda: self._tree.finish(batch))

    def _item(self, inode: int) -> Iterator[Finished]:
        index = self._index
        row = index.get_inode(inode)
        if row is None:
            # Only the root of a volume without any commit.
            return
        names = index.list_xattrs(inode)
        yield row, [(name, index.get_xattr(inode, name) or b"") for name in names]
