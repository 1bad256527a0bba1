"""Which names of a volume a restore is about: everything, or what matches patterns."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from mirrorfs.engine.tree_walk import DEPTH_MAX, entries
from mirrorfs.errors import DamagedError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index


class Selected(NamedTuple):
    """A name that is restored."""

    parent: int
    """Inode of the directory."""
    name: bytes
    row: InodeRow
    path: str
    """Below the root; bytes that are no UTF-8 are surrogates."""


@dataclass(slots=True)
class _Directory:
    """A directory on the walk."""

    row: InodeRow
    name: bytes
    above: _Directory | None
    path: str
    selected: bool
    taken: bool


class Selection:
    """A walk over an index: a directory and then all below it, in the order of the log within each."""

    def __init__(self, index: Index, globs: Sequence[str] = ()) -> None:
        """
        Args:
            globs: shell patterns for whole paths below the root, in which `*` matches '/' as well. A
                directory that matches means all it holds. None means everything.
        """
        self._index = index
        self._globs = [glob.strip("/") for glob in globs]

    def __iter__(self) -> Iterator[Selected]:
        """All names but the root. Raises: DamagedError: the tree is not one."""
        root = self._index.get_inode(ROOT_INODE)
        if root is None:
            return
        # In depth: tar sets the times of a directory when it meets the first name that is not below it.
        pending = [self._below(_Directory(root, b"", None, "", not self._globs, True))]
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
                continue
            directory, name, row, path = found
            selected = directory.selected or self._matches(path)
            if stat.S_ISDIR(row.mode):
                below = _Directory(row, name, directory, path, selected, False)
                if selected:
                    yield from _with_parents(below)
                pending.append(self._below(below))
                if len(pending) > DEPTH_MAX:
                    raise DamagedError(
                        "The volume's directories are nested without an end; restore an older moment."
                    )
            elif selected:
                if not directory.taken:
                    yield from _with_parents(directory)
                yield Selected(directory.row.inode, name, row, path)

    def _below(self, directory: _Directory) -> Iterator[tuple[_Directory, bytes, InodeRow, str]]:
        prefix = f"{directory.path}/" if directory.path else ""
        for name, row in entries(self._index, directory.row.inode):
            yield directory, name, row, prefix + name.decode("utf-8", "surrogateescape")

    def _matches(self, path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in self._globs)


def _with_parents(directory: _Directory) -> Iterator[Selected]:
    """Directories on the way to what was asked for are taken when the first such name is met."""
    missing = []
    at: _Directory | None = directory
    while at is not None and not at.taken:
        missing.append(at)
        at = at.above
    for one in reversed(missing):
        assert one.above is not None
        one.taken = True
        yield Selected(one.above.row.inode, one.name, one.row, one.path)
