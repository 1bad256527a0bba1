"""Everything visible below a directory as one value, and what differs between two of them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

TREE_ROOT = "."
DIFFERENCES_MAX = 8
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One name and what it leads to. `inode` and the times are the filesystem's own; the rest is portable."""

    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    """0 for what is neither file nor link."""
    contents: str
    """sha256 of a file's bytes, target of a symbolic link, otherwise empty."""
    xattrs: tuple[tuple[str, bytes], ...]
    first_name: str
    """The first name in the order of the walk that leads to the same inode."""
    names: tuple[str, ...]
    """Of a directory, in order."""
    inode: int
    mtime_ns: int
    ctime_ns: int


Tree = dict[str, Entry]


def digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _walk(root: Path, relative: str) -> Iterator[tuple[str, Path]]:
    path = root / relative
    yield relative, path
    if stat.S_ISDIR(path.lstat().st_mode):
        for name in sorted(os.listdir(path)):
            yield from _walk(root, name if relative == TREE_ROOT else f"{relative}/{name}")


def _xattrs(path: Path) -> tuple[tuple[str, bytes], ...]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def look(root: Path) -> Tree:
    """Walk a directory; the entry TREE_ROOT is the directory itself."""
    found: Tree = {}
    first: dict[int, str] = {}
    for name, path in _walk(root, TREE_ROOT):
        status = path.lstat()
        contents, names, size = "", (), 0
        if stat.S_ISREG(status.st_mode):
            contents, size = digest(path), status.st_size
        elif stat.S_ISLNK(status.st_mode):
            contents, size = os.readlink(path), status.st_size
        elif stat.S_ISDIR(status.st_mode):
            names = tuple(sorted(os.listdir(path)))
        found[name] = Entry(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            nlink=status.st_nlink,
            rdev=status.st_rdev,
            size=size,
            contents=contents,
            xattrs=_xattrs(path),
            first_name=first.setdefault(status.st_ino, name),
            names=names,
            inode=status.st_ino,
            mtime_ns=status.st_mtime_ns,
            ctime_ns=status.st_ctime_ns,
        )
    return found


EVERYTHING = tuple(field.name for field in fields(Entry))
PORTABLE = tuple(name for name in EVERYTHING if name not in ("inode", "mtime_ns", "ctime_ns"))


def differences(
    expected: Tree,
    found: Tree,
    *,
    compare: tuple[str, ...] = EVERYTHING,
    seen_as: Callable[[str, object], object] = lambda field, value: value,
) -> list[str]:
    """What is not the same, one line each, at most DIFFERENCES_MAX; empty when nothing is.

    Args:
        compare: names of fields of Entry.
        seen_as: from a field's name and value to the value that is compared.
    """
    lines = [f"{name}: missing" for name in expected if name not in found]
    lines += [f"{name}: should not be there" for name in found if name not in expected]
    for name in expected:
        if name in found:
            for field in compare:
                wanted = seen_as(field, getattr(expected[name], field))
                got = seen_as(field, getattr(found[name], field))
                if wanted != got:
                    lines.append(f"{name}: {field} is {got!r}, expected {wanted!r}")
    return lines[:DIFFERENCES_MAX]
