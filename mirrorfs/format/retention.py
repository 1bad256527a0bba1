"""Records of what is kept: which moments, where frames lie now, and what may go (docs/FORMAT.md, "Records").

Lists in them are packed, for one record may name thousands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from operator import ge
from typing import NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.ids import Stream
from mirrorfs.format.limits import INTEGER_MAX, ORDINAL_MAX, SEQUENCE_MAX

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
    """Every moment from `base` on is kept, and of those before it the ones that have a checkpoint."""

    base: int
    dropped: bytes
    """Packed positions (`pack_numbers`) of checkpoints that are kept no longer."""


class Relocated(NamedTuple):
    """Frames lie in a segment of the relocated stream now; a long list is cut into several records."""

    sequence: int
    epoch: int
    size: int
    writer: bytes
    digest: bytes
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


class FramePlace(NamedTuple):
    """Where a frame lies in a segment of the relocated stream."""

    frame: int
    ordinal: int
    offset: int
    size: int


_PLACE = struct.Struct("<QIII")
_NUMBER = struct.Struct("<Q")


def pack_places(places: Sequence[FramePlace]) -> bytes:
    """Places as 20 bytes each."""
    return b"".join([_PLACE.pack(*place) for place in places])


def unpack_places(packed: bytes) -> list[FramePlace]:
    """The inverse, frames rising. Raises FormatError."""
    _check_list(packed, _PLACE.size)
    places = [FramePlace._make(place) for place in _PLACE.iter_unpack(packed)]
    frames = [place.frame for place in places]
    if max(frames) > INTEGER_MAX or any(place.ordinal > ORDINAL_MAX for place in places):
        raise FormatError("a record places a frame out of range.")
    if len(set(frames)) < len(frames):
        raise FormatError("a record places a frame twice.")
    return places


def pack_numbers(numbers: Sequence[int]) -> bytes:
    """Numbers as 8 bytes each, rising."""
    return b"".join([_NUMBER.pack(number) for number in sorted(numbers)])


def unpack_numbers(packed: bytes) -> list[int]:
    """The inverse. Raises FormatError: too many, out of range, or not rising."""
    if not packed:
        return []
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
    if not r.base or r.base in unpack_numbers(r.dropped):
        raise FormatError("a record keeps no moment.")


def check_relocated(r: Relocated) -> None:
    """Raises FormatError."""
    _check_segment(r.sequence, r.writer, r.digest)
    unpack_places(r.frames)


def check_collected(r: Collected | Deleted) -> None:
    """Raises FormatError."""
    if r.stream not in (Stream.MAIN, Stream.RELOCATED):
        raise FormatError("a record collects segments of a stream that holds no data.")
    numbers = unpack_numbers(r.sequences)
    if not numbers or numbers[-1] > SEQUENCE_MAX:
        raise FormatError("a record collects impossible segments.")
