"""Deduplication: bytes that a file of the volume has already are referred to, not stored again.

What is looked up is what a file writes from the beginning of a chunk on (1 MiB): a small file, or the
chunks of a large one. That finds copies, at whatever place, and files written once more; it does not find
what moved within a file, and a database that changes pages here and there costs nothing.

Invariant: a match is relied on only if, in the step that makes the record,
- a chunk of a file begins with just these bytes of the frame: they are alive. So the bytes of a frame that
  are alive never become more, and a dead frame stays dead: whoever clears away what is dead (a frame with
  live 0, dead ranges of one that is moved), now or from a list made before, takes nothing that is needed;
- the segment in which the frame lies now is closed, and held by all stores, seen by a later look than its
  PUT. Of what a store turned out not to hold, or to hold damaged, that is not so until it is mended;
- the frame is not one that was lost (its length is 0), and `live` does not exceed what a checkpoint can say.

The table that is asked is local knowledge and a hint: after the index was rebuilt, or the keys were rotated
(the index is then a new one, the digests have another key), only what is written from then on is found.
So no new file refers to what was sealed with keys that were put out of use before it was stored.

Rejected: to compare the bytes. The frame may be in the stores alone, to open it costs more than to store it
once more, and the digest is a keyed one. To revive dead frames: history would be found again, but it could
be on its way out. To look up parts of any length (content-defined chunks): files of a practice are written
whole or changed in place, and what would be found in them beyond that is not worth a tenth of the speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from mirrorfs.core.extents import extents_within
from mirrorfs.core.grouping import DirtyPiece, Group
from mirrorfs.format.content import ContentDigester
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key, split_frame_id
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.rows import ContentRow, FrameRow, RelocatedRow, SegmentRow
from mirrorfs.ports import Index

LOOKED_UP_MIN: Final = 32 * 1024
"""Bytes. To look a piece up and to remember it takes 10 us, with 1.5 million rows 45 us, and the writes of
pages of the index come on top: for files of 16 KiB an eighth of the speed, for those of this size less than a
tenth. Smaller files are many, and hold few of the bytes."""
LIVE_MAX: Final = 2**32 - 1


class Duplicate(NamedTuple):
    """Where bytes lie already."""

    frame: FrameRow
    frame_offset: int


class Duplicates:
    """Finds bytes again; to be asked on the loop, but for `digest`."""

    def __init__(self, index: Index, digester: ContentDigester, is_held: Callable[[str], bool]) -> None:
        """`is_held`: whether all stores are known to hold an object."""
        self._index = index
        self._digester = digester
        self._is_held = is_held
        self.found_bytes = 0
        """That were referred to since the mount."""

    def digest(self, pieces: Iterable[tuple[Group, DirtyPiece]]) -> None:
        """Give their digests to pieces that have none; in any thread, but each piece in one only."""
        for group, piece in pieces:
            piece.digest = self._digester.digest(piece.data, uid=group.uid)

    def find(self, piece: DirtyPiece) -> Duplicate | None:
        """Where what is left of a piece lies; to be recorded before anything else happens."""
        row = self._index.get_content(piece.digest) if piece.digest else None
        if row is None or not piece.length:
            return None
        frame = self._index.get_frame(row.frame)
        if frame is None or not self._is_reliable(row, frame, piece.length):
            return None
        self.found_bytes += piece.length
        return Duplicate(frame, row.frame_offset)

    def _is_reliable(self, row: ContentRow, frame: FrameRow, length: int) -> bool:
        """The invariant of this module."""
        if not frame.live or frame.live + length > LIVE_MAX or row.frame_offset + length > frame.length:
            return False
        extents = extents_within(self._index.get_extents(row.inode, row.chunk), 0, length)
        if not extents:
            return False
        first = extents[0]
        if (first.start, first.frame, first.frame_offset) != (0, row.frame, row.frame_offset):
            return False
        key = self._key_of(row.frame)
        return first.length >= length and key is not None and self._is_held(key)

    def _key_of(self, frame: int) -> str | None:
        """The object in which a frame lies now; None while its segment is open."""
        moved = self._index.get_relocation(frame)
        stream = Stream.MAIN if moved is None else Stream(moved.stream)
        sequence = split_frame_id(frame)[0] if moved is None else moved.sequence
        segment: SegmentRow | RelocatedRow | None
        if stream is Stream.MAIN:
            segment = self._index.get_segment(sequence)
        else:
            segment = self._index.get_relocated(sequence)
        if segment is None:
            return None
        return segment_object_key(stream, SegmentId(sequence, segment.epoch, segment.writer))

    def stored(self, pieces: Iterable[tuple[DirtyPiece, int]]) -> None:
        """Pieces came to lie in frames (stable ids), and records name them."""
        rows = [
            ContentRow(piece.digest, frame, piece.frame_offset, piece.inode, piece.offset // CHUNK_SIZE)
            for piece, frame in pieces
            if piece.digest and piece.length == len(piece.data)
        ]
        if rows:
            self._index.put_contents(rows)


def to_look_up(pieces: Sequence[tuple[Group, DirtyPiece]]) -> list[tuple[Group, DirtyPiece]]:
    """Those that begin a chunk and are worth it."""
    return [
        entry for entry in pieces if len(entry[1].data) >= LOOKED_UP_MIN and not entry[1].offset % CHUNK_SIZE
    ]
