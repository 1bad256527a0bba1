"""Which parts of a segment a restore asks a store for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mirrorfs.engine.restore_extents import Piece
from mirrorfs.errors import FormatError
from mirrorfs.format.frame import FrameCipher, Kind, unpack
from mirrorfs.format.ids import frame_id
from mirrorfs.format.segment import HEADER_SIZE

GAP_MAX: Final = 1 << 20
"""Bytes between two frames that are read along: at 100 Mbit/s they take as long as a request more."""


class WantedFrame(NamedTuple):
    """A frame to read, and what it is for."""

    frame: int
    ordinal: int
    offset: int
    size: int
    pieces: Sequence[Piece]


class Span(NamedTuple):
    """One request: bytes from `start` to before `end`."""

    start: int
    end: int
    frames: Sequence[WantedFrame]
    """Those that lie in it."""


def spans(wanted: Sequence[WantedFrame]) -> list[Span]:
    """What to read for some frames of one segment; the first span begins with its header."""
    end = HEADER_SIZE
    found: list[tuple[int, list[WantedFrame]]] = [(0, [])]
    ends = [end]
    for frame in sorted(wanted, key=lambda one: one.offset):
        if frame.offset - ends[-1] > GAP_MAX:
            found.append((frame.offset, []))
            ends.append(frame.offset)
        found[-1][1].append(frame)
        ends[-1] = max(ends[-1], frame.offset + frame.size)
    return [Span(start, end, frames) for (start, frames), end in zip(found, ends, strict=True)]


def open_wanted(cipher: FrameCipher, data: memoryview, wanted: WantedFrame) -> memoryview:
    """The plaintext of the frame that is wanted and no other. Raises DamagedError."""
    header, body = cipher.open_body(data, offset=wanted.offset, ordinal=wanted.ordinal)
    if body.kind is not Kind.DATA or frame_id(header.birth_sequence, header.birth_ordinal) != wanted.frame:
        raise FormatError("another frame lies there.")
    plain = memoryview(unpack(body))
    if any(piece.frame_offset + piece.length > len(plain) for piece in wanted.pieces):
        raise FormatError("the frame is shorter than what refers to it.")
    return plain
