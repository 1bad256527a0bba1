"""What is known of restored inodes, kept small: a million files must fit the memory of any machine.

A dictionary of tuples takes some 400 bytes per file, this about 80 and the name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from typing import Final

from mirrorfs.format.rows import InodeRow

DEFERRED: Final = 0
"""A file that is made when its contents are there, in one go."""
MADE: Final = 1
FINISHED: Final = 2
"""Contents, owner, permissions and times are set."""
GIVEN_UP: Final = 3
"""It could not be made, or is not to replace what was there."""


class NameTable:
    """Directory, name, attributes and state of inodes, first added and then looked up.

    Invariant: after `freeze`, `_inodes` is sorted and nothing is added. `states` and all other columns are in
    the order in which inodes were added; `row_of` gives the place there.
    """

    def __init__(self) -> None:
        self._inodes = array("q")
        self._starts = array("q", [0])
        self._names = bytearray()
        self._order: array[int] | None = None
        self.parents = array("q")
        self.modes = array("I")
        self.uids = array("I")
        self.gids = array("I")
        self.sizes = array("q")
        self.atimes_ns = array("q")
        self.mtimes_ns = array("q")
        self.numbers = array("Q")
        """What the file system of the place calls it (st_ino); 0 until it is made."""
        self.states = bytearray()
        self.replacing = bytearray()
        """1 where it takes the place of something that was there before."""

    def add(self, row: InodeRow, *, parent: int, name: bytes, state: int, number: int = 0) -> None:
        """Remember the first name of an inode that was not added before."""
        assert self._order is None
        self._inodes.append(row.inode)
        self._names += name
        self._starts.append(len(self._names))
        self.parents.append(parent)
        self.modes.append(row.mode)
        self.uids.append(row.uid)
        self.gids.append(row.gid)
        self.sizes.append(row.size)
        self.atimes_ns.append(row.atime_ns)
        self.mtimes_ns.append(row.mtime_ns)
        self.numbers.append(number)
        self.states.append(state)
        self.replacing.append(0)

    def freeze(self) -> None:
        """Nothing is added from now on."""
        order = array("q", sorted(range(len(self._inodes)), key=self._inodes.__getitem__))
        self._inodes = array("q", (self._inodes[at] for at in order))
        self._order = order

    def row_of(self, inode: int) -> int | None:
        """Its place in the columns; None when it was not added."""
        assert self._order is not None
        at = bisect_left(self._inodes, inode)
        if at == len(self._inodes) or self._inodes[at] != inode:
            return None
        return self._order[at]

    def name(self, row: int) -> bytes:
        """The name of the inode at a place in the columns."""
        return bytes(self._names[self._starts[row] : self._starts[row + 1]])

    def find(self, inode: int) -> tuple[int, bytes] | None:
        """(parent, name) of an inode; None when it was not added."""
        row = self.row_of(inode)
        return None if row is None else (self.parents[row], self.name(row))
