"""The tree of the golden volume, worked out by hand from story.py; expected_tree.json is its copy.

Path -> mode, uid, gid, times (ns), nlink, size, rdev, target, extended attributes, and what the bytes are:
their SHA-256, for regular files. Text that is not UTF-8 does not occur in names here; values are hex.
"""

from __future__ import annotations

import hashlib
import stat
from typing import TypedDict

from tests.golden.story import (
    DIRECTORY,
    DRAFT,
    DRAFT_2,
    FILE,
    KEPT,
    LARGE_1,
    LARGE_2,
    LAST,
    LATE,
    LATER,
    NOTES,
    OLD,
    PATCH,
    PATCHED,
    RESUME,
    ROTATED,
    t,
)


class Entry(TypedDict):
    """One path."""

    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    nlink: int
    size: int
    rdev: int
    target: str
    xattrs: dict[str, str]
    sha256: str


def _entry(
    mode: int,
    times: tuple[int, int, int],
    *,
    content: bytes | None = None,
    nlink: int = 1,
    owner: tuple[int, int] = (1000, 1000),
    rdev: int = 0,
    target: str = "",
    xattrs: dict[str, str] | None = None,
) -> Entry:
    return Entry(
        mode=mode,
        uid=owner[0],
        gid=owner[1],
        atime_ns=t(times[0]),
        mtime_ns=t(times[1]),
        ctime_ns=t(times[2]),
        nlink=nlink,
        size=len(content) if content is not None else len(target),
        rdev=rdev,
        target=target,
        xattrs=xattrs or {},
        sha256=hashlib.sha256(content).hexdigest() if content is not None else "",
    )


_LARGE = LARGE_1[:500_000] + PATCH + LARGE_1[500_000 + len(PATCH) :] + LARGE_2[:1000]
_NOTES = _entry(FILE, (2, 63, 63), content=NOTES + bytes(100 - len(NOTES)), nlink=2)

TREE: dict[str, Entry] = {
    "/": _entry(DIRECTORY, (0, 65, 65), nlink=2 + 3),
    "/docs": _entry(DIRECTORY, (1, 15, 15), nlink=3),
    "/docs/résumé.txt": _entry(
        stat.S_IFREG | 0o600,
        (2, 2, 64),
        content=RESUME,
        xattrs={"user.comment": "00ff", "user.empty": ""},
    ),
    "/docs/notes.txt": _NOTES,
    "/docs/moved": _entry(DIRECTORY, (13, 13, 15), nlink=2),
    "/hard-link": _NOTES,
    "/large.bin": _entry(FILE, (-5, 61, 61), content=_LARGE, owner=(33, 44)),
    "/link-to-notes": _entry(stat.S_IFLNK | 0o777, (4, 4, 4), target="docs/notes.txt"),
    "/pipe": _entry(stat.S_IFIFO | 0o600, (4, 4, 4)),
    "/null": _entry(stat.S_IFCHR | 0o666, (4, 4, 4), rdev=0x103),
    "/日本語": _entry(DIRECTORY, (5, 14, 14), nlink=2),
    "/日本語/empty": _entry(FILE, (6, 6, 6), content=b""),
    "/日本語/right": _entry(FILE, (13, 13, 14), content=b""),
    "/left": _entry(DIRECTORY, (13, 13, 14), nlink=2),
    "/final": _entry(FILE, (11, 11, 12), content=DRAFT),
    "/late.txt": _entry(FILE, (65, 65, 65), content=LATE),
}

TREE_2: dict[str, Entry] = {
    **TREE,
    "/": _entry(DIRECTORY, (0, 69, 69), nlink=2 + 3),
    "/after rotation.txt": _entry(FILE, (69, 69, 69), content=ROTATED),
}
"""That of the second golden volume."""

TREE_3: dict[str, Entry] = {
    "/": _entry(DIRECTORY, (0, 1, 1), nlink=2),
    "/notes.txt": _entry(FILE, (1, 1, 1), content=NOTES),
}
"""That of the third golden volume."""

SNAPSHOTS_3: dict[str, tuple[int, int, int]] = {
    "audit": (1 << 20 | 2, t(11), 0),
    "avant mise à jour": (1, t(3), 1),
    "in two frames": (3, t(5), 0),
}
"""Name -> (position, time, held) of its snapshots."""

_KEPT = _entry(FILE, (1, 1, 1), content=KEPT)
_DRAFT = _entry(FILE, (11, 11, 11), content=DRAFT_2)
_LATER = _entry(FILE, (17, 17, 17), content=LATER)
_BASE: dict[str, Entry] = {
    "/": _entry(DIRECTORY, (0, 17, 17), nlink=2),
    "/kept": _KEPT,
    "/draft": _DRAFT,
    "/later": _LATER,
}
_PATCHED = _entry(FILE, (1, 1, 1), content=KEPT[:1000] + PATCHED + KEPT[1500:])
_NEWEST: dict[str, Entry] = {
    **_BASE,
    "/": _entry(DIRECTORY, (0, 29, 29), nlink=2),
    "/kept": _PATCHED,
    "/last": _entry(FILE, (29, 29, 29), content=LAST),
}
TREES_4: dict[str, dict[str, Entry]] = {
    "0.5": {
        "/": _entry(DIRECTORY, (0, 5, 5), nlink=2),
        "/kept": _KEPT,
        "/old": _entry(FILE, (3, 3, 3), content=OLD),
    },
    "3.2": _BASE,
    "4.0": _BASE,
    "4.1": _BASE,
    "4.3": {**_BASE, "/kept": _PATCHED},
    "5.0": {**_BASE, "/kept": _PATCHED},
    "6.0": {**_BASE, "/kept": _PATCHED},
    "6.2": _NEWEST,
}
"""Position -> that of the fourth golden volume, for every position that can be returned to."""
