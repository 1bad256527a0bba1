"""The directory that a restore fills: every step is relative to a descriptor and follows no link.

The names come from a volume that others may have written, and the place may be one where others work.
So nothing is opened by path: each directory is opened below its parent with O_NOFOLLOW, files are made
with O_EXCL, and until all is done directories are 0700 and files 0600, so that nobody else gets in
between. Contents become accessible only with their final permissions.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from mirrorfs.drivers.restore_acl import drop_lists, without_list
from mirrorfs.drivers.restore_names import NameTable
from mirrorfs.errors import DamagedError, DiskError, DiskFull, UsageError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow

DIRECTORIES_OPEN_MAX: Final = 256
FILES_OPEN_MAX: Final = 256
REFUSED_MAX: Final = 1000

OWNERS: Final = "owners (run as root to restore them)"
SET_ID: Final = "set-user-ID, set-group-ID bits and file capabilities (--preserve-special as root)"
DEVICES: Final = "device nodes (--preserve-special as root)"
ATTRIBUTES: Final = "extended attributes that the system refused"
ROOT_ATTRIBUTES: Final = "security and trusted attributes (run as root to restore them)"
METADATA: Final = "permissions or times that the system refused"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FATAL = frozenset({errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID


class _Descriptor:
    """A descriptor that closes when the last thread that uses it lets go."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def check_destination(path: str) -> None:
    """Raises: UsageError: something is there that is not an empty directory, or its parent is not there."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
            raise UsageError("The directory above DEST does not exist; make it first.") from None
        return
    except OSError as exc:
        raise UsageError(f"DEST cannot be looked at: {os.strerror(exc.errno or 0)}.") from exc
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError("DEST is not a directory; name an empty or a new one.")
    try:
        empty = not os.listdir(path)
    except OSError as exc:
        raise UsageError(f"DEST cannot be listed: {os.strerror(exc.errno or 0)}.") from exc
    if not empty:
        raise UsageError("DEST is not empty; name an empty or a new directory.")


class RestoreDirectory:
    """The tree that engine/restore.py fills (its `RestoreTree`).

    Invariant: `_directories` and `_names` hold exactly the names that were made here.
    """

    def __init__(self, path: str, *, preserve_special: bool = False) -> None:
        """Take an empty or new directory, and make it private until `finish`.

        Args:
            preserve_special: make device nodes and set set-ID bits and capabilities, if this is root.
        Raises: UsageError: as `check_destination`. DiskError: it cannot be made.
        """
        check_destination(path)
        self._is_root = os.geteuid() == 0
        self._special = preserve_special and self._is_root
        try:
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                pass
            self._root = _Descriptor(os.open(path, _DIRECTORY_FLAGS))
            drop_lists(self._root.fd)
            os.fchmod(self._root.fd, 0o700)
            if os.listdir(self._root.fd):
                raise UsageError("DEST is not empty; name an empty or a new directory.")
        except OSError as exc:
            raise _disk_error(exc, "make DEST") from exc
        self._directories: dict[int, tuple[int, bytes]] = {}
        self._names = NameTable()
        self._missing: set[int] = set()
        """Directories, and inodes with several names, that could not be made."""
        self._linked: dict[int, tuple[int, bytes]] = {}
        self._open_directories: OrderedDict[int, _Descriptor] = OrderedDict()
        self._open_files: OrderedDict[int, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._refused: list[tuple[str, str]] = []
        self._refused_count = 0
        self._left_out: Counter[str] = Counter()

    # --- the report ----------------------------------------------------------------------------

    @property
    def refused(self) -> Sequence[tuple[str, str]]:
        """See RestoreTree."""
        return self._refused

    @property
    def refused_count(self) -> int:
        """See RestoreTree."""
        return self._refused_count

    @property
    def left_out(self) -> Mapping[str, int]:
        """See RestoreTree."""
        return self._left_out

    def path_of(self, inode: int) -> str:
        """See RestoreTree."""
        found = self._directories.get(inode) or self._names.find(inode)
        return f"inode {inode}" if found is None else self._path(*found)

    def _path(self, parent: int, name: bytes) -> str:
        parts = [name]
        while parent != ROOT_INODE:
            parent, name = self._directories[parent]
            parts.append(name)
        return b"/".join(reversed(parts)).decode("utf-8", "backslashreplace")

    def _refuse(self, parent: int, name: bytes, reason: str) -> None:
        self._refused_count += 1
        if len(self._refused) < REFUSED_MAX:
            self._refused.append((self._path(parent, name), reason))

    # --- names ---------------------------------------------------------------------------------

    def make(self, names: Sequence[tuple[int, bytes, InodeRow]]) -> list[int]:
        """See RestoreTree. Raises: DiskError, DiskFull. DamagedError: a name is none."""
        missing = []
        for parent, name, row in names:
            if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
                raise DamagedError("The volume holds a name that is none; restore an older moment.")
            is_directory = stat.S_ISDIR(row.mode)
            try:
                made = self._make_one(parent, name, row)
            except OSError as exc:
                if exc.errno in _FULL or exc.errno in _FATAL:
                    raise _disk_error(exc, "make a file") from exc
                self._refuse(parent, name, os.strerror(exc.errno or 0))
                made = False
            if is_directory:
                # One that could not be made is listed too, for the paths of what it would have held.
                self._directories[row.inode] = (parent, name)
            if not made and row.inode not in self._linked:
                missing.append(row.inode)
                if is_directory or row.nlink > 1:
                    self._missing.add(row.inode)
        return missing

    def _make_one(self, parent: int, name: bytes, row: InodeRow) -> bool:
        if parent in self._missing or row.inode in self._missing:
            # What may stand there under the same name was not made here, so nothing is put into it.
            raise OSError(errno.ENOENT, "not made")
        directory = self._directory(parent)
        fd, mode = directory.fd, row.mode
        if stat.S_ISDIR(mode):
            os.mkdir(name, 0o700, dir_fd=fd)
            return True
        first = self._linked.get(row.inode)
        if first is not None:
            source = self._directory(first[0])
            os.link(first[1], name, src_dir_fd=source.fd, dst_dir_fd=fd, follow_symlinks=False)
            return True
        if stat.S_ISREG(mode):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=fd)
            try:
                if row.size:
                    os.ftruncate(file, row.size)
            finally:
                os.close(file)
        elif stat.S_ISLNK(mode):
            os.symlink(row.target, name, dir_fd=fd)
        elif stat.S_ISFIFO(mode):
            os.mkfifo(name, 0o600, dir_fd=fd)
        elif stat.S_ISSOCK(mode):
            os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=fd)
        elif self._special:
            os.mknod(name, stat.S_IFMT(mode) | 0o600, row.rdev, dir_fd=fd)
        else:
            self._left_out[DEVICES] += 1
            return False
        self._names.add(row.inode, parent=parent, name=name)
        if row.nlink > 1:
            self._linked[row.inode] = (parent, name)
        return True

    def made(self) -> None:
        """See RestoreTree."""
        self._names.freeze()
        self._linked.clear()

    # --- contents ------------------------------------------------------------------------------

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        try:
            file = self._file(inode)
            view = memoryview(data)
            while view:
                count = os.pwrite(file.fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as exc:
            raise _disk_error(exc, "write a file") from exc

    def _file(self, inode: int) -> _Descriptor:
        with self._lock:
            file = self._open_files.get(inode)
            if file is not None:
                self._open_files.move_to_end(inode)
                return file
        found = self._names.find(inode)
        assert found is not None
        parent, name = found
        directory = self._directory(parent)
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = _Descriptor(os.open(name, flags, dir_fd=directory.fd))
        if not stat.S_ISREG(os.fstat(file.fd).st_mode):
            raise DiskError("Something else took the place of a restored file; choose a DEST of your own.")
        with self._lock:
            self._open_files[inode] = file
            if len(self._open_files) > FILES_OPEN_MAX:
                # Not closed here: another thread may be writing to it.
                self._open_files.popitem(last=False)
        return file

    def _directory(self, inode: int) -> _Descriptor:
        """A descriptor of a directory made here. Raises OSError."""
        if inode == ROOT_INODE:
            return self._root
        with self._lock:
            found = self._open_directories.get(inode)
            if found is not None:
                self._open_directories.move_to_end(inode)
                return found
        chain = []
        at = inode
        while at != ROOT_INODE and at not in self._open_directories:
            chain.append(at)
            at = self._directories[at][0]
        with self._lock:
            directory = self._root if at == ROOT_INODE else self._open_directories.get(at)
        if directory is None:  # another thread pushed it out meanwhile
            return self._directory(inode)
        for at in reversed(chain):
            name = self._directories[at][1]
            directory = _Descriptor(os.open(name, _DIRECTORY_FLAGS, dir_fd=directory.fd))
            with self._lock:
                self._open_directories[at] = directory
                if len(self._open_directories) > DIRECTORIES_OPEN_MAX:
                    self._open_directories.popitem(last=False)
        return directory

    # --- owners, permissions, times --------------------------------------------------------------

    def finish(self, inodes: Sequence[tuple[InodeRow, Sequence[tuple[bytes, bytes]]]]) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        with self._lock:
            self._open_files.clear()
        for row, attributes in inodes:
            try:
                self._finish_one(row, attributes)
            except OSError as exc:
                if exc.errno in _FULL or exc.errno in _FATAL:
                    raise _disk_error(exc, "finish a file") from exc
                self._left_out[METADATA] += 1

    def _finish_one(self, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        # The order matters: a change of owner takes set-ID bits and capabilities away, permissions may
        # forbid to set attributes, and times come last because some systems count the rest as a change.
        if stat.S_ISLNK(row.mode):
            self._finish_link(row, attributes)
            return
        opened = self._pinned(row)
        plain = stat.S_ISREG(row.mode) or stat.S_ISDIR(row.mode)
        target = opened.fd if plain else f"/proc/self/fd/{opened.fd}"
        if self._owned(row):
            os.chown(target, row.uid, row.gid)
        permissions = self._permissions(row)
        for name, value in self._attributes(attributes):
            if not self._set_attribute(target, name, value):
                permissions = without_list(permissions, name, value)
        os.chmod(target, permissions)
        self._set_times(target, row)

    def _finish_link(self, row: InodeRow, attributes: Sequence[tuple[bytes, bytes]]) -> None:
        parent, name = self._name_of(row.inode)
        directory = self._directory(parent)
        if self._owned(row):
            os.chown(name, row.uid, row.gid, dir_fd=directory.fd, follow_symlinks=False)
        for attribute, value in self._attributes(attributes):
            beside = os.fsencode(f"/proc/self/fd/{directory.fd}/") + name
            self._set_attribute(beside, attribute, value)
        self._set_times(name, row, directory=directory)

    def _set_times(
        self, target: int | str | bytes, row: InodeRow, *, directory: _Descriptor | None = None
    ) -> None:
        times = (row.atime_ns, row.mtime_ns)
        try:
            if directory is None:
                os.utime(target, ns=times)
            else:
                os.utime(target, ns=times, dir_fd=directory.fd, follow_symlinks=False)
        except OverflowError:
            self._left_out[METADATA] += 1

    def _name_of(self, inode: int) -> tuple[int, bytes]:
        found = self._directories.get(inode) or self._names.find(inode)
        assert found is not None
        return found

    def _pinned(self, row: InodeRow) -> _Descriptor:
        """The inode itself, not its name: from here on nobody can put another in its place."""
        if row.inode == ROOT_INODE:
            return self._root
        parent, name = self._name_of(row.inode)
        # Opening a device or a socket would do something, so these are only pointed at.
        plain = stat.S_ISREG(row.mode) or stat.S_ISDIR(row.mode)
        flags = (os.O_RDONLY | os.O_NONBLOCK if plain else os.O_PATH) | os.O_NOFOLLOW | os.O_CLOEXEC
        opened = _Descriptor(os.open(name, flags, dir_fd=self._directory(parent).fd))
        if stat.S_IFMT(os.fstat(opened.fd).st_mode) != stat.S_IFMT(row.mode):
            raise DiskError("Something else took the place of a restored file; choose a DEST of your own.")
        return opened

    def _owned(self, row: InodeRow) -> bool:
        """Whether the owner is to be set; only root can give files away."""
        if not self._is_root and (row.uid, row.gid) != (os.geteuid(), os.getegid()):
            self._left_out[OWNERS] += 1
        return self._is_root

    def _permissions(self, row: InodeRow) -> int:
        mode = stat.S_IMODE(row.mode)
        if mode & _SPECIAL_BITS and not self._special:
            self._left_out[SET_ID] += 1
            mode &= ~_SPECIAL_BITS
        return mode

    def _attributes(self, attributes: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Those that may be set here; the others are counted."""
        allowed = []
        for name, value in attributes:
            if name == b"security.capability" and not self._special:
                self._left_out[SET_ID] += 1
            elif name.startswith((b"security.", b"trusted.")) and not self._is_root:
                self._left_out[ROOT_ATTRIBUTES] += 1
            else:
                allowed.append((name, value))
        return allowed

    def _set_attribute(self, target: int | str | bytes, name: bytes, value: bytes) -> bool:
        try:
            if isinstance(target, bytes):
                os.setxattr(target, name, value, follow_symlinks=False)
            else:
                os.setxattr(target, name, value)
        except OSError as exc:
            if exc.errno in _FATAL:
                raise
            self._left_out[ATTRIBUTES] += 1
            return False
        return True

    def sync(self) -> None:
        """See RestoreTree. Raises: DiskError, DiskFull."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(self._root.fd):
            exc = OSError(ctypes.get_errno(), "syncfs")
            raise _disk_error(exc, "sync DEST") from exc


def _disk_error(exc: OSError, verb: str) -> DiskError:
    if exc.errno in _FULL:
        return DiskFull("The disk of DEST is full; the restore is incomplete: free space and start over.")
    return DiskError(f"The disk of DEST failed to {verb}: {os.strerror(exc.errno or 0)}.")
