"""Extents of one 1 MiB chunk of a file: which bytes lie in which frame (docs/FORMAT.md, "Extents").

A chunk's extents are sorted by start and never overlap; what they do not cover is a hole and reads as
zeros. Every change reports the bytes it freed, frame by frame, so that the caller can count what is
still alive in each frame.

A chunk of a database may have 256 extents or more: what concerns a few of them looks for these in the
packed form, and leaves the others alone.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.limits import CHUNK_SIZE

_EXTENT = struct.Struct("<IIQI")
_START = struct.Struct("<I")
EXTENT_SIZE = _EXTENT.size
"""Bytes of one in the packed form."""


class Extent(NamedTuple):
    """`length` bytes at `start` of the chunk are at `frame_offset` of the plaintext of `frame`."""

    start: int
    length: int
    frame: int
    frame_offset: int


Freed = tuple[int, int]
"""(frame, bytes of it no longer referred to)"""


def pack_extents(extents: Sequence[Extent]) -> bytes:
    """20 bytes each."""
    return b"".join([_EXTENT.pack(*extent) for extent in extents])


def unpack_extents(packed: bytes | None) -> list[Extent]:
    """The inverse; None is a hole. Raises FormatError for extents that are not sorted within the chunk."""
    if not packed:
        return []
    if len(packed) % _EXTENT.size:
        raise FormatError("extents are cut short.")
    extents = [Extent._make(fields) for fields in _EXTENT.iter_unpack(packed)]
    end = 0
    for extent in extents:
        if extent.start < end or not extent.length:
            raise FormatError("extents overlap.")
        end = extent.start + extent.length
    if end > CHUNK_SIZE:
        raise FormatError("extents leave their chunk.")
    return extents


def _first_from(packed: bytes, start: int) -> int:
    """Index of the first packed extent that does not begin before `start`."""
    count, rest = divmod(len(packed), _EXTENT.size)
    if rest:
        raise FormatError("extents are cut short.")
    size, unpack = _EXTENT.size, _START.unpack_from
    return bisect_left(range(count), start, key=lambda index: unpack(packed, index * size)[0])


def extents_within(packed: bytes | None, low: int, high: int) -> list[Extent]:
    """The extents that have bytes in [low, high) of the chunk, whole; perhaps one more before them.

    Raises FormatError as unpack_extents, for what it looks at.
    """
    if not packed:
        return []
    if len(packed) == _EXTENT.size:
        return unpack_extents(packed)
    first = max(_first_from(packed, low + 1) - 1, 0)
    return unpack_extents(packed[first * _EXTENT.size : _first_from(packed, high) * _EXTENT.size])


def overlay_packed(packed: bytes | None, new: Extent) -> tuple[bytes, list[Freed]]:
    """`overlay` on the packed form."""
    if not packed:
        return _EXTENT.pack(*new), []
    # The extent before is taken along: it may reach into the new one, or continue in it.
    first = max(_first_from(packed, new.start) - 1, 0) * _EXTENT.size
    last = _first_from(packed, new.start + new.length) * _EXTENT.size
    extents, freed = overlay(unpack_extents(packed[first:last]), new)
    return b"".join((packed[:first], pack_extents(extents), packed[last:])), freed


def overlay(extents: Sequence[Extent], new: Extent) -> tuple[list[Extent], list[Freed]]:
    """Put `new` over what is there: older extents are split or trimmed."""
    new_end = new.start + new.length
    kept: list[Extent] = []
    after: list[Extent] = []
    freed: list[Freed] = []
    for extent in extents:
        start, length, frame, frame_offset = extent
        end = start + length
        if end <= new.start:
            kept.append(extent)
        elif start >= new_end:
            after.append(extent)
        else:
            if start < new.start:
                kept.append(Extent(start, new.start - start, frame, frame_offset))
            if end > new_end:
                after.append(Extent(new_end, end - new_end, frame, frame_offset + new_end - start))
            freed.append((frame, min(end, new_end) - max(start, new.start)))
    if kept:
        last = kept[-1]
        if (
            last.frame == new.frame
            and last.start + last.length == new.start
            and last.frame_offset + last.length == new.frame_offset
        ):
            kept[-1] = Extent(last.start, last.length + new.length, last.frame, last.frame_offset)
        else:
            kept.append(new)
    else:
        kept.append(new)
    kept.extend(after)
    return kept, freed


def trim(extents: Sequence[Extent], end: int) -> tuple[list[Extent], list[Freed]]:
    """Keep only what lies below `end` of the chunk."""
    kept: list[Extent] = []
    freed: list[Freed] = []
    for extent in extents:
        if extent.start >= end:
            freed.append((extent.frame, extent.length))
        elif extent.start + extent.length > end:
            kept.append(Extent(extent.start, end - extent.start, extent.frame, extent.frame_offset))
            freed.append((extent.frame, extent.start + extent.length - end))
        else:
            kept.append(extent)
    return kept, freed
