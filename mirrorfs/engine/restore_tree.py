"""Making the tree of a restore: names first, and owners, permissions and times when the contents are in.

The engine walks the index; what touches the disk is behind `RestoreTree`, in batches, off the loop.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol

from mirrorfs.engine.tree_walk import DEPTH_MAX, entries
from mirrorfs.errors import DamagedError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index, Offload

NAMES_PER_BATCH = 1000
INODES_PER_BATCH = 500

NewName = tuple[int, bytes, InodeRow]
"""(inode of the directory, name, the inode itself)"""
Finished = tuple[InodeRow, Sequence[tuple[bytes, bytes]]]
"""An inode with its extended attributes."""


class RestoreTree(Protocol):
    """An empty directory that becomes the root of the restored tree. Methods block and are thread-safe.

    Nothing that is not made here is ever followed or written to. What cannot be made or set is noted and
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

    def make(self, names: Sequence[NewName]) -> list[int]:
        """Make names, parents before children, without contents and with private permissions.

        A second name of an inode becomes a hard link. Returns the inodes that are not there afterwards.
        """

    def made(self) -> None:
        """All names are there: `write` and `path_of` may be called from now on."""

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """Write into a file that `make` made."""

    def finish(self, inodes: Sequence[Finished]) -> None:
        """Set owner, extended attributes, permissions and times. Directories after all they hold."""

    def path_of(self, inode: int) -> str:
        """The first name of an inode below the root, for a report; undecodable bytes are escaped."""

    def sync(self) -> None:
        """Make all of it durable."""


@dataclass(slots=True)
class _Directory:
    """A directory on the walk."""

    row: InodeRow
    name: bytes
    above: _Directory | None
    path: str
    depth: int
    selected: bool
    made: bool


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
        tree: RestoreTree,
        offload: Offload,
        *,
        globs: Sequence[str] = (),
        on_names: Callable[[int], None] = lambda count: None,
    ) -> None:
        """
        Args:
            globs: shell patterns for whole paths below the root, in which `*` matches '/' as well. A
                directory that matches means all it holds. None means everything.
            on_names: hears of the number of names made so far.
        """
        self._index = index
        self._tree = tree
        self._offload = offload
        self._globs = [glob.strip("/") for glob in globs]
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
        root = self._index.get_inode(ROOT_INODE)
        if root is not None:
            await self._walk(root)
            await self._flush()
        self._tree.made()
        failed = self._failed
        files = array("q", sorted(inode for inode in self._files if inode not in failed))
        directories = array("q", (inode for inode in self._directories if inode not in failed))
        return MadeTree(files, directories, self._regular, self._names - len(failed))

    async def _walk(self, root: InodeRow) -> None:
        everything = not self._globs
        pending = [_Directory(root, b"", None, "", 0, everything, True)]
        while pending:
            directory = pending.pop()
            if directory.depth > DEPTH_MAX:
                raise DamagedError(
                    "The volume's directories are nested without an end; restore an older moment."
                )
            for name, row in entries(self._index, directory.row.inode):
                text = name.decode("utf-8", "surrogateescape")
                path = f"{directory.path}/{text}" if directory.path else text
                selected = directory.selected or self._matches(path)
                if stat.S_ISDIR(row.mode):
                    below = _Directory(row, name, directory, path, directory.depth + 1, selected, False)
                    if selected:
                        self._require(below)
                    pending.append(below)
                elif selected:
                    self._require(directory)
                    self._add(directory.row.inode, name, row)
                if len(self._batch) >= NAMES_PER_BATCH:
                    await self._flush()

    def _matches(self, path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in self._globs)

    def _require(self, directory: _Directory) -> None:
        """Directories on the way to what was asked for are made when the first such name is met."""
        missing = []
        at: _Directory | None = directory
        while at is not None and not at.made:
            missing.append(at)
            at = at.above
        for one in reversed(missing):
            assert one.above is not None
            self._batch.append((one.above.row.inode, one.name, one.row))
            self._directories.append(one.row.inode)
            one.made = True

    def _add(self, directory: int, name: bytes, row: InodeRow) -> None:
        self._batch.append((directory, name, row))
        if row.nlink > 1:
            if row.inode in self._linked:
                return
            self._linked.add(row.inode)
        self._files.append(row.inode)
        self._regular += stat.S_ISREG(row.mode)

    async def _flush(self) -> None:
        batch, self._batch = self._batch, []
        failed = await self._offload.run(lambda: self._tree.make(batch))
        self._failed.update(failed)
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
        done = 0
        for inodes in (made.files, made.directories[::-1]):
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
