"""The names of restored inodes, kept small: a million files must fit the memory of any machine.

A dictionary of tuples takes some 250 bytes per file, this about 30 and the name.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left


class NameTable:
    """Directory and name of inodes, first added and then looked up.

    Invariant: after `freeze`, `_inodes` is sorted and nothing is added.
    """

    def __init__(self) -> None:
        self._inodes = array("q")
        self._parents = array("q")
        self._starts = array("q", [0])
        self._names = bytearray()
        self._order: array[int] | None = None

    def add(self, inode: int, *, parent: int, name: bytes) -> None:
        """Remember the first name of an inode that was not added before."""
        assert self._order is None
        self._inodes.append(inode)
        self._parents.append(parent)
        self._names += name
        self._starts.append(len(self._names))

    def freeze(self) -> None:
        """Nothing is added from now on."""
        order = array("q", sorted(range(len(self._inodes)), key=self._inodes.__getitem__))
        self._inodes = array("q", (self._inodes[at] for at in order))
        self._order = order

    def find(self, inode: int) -> tuple[int, bytes] | None:
        """(parent, name) of an inode; None when it was not added."""
        assert self._order is not None
        at = bisect_left(self._inodes, inode)
        if at == len(self._inodes) or self._inodes[at] != inode:
            return None
        row = self._order[at]
        return self._parents[row], bytes(self._names[self._starts[row] : self._starts[row + 1]])
