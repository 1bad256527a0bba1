"""What happened to the golden volume, step by step. expected_tree.py says what must come of it.

Segments: 0 sealed; 1 ended by a crash, its cut attested by 2; 2 ended by a failed sync, the rest of it
sealed again in 3 under its birth names; the data of the last commit is in 3 and its journal frame in 4.
The checkpoint is taken between the two parts of STORY.
"""

from __future__ import annotations

import hashlib
import stat
from typing import Literal, NamedTuple

from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.record import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_UID,
    Create,
    Epoch,
    Extents,
    Forget,
    Link,
    Piece,
    Record,
    Removexattr,
    Rename,
    Setattr,
    Setxattr,
    Snapshot,
    SnapshotGone,
    Truncate,
    Unlink,
    pack_pieces,
)

START_NS = 1_700_000_000_000_000_000


def t(seconds: int) -> int:
    """A moment of the story."""
    return START_NS + seconds * 1_000_000_000


class Data(NamedTuple):
    """A data frame; more than one part makes it a group frame."""

    parts: tuple[bytes, ...]


class Commit(NamedTuple):
    """A journal frame."""

    time_ns: int
    records: tuple[Record, ...]
    continues: bool = False
    synced: bool = True


Step = Data | Commit | Literal["mount", "open", "seal", "crash", "fail"]

RESUME = "Größe: 42\n".encode()
NOTES = b"remember the milk\n"
BLOCK = b"".join(hashlib.sha256(bytes((n,))).digest() for n in range(128))
LARGE_1 = BLOCK * 256
LARGE_2 = BLOCK[:2048] * 100
PATCH = b"\xee" * 4096
SCRATCH = b"gone soon"
ORPHAN = b"unlinked while open"
ROTATED = b"sealed with the second keys\n"
DRAFT = b"the better version\n"
FINAL = b"the worse version\n"
LATE = b"named by the next segment\n"
KEPT = BLOCK[:3000]
GONE = b"gone before there was a snapshot\n"
OLD = b"in the snapshot alone\n"
DRAFT_1 = b"the draft that nobody can return to\n"
DRAFT_2 = b"the draft that replaced it, as long\n"
LATER = b"at the base\n"
PATCHED = b"\xdd" * 500
LAST = b"behind every checkpoint\n"

assert len(LARGE_1) == CHUNK_SIZE

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644


def frame(sequence: int, ordinal: int) -> int:
    """A stable id."""
    return sequence << 20 | ordinal


def created(
    inode: int, name: str, *, mode: int, parent: int = 1, at: int, rdev: int = 0, target: bytes = b""
) -> Create:
    """A record that creates an inode."""
    # Cookies and generations count up with the inode here; the format only asks that none is used twice.
    cookie = 14 + inode
    return Create(parent, inode, inode, cookie, mode, 1000, 1000, rdev, t(at), name.encode(), target)


def extent(inode: int, offset: int, length: int, frame: int, frame_offset: int = 0) -> Extents:
    """A record of one piece."""
    return Extents(inode, offset + length, pack_pieces([Piece(offset, length, frame, frame_offset)]))


_SEGMENT_0: tuple[Step, ...] = (
    "mount",
    "open",
    Data((RESUME, NOTES)),
    Data((LARGE_1,)),
    Commit(
        t(4),
        (
            Epoch(1, t(0), bytes(8)),
            Create(1, 1, 1, 0, DIRECTORY, 1000, 1000, 0, t(0), b"", b""),
            created(2, "docs", mode=DIRECTORY, at=1),
            created(3, "résumé.txt", mode=FILE, parent=2, at=2),
            created(4, "notes.txt", mode=FILE, parent=2, at=2),
            created(5, "large.bin", mode=FILE, at=3),
            extent(3, 0, len(RESUME), frame(0, 0)),
            extent(4, 0, len(NOTES), frame(0, 0), len(RESUME)),
            extent(5, 0, len(LARGE_1), frame(0, 1)),
            created(6, "link-to-notes", mode=stat.S_IFLNK | 0o777, at=4, target=b"docs/notes.txt"),
            created(7, "pipe", mode=stat.S_IFIFO | 0o600, at=4),
            created(8, "null", mode=stat.S_IFCHR | 0o666, at=4, rdev=0x103),
        ),
    ),
    Data((LARGE_2,)),
    Commit(
        t(9),
        (
            extent(5, CHUNK_SIZE, len(LARGE_2), frame(0, 3)),
            created(9, "日本語", mode=DIRECTORY, at=5),
            created(10, "empty", mode=FILE, parent=9, at=6),
            Link(4, 1, 25, t(7), b"hard-link"),
            Setxattr(3, t(8), b"user.comment", b"\x00\xff"),
            Setxattr(3, t(8), b"user.empty", b""),
            Setxattr(3, t(8), b"user.gone", b"x"),
            Setattr(3, SET_MODE | SET_CTIME, stat.S_IFREG | 0o600, 0, 0, 0, 0, t(9)),
            Setattr(
                5,
                SET_UID | SET_GID | SET_ATIME | SET_MTIME | SET_CTIME,
                0,
                33,
                44,
                t(-5),
                t(-6),
                t(9),
            ),
        ),
    ),
    "seal",
)

_SEGMENT_1: tuple[Step, ...] = (
    "open",
    Data((SCRATCH, ORPHAN, DRAFT, FINAL)),
    # One commit in two journal frames: a reader applies both or neither.
    Commit(
        t(12),
        (
            created(12, "scratch", mode=FILE, at=10),
            created(13, "orphan", mode=FILE, at=10),
            created(14, "draft", mode=FILE, at=11),
            created(15, "final", mode=FILE, at=11),
            extent(12, 0, len(SCRATCH), frame(1, 0)),
            extent(13, 0, len(ORPHAN), frame(1, 0), len(SCRATCH)),
            extent(14, 0, len(DRAFT), frame(1, 0), len(SCRATCH + ORPHAN)),
            extent(15, 0, len(FINAL), frame(1, 0), len(SCRATCH + ORPHAN + DRAFT)),
        ),
        continues=True,
    ),
    Commit(
        t(12),
        (
            Unlink(1, t(12), b"scratch"),
            Unlink(1, t(12), b"orphan"),
            Rename(1, 1, 30, t(12), 0, b"draft", b"final"),
            Forget(15),
            Forget(12),
        ),
    ),
    Commit(
        t(16),
        (
            created(17, "left", mode=FILE, at=13),
            created(18, "right", mode=DIRECTORY, parent=9, at=13),
            created(19, "moveme", mode=DIRECTORY, at=13),
            created(20, "emptydir", mode=DIRECTORY, at=13),
            Rename(1, 9, 0, t(14), 1, b"left", b"right"),
            Rename(1, 2, 35, t(15), 0, b"moveme", b"moved"),
            Unlink(1, t(16), b"emptydir"),
            Forget(20),
        ),
    ),
    "crash",
)

_SEGMENT_2: tuple[Step, ...] = (
    "mount",
    "open",
    Commit(t(60), (Epoch(2, t(60), b"\x01" * 8),)),
    Data((PATCH,)),
    Commit(
        t(62),
        (
            extent(5, 500_000, len(PATCH), frame(2, 1)),
            Truncate(5, CHUNK_SIZE + 1000),
            Setattr(5, SET_MTIME | SET_CTIME, 0, 0, 0, 0, t(61), t(61)),
        ),
        synced=False,
    ),
    "fail",
)

_SEGMENT_3: tuple[Step, ...] = (
    Commit(
        t(64),
        (
            Truncate(4, 100),
            Setattr(4, SET_MTIME | SET_CTIME, 0, 0, 0, 0, t(63), t(63)),
            Removexattr(3, t(64), b"user.gone"),
        ),
    ),
    Data((LATE,)),
    "seal",
)

_SEGMENT_4: tuple[Step, ...] = (
    "open",
    Commit(t(66), (created(22, "late.txt", mode=FILE, at=65), extent(22, 0, len(LATE), frame(3, 3)))),
    "seal",
)

STORY: tuple[tuple[Step, ...], tuple[Step, ...]] = (
    _SEGMENT_0 + _SEGMENT_1 + _SEGMENT_2,
    _SEGMENT_3 + _SEGMENT_4,
)

AFTER_ROTATION: tuple[Step, ...] = (
    "mount",
    "open",
    Data((ROTATED,)),
    Commit(
        t(70),
        (
            Epoch(3, t(70), bytes(8)),
            created(23, "after rotation.txt", mode=FILE, at=69),
            extent(23, 0, len(ROTATED), frame(5, 0)),
        ),
    ),
    "seal",
)
"""What the second golden volume has besides, under its second keys."""

_UPDATE = "avant mise à jour".encode()
NAMED: tuple[tuple[Step, ...], tuple[Step, ...]] = (
    (
        "mount",
        "open",
        Data((NOTES,)),
        Commit(
            t(4),
            (
                Epoch(2, t(0), bytes(8)),
                Create(1, 1, 1, 0, DIRECTORY, 1000, 1000, 0, t(0), b"", b""),
                created(2, "notes.txt", mode=FILE, at=1),
                extent(2, 0, len(NOTES), frame(0, 0)),
                Snapshot(t(3), 0, _UPDATE),
            ),
        ),
        # The position is that of the second frame.
        Commit(t(6), (Snapshot(t(5), 0, b"in two frames"), Snapshot(t(5), 0, b"deleted")), continues=True),
        Commit(t(6), (Snapshot(t(6), 1, b"audit"),)),
        "seal",
    ),
    (
        "open",
        Commit(t(8), (Snapshot(t(7), 1, _UPDATE), SnapshotGone(t(7), b"deleted"))),
        Commit(t(9), (Snapshot(t(9), 0, b"audit"), SnapshotGone(t(9), b"audit"))),
        Commit(t(11), (Snapshot(t(11), 0, b"audit"),)),
        "seal",
    ),
)
"""The whole of the third golden volume, which has snapshots; the checkpoint is taken between the parts."""
