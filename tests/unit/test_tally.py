"""Counting what commits did."""

from __future__ import annotations

import stat

from mirrorfs.core.file_history import FileHistory
from mirrorfs.core.tally import Tally
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.record import (
    SET_MODE,
    Create,
    Epoch,
    Extents,
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

FILE = stat.S_IFREG | 0o644


def create(inode: int) -> Create:
    return Create(ROOT_INODE, inode, 1, inode, FILE, 0, 0, 0, 5, b"%d" % inode, b"")


def write(inode: int, *lengths: int) -> Extents:
    pieces = [Piece(1000 * at, length, 1 << 20, 0) for at, length in enumerate(lengths)]
    return Extents(inode, 5000, pack_pieces(pieces))


def setattr_of(inode: int) -> Setattr:
    return Setattr(inode, SET_MODE, FILE, 0, 0, 0, 0, 0)


def test_each_record_counts_once() -> None:
    first: list[Record] = [
        Epoch(1, 5, bytes(8)),
        Create(0, ROOT_INODE, 1, 0, stat.S_IFDIR | 0o755, 0, 0, 0, 5, b"", b""),
        create(2), write(2, 10, 20), setattr_of(2),
    ]  # fmt: skip
    second: list[Record] = [
        write(3, 100), Truncate(3, 7), Truncate(4, 0), setattr_of(4), setattr_of(5),
        Setxattr(6, 5, b"user.a", b""), Removexattr(6, 5, b"user.a"), Truncate(2, 0),
        Link(3, 1, 9, 5, b"link"), Unlink(1, 5, b"x"), Rename(1, 1, 10, 5, 0, b"a", b"b"),
    ]  # fmt: skip
    tally = Tally()
    tally.add(first, position=7, time_ns=70)
    assert (tally.created, tally.changed, tally.attributes_changed, tally.mounts) == (1, 0, 0, 1)
    assert tally.written_bytes == 30
    tally.add(second, position=8, time_ns=80)
    assert (tally.created, tally.changed, tally.attributes_changed) == (1, 2, 2)
    assert (tally.linked, tally.deleted, tally.renamed, tally.written_bytes) == (1, 1, 1, 130)
    assert (tally.moments, tally.first_position, tally.last_position) == (2, 7, 8)
    assert (tally.first_ns, tally.last_ns) == (70, 80)


def test_nothing() -> None:
    tally = Tally()
    assert (tally.moments, tally.changed, tally.attributes_changed, tally.written_bytes) == (0, 0, 0, 0)


def test_bytes_that_were_merged_are_no_change() -> None:
    tally = Tally()
    merged = write(3, 100)._replace(size=0)
    tally.add([merged], position=7, time_ns=70)
    assert (tally.moments, tally.changed, tally.written_bytes) == (1, 0, 0)
    history = FileHistory([b"file"], None)
    history.add([create(3)._replace(name=b"file"), write(3, 100)], position=5, time_ns=50)
    history.add([merged], position=7, time_ns=70)
    assert [one.position for one in history.versions] == [5]


def test_snapshots_change_nothing_but_names() -> None:
    tally = Tally()
    tally.add([Snapshot(5, 0, "é".encode()), SnapshotGone(5, "é".encode())], position=7, time_ns=70)
    assert tally.snapshots_deleted == ["é"]
    assert (tally.created, tally.changed, tally.deleted, tally.attributes_changed) == (0, 0, 0, 0)
