"""Making the names of a restored tree, beside what may be there already."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from typing import Final

from mirrorfs.drivers.restore_acl import drop_lists
from mirrorfs.drivers.restore_existing import InTheWay, Overwrite, Verdict, look
from mirrorfs.drivers.restore_metadata import DEVICES, FATAL, FULL, Metadata
from mirrorfs.drivers.restore_names import DEFERRED, MADE, NameTable
from mirrorfs.drivers.restore_open import DIRECTORY_FLAGS, Descriptor, Directories
from mirrorfs.drivers.restore_place import disk_error
from mirrorfs.errors import DamagedError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow

REFUSED_MAX: Final = 1000
DEFERRED_BYTES_MAX: Final = 1 << 20
"""Larger files come in many pieces: they are made before."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY: Final = b".mirrorfs-restore-"


def temporary(inode: int) -> bytes:
    """Where what replaces something is made. A restore that was cut off leaves it; the next one takes it."""
    return _TEMPORARY + b"%x" % inode


class NameMaker:
    """Makes names, or puts them off until their contents come; remembers what could not be made.

    Invariant: `names` holds exactly what was made here, or will be; what is not in `existing` of the
    directories was made here.
    """

    def __init__(
        self, root: Descriptor, metadata: Metadata, *, overwrite: Overwrite | None, is_new: bool
    ) -> None:
        """`is_new`: whether the root is empty."""
        self._metadata = metadata
        self._overwrite = overwrite
        self.directories = Directories(root)
        self.names = NameTable()
        self.existing: set[int] = set() if is_new else {ROOT_INODE}
        """Directories that were there before."""
        self._missing: set[int] = set()
        """Directories, and inodes with several names, that were not made."""
        self._linked: dict[int, tuple[int, bytes]] = {}
        self._same: dict[int, tuple[int, bytes]] = {}
        """Inodes with several names of which one was there."""
        self.late: dict[int, list[tuple[int, bytes]]] = {}
        """Further names of inodes that replace something: linked when the contents are there."""
        self._lock = threading.Lock()
        self.refused: list[tuple[str, str]] = []
        self.refused_count = 0
        self.kept_count = 0

    def refuse(self, parent: int, name: bytes, reason: str) -> None:
        """Note a name that cannot be made. Thread-safe."""
        with self._lock:
            self.refused_count += 1
            if len(self.refused) < REFUSED_MAX:
                self.refused.append((self.directories.path(parent, name), reason))

    def freeze(self) -> None:
        """No more names come."""
        self.names.freeze()
        self._linked.clear()
        self._same.clear()

    def make(self, names: Sequence[tuple[int, bytes, InodeRow, bool]]) -> list[int]:
        """See RestoreTree. Raises: DiskError, DiskFull. DamagedError: a name is none."""
        missing = []
        for parent, name, row, has_attributes in names:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise DamagedError("The volume holds a name that is none; restore an older moment.")
            is_directory = stat.S_ISDIR(row.mode)
            made = False
            try:
                made = self._make_one(parent, name, row, has_attributes)
            except InTheWay as exc:
                self.refuse(parent, name, str(exc))
            except OSError as exc:
                if exc.errno in FULL or exc.errno in FATAL:
                    raise disk_error(exc, "make a file") from exc
                self.refuse(parent, name, os.strerror(exc.errno or 0))
            if is_directory:
                # One that could not be made is listed too, for the paths of what it would have held.
                self.directories.add(row.inode, parent=parent, name=name)
            if not made and row.inode not in self._linked:
                missing.append(row.inode)
                if is_directory or row.nlink > 1:
                    self._missing.add(row.inode)
        return missing

    def _make_one(self, parent: int, name: bytes, row: InodeRow, has_attributes: bool) -> bool:
        if parent in self._missing:
            # What may stand there under the same name was not made here, so nothing is put into it.
            raise InTheWay("not made")
        verdict = self._look(parent, name, row) if parent in self.existing else None
        if verdict is Verdict.ENTER:
            self.existing.add(row.inode)
            return True
        if verdict in (Verdict.KEEP, Verdict.SAME):
            self.kept_count += 1
            if verdict is Verdict.SAME and row.nlink > 1 and row.inode not in self._linked:
                self._same.setdefault(row.inode, (parent, name))
            return False
        if row.inode in self._missing and row.inode not in self._same:
            raise InTheWay("not made")
        mode = row.mode
        if stat.S_ISDIR(mode):
            directory = self.directories.open(parent)
            os.mkdir(name, 0o700, dir_fd=directory.fd)
            if parent in self.existing:
                self._without_lists(directory, name)
            return True
        replaces = verdict is Verdict.REPLACE
        first = self._linked.get(row.inode) or self._same.get(row.inode)
        if first is not None:
            if replaces and row.inode in self._linked:
                self.late.setdefault(row.inode, []).append((parent, name))
            elif replaces:
                self.replace_by_link(first, parent, name, row.inode)
            else:
                self.link(first, parent, name)
            return True
        if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and not self._metadata.special:
            self._metadata.leave_out(DEVICES)
            return False
        deferred = (
            row.nlink == 1 and not has_attributes and stat.S_ISREG(mode) and row.size <= DEFERRED_BYTES_MAX
        )
        number = 0
        actual = temporary(row.inode) if replaces else name
        if not deferred:
            number = self._put(parent, actual, row)
        self.names.add(row, parent=parent, name=name, state=DEFERRED if deferred else MADE, number=number)
        if replaces:
            self.names.replacing[-1] = 1
        if row.nlink > 1:
            self._linked[row.inode] = (parent, actual)
        return True

    def _look(self, parent: int, name: bytes, row: InodeRow) -> Verdict | None:
        assert self._overwrite is not None
        return look(self._overwrite, self.directories.open(parent).fd, name, row)

    def link(self, first: tuple[int, bytes], parent: int, name: bytes) -> None:
        """Make another name of (parent, name). Raises OSError."""
        source, directory = self.directories.open(first[0]), self.directories.open(parent)
        os.link(first[1], name, src_dir_fd=source.fd, dst_dir_fd=directory.fd, follow_symlinks=False)

    def _without_lists(self, directory: Descriptor, name: bytes) -> None:
        opened = Descriptor(os.open(name, DIRECTORY_FLAGS, dir_fd=directory.fd))
        drop_lists(opened.fd)
        os.fchmod(opened.fd, 0o700)

    def _put(self, parent: int, name: bytes, row: InodeRow) -> int:
        """Make anything but a directory, still empty. Returns its number. Raises OSError."""
        directory, mode = self.directories.open(parent).fd, row.mode
        if stat.S_ISREG(mode):
            file = self.create(parent, name)
            if row.size:
                os.ftruncate(file.fd, row.size)
            return os.fstat(file.fd).st_ino
        if parent in self.existing:
            self.remove_left(directory, name, row.inode)
        if stat.S_ISLNK(mode):
            os.symlink(row.target, name, dir_fd=directory)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, 0o600, dir_fd=directory)
        elif stat.S_ISSOCK(mode):
            os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=directory)
        else:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, row.rdev, dir_fd=directory)
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino

    def create(self, parent: int, name: bytes) -> Descriptor:
        """A new, empty, private file. Raises OSError."""
        directory = self.directories.open(parent).fd
        if parent not in self.existing:
            return Descriptor(os.open(name, _NEW, 0o600, dir_fd=directory))
        try:
            file = Descriptor(os.open(name, _NEW, 0o600, dir_fd=directory))
        except FileExistsError:
            if not name.startswith(_TEMPORARY):
                raise
            os.unlink(name, dir_fd=directory)
            file = Descriptor(os.open(name, _NEW, 0o600, dir_fd=directory))
        # A default list of a directory that was there would give readers that the volume does not know.
        drop_lists(file.fd)
        return file

    def remove_left(self, directory: int, name: bytes, inode: int) -> None:
        """Remove what a restore that was cut off left of the same name."""
        if name == temporary(inode):
            try:
                os.unlink(name, dir_fd=directory)
            except FileNotFoundError:
                return

    def replace_by_link(self, first: tuple[int, bytes], parent: int, name: bytes, inode: int) -> None:
        """Let a name that is there be another name of an inode that is there. Raises OSError."""
        directory = self.directories.open(parent).fd
        self.remove_left(directory, temporary(inode), inode)
        self.link(first, parent, temporary(inode))
        os.rename(temporary(inode), name, src_dir_fd=directory, dst_dir_fd=directory)
        # Of two names of one file, rename(2) leaves both.
        self.remove_left(directory, temporary(inode), inode)
