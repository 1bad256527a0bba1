"""What differs between the trees of two moments of one volume.

Both are walked together by names; contents are compared by their extents, for a frame never changes; of
a file that was merged that is told as a change (engine/merged_files.py knows better). A file that is the same
inode under another name was renamed. What is below a directory that only changed its name is not told again.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest

from mirrorfs.engine.tree_walk import entries, walk
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index

EXTENTS_PER_PAGE = 256


class How(StrEnum):
    """How a path differs."""

    CREATED = "created"
    DELETED = "deleted"
    CHANGED = "changed"
    """Other contents, another target of a link, or another file of the same kind."""
    RENAMED = "renamed"
    RENAMED_CHANGED = "renamed and changed"
    ATTRIBUTES = "attributes"
    """Only owner, permissions, modification time or extended attributes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not the same."""

    how: How
    path: bytes
    """Below the root: at the second moment, but for what was deleted."""
    old_path: bytes | None
    """Of what was renamed."""
    old: InodeRow | None
    new: InodeRow | None


@dataclass(frozen=True, slots=True)
class _Item:
    path: bytes
    directory: int
    row: InodeRow

    @property
    def name(self) -> tuple[int, bytes]:
        return self.directory, self.path.rpartition(b"/")[2]


class TreeDiff:
    """Compares two indexes."""

    def __init__(
        self,
        old: Index,
        new: Index,
        *,
        exact: bool = False,
        on_names: Callable[[int], None] = lambda count: None,
    ) -> None:
        """
        Args:
            exact: whether every attribute counts, all times included: for two tellings of one moment.
            on_names: hears how many names were compared so far.
        """
        self.old = old
        self.new = new
        self._exact = exact
        self._on_names = on_names
        self._found: list[Difference] = []
        self._gone: dict[int, list[_Item]] = {}
        self._come: dict[int, list[_Item]] = {}

    def run(self) -> list[Difference]:
        """All differences, in the order of paths. Raises: DamagedError: an index is no tree."""
        count = 0
        pending = [(ROOT_INODE, b"")]
        while pending:
            directory, path = pending.pop()
            old, new = dict(entries(self.old, directory)), dict(entries(self.new, directory))
            count += len(new)
            self._on_names(count)
            for name in old.keys() | new.keys():
                below = path + b"/" + name if path else name
                one, two = old.get(name), new.get(name)
                if one is not None and two is not None and _are_one_kind(one, two):
                    if stat.S_ISDIR(one.mode):
                        pending.append((one.inode, below))
                    self._compare(below, None, one, two)
                    continue
                if one is not None:
                    self._collect(self.old, self._gone, _Item(below, directory, one))
                if two is not None:
                    self._collect(self.new, self._come, _Item(below, directory, two))
        self._match()
        return sorted(self._found, key=lambda one: (one.path, one.how))

    def with_same_contents(self, one: Difference) -> Difference | None:
        """What is left of a change when the contents turn out to be the same; None: nothing."""
        assert one.old is not None and one.new is not None
        if one.how is How.RENAMED_CHANGED:
            return replace(one, how=How.RENAMED)
        return replace(one, how=How.ATTRIBUTES) if self._has_other_attributes(one.old, one.new) else None

    def _collect(self, index: Index, into: dict[int, list[_Item]], item: _Item) -> None:
        into.setdefault(item.row.inode, []).append(item)
        if stat.S_ISDIR(item.row.mode):
            for path, directory, row in walk(index, item.row.inode, item.path):
                into.setdefault(row.inode, []).append(_Item(path, directory, row))

    def _match(self) -> None:
        for inode, came in self._come.items():
            gone = self._gone.get(inode, [])
            while came and gone:
                self._compare_moved(gone.pop(0), came.pop(0))
            self._found += [Difference(How.CREATED, one.path, None, None, one.row) for one in came]
        for items in self._gone.values():
            self._found += [Difference(How.DELETED, one.path, None, one.row, None) for one in items]

    def _compare_moved(self, old: _Item, new: _Item) -> None:
        # One that lies in the same directory under the same name came along with that.
        self._compare(new.path, old.path if old.name != new.name else None, old.row, new.row)

    def _compare(self, path: bytes, old_path: bytes | None, old: InodeRow, new: InodeRow) -> None:
        changed = self._is_changed(old, new)
        if old_path is not None:
            how = How.RENAMED_CHANGED if changed else How.RENAMED
        elif changed:
            how = How.CHANGED
        elif self._has_other_attributes(old, new):
            how = How.ATTRIBUTES
        else:
            return
        self._found.append(Difference(how, path, old_path, old, new))

    def _is_changed(self, old: InodeRow, new: InodeRow) -> bool:
        if stat.S_ISDIR(old.mode):
            return False
        if (old.inode, old.size, old.rdev, old.target) != (new.inode, new.size, new.rdev, new.target):
            return True
        if not stat.S_ISREG(old.mode):
            return False
        pairs = zip_longest(extents_of(self.old, old.inode), extents_of(self.new, new.inode))
        return any(one != two for one, two in pairs)

    def _has_other_attributes(self, old: InodeRow, new: InodeRow) -> bool:
        if self._exact and old != new:
            return True
        if (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid):
            return True
        # A directory's time changes with the names in it, which are told by themselves.
        if not stat.S_ISDIR(old.mode) and old.mtime_ns != new.mtime_ns:
            return True
        return _xattrs(self.old, old.inode) != _xattrs(self.new, new.inode)


def _are_one_kind(old: InodeRow, new: InodeRow) -> bool:
    """Whether one may be told as a change of the other: a directory only of itself."""
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        return False
    return not stat.S_ISDIR(old.mode) or old.inode == new.inode


def extents_of(index: Index, inode: int) -> Iterator[tuple[int, bytes]]:
    """Chunks and what they map."""
    chunk = 0
    while page := index.list_extents(inode, from_chunk=chunk, limit=EXTENTS_PER_PAGE):
        for row in page:
            yield row.chunk, row.packed
        chunk = page[-1].chunk + 1


def _xattrs(index: Index, inode: int) -> dict[bytes, bytes | None]:
    return {name: index.get_xattr(inode, name) for name in index.list_xattrs(inode)}
