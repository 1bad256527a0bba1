"""The versions of what one path names, from the records of the log in their order.

A version is what a commit left behind: only that can be returned to. The names are those of an index at some
moment, with what the records did to them since on top; contents are not looked at.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.record import Create, Extents, Link, Record, Rename, Truncate, Unlink
from mirrorfs.format.rows import DentryRow, InodeRow

NAMES_PER_PAGE = 1000


class What(StrEnum):
    """What happened to a path."""

    CREATED = "created"
    WRITTEN = "written"
    REPLACED = "replaced"
    """Another file took the name: how many programs save."""
    RENAMED_FROM = "renamed from"
    RENAMED_TO = "renamed to"
    LINKED = "linked"
    DELETED = "deleted"
    FOLDER_CAME = "came with its folder"
    """A directory above it was renamed to this path."""
    FOLDER_WENT = "went with its folder"


@dataclass(frozen=True, slots=True)
class Version:
    """What one commit did to the path."""

    position: int
    time_ns: int
    what: What
    size: int | None
    """Bytes afterwards; None where the path names nothing, or no regular file."""
    other: bytes | None
    """For a rename: the path before or after, or its last name where the directory is not known."""


class Names(Protocol):
    """The part of an index that is needed."""

    def get_dentry(self, parent: int, name: bytes) -> DentryRow | None: ...
    def get_inode(self, inode: int) -> InodeRow | None: ...
    def list_dentries(self, parent: int, *, after_cookie: int, limit: int) -> list[DentryRow]: ...


class FileHistory:
    """Follows one path. Commits have to come in order, from the moment of the index on, none left out."""

    def __init__(self, path: Sequence[bytes], base: Names | None) -> None:
        """
        Args:
            path: names below the root, at least one.
            base: the index before the first commit; None: the log is followed from its beginning.
        """
        self._path = path
        self._base = base
        self._dentries: dict[tuple[int, bytes], int | None] = {}
        self._sizes: dict[int, int] = {}
        self._folders: dict[int, tuple[int, bytes]] = {}
        """Where directories are that were made or renamed since the moment of the index."""
        self._chain = self._resolve()
        self.versions: list[Version] = []
        self.first = self._version(0, 0, What.CREATED) if self._inode is not None else None
        """What was there at the moment of the index, with no position; None: nothing."""

    @property
    def _inode(self) -> int | None:
        return self._chain[-1][2] if len(self._chain) == len(self._path) else None

    def add(self, records: Iterable[Record], *, position: int, time_ns: int) -> None:
        """Take the next commit. Raises: FormatError: a record is none."""
        before, leaf = self._inode, self._leaf()
        watched = {(parent, name) for parent, name, _ in self._chain}
        written: set[int] = set()
        touching: list[Create | Link | Unlink | Rename] = []
        made: set[int] = set()
        for record in records:
            match record:
                case Extents() if record.size:  # else the bytes are those of before, in other frames
                    self._sizes[record.inode] = max(self._size(record.inode) or 0, record.size)
                    written.add(record.inode)
                case Truncate():
                    self._sizes[record.inode] = record.size
                    written.add(record.inode)
                case Create() | Link() | Unlink() | Rename():
                    if isinstance(record, Create):
                        made.add(record.inode)
                        if stat.S_ISREG(record.mode):
                            self._sizes[record.inode] = 0
                        elif stat.S_ISDIR(record.mode):
                            self._folders[record.inode] = record.parent, record.name
                    if self._apply(record) & watched:
                        touching.append(record)
                        self._chain = self._resolve()
                        watched |= {(parent, name) for parent, name, _ in self._chain}
        after = self._inode
        leaf = self._leaf() or leaf
        if after is not None and after == before:
            if after in written:
                self.versions.append(self._version(position, time_ns, What.WRITTEN))
        elif after is not None:
            came = _last_to(touching, leaf)
            if before is not None:
                what = What.REPLACED
            elif came is None:
                what = What.FOLDER_CAME
            elif isinstance(came, Rename) and after not in made:
                what = What.RENAMED_FROM
            else:
                what = What.LINKED if isinstance(came, Link) else What.CREATED
            from_name = came if what is What.RENAMED_FROM else None
            self.versions.append(self._version(position, time_ns, what, from_name, leaf=leaf))
        elif before is not None:
            went = _last_from(touching, leaf)
            what = What.RENAMED_TO if isinstance(went, Rename) else What.DELETED
            what = What.FOLDER_WENT if went is None else what
            self.versions.append(self._version(position, time_ns, what, went, leaf=leaf))

    def _version(
        self, position: int, time_ns: int, what: What,
        record: Create | Link | Unlink | Rename | None = None, *, leaf: tuple[int, bytes] | None = None,
    ) -> Version:  # fmt: skip
        inode = self._inode
        other: bytes | None = None
        if isinstance(record, Rename):
            is_source = leaf == (record.parent, record.name)
            directory = record.new_parent if is_source else record.parent
            other = self._path_of(directory) + (record.new_name if is_source else record.name)
        return Version(position, time_ns, what, None if inode is None else self._size(inode), other)

    # --- names ---------------------------------------------------------------------------------

    def _leaf(self) -> tuple[int, bytes] | None:
        """The directory and name of the path itself, if its directory is there."""
        if len(self._chain) < len(self._path):
            return None
        return self._chain[-1][:2]

    def _resolve(self) -> list[tuple[int, bytes, int | None]]:
        """(directory, name, inode) from the root down, to the first name that is not there."""
        chain: list[tuple[int, bytes, int | None]] = []
        directory: int | None = ROOT_INODE
        for name in self._path:
            assert directory is not None
            inode = self._lookup(directory, name)
            chain.append((directory, name, inode))
            if inode is None:
                break
            directory = inode
        return chain

    def _lookup(self, parent: int, name: bytes) -> int | None:
        key = parent, name
        if key in self._dentries:
            return self._dentries[key]
        row = self._base.get_dentry(parent, name) if self._base is not None else None
        return row.inode if row is not None else None

    def _path_of(self, directory: int) -> bytes:
        """Path of a directory, with a slash at its end; empty where it is the root, or not known."""
        path = b""
        seen: set[int] = set()
        while directory != ROOT_INODE:
            place = self._folders.get(directory) or self._place(directory)
            if place is None or directory in seen:
                return b""
            seen.add(directory)
            directory, path = place[0], place[1] + b"/" + path
        return path

    def _place(self, directory: int) -> tuple[int, bytes] | None:
        """Where a directory was at the moment of the index."""
        row = self._base.get_inode(directory) if self._base is not None else None
        if row is None or self._base is None:
            return None
        after = 0
        while page := self._base.list_dentries(row.parent, after_cookie=after, limit=NAMES_PER_PAGE):
            for entry in page:
                if entry.inode == directory:
                    return row.parent, entry.name
            after = page[-1].cookie
        return None

    def _size(self, inode: int) -> int | None:
        if inode in self._sizes:
            return self._sizes[inode]
        row = self._base.get_inode(inode) if self._base is not None else None
        return row.size if row is not None and stat.S_ISREG(row.mode) else None

    def _apply(self, record: Create | Link | Unlink | Rename) -> set[tuple[int, bytes]]:
        """Carry out what a record does to names. Returns the names it touched."""
        here = record.parent, record.name
        if isinstance(record, Create | Link):
            self._dentries[here] = record.inode
            return {here}
        if isinstance(record, Unlink):
            self._dentries[here] = None
            return {here}
        there = record.new_parent, record.new_name
        moved, other = self._lookup(*here), self._lookup(*there) if record.exchange else None
        for inode, place in ((other, here), (moved, there)):
            self._dentries[place] = inode
            if inode is not None and self._is_folder(inode):
                self._folders[inode] = place
        return {here, there}

    def _is_folder(self, inode: int) -> bool:
        if inode in self._folders:
            return True
        row = self._base.get_inode(inode) if self._base is not None else None
        return row is not None and stat.S_ISDIR(row.mode)


def _last_to(
    records: Sequence[Create | Link | Unlink | Rename], leaf: tuple[int, bytes] | None
) -> Create | Link | Rename | None:
    """The last record that gave the path what it names."""
    for record in reversed(records):
        if isinstance(record, Create | Link) and (record.parent, record.name) == leaf:
            return record
        if isinstance(record, Rename) and leaf in _ends(record):
            return record
    return None


def _last_from(
    records: Sequence[Create | Link | Unlink | Rename], leaf: tuple[int, bytes] | None
) -> Unlink | Rename | None:
    """The last record that took from the path what it named."""
    for record in reversed(records):
        if isinstance(record, Unlink | Rename) and (record.parent, record.name) == leaf:
            return record
    return None


def _ends(record: Rename) -> list[tuple[int, bytes]]:
    """Names that a rename gives something."""
    there = record.new_parent, record.new_name
    return [there, (record.parent, record.name)] if record.exchange else [there]
