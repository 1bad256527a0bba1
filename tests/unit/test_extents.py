"""Extents of one chunk: overlaying, trimming, packing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.extents import (
    Extent,
    Freed,
    extents_within,
    overlay,
    overlay_packed,
    pack_extents,
    trim,
    unpack_extents,
)
from mirrorfs.errors import FormatError
from mirrorfs.format.limits import CHUNK_SIZE

A = Extent(100, 100, 1, 0)
B = Extent(300, 100, 2, 50)


@pytest.mark.parametrize(
    ("new", "expected", "freed"),
    [
        (Extent(0, 50, 9, 0), [Extent(0, 50, 9, 0), A, B], []),
        (Extent(0, 100, 9, 0), [Extent(0, 100, 9, 0), A, B], []),
        (Extent(200, 100, 9, 0), [A, Extent(200, 100, 9, 0), B], []),
        (Extent(500, 9, 9, 0), [A, B, Extent(500, 9, 9, 0)], []),
        (A._replace(frame=9), [A._replace(frame=9), B], [(1, 100)]),
        (
            Extent(120, 10, 9, 0),
            [Extent(100, 20, 1, 0), Extent(120, 10, 9, 0), Extent(130, 70, 1, 30), B],
            [(1, 10)],
        ),
        (
            Extent(150, 200, 9, 7),
            [Extent(100, 50, 1, 0), Extent(150, 200, 9, 7), Extent(350, 50, 2, 100)],
            [(1, 50), (2, 50)],
        ),
        (Extent(0, 1000, 9, 0), [Extent(0, 1000, 9, 0)], [(1, 100), (2, 100)]),
        (Extent(200, 10, 1, 100), [Extent(100, 110, 1, 0), B], []),
        (Extent(200, 10, 1, 101), [A, Extent(200, 10, 1, 101), B], []),
    ],
)
def test_overlay(new: Extent, expected: list[Extent], freed: list[Freed]) -> None:
    assert overlay([A, B], new) == (expected, freed)
    assert overlay_packed(pack_extents([A, B]), new) == (pack_extents(expected), freed)


RANGES = st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(1, 3), st.integers(0, 9))


@given(st.lists(RANGES, max_size=12), st.integers(-5, 90), st.integers(0, 40))
def test_the_packed_form_is_worked_on_as_the_list_is(
    ranges: list[tuple[int, int, int, int]], low: int, size: int
) -> None:
    extents: list[Extent] = []
    packed: bytes | None = None
    for fields in ranges:
        new = Extent._make(fields)
        extents, freed = overlay(extents, new)
        packed, freed_too = overlay_packed(packed, new)
        assert (packed, freed_too) == (pack_extents(extents), freed)
    high = low + size
    inside = [one for one in extents if one.start < high and one.start + one.length > low]
    found = extents_within(packed, low, high)
    assert [one for one in found if one in inside] == inside
    assert len(found) <= len(inside) + 1


def test_a_packed_form_that_is_cut_short_is_refused() -> None:
    cut = pack_extents([A, B])[:-1]
    with pytest.raises(FormatError):
        overlay_packed(cut, A)
    with pytest.raises(FormatError):
        extents_within(cut, 0, 10)


@pytest.mark.parametrize(
    ("end", "expected", "freed"),
    [
        (1000, [A, B], []),
        (400, [A, B], []),
        (350, [A, Extent(300, 50, 2, 50)], [(2, 50)]),
        (300, [A], [(2, 100)]),
        (101, [Extent(100, 1, 1, 0)], [(1, 99), (2, 100)]),
        (0, [], [(1, 100), (2, 100)]),
    ],
)
def test_trim(end: int, expected: list[Extent], freed: list[Freed]) -> None:
    assert trim([A, B], end) == (expected, freed)


def test_packing() -> None:
    assert pack_extents([A]) == bytes.fromhex("64000000 64000000 0100000000000000 00000000")
    assert unpack_extents(pack_extents([A, B])) == [A, B]
    assert unpack_extents(None) == unpack_extents(b"") == []
    whole = Extent(0, CHUNK_SIZE, 1, 0)
    assert unpack_extents(pack_extents([whole])) == [whole]


@pytest.mark.parametrize(
    "packed",
    [
        pack_extents([A, B])[:-1],
        pack_extents([B, A]),
        pack_extents([A, A]),
        pack_extents([A, Extent(199, 5, 2, 0)]),
        pack_extents([Extent(0, 0, 1, 0)]),
        pack_extents([Extent(CHUNK_SIZE - 1, 2, 1, 0)]),
    ],
)
def test_packed_extents_that_cannot_be(packed: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_extents(packed)
