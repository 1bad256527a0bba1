"""The system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH = 0x100, 0x200, 0x400, 0x1000
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.POINTER(_Dirent)
_libc.readdir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.closedir.argtypes = [ctypes.c_void_p]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(source: Path | str, target: Path | str, flags: int) -> None:
    """rename with flags. Raises OSError."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def access(path: str, mode: int, flags: int = 0) -> None:
    """faccessat, which tells why not. Raises OSError."""
    _check(_libc.faccessat(AT_FDCWD, os.fsencode(path), mode, flags))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """Set times of (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT are nanoseconds. Raises OSError."""
    times = (_Timespec * 2)(atime, mtime)
    _check(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def linkat(source: str, target: str, flags: int) -> None:
    """link with flags. Raises OSError."""
    _check(_libc.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """The system call, without glibc's substitute. Raises OSError."""
    _check(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> None:
    """Raises OSError."""
    _check(_libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), flags))


def syncfs(descriptor: int) -> None:
    """Raises OSError."""
    _check(_libc.syncfs(descriptor))


class Listing:
    """An open directory with a position that can be told and sought."""

    def __init__(self, stream: int) -> None:
        self._stream = stream

    def next(self) -> tuple[bytes, int, int] | None:
        """Name, inode and type of the next entry, None at the end."""
        entry = _libc.readdir(self._stream)
        return (entry.contents.name, entry.contents.ino, entry.contents.type) if entry else None

    def rest(self) -> list[bytes]:
        """The names from here to the end."""
        names = []
        while entry := self.next():
            names.append(entry[0])
        return names

    def tell(self) -> int:
        """The position of the next entry."""
        position: int = _libc.telldir(self._stream)
        return position

    def seek(self, position: int) -> None:
        """Go back to what tell returned."""
        _libc.seekdir(self._stream, position)


@contextmanager
def open_listing(directory: Path) -> Iterator[Listing]:
    """opendir and closedir."""
    stream = _libc.opendir(os.fsencode(directory))
    assert stream
    try:
        yield Listing(stream)
    finally:
        _libc.closedir(stream)


# --- sized look-ups of extended attributes ---------------------------------------------------

_libc.getxattr.restype = _libc.listxattr.restype = ctypes.c_ssize_t
_libc.getxattr.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]
_libc.listxattr.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]


def _sized(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def getxattr_size(path: Path, name: str, size: int) -> int:
    """getxattr with a buffer of that size; 0 asks for the size only. Raises OSError."""
    return _sized(
        _libc.getxattr(os.fsencode(path), name.encode(), ctypes.create_string_buffer(size or 1), size)
    )


def listxattr_size(path: Path, size: int) -> int:
    """The same for the list of names."""
    return _sized(_libc.listxattr(os.fsencode(path), ctypes.create_string_buffer(size or 1), size))


# --- file handles ----------------------------------------------------------------------------

HANDLE_BYTES_MAX = 128
_HANDLE_HEAD = 8


def name_to_handle(path: Path) -> bytes:
    """The handle of what is there, a symbolic link itself: struct file_handle as bytes. Raises OSError."""
    handle = ctypes.create_string_buffer(_HANDLE_HEAD + HANDLE_BYTES_MAX)
    handle[:4] = HANDLE_BYTES_MAX.to_bytes(4, sys.byteorder)
    mount_id = ctypes.c_int()
    _sized(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount_id), 0))
    size = int.from_bytes(handle.raw[:4], sys.byteorder)
    return handle.raw[: _HANDLE_HEAD + size]


def open_handle(mount: Path, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the inode, by its handle on the filesystem that holds `mount`. Raises OSError."""
    directory = os.open(mount, os.O_RDONLY)
    try:
        return _sized(_libc.open_by_handle_at(directory, handle, flags))
    finally:
        os.close(directory)
