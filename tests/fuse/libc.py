"""The system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100

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


def renameat2(source: Path, target: Path, flags: int) -> None:
    """rename with flags. Raises OSError."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


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
