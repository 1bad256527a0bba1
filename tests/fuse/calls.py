"""System calls as values: tuples (name of a method of Calls, arguments...), carried out below a directory.

The same list on two filesystems must answer the same. An answer is what a program can see of the call, or
the name of its errno; what may differ (inode numbers, the present time) is not in it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import stat
from functools import lru_cache
from pathlib import Path

from tests.fuse.libc import open_listing, renameat2

Answer = object
Call = tuple[str | int, ...]
SET_BY_HAND_MAX_NS = 10**18
"""Times that the calls set lie below (2001), those of the clock above."""
SKIPPED = "skipped"

_libc = ctypes.CDLL(None, use_errno=True)


@lru_cache(maxsize=64)
def content(seed: int, size: int) -> bytes:
    """The bytes that a call writes: of odd seeds such that nothing compresses them."""
    if seed % 2:
        return random.Random(seed).randbytes(size)
    return (b"%08d " % seed * (size // 9 + 1))[:size]


def clock(time_ns: int) -> int | str:
    """A time as it is compared: to the nanosecond if set by hand."""
    return time_ns if time_ns < SET_BY_HAND_MAX_NS else "now"


def _status(status: os.stat_result) -> Answer:
    sized = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
    return (
        oct(status.st_mode),
        status.st_nlink,
        (status.st_uid, status.st_gid),
        status.st_size if sized else None,
        clock(status.st_mtime_ns),
    )


class Calls:
    """Calls below one root, which keep open files and directories in numbered slots."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[int, int] = {}

    def __call__(self, call: Call) -> Answer:
        """Carry one out."""
        name, *arguments = call
        method = getattr(self, str(name))
        try:
            return method(*arguments)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def close_all(self) -> None:
        """What a program's end does."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def handles(self) -> dict[int, Answer]:
        """The state of every open slot."""
        return {slot: _status(os.fstat(fd)) for slot, fd in sorted(self._open.items())}

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _keep(self, slot: int, fd: int) -> Answer:
        self.close(slot)
        self._open[slot] = fd
        return _status(os.fstat(fd))

    def _fd(self, slot: int) -> int:
        if slot not in self._open:
            raise OSError(errno.EBADF, "slot is empty")
        return self._open[slot]

    # --- files -------------------------------------------------------------------------------

    def open(self, slot: int, name: str, flags: int, mode: int) -> Answer:
        # O_NONBLOCK: a FIFO without a peer answers instead of waiting.
        return self._keep(slot, os.open(self._path(name), flags | os.O_NONBLOCK, mode))

    def open_in(self, slot: int, directory: int, name: str, flags: int) -> Answer:
        """openat below an open directory, which may have been removed meanwhile."""
        return self._keep(slot, os.open(name, flags | os.O_NONBLOCK, 0o640, dir_fd=self._fd(directory)))

    def close(self, slot: int) -> Answer:
        if slot in self._open:
            os.close(self._open.pop(slot))
        return None

    def pwrite(self, slot: int, offset: int, size: int, seed: int) -> Answer:
        return os.pwrite(self._fd(slot), content(seed, size), offset)

    def write(self, slot: int, size: int, seed: int) -> Answer:
        return os.write(self._fd(slot), content(seed, size))

    def pread(self, slot: int, offset: int, size: int) -> Answer:
        return os.pread(self._fd(slot), size, offset)

    def read(self, slot: int, size: int) -> Answer:
        return os.read(self._fd(slot), size)

    def seek(self, slot: int, offset: int, whence: int) -> Answer:
        fd = self._fd(slot)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return SKIPPED  # The positions of a directory are the filesystem's own.
        return os.lseek(fd, offset, whence)

    def ftruncate(self, slot: int, size: int) -> Answer:
        return os.ftruncate(self._fd(slot), size)

    def truncate(self, name: str, size: int) -> Answer:
        return os.truncate(self._path(name), size)

    def fsync(self, slot: int) -> Answer:
        return os.fsync(self._fd(slot))

    def fdatasync(self, slot: int) -> Answer:
        return os.fdatasync(self._fd(slot))

    def copy_range(self, source: int, offset: int, size: int, target: int, to: int) -> Answer:
        return os.copy_file_range(self._fd(source), self._fd(target), size, offset, to)

    def map_write(self, slot: int, offset: int, size: int, seed: int, sync: int) -> Answer:
        fd = self._fd(slot)
        length = os.fstat(fd).st_size
        if offset + size > length or not size:
            return SKIPPED
        with mmap.mmap(fd, length, mmap.MAP_SHARED) as view:
            view[offset : offset + size] = content(seed, size)
            if sync:
                view.flush()
        return None

    def map_read(self, slot: int, offset: int, size: int) -> Answer:
        fd = self._fd(slot)
        length = os.fstat(fd).st_size
        if not length or not stat.S_ISREG(os.fstat(fd).st_mode):
            return SKIPPED
        with mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ) as view:
            return view[offset : offset + size]

    # --- names -------------------------------------------------------------------------------

    def mkdir(self, name: str, mode: int) -> Answer:
        return os.mkdir(self._path(name), mode)

    def mknod(self, name: str, mode: int) -> Answer:
        return os.mknod(self._path(name), mode)

    def rmdir(self, name: str) -> Answer:
        return os.rmdir(self._path(name))

    def unlink(self, name: str) -> Answer:
        return os.unlink(self._path(name))

    def link(self, name: str, new: str) -> Answer:
        return os.link(self._path(name), self._path(new), follow_symlinks=False)

    def symlink(self, target: str, new: str) -> Answer:
        return os.symlink(target, self._path(new))

    def readlink(self, name: str) -> Answer:
        return os.readlink(self._path(name))

    def rename(self, name: str, new: str, flags: int) -> Answer:
        # Not through Path, which would drop a "/." at the end.
        return renameat2(self._path(name), self._path(new), flags)

    def lstat(self, name: str) -> Answer:
        return _status(os.lstat(self._path(name)))

    def stat(self, name: str) -> Answer:
        return _status(os.stat(self._path(name)))

    def access(self, name: str, mode: int) -> Answer:
        return os.access(self._path(name), mode)

    def readdir(self, name: str) -> Answer:
        """Names and types; each entry's inode is the one that lstat tells."""
        if not stat.S_ISDIR(os.stat(self._path(name)).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, name)
        found = []
        with open_listing(Path(self._path(name))) as listing:
            while (entry := listing.next()) is not None:
                path, inode, kind = entry
                same = inode == os.lstat(self._path(f"{name}/{os.fsdecode(path)}")).st_ino
                found.append((path, kind, same or path in (b".", b"..")))
        return sorted(found)

    def list_open(self, slot: int) -> Answer:
        """Names in an open directory."""
        return sorted(os.listdir(self._fd(slot)))

    def fsync_directory(self, name: str) -> Answer:
        fd = os.open(self._path(name), os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.fsync(fd)
        finally:
            os.close(fd)

    # --- attributes --------------------------------------------------------------------------

    def chmod(self, name: str, mode: int) -> Answer:
        return os.chmod(self._path(name), mode)

    def fchmod(self, slot: int, mode: int) -> Answer:
        return os.fchmod(self._fd(slot), mode)

    def chown(self, name: str, uid: int, gid: int) -> Answer:
        return os.lchown(self._path(name), uid, gid)

    def utime(self, name: str, atime_ns: int, mtime_ns: int) -> Answer:
        path = self._path(name)
        os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
        status = os.lstat(path)
        return status.st_atime_ns, status.st_mtime_ns

    def futime(self, slot: int, atime_ns: int, mtime_ns: int) -> Answer:
        fd = self._fd(slot)
        os.utime(fd, ns=(atime_ns, mtime_ns))
        return os.fstat(fd).st_atime_ns, os.fstat(fd).st_mtime_ns

    def setxattr(self, name: str, key: str, size: int, seed: int, flags: int) -> Answer:
        return os.setxattr(self._path(name), key, content(seed, size), flags, follow_symlinks=False)

    def fsetxattr(self, slot: int, key: str, size: int, seed: int) -> Answer:
        return os.setxattr(self._fd(slot), key, content(seed, size))

    def getxattr(self, name: str, key: str) -> Answer:
        return os.getxattr(self._path(name), key, follow_symlinks=False)

    def removexattr(self, name: str, key: str) -> Answer:
        return os.removexattr(self._path(name), key, follow_symlinks=False)

    def listxattr(self, name: str) -> Answer:
        return sorted(os.listxattr(self._path(name), follow_symlinks=False))

    # --- caches ------------------------------------------------------------------------------

    def write_back(self, name: str) -> Answer:
        """Have the dirty pages of a file written and all dropped, so that reads come from below."""
        if not stat.S_ISREG(os.stat(self._path(name)).st_mode):
            return SKIPPED
        fd = os.open(self._path(name), os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        return None


def syncfs(path: Path) -> None:
    """Have everything dirty of one filesystem written. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)


def drop_caches() -> None:
    """Have the kernel forget clean pages, names and inodes of all filesystems. For root only."""
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
