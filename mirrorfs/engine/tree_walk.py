"""Walking the tree that an index holds: a path to its inode, a directory to its entries, all below one."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from mirrorfs.errors import DamagedError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index

NAMES_PER_PAGE = 1000
DEPTH_MAX = 4096
"""Directories above a name; a log of this program cannot exceed what the kernel's paths allow by much."""


def split_path(path: bytes) -> list[bytes]:
    """The names in a path below the root; slashes at its ends, doubled ones and "." count for nothing."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def find_row(index: Index, names: Sequence[bytes]) -> InodeRow | None:
    """What a path names; None when there is no such thing. Symbolic links are not followed."""
    row = index.get_inode(ROOT_INODE)
    for name in names:
        if row is None or not stat.S_ISDIR(row.mode):
            return None
        entry = index.get_dentry(row.inode, name)
        row = index.get_inode(entry.inode) if entry is not None else None
    return row


def entries(index: Index, directory: int) -> Iterator[tuple[bytes, InodeRow]]:
    """Names in a directory and what they are, in the order of the log. Raises: DamagedError."""
    after = 0
    while True:
        page = index.list_dentries(directory, after_cookie=after, limit=NAMES_PER_PAGE)
        for entry in page:
            row = index.get_inode(entry.inode)
            if row is None:
                raise DamagedError(f"An entry of directory {directory} names an inode that is not there.")
            yield entry.name, row
        if len(page) < NAMES_PER_PAGE:
            return
        after = page[-1].cookie


def walk(index: Index, directory: int, path: bytes = b"") -> Iterator[tuple[bytes, int, InodeRow]]:
    """(path, inode of its directory, what it is) of all below a directory, in the order of names.

    Args:
        path: of the directory; paths of what is below begin with it.
    Raises: DamagedError: directories without an end.
    """
    pending = [_below(index, directory, path)]
    while pending:
        found = next(pending[-1], None)
        if found is None:
            pending.pop()
            continue
        yield found
        if stat.S_ISDIR(found[2].mode):
            if len(pending) > DEPTH_MAX:
                raise DamagedError("The volume's directories are nested without an end.")
            pending.append(_below(index, found[2].inode, found[0]))


def _below(index: Index, directory: int, path: bytes) -> Iterator[tuple[bytes, int, InodeRow]]:
    prefix = path + b"/" if path else b""
    for name, row in sorted(entries(index, directory), key=lambda entry: entry[0]):
        yield prefix + name, directory, row
