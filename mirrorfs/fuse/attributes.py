"""Rows of the engine as the kernel's attributes. Run per request: plain assignments, under 1 µs each."""

from __future__ import annotations

from typing import Final

from pyfuse3 import EntryAttributes, InodeT, ModeT

from mirrorfs.fuse.filesystem_port import Inode

TIMEOUT_S: Final = 24 * 3600
BLOCK_SIZE: Final = 128 * 1024
"""st_blksize. stdio allocates buffers of this size, so it is far below the 1 MiB of one request."""
SECTOR_SIZE: Final = 512
S_IFDIR: Final = 0o040000


def entry_attributes(row: Inode) -> EntryAttributes:
    """The kernel's view of an inode."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(row.inode)
    entry.generation = row.generation
    entry.entry_timeout = TIMEOUT_S
    entry.attr_timeout = TIMEOUT_S
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


def absent_attributes() -> EntryAttributes:
    """The answer "no such name", which the kernel may keep."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(0)
    entry.entry_timeout = TIMEOUT_S
    return entry


def dot_attributes(inode: int) -> EntryAttributes:
    """'.' or '..' in a listing: the kernel takes number and type, and counts no lookup."""
    entry = EntryAttributes()
    entry.st_ino = InodeT(inode)
    entry.st_mode = ModeT(S_IFDIR)
    return entry
