"""The directory that a restore fills: every step is relative to a descriptor and follows no link.

The names come from a volume that others may have written, and the place may be one where others work.
So nothing is opened by path: each directory is opened below its parent with O_NOFOLLOW, files are made
with O_EXCL and known again by their numbers, and until all is done new directories are 0700, and files 0600
until all of them is there, so that nobody else gets in between.

A small file costs one open: it is made when its contents come, and finished before it is closed. What takes
the place of something that was there is made beside it, and renamed over it when nothing is missing.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from mirrorfs.drivers.restore_existing import Overwrite
from mirrorfs.drivers.restore_making import NameMaker, temporary
from mirrorfs.drivers.restore_metadata import FATAL, FULL, METADATA, Metadata
from mirrorfs.drivers.restore_names import DEFERRED, FINISHED, GIVEN_UP, MADE
from mirrorfs.drivers.restore_open import Descriptor
from mirrorfs.drivers.restore_place import disk_error, open_place
from mirrorfs.errors import DiskError
from mirrorfs.format.rows import InodeRow

FILES_OPEN_MAX: Final = 256
_SWAPPED: Final = "Something else took the place of a restored file; choose a DEST of your own."


class RestoreDirectory:
    """The tree that engine/restore.py fills (its `RestoreTree`).

    Invariant: what is written to or finished was made here (`NameMaker`).
    """

    def __init__(
        self, path: str, *, preserve_special: bool = False, overwrite: Overwrite | None = None
    ) -> None:
        """Take a directory; an empty or new one is private until `finish`.

        Args:
            preserve_special: make device nodes and set set-ID bits and capabilities, if this is root.
            overwrite: what becomes of what is there; None: it must be empty.
        Raises: UsageError: as `check_destination`. DiskError: it cannot be made.
        """
        root, is_new = open_place(path, may_hold=overwrite is not None)
        self._root = root
        self._metadata = Metadata(preserve_special=preserve_special)
        self._overwrite = overwrite
        self._maker = NameMaker(root, self._metadata, overwrite=overwrite, is_new=is_new)
        self._directories, self._names = self._maker.directories, self._maker.names
        self._open_files: OrderedDict[int, Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._making = threading.Lock()
        """Held while a file that comes in pieces is made: two threads may have one each."""

    # --- the report ----------------------------------------------------------------------------

    @property
    def refused(self) -> Sequence[tuple[str, str]]:
        """See RestoreTree."""
        return self._maker.refused

    @property
    def refused_count(self) -> int:
        """See RestoreTree."""
        return self._maker.refused_count

    @property
    def kept_count(self) -> int:
        """See RestoreTree."""
        return self._maker.kept_count

    @property
    def left_out(self) -> Mapping[str, int]:
        """See RestoreTree."""
        return self._metadata.left_out

    def path_of(self, inode: int) -> str:
        """See RestoreTree."""
        found = self._directories.find(inode) or self._names.find(inode)
        return f"inode {inode}" if found is None else self._directories.path(*found)

    # --- names ---------------------------------------------------------------------------------

    def make(self, names: Sequence[tuple[int, bytes, InodeRow, bool]]) -> list[int]:
        """See NameTree. Raises: DiskError, DiskFull. DamagedError: a name is none."""
        return self._maker.make(names)

    def made(self) -> None:
        """See RestoreTree."""
        self._maker.freeze()

    # --- contents ------------------------------------------------------------------------------

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        at = self._row(inode)
        state = self._names.states[at]
        if state == GIVEN_UP:
            return
        try:
            if state == DEFERRED and offset == 0 and len(data) == self._names.sizes[at]:
                self._write_whole(at, inode, data)
                return
            file = self._file(at, inode)
            if file is None:
                return
            view = memoryview(data)
            while view:
                count = os.pwrite(file.fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as exc:
            raise disk_error(exc, "write a file") from exc

    def _row(self, inode: int) -> int:
        at = self._names.row_of(inode)
        assert at is not None
        return at

    def _name_at(self, at: int, inode: int) -> bytes:
        """Under which name it is until it is finished."""
        return temporary(inode) if self._names.replacing[at] else self._names.name(at)

    def _created(self, at: int, inode: int) -> Descriptor | None:
        """Make a file that was deferred; None: it cannot be made, which is noted."""
        names = self._names
        parent = names.parents[at]
        try:
            return self._maker.create(parent, self._name_at(at, inode))
        except OSError as exc:
            if exc.errno in FULL or exc.errno in FATAL:
                raise
            names.states[at] = GIVEN_UP
            self._maker.refuse(parent, names.name(at), os.strerror(exc.errno or 0))
            return None

    def _write_whole(self, at: int, inode: int, data: bytes | memoryview) -> None:
        names = self._names
        file = self._created(at, inode)
        if file is None:
            return
        view = memoryview(data)
        while view:
            view = view[os.write(file.fd, view) :]
        times_ns = names.atimes_ns[at], names.mtimes_ns[at]
        try:
            self._metadata.set_plain(
                file.fd, mode=names.modes[at], uid=names.uids[at], gid=names.gids[at], times_ns=times_ns
            )
        except OSError as exc:
            if exc.errno in FULL or exc.errno in FATAL:
                raise
            self._metadata.leave_out(METADATA)
        if names.replacing[at]:
            self._replace(at, inode)
        names.states[at] = FINISHED

    def _file(self, at: int, inode: int) -> Descriptor | None:
        """A file that comes in pieces; None: it cannot be made."""
        names = self._names
        with self._lock:
            file = self._open_files.get(inode)
            if file is not None:
                self._open_files.move_to_end(inode)
                return file
        if names.states[at] == DEFERRED:
            with self._making:
                if names.states[at] == DEFERRED:
                    made = self._created(at, inode)
                    if made is not None:
                        os.ftruncate(made.fd, names.sizes[at])
                        names.numbers[at] = os.fstat(made.fd).st_ino
                        names.states[at] = MADE
            if names.states[at] == GIVEN_UP:
                return None
        directory = self._directories.open(names.parents[at])
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = Descriptor(os.open(self._name_at(at, inode), flags, dir_fd=directory.fd))
        self._check(file, at)
        with self._lock:
            self._open_files[inode] = file
            if len(self._open_files) > FILES_OPEN_MAX:
                # Not closed here: another thread may be writing to it.
                self._open_files.popitem(last=False)
        return file

    def _check(self, opened: Descriptor, at: int) -> None:
        """Raises: DiskError: it is not what was made here."""
        found = os.fstat(opened.fd)
        same_kind = stat.S_IFMT(found.st_mode) == stat.S_IFMT(self._names.modes[at])
        if not same_kind or found.st_ino != self._names.numbers[at]:
            raise DiskError(_SWAPPED)

    # --- owners, permissions, times --------------------------------------------------------------

    def give_up(self, inodes: Sequence[int]) -> None:
        """See RestoreTree. Raises: DiskError."""
        for inode in inodes:
            at = self._row(inode)
            if not self._names.replacing[at] or self._names.states[at] not in (DEFERRED, MADE):
                continue
            if self._names.states[at] == MADE:
                directory = self._directories.open(self._names.parents[at])
                try:
                    os.unlink(temporary(inode), dir_fd=directory.fd)
                except OSError as exc:
                    raise disk_error(exc, "remove a file") from exc
            self._names.states[at] = GIVEN_UP
            self._maker.late.pop(inode, None)
            self._maker.kept_count += 1

    def unfinished(self, inodes: array[int]) -> array[int]:
        """See RestoreTree."""
        states, row_of = self._names.states, self._row
        return array("q", (inode for inode in inodes if states[row_of(inode)] in (DEFERRED, MADE)))

    def finish(self, inodes: Sequence[tuple[InodeRow, Sequence[tuple[bytes, bytes]]]]) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        with self._lock:
            self._open_files.clear()
        for row, attributes in inodes:
            try:
                if stat.S_ISDIR(row.mode):
                    self._finish_directory(row, attributes)
                else:
                    self._finish_one(row, attributes)
            except OSError as exc:
                if exc.errno in FULL or exc.errno in FATAL:
                    raise disk_error(exc, "finish a file") from exc
                self._metadata.leave_out(METADATA)

    def _finish_directory(self, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        if row.inode in self._maker.existing and self._overwrite is Overwrite.NEVER:
            return
        self._metadata.set(self._directories.open(row.inode).fd, row, attributes)

    def _finish_one(self, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        at = self._row(row.inode)
        if self._names.states[at] == DEFERRED and self._file(at, row.inode) is None:
            return
        name, directory = self._name_at(at, row.inode), self._directories.open(self._names.parents[at])
        if stat.S_ISLNK(row.mode):
            self._metadata.set_link(directory.fd, name, row, attributes)
        else:
            # The inode itself, not its name: from here on nobody can put another in its place. Opening a
            # device or a socket would do something, so these are only pointed at.
            plain = stat.S_ISREG(row.mode)
            flags = (os.O_RDONLY | os.O_NONBLOCK if plain else os.O_PATH) | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = Descriptor(os.open(name, flags, dir_fd=directory.fd))
            self._check(opened, at)
            self._metadata.set(opened.fd if plain else f"/proc/self/fd/{opened.fd}", row, attributes)
        if self._names.replacing[at]:
            self._replace(at, row.inode)
        self._names.states[at] = FINISHED
        for parent, further in self._maker.late.pop(row.inode, ()):
            first = self._names.parents[at], self._names.name(at)
            self._maker.replace_by_link(first, parent, further, row.inode)

    def _replace(self, at: int, inode: int) -> None:
        """Rename over what was there before."""
        directory = self._directories.open(self._names.parents[at]).fd
        os.rename(temporary(inode), self._names.name(at), src_dir_fd=directory, dst_dir_fd=directory)

    def sync(self) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._root.fd):
            exc = OSError(ctypes.get_errno(), "syncfs")
            raise disk_error(exc, "sync DEST") from exc
