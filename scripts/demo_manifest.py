"""Everything about a tree that a restore must bring back, as a value that can be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One name. Sizes are of regular files only: of directories they are the filesystem's own affair."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    size_bytes: int
    content: str
    """SHA-256 of a regular file, the target of a symbolic link."""
    same_as: bytes
    """The first path with the same inode: equal sets of these are equal sets of hard links."""
    xattrs: tuple[tuple[str, bytes], ...]


Manifest = dict[bytes, Entry]


def take(root: Path) -> Manifest:
    """The manifest of a tree, its root included as b""."""
    manifest: Manifest = {}
    first: dict[int, bytes] = {}
    for path in _walk(os.fsencode(root)):
        name = path[len(os.fsencode(root)) + 1 :]
        status = os.lstat(path)
        is_directory = stat.S_ISDIR(status.st_mode)
        is_regular = stat.S_ISREG(status.st_mode)
        manifest[name] = Entry(
            kind=stat.S_IFMT(status.st_mode),
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            nlink=0 if is_directory else status.st_nlink,
            size_bytes=status.st_size if is_regular else 0,
            content=_content(path, status.st_mode),
            same_as=name if is_directory else first.setdefault(status.st_ino, name),
            xattrs=_xattrs(path),
        )
    return manifest


def _walk(path: bytes) -> Iterator[bytes]:
    yield path
    if stat.S_ISDIR(os.lstat(path).st_mode):
        for name in sorted(os.listdir(path)):
            yield from _walk(os.path.join(path, name))


def _content(path: bytes, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return os.fsdecode(os.readlink(path))
    if not stat.S_ISREG(mode):
        return ""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _xattrs(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple(
        (name, os.getxattr(path, name, follow_symlinks=False)) for name in names if name.startswith("user.")
    )


def differences(expected: Manifest, found: Manifest) -> list[str]:
    """One line for each name that is missing, new or different in anything."""
    lines = [f"missing: {_shown(name)}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"not saved but there: {_shown(name)}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        for one in fields(Entry):
            before, after = getattr(expected[name], one.name), getattr(found[name], one.name)
            if before != after:
                lines.append(f"{_shown(name)}: {one.name} was {before!r}, is {after!r}")
    return lines


def _shown(name: bytes) -> str:
    return repr(os.fsdecode(name)) if name else "the top directory"
