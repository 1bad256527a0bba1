"""Rows of the engine as the kernel's attributes. Run per request: plain assignments, under 1 µs each."""

from __future__ import annotations

from functools import partial
from typing import Final

from pyfuse3 import EntryAttributes, InodeT, ModeT

from mirrorfs.fuse.filesystem_port import Inode

TIMEOUT_S: Final = 24 * 3600
BLOCK_SIZE: Final = 128 * 1024
"""st_blksize. stdio allocates buffers of this size, so it is far below the 1 MiB of one request."""
SECTOR_SIZE: Final = 512
S_IFDIR: Final = 0o040000


FOLLOWED_TIMEOUT_S = 1
"""The same where another machine makes the changes."""


def entry_attributes(row: Inode, *, timeout_s: int = TIMEOUT_S) -> EntryAttributes:
    """The kernel's view of an inode, which it may keep for so long."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(row.inode)
    entry.generation = row.generation
    entry.entry_timeout = timeout_s
    entry.attr_timeout = timeout_s
    entry.st_mode = ModeT(row.mode)
    entry.st_nlink = row.nlink
    entry.st_uid = row.uid
    entry.st_gid = row.gid
    entry.st_rdev = row.rdev
    entry.st_size = row.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = (row.allocated + SECTOR_SIZE - 1) // SECTOR_SIZE
    entry.st_atime_ns = row.atime_ns
    entry.st_mtime_ns = row.mtime_ns
    entry.st_ctime_ns = row.ctime_ns
    return entry


def absent_attributes(*, timeout_s: int = TIMEOUT_S) -> EntryAttributes:
    """The answer "no such name", which the kernel may keep for so long."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(0)
    entry.entry_timeout = timeout_s
    return entry


def dot_attributes(inode: int) -> EntryAttributes:
    """'.' or '..' in a listing: the kernel takes number and type, and counts no lookup."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(inode)
    entry.st_mode = ModeT(S_IFDIR)
    return entry


class Answers:
    """Attributes with how long the kernel may keep them."""

    def __init__(self, *, follows: bool) -> None:
        """`follows`: changes come from elsewhere, so that the kernel keeps nothing for long."""
        timeout_s = FOLLOWED_TIMEOUT_S if follows else TIMEOUT_S
        self.entry = partial(entry_attributes, timeout_s=timeout_s)
        self.absent = absent_attributes(timeout_s=timeout_s)
        self.keeps_contents = not follows
