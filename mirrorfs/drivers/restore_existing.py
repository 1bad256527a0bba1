"""What a restore does with what is there already: the policies, and the decision on one name."""

from __future__ import annotations

import os
import stat
from enum import Enum

from mirrorfs.format.rows import InodeRow


class Overwrite(Enum):
    """What becomes of files that are there already. Directories are never replaced by anything."""

    NEVER = "never"
    """They stay, and so do the owners, permissions and times of directories that are there."""
    IF_NEWER = "if-newer"
    """Replaced where the volume's was modified later."""
    IF_CHANGED = "if-changed"
    """Replaced where type, size or time of modification differ: so a restore that was cut off goes on."""
    ALWAYS = "always"


class Verdict(Enum):
    """On one name that is there."""

    SAME = "same"
    """It stays, and seems to be what would be restored."""
    KEEP = "keep"
    REPLACE = "replace"
    ENTER = "enter"
    """A directory that takes more names."""


class InTheWay(Exception):
    """Something is there that no policy replaces; the message says what."""


def decide(overwrite: Overwrite, found: os.stat_result, target: bytes, row: InodeRow) -> Verdict:
    """What to do with a name that is there.

    Args:
        found: of the name itself; links are not followed.
        target: of a symbolic link that is there; else empty.
    Raises: InTheWay.
    """
    if stat.S_ISDIR(row.mode):
        if not stat.S_ISDIR(found.st_mode):
            raise InTheWay("something that is not a directory is in the way")
        return Verdict.ENTER
    if stat.S_ISDIR(found.st_mode):
        raise InTheWay("a directory is in the way")
    same = (
        stat.S_IFMT(found.st_mode) == stat.S_IFMT(row.mode)
        and found.st_mtime_ns == row.mtime_ns
        and (not stat.S_ISREG(row.mode) or found.st_size == row.size)
        and target == row.target
    )
    match overwrite:
        case Overwrite.ALWAYS:
            return Verdict.REPLACE
        case Overwrite.IF_NEWER if row.mtime_ns > found.st_mtime_ns:
            return Verdict.REPLACE
        case Overwrite.IF_CHANGED if not same:
            return Verdict.REPLACE
    return Verdict.SAME if same else Verdict.KEEP


def look(overwrite: Overwrite, directory: int, name: bytes, row: InodeRow) -> Verdict | None:
    """`decide` for a name in an open directory; None: nothing is there. Raises: InTheWay, OSError."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        target = os.readlink(name, dir_fd=directory) if stat.S_ISLNK(found.st_mode) else b""
    except FileNotFoundError:
        return None
    return decide(overwrite, found, target, row)
