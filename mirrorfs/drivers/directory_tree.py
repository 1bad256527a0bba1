"""Reading and writing below an open directory, never through a symbolic link. Everything here blocks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

from mirrorfs.drivers.object_keys import is_key
from mirrorfs.ports import ObjectInfo, ObjectKey

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def opened(path: str, flags: int, *, dir_fd: int | None = None) -> Iterator[int]:
    """Open for the length of a with statement; a file that is made gets mode 0600."""
    descriptor = os.open(path, flags, 0o600, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(file: int, data: bytes) -> None:
    """Write all of data at the file's position."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def read_at(file: int, *, offset: int, size_bytes: int) -> bytes:
    """Read up to size_bytes at offset, fewer only at the end of the file."""
    parts: list[bytes] = []
    while size_bytes > 0:
        part = os.pread(file, size_bytes, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size_bytes -= len(part)
    return b"".join(parts)


def exists(directory: int, name: str) -> bool:
    """Tell whether a directory holds a name, of whatever kind."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def try_lock(lock: int) -> bool:
    """Take the lock of an open file without waiting; it goes with the descriptor."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def link_replaces(directory: int, name: str, other: str) -> bool:
    """Tell whether link() replaces a name that is already there, as some network shares do."""
    try:
        os.link(name, other, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    except FileExistsError:
        return False
    return True


def walk(directory: int, base: str, *, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
    """Yield objects below a directory in key order; base is its key with a trailing slash, or empty.

    A directory sorts as its name with the slash, which puts the keys in it where they belong
    ("a-b" before "a/b" before "ab").
    """
    with os.scandir(directory) as entries:
        found = [
            (f"{base}{entry.name}/" if entry.is_dir(follow_symlinks=False) else f"{base}{entry.name}", entry)
            for entry in entries
        ]
    wanted = [item for item in found if _may_hold(item[0], prefix=prefix, start_after=start_after)]
    for path, entry in sorted(wanted, key=lambda item: item[0]):
        # An object may vanish between the reading of its directory and the look at it.
        with contextlib.suppress(FileNotFoundError):
            if not path.endswith("/"):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield ObjectInfo(ObjectKey(path), status.st_size, written_ns=status.st_mtime_ns)
                continue
            with opened(entry.name, DIRECTORY_FLAGS, dir_fd=directory) as below:
                yield from walk(below, path, prefix=prefix, start_after=start_after)


def _may_hold(path: str, *, prefix: str, start_after: str) -> bool:
    """Tell whether path is a listed key, or a directory (trailing slash) that may hold listed keys."""
    if not path.endswith("/"):
        return is_key(path) and path.startswith(prefix) and path > start_after
    if not is_key(path[:-1]):
        return False
    after = path > start_after or start_after.startswith(path)
    return after and (path.startswith(prefix) or prefix.startswith(path))
