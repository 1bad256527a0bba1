"""What the kernel still holds of each inode: lookup counts and open handles.

Invariant: an inode is in neither table exactly when the kernel can no longer send a request for it.
FORGET and RELEASE travel on queues of their own, so either may come last; whichever does reports the
inode as gone.
"""

from __future__ import annotations


class References:
    """Counts per inode; an entry at zero is removed."""

    __slots__ = ("lookups", "opens")

    def __init__(self) -> None:
        self.lookups: dict[int, int] = {}
        self.opens: dict[int, int] = {}

    def looked_up(self, inode: int) -> None:
        """An entry for the inode was sent to the kernel."""
        self.lookups[inode] = self.lookups.get(inode, 0) + 1

    def opened(self, inode: int) -> None:
        """A handle was given out."""
        self.opens[inode] = self.opens.get(inode, 0) + 1

    def forget(self, inode: int, count: int) -> bool:
        """Take back count lookups; True when the kernel holds nothing more of the inode."""
        left = self.lookups.get(inode, 0) - count
        if left > 0:
            self.lookups[inode] = left
            return False
        self.lookups.pop(inode, None)
        return inode not in self.opens

    def released(self, inode: int) -> bool:
        """Take back a handle; True when the kernel holds nothing more of the inode."""
        left = self.opens.get(inode, 0) - 1
        if left > 0:
            self.opens[inode] = left
            return False
        self.opens.pop(inode, None)
        return inode not in self.lookups
