"""ports.Disk: a directory of the local disk.

Everything made here is private (files 0600, directories 0700) whatever the umask, and no path leaves
the root: components are checked, and a symbolic link in place of a file is refused.

Durability: `write_whole` is durable on return. `create` and `remove` are durable after
`sync_directory` on the directory of the file, which also covers directories that `create` made on the
way since the last such call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, TypeVar

from mirrorfs.errors import DiskError, DiskFull, LimitError

T = TypeVar("T")

FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700
TEMPORARY_PREFIX: Final = ".new-"
"""Begins the name of a file that `write_whole` has not finished; `list` leaves such names out."""

_SORTED_AT_ONCE: Final = 8192
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


# <linux/fs.h>: begin to write dirty pages, without waiting for them. Only Linux has it.
_SYNC_FILE_RANGE_WRITE: Final = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class LocalFile:
    """ports.OpenFile on a descriptor. Methods may be called from several threads but for `close`."""

    __slots__ = ("_fd", "_path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def write(self, data: bytes | bytearray | memoryview, *, offset: int) -> None:
        """Write all of data at offset; after an error any part of it may be there."""
        try:
            done = os.pwrite(self._fd, data, offset)
            if done != len(data):
                self._write_rest(memoryview(data).cast("B")[done:], offset + done)
        except OSError as exc:
            raise _disk_error("write", self._path, exc) from exc

    def _write_rest(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset)
            if not done:
                raise OSError(errno.EIO, "the disk takes no more bytes")
            data = data[done:]
            offset += done

    def read(self, *, offset: int, size_bytes: int) -> bytes:
        """Read up to size_bytes at offset, fewer only at the end of the file."""
        pieces: list[bytes] = []
        left = size_bytes
        try:
            while left:
                piece = os.pread(self._fd, left, offset)
                if not piece:
                    break
                pieces.append(piece)
                offset += len(piece)
                left -= len(piece)
        except OSError as exc:
            raise _disk_error("read", self._path, exc) from exc
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def size(self) -> int:
        """Bytes in the file."""
        return _call("look at", self._path, lambda: os.fstat(self._fd).st_size)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file, or extend it with zeros."""
        _call("cut", self._path, lambda: os.ftruncate(self._fd, size_bytes))

    def set_mode(self, mode: int) -> None:
        """Set the permission bits, which the umask may have reduced."""
        _call("set the mode of", self._path, lambda: os.fchmod(self._fd, mode))

    def write_out(self) -> None:
        """As in ports.OpenFile. An error of the disk is told by the next `sync`."""
        if _sync_file_range is not None:
            _sync_file_range(self._fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """fdatasync. After an error the caller must not rely on anything written since the last one:
        the kernel may have marked the pages clean, so that a retry would succeed without effect.
        """
        _call("sync", self._path, lambda: os.fdatasync(self._fd))

    def close(self) -> None:
        """Close the descriptor; again is no error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _call("close", self._path, lambda: os.close(fd))


class LocalDisk:
    """ports.Disk below one directory, which is made (0700) if it is not there. Thread-safe.

    Paths are relative, with "/" between components; "" is the root itself where a directory is meant.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Raises: DiskError: root cannot be made."""
        self._root = Path(root).absolute()
        self._lock = threading.Lock()
        self._unsynced: set[Path] = set()  # directories that hold a new directory; guarded by _lock
        self._make_directory(self._root)

    def create(self, path: str) -> LocalFile:
        """As in ports.Disk; writable."""
        target = self._resolve(path)
        self._make_directory(target.parent)
        return self._create(path, target)

    def open(self, path: str, *, writable: bool = False) -> LocalFile:
        """As in ports.Disk. Raises FileNotFoundError; DiskError: not a regular file."""
        return self._open(path, self._resolve(path), os.O_RDWR if writable else os.O_RDONLY)

    def list(self, path: str) -> Sequence[str]:
        """As in ports.Disk; unfinished files of `write_whole` are left out."""
        directory = self._resolve(path)
        try:
            names = _call("list", path, lambda: os.listdir(directory))
        except FileNotFoundError:
            return []
        names = [name for name in names if not name.startswith(TEMPORARY_PREFIX)]
        # A sort lets no other thread run: of 100,000 names for 40 ms, of runs that are sorted for 15.
        runs = (sorted(names[at : at + _SORTED_AT_ONCE]) for at in range(0, len(names), _SORTED_AT_ONCE))
        return sorted(chain.from_iterable(runs))

    def remove(self, path: str) -> None:
        """As in ports.Disk."""
        target = self._resolve(path)
        try:
            _call("remove", path, lambda: os.unlink(target))
        except FileNotFoundError:
            return

    def allocated_bytes(self, path: str) -> int:
        """As in ports.Disk."""
        target = self._resolve(path)
        return _call("look at", path, lambda: os.stat(target, follow_symlinks=False)).st_blocks * 512

    def write_whole(self, path: str, data: bytes) -> None:
        """As in ports.Disk: afterwards, and after any crash, the file is the old one or the new one.

        One caller at a time per path.
        """
        target = self._resolve(path)
        temporary = target.with_name(TEMPORARY_PREFIX + target.name)
        self._make_directory(target.parent)
        # Left by a crash, or by someone else: never written into.
        _call("replace", path, lambda: temporary.unlink(missing_ok=True))
        file = self._create(path, temporary)
        try:
            try:
                file.write(data, offset=0)
                file.sync()
            finally:
                file.close()
            _call("replace", path, lambda: os.rename(temporary, target))
        except BaseException:
            with suppress(OSError):
                temporary.unlink()  # it may be what fills the disk
            raise
        self._sync_directories(target.parent)

    def sync_directory(self, path: str) -> None:
        """As in ports.Disk, with the new directories above it."""
        self._sync_directories(self._resolve(path))

    def free_bytes(self) -> int:
        """As in ports.Disk."""
        usage = _call("look at", "", lambda: os.statvfs(self._root))
        return usage.f_bavail * usage.f_frsize

    def total_bytes(self) -> int:
        """As in ports.Disk."""
        usage = _call("look at", "", lambda: os.statvfs(self._root))
        return usage.f_blocks * usage.f_frsize

    def _resolve(self, path: str) -> Path:
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise LimitError("A path on the local disk is malformed; this is a fault of the program.")
        return self._root.joinpath(*parts)

    def _create(self, path: str, target: Path) -> LocalFile:
        try:
            file = self._open(path, target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError as exc:
            raise _disk_error("create", path, exc) from exc
        try:
            file.set_mode(FILE_MODE)
        except DiskError:
            file.close()
            raise
        return file

    def _open(self, path: str, target: Path, flags: int) -> LocalFile:
        # O_NONBLOCK: a FIFO in place of the file must not hang us; it means nothing on regular files.
        fd = _call("open", path, lambda: os.open(target, flags | _FLAGS | os.O_NONBLOCK, FILE_MODE))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise DiskError(f"{path!r} on the local disk is not a file; move it away.")
        return LocalFile(fd, path)

    def _make_directory(self, directory: Path) -> None:
        missing: list[Path] = []
        while not os.path.isdir(directory):
            missing.append(directory)
            directory = directory.parent
        for new in reversed(missing):
            try:
                new.mkdir(DIRECTORY_MODE)
                new.chmod(DIRECTORY_MODE)
            except FileExistsError:
                continue  # another thread was first, or it is no directory and the next step says so
            except OSError as exc:
                raise _disk_error("make a directory for", new.name, exc) from exc
            with self._lock:
                self._unsynced.add(new.parent)

    def _sync_directories(self, directory: Path) -> None:
        with self._lock:
            pending, self._unsynced = self._unsynced, set()
        try:
            for one in sorted(pending | {directory}):
                _call("sync", one.name, partial(fsync_directory, one))
        except (DiskError, FileNotFoundError):
            with self._lock:
                self._unsynced |= pending
            raise


def fsync_directory(directory: Path) -> None:
    """Make what was created in or removed from `directory` durable. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _call(verb: str, path: str, work: Callable[[], T]) -> T:
    """Run a system call. Raises FileNotFoundError as it is, all else as DiskError or DiskFull."""
    try:
        return work()
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise _disk_error(verb, path, exc) from exc


def _disk_error(verb: str, path: str, exc: OSError) -> DiskError:
    if exc.errno in _FULL:
        return DiskFull(f"The disk is full: cannot {verb} {path!r}; free some space.")
    return DiskError(f"Cannot {verb} {path!r} on the local disk: {exc.strerror}.")
