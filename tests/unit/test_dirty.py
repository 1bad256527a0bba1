"""Dirty ranges: the newest write wins, and nothing is counted twice."""

from __future__ import annotations

import pytest

from mirrorfs.core.dirty import DirtyRanges
from mirrorfs.format.limits import CHUNK_SIZE


def written(*writes: tuple[int, bytes]) -> DirtyRanges:
    ranges = DirtyRanges()
    for offset, data in writes:
        ranges.write(offset, data)
    return ranges


def pieces(ranges: DirtyRanges) -> list[tuple[int, bytes]]:
    return [(offset, bytes(data)) for offset, data in ranges.take(1 << 30)]


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([], []),
        ([(0, b"")], []),
        ([(5, b"abc"), (8, b"def")], [(5, b"abc"), (8, b"def")]),
        ([(8, b"def"), (5, b"abc")], [(5, b"abc"), (8, b"def")]),
        ([(5, b"abc"), (5, b"xyz")], [(5, b"xyz")]),
        ([(5, b"abcdef"), (7, b"XY")], [(5, b"ab"), (7, b"XY"), (9, b"ef")]),
        ([(5, b"abc"), (7, b"XYZ")], [(5, b"ab"), (7, b"XYZ")]),
        ([(5, b"abc"), (3, b"XYZ")], [(3, b"XYZ"), (6, b"bc")]),
        ([(0, b"ab"), (4, b"cd"), (8, b"ef"), (1, b"-------X")], [(0, b"a"), (1, b"-------X"), (9, b"f")]),
        ([(5, b"abc"), (0, b"0123456789")], [(0, b"0123456789")]),
    ],
)
def test_writes(writes: list[tuple[int, bytes]], expected: list[tuple[int, bytes]]) -> None:
    ranges = written(*writes)
    assert ranges.size_bytes == sum(len(data) for _, data in expected)
    assert ranges.end == (expected[-1][0] + len(expected[-1][1]) if expected else 0)
    assert bool(ranges) == bool(expected)
    assert pieces(ranges) == expected
    assert (ranges.size_bytes, ranges.end, bool(ranges)) == (0, 0, False)


def test_truncate() -> None:
    ranges = written((0, b"abcd"), (8, b"efgh"))
    ranges.truncate(10)
    assert (ranges.size_bytes, ranges.end) == (6, 10)
    ranges.truncate(6)
    assert (ranges.size_bytes, ranges.end) == (4, 4)
    ranges.truncate(0)
    assert not ranges


def test_read_into() -> None:
    ranges = written((2, b"abcd"), (8, b"efgh"))
    buffer = bytearray(b"........")
    ranges.read_into(buffer, 4)
    assert bytes(buffer) == b"cd..efgh"
    assert len(buffer) == 8
    buffer = bytearray(b"..")
    ranges.read_into(buffer, 100)
    assert bytes(buffer) == b".."


def test_take_is_bounded_but_never_stuck() -> None:
    ranges = written((0, b"aaaa"), (10, b"bb"), (20, b"cc"))
    assert ranges.take(1) == [(0, b"aaaa")]
    assert ranges.take(3) == [(10, b"bb")]
    assert ranges.take(100) == [(20, b"cc")]
    assert ranges.take(100) == []


def test_take_does_not_part_what_belongs_to_one_chunk() -> None:
    last = CHUNK_SIZE - 4
    ranges = written((0, b"aaaa"), (4, b"bbbb"), (9, b"cccc"), (last, b"dddd"), (CHUNK_SIZE, b"eeee"))
    assert ranges.take(1) == [(0, b"aaaa"), (4, b"bbbb")], "up to a gap"
    assert ranges.take(5) == [(9, b"cccc")]
    assert ranges.take(4) == [(last, b"dddd")], "up to the end of the chunk"
    assert ranges.size_bytes == 4
    assert ranges.take(1) == [(CHUNK_SIZE, b"eeee")]
