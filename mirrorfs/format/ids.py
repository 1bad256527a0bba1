"""Names of segments, frames and positions (docs/FORMAT.md, "Names")."""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

from mirrorfs.errors import FormatError, LimitError
from mirrorfs.format.limits import ORDINAL_BITS, ORDINAL_MAX, SEQUENCE_MAX


class Stream(IntEnum):
    """Independent sequences of segments."""

    MAIN = 1
    CHECKPOINT = 2
    RELOCATED = 3


STREAM_PREFIX = {Stream.MAIN: "segments/", Stream.CHECKPOINT: "checkpoints/", Stream.RELOCATED: "relocated/"}

_KEY = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{16})")


class SegmentId(NamedTuple):
    """One segment: its place in the stream, and who wrote it."""

    sequence: int
    epoch: int
    writer: bytes
    """8 random bytes, drawn at each mount."""


class Previous(NamedTuple):
    """What a header attests of the segment before it in its stream."""

    segment: SegmentId
    size: int
    """Bytes of the whole object: to its footer when sealed, to the cut when a crash ended it."""
    digest: bytes
    """SHA-256 of those bytes."""


def segment_object_key(stream: Stream, segment: SegmentId) -> str:
    """The object key of a segment; lexical order is sequence order."""
    return f"{STREAM_PREFIX[stream]}{segment.sequence:016x}-{segment.epoch:08x}-{segment.writer.hex()}"


def parse_segment_object_key(key: str) -> tuple[Stream, SegmentId]:
    """The inverse. Raises FormatError for any other key."""
    for stream, prefix in STREAM_PREFIX.items():
        if key.startswith(prefix):
            match = _KEY.fullmatch(key[len(prefix) :])
            if match:
                sequence, epoch = int(match[1], 16), int(match[2], 16)
                if sequence <= SEQUENCE_MAX:
                    return stream, SegmentId(sequence, epoch, bytes.fromhex(match[3]))
    raise FormatError(f"object {key[:80]!r} is not the name of a segment.")


def frame_id(sequence: int, ordinal: int) -> int:
    """The stable name of a frame: its birth segment and ordinal in one 63-bit integer."""
    if not (0 <= sequence <= SEQUENCE_MAX and 0 <= ordinal <= ORDINAL_MAX):
        raise LimitError("frame id is out of range.")
    return sequence << ORDINAL_BITS | ordinal


def split_frame_id(frame: int) -> tuple[int, int]:
    """(birth sequence, birth ordinal)."""
    return frame >> ORDINAL_BITS, frame & ORDINAL_MAX


def format_position(position: int) -> str:
    """A position as people read it: SEQUENCE.ORDINAL."""
    sequence, ordinal = split_frame_id(position)
    return f"{sequence}.{ordinal}"


def parse_position(text: str) -> int | None:
    """The inverse of format_position; None when text is not one."""
    match = re.fullmatch(r"([0-9]{1,13})\.([0-9]{1,7})", text)
    if match is None:
        return None
    sequence, ordinal = int(match[1]), int(match[2])
    return frame_id(sequence, ordinal) if sequence <= SEQUENCE_MAX and ordinal <= ORDINAL_MAX else None
