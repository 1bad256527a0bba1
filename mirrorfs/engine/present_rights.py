"""What the present state of a volume lets a caller see of its past.

The kernel checks the permissions that a path of the past had then. Here those of today are checked as well:
who may not read something now is not to read its earlier versions. What counts is what is there today

- of the same inode, wherever it is now: with every directory above it;
- at the same path: programs replace a file by another inode when they save it.

What is there no more forbids nothing by itself, but the directories above it that are left do. Where a
file is now cannot be told from its inode: one that is neither under its old name nor in the same directory
is for its owner and for root alone, for it may have been moved out of the sight of others.

Names are checked when they are looked up, each time by each caller: the kernel keeps none of them.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from mirrorfs.core.acl import permits
from mirrorfs.errors import AccessDenied
from mirrorfs.format.acl import ACL_ACCESS, decode_acl
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index

READ: Final = 4
SEARCH: Final = 1
NAMES_LOOKED_THROUGH_MAX: Final = 1000
"""Where a file has another name in its directory; in larger ones it counts as moved."""
ROOT_USER: Final = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int
    groups: Callable[[], Collection[int]] = tuple
    """Supplementary groups; asked for only where they matter."""

    def is_in(self, gid: int) -> bool:
        """Whether a group is one of the caller's."""
        return gid == self.gid or gid in self.groups()


def grants(index: Index, row: InodeRow, caller: Caller, wanted: int) -> bool:
    """Whether an inode of an index grants what is wanted to a caller."""
    if caller.uid == ROOT_USER:
        return True
    value = index.get_xattr(row.inode, ACL_ACCESS) if index.count_xattrs() else None
    acl = None if value is None else decode_acl(value)
    return permits(
        wanted, user=caller.uid, is_in=caller.is_in, mode=row.mode, uid=row.uid, gid=row.gid, acl=acl
    )


class PresentRights:
    """The checks of one moment of the past against the present."""

    def __init__(self, present: Index) -> None:
        self._present = present
        self._at_path: dict[int, int] = {}
        """Directories of the past at whose path another inode is today, or none (0), as last looked up."""

    def check_search(self, directory: int, caller: Caller) -> None:
        """Raises AccessDenied: the caller may not look up names in what this directory is today."""
        for inode in self._both(directory):
            if not self._may_enter(inode, caller):
                raise AccessDenied("the directory may not be searched today")

    def check_read(self, inode: int, caller: Caller) -> None:
        """Raises AccessDenied: the caller may not read what this file or directory is today."""
        for one in self._both(inode):
            self._check(one, caller)

    def check_name(self, directory: int, name: bytes, row: InodeRow, caller: Caller) -> None:
        """A name of the past was found. Raises AccessDenied: what is in its place today may not be read."""
        present = self._present
        parent = self._at_path.get(directory, directory)
        entry = present.get_dentry(parent, name) if parent else None
        there = entry.inode if entry is not None else 0
        if stat.S_ISDIR(row.mode):
            self._note(row.inode, there)
            found = present.get_inode(there) if there else None
            if found is not None and not stat.S_ISDIR(found.mode):
                self._check(there, caller)
            return
        if there:
            self._check(there, caller)
        if there == row.inode:
            return
        self._check(row.inode, caller)
        now = present.get_inode(row.inode)
        if now is not None and now.nlink and caller.uid not in (ROOT_USER, now.uid):
            names = present.list_dentries(directory, after_cookie=0, limit=NAMES_LOOKED_THROUGH_MAX)
            if all(one.inode != row.inode for one in names):
                raise AccessDenied("the file was moved elsewhere")

    def _note(self, directory: int, there: int) -> None:
        if there == directory:
            self._at_path.pop(directory, None)
        else:
            self._at_path[directory] = there

    def _both(self, inode: int) -> set[int]:
        """The same inode, and what is at its path."""
        return {inode, self._at_path.get(inode, inode)}

    def _check(self, inode: int, caller: Caller) -> None:
        row = self._present.get_inode(inode)
        if row is not None and not grants(self._present, row, caller, READ):
            raise AccessDenied("it may not be read today")

    def _may_enter(self, directory: int, caller: Caller) -> bool:
        """Whether a directory and those above it may be searched; so may those that are gone."""
        while caller.uid != ROOT_USER:
            row = self._present.get_inode(directory)
            if row is None or not row.nlink or not stat.S_ISDIR(row.mode):
                return True
            if not grants(self._present, row, caller, SEARCH):
                return False
            if directory == ROOT_INODE:
                return True
            directory = row.parent
        return True
