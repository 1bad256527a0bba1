"""Records of what is kept: which moments, where frames lie now, and what may go (docs/FORMAT.md, "Records").

Lists in them are packed, for one record may name thousands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from operator import ge
from typing import NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.frame import FRAME_SIZE_MIN
from mirrorfs.format.ids import Stream
from mirrorfs.format.limits import INTEGER_MAX, ORDINAL_MAX, SEGMENT_SIZE_MAX, SEQUENCE_MAX
from mirrorfs.format.segment import HEADER_SIZE

LISTED_MAX = 32_768
"""Numbers or places that one record lists."""
_WRITER_SIZE = 8
_DIGEST_SIZE = 32


class Checkpointed(NamedTuple):
    """A checkpoint of a position is complete: its root lies in the checkpoint segment that is named."""

    position: int
    time_ns: int
    sequence: int
    epoch: int
    writer: bytes
    digest: bytes
    """SHA-256 of that segment, all of it."""


class Retain(NamedTuple):
    """Every commit from `base` on can be returned to, and of those before it the moments that are kept."""

    base: int
    """A moment, never one before the base that there was."""
    dropped: bytes
    """Packed positions (`pack_numbers`) of moments that are kept no longer; may be empty."""


class Relocated(NamedTuple):
    """Frames lie in a segment of the relocated stream now; a long list is cut into several records."""

    sequence: int
    epoch: int
    size: int
    """Bytes of the whole object."""
    writer: bytes
    digest: bytes
    """SHA-256 of all of it."""
    frames: bytes
    """Packed: see `pack_places`."""


class Collected(NamedTuple):
    """Segments are in use no longer: what was alive in them lies elsewhere. Their objects may be deleted."""

    stream: int
    time_ns: int
    sequences: bytes
    """Packed: see `pack_numbers`."""


class Deleted(NamedTuple):
    """The objects of collected segments are gone from every store."""

    stream: int
    sequences: bytes
    """Packed: see `pack_numbers`."""


class FramePlace(NamedTuple):
    """Where a frame lies in a segment of the relocated stream."""

    frame: int
    ordinal: int
    offset: int
    size: int


_PLACE = struct.Struct("<QIII")
_NUMBER = struct.Struct("<Q")


def pack_places(places: Sequence[FramePlace]) -> bytes:
    """Places as 20 bytes each, frames rising."""
    return b"".join([_PLACE.pack(*place) for place in sorted(places)])


def unpack_places(packed: bytes) -> list[FramePlace]:
    """The inverse. Raises FormatError: none, too many, a frame out of range, or frames not rising."""
    _check_list(packed, _PLACE.size)
    places = [FramePlace._make(place) for place in _PLACE.iter_unpack(packed)]
    frames, ordinals, offsets, sizes = zip(*places, strict=True)
    if frames[-1] > INTEGER_MAX or any(map(ge, frames, frames[1:])):
        raise FormatError("a record places frames out of order or out of range.")
    if max(ordinals) > ORDINAL_MAX or len(set(ordinals)) < len(ordinals):
        raise FormatError("a record places two frames under one ordinal, or one out of range.")
    if min(offsets) < HEADER_SIZE or min(sizes) < FRAME_SIZE_MIN:
        raise FormatError("a record places a frame where none can lie.")
    return places


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Numbers as 8 bytes each, rising."""
    return b"".join([_NUMBER.pack(number) for number in sorted(numbers)])


def unpack_numbers(packed: bytes) -> list[int]:
    """The inverse. Raises FormatError: none, too many, out of range, or not rising."""
    _check_list(packed, _NUMBER.size)
    numbers = [number for (number,) in _NUMBER.iter_unpack(packed)]
    if numbers[-1] > INTEGER_MAX or any(map(ge, numbers, numbers[1:])):
        raise FormatError("a record lists numbers out of order or out of range.")
    return numbers


def _check_list(packed: bytes, size: int) -> None:
    if not packed or len(packed) % size or len(packed) > LISTED_MAX * size:
        raise FormatError("a record has a list that is empty, cut short or too long.")


def check_checkpointed(r: Checkpointed) -> None:
    """Raises FormatError."""
    _check_segment(r.sequence, r.writer, r.digest)
    if not r.position:
        raise FormatError("a record names a checkpoint of nothing.")


def _check_segment(sequence: int, writer: bytes, digest: bytes) -> None:
    if sequence > SEQUENCE_MAX or len(writer) != _WRITER_SIZE or len(digest) != _DIGEST_SIZE:
        raise FormatError("a record names an impossible segment.")


def check_retain(r: Retain) -> None:
    """Raises FormatError."""
    dropped = unpack_numbers(r.dropped) if r.dropped else []
    if not r.base or r.base in dropped:
        raise FormatError("a record keeps no moment.")


def check_relocated(r: Relocated) -> None:
    """Raises FormatError."""
    _check_segment(r.sequence, r.writer, r.digest)
    if r.size > SEGMENT_SIZE_MAX or any(
        place.offset + place.size > r.size for place in unpack_places(r.frames)
    ):
        raise FormatError("a record places a frame beyond its segment.")


def check_collected(r: Collected | Deleted) -> None:
    """Raises FormatError."""
    if r.stream not in (Stream.MAIN, Stream.RELOCATED):
        raise FormatError("a record collects segments of a stream that holds no data.")
    if unpack_numbers(r.sequences)[-1] > SEQUENCE_MAX:
        raise FormatError("a record collects impossible segments.")
