"""Objects of every kind, and what a test compares of them."""

from __future__ import annotations

import os
import socket
import stat
import time

KINDS = ("file", "directory", "symlink", "fifo", "socket", "char", "block")
NOT_DIRECTORIES = tuple(kind for kind in KINDS if kind != "directory")
NOT_LINKS = tuple(kind for kind in KINDS if kind != "symlink")
TYPE = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
CLOCK_REALTIME_COARSE = 5


def make(name: str, kind: str) -> None:
    """Put an object of that kind there; a link leads nowhere."""
    if kind == "file":
        with open(name, "wb") as file:
            file.write(b"contents")
    elif kind == "directory":
        os.mkdir(name)
    elif kind == "symlink":
        os.symlink("nowhere", name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(name)
    else:
        os.mknod(name, TYPE[kind] | 0o644, os.makedev(1, 3) if kind in ("char", "block") else 0)


def remove(name: str, kind: str) -> None:
    """The call that removes that kind."""
    (os.rmdir if kind == "directory" else os.unlink)(name)


def type_of(name: str) -> int:
    """The S_IF bits of what bears the name."""
    return stat.S_IFMT(os.lstat(name).st_mode)


def mode_of(name: str) -> int:
    """The permission bits."""
    return stat.S_IMODE(os.lstat(name).st_mode)


def exists(name: str) -> bool:
    """Whether the name is taken, by a dangling link too."""
    return os.path.lexists(name)


def write(name: str, data: bytes) -> None:
    """A file with those bytes."""
    with open(name, "wb") as file:
        file.write(data)


def read(name: str) -> bytes:
    """The bytes of a file."""
    with open(name, "rb") as file:
        return file.read()


def let_time_pass(*names: str) -> None:
    """Return when a change made from now on has later time stamps than these objects have.

    Kernels stamp with a clock that stands still for some milliseconds.
    """
    newest = 0
    for name in names:
        status = os.lstat(name)
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= newest:
        time.sleep(0.0005)
