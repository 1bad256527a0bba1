"""The tables of a restore: extents by segment, names by inode."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from mirrorfs.core.extents import Extent, pack_extents
from mirrorfs.drivers.restore_names import DEFERRED, MADE, NameTable
from mirrorfs.engine.restore_extents import PASSED_MAX, ExtentMap, Piece, moved_frames, passes, unpacked
from mirrorfs.engine.restore_spans import Span, WantedFrame, spans
from mirrorfs.format.ids import Stream, frame_id
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.rows import InodeRow
from mirrorfs.format.segment import HEADER_SIZE

A, B, C = frame_id(1, 5), frame_id(2, 0), frame_id(1, 2)


class Rows:
    """The two tables that are read, in canonical order."""

    def rows(self, table: str, *, first: tuple[int | bytes, ...]) -> Iterable[tuple[object, ...]]:
        if table == "relocations":
            return [(B, int(Stream.MAIN), 9, 3, 1000, 50)]
        extents = [
            (4, 0, pack_extents([Extent(0, 100, A, 0)])),
            (6, 0, pack_extents([Extent(0, 10, B, 7), Extent(500, 20, A, 100)])),
            (6, 2, pack_extents([Extent(8, 30, C, 1)])),
            (7, 0, pack_extents([Extent(0, 5, C, 31)])),
        ]
        return [row for row in extents if row[:2] >= first]

    def get_meta(self, key: str) -> int | bytes | None:
        raise AssertionError(key)

    def close(self) -> None:
        raise AssertionError


def test_extents_by_place() -> None:
    moved = moved_frames(Rows())
    extents = ExtentMap(Rows(), array("q", [5, 6, 7]), moved=moved)
    counts = extents.count()
    # B was moved: it counts where it lies now. Inode 4 is not wanted.
    assert counts.records == {(1, 9): 1, (1, 1): 3}
    assert counts.size_bytes == 65
    assert counts.collected == extents.collect([(1, 1), (1, 9)])
    assert extents.count(records_max=3) == (counts.records, counts.size_bytes, None)
    found = extents.collect([(1, 1)])
    assert list(found) == [(1, 1)]
    assert list(unpacked(found[1, 1])) == [
        (C, [Piece(6, 2 * CHUNK_SIZE + 8, 30, 1), Piece(7, 0, 5, 31)]),
        (A, [Piece(6, 500, 20, 100)]),
    ]
    assert list(unpacked(extents.collect([(1, 9)])[1, 9])) == [(B, [Piece(6, 0, 10, 7)])]
    assert ExtentMap(Rows(), array("q"), moved=moved).count() == ({}, 0, {})


def test_chunks_of_one_file() -> None:
    extents = ExtentMap(Rows(), array("q", [6]), moved={}, chunks=range(1, 3))
    assert list(unpacked(extents.collect([(1, 1)])[1, 1])) == [(C, [Piece(6, 2 * CHUNK_SIZE + 8, 30, 1)])]


def test_what_lies_between_is_not_read() -> None:
    asked = []

    class Many(Rows):
        def rows(self, table: str, *, first: tuple[int | bytes, ...]) -> Iterator[tuple[object, ...]]:
            asked.append(first)
            for inode in range(int(first[0]), 10_000):
                yield inode, 0, pack_extents([Extent(0, 10, C, 0)])

    inodes = array("q", [3, 5, 4000, 4000 + PASSED_MAX, 9999])
    counts = ExtentMap(Many(), inodes, moved={}).count()
    assert counts.records == {(1, 1): 5} and counts.size_bytes == 50
    assert asked == [(3, 0), (4000, 0), (9999, 0)]


def test_far_frames_are_read_apart() -> None:
    def wanted(offset: int, size: int) -> WantedFrame:
        return WantedFrame(offset, 0, offset, size, [])

    near, far, next_to_it = wanted(5000, 100), wanted(9_000_000, 500), wanted(9_001_000, 50)
    assert spans([far, near, next_to_it]) == [
        Span(0, 5100, [near]),
        Span(9_000_000, 9_001_050, [far, next_to_it]),
    ]
    # The header is always read, for it opens the rest.
    assert spans([far]) == [Span(0, HEADER_SIZE, []), Span(9_000_000, 9_000_500, [far])]


def test_passes_hold_so_many() -> None:
    counts = {(1, 3): 4, (1, 1): 5, (1, 2): 5, (1, 4): 50, (1, 5): 1, (1, 6): 9}
    assert passes(counts, records_max=10) == [
        [(1, 1), (1, 2)],
        [(1, 3)],
        [(1, 4)],
        [(1, 5), (1, 6)],
    ]
    assert passes({}) == []


def test_names() -> None:
    names = NameTable()
    expected = {}
    for inode in (9, 2, 40, 3, 1 << 40):
        expected[inode] = (inode // 2, b"name \xff %d" % inode)
        row = InodeRow(inode, 1, 0o100644, 1, 2, 1, inode, 0, 0, -5, 1 << 62, 0, 0, b"")
        names.add(row, parent=inode // 2, name=expected[inode][1], state=DEFERRED)
    names.freeze()
    at = names.row_of(40)
    assert at is not None and names.name(at) == expected[40][1]
    names.states[at] = MADE
    assert list(names.states) == [DEFERRED, DEFERRED, MADE, DEFERRED, DEFERRED]
    assert (names.sizes[at], names.atimes_ns[at], names.mtimes_ns[at]) == (40, -5, 1 << 62)
    assert {inode: names.find(inode) for inode in expected} == expected
    assert [names.find(inode) for inode in (1, 4, 41, (1 << 40) + 1)] == [None] * 4
