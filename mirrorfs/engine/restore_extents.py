"""From "which frame holds this part of a file" to "which parts of files does this frame hold".

A restore reads each segment once, so it needs the extents ordered by where their frames lie. They are
kept packed, 32 bytes each, and collected in passes of at most RECORDS_MAX, so that memory does not grow
with the volume: a further pass over the extents costs far less than the segments it is for.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from mirrorfs.core.extents import unpack_extents
from mirrorfs.format.ids import Stream, split_frame_id
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.rows import RelocationRow
from mirrorfs.ports import IndexSnapshot

RECORDS_MAX = 2_000_000
"""64 MiB. One segment may exceed it: its extents are always taken together."""

PASSED_MAX = 100
"""Rows read that are not wanted, before the next one is looked for by its key."""

_RECORD = struct.Struct("<QQQII")

Place = tuple[int, int]
"""(stream, sequence) of the segment in which a frame lies now."""


class Piece(NamedTuple):
    """A part of a file that a frame holds."""

    inode: int
    offset: int
    """In the file."""
    length: int
    frame_offset: int
    """In the frame's plaintext."""


class ExtentCounts(NamedTuple):
    """How many extents lie in each segment, and how many bytes all of them map."""

    records: Mapping[Place, int]
    size_bytes: int
    collected: dict[Place, bytearray] | None
    """All of them, packed, if they are no more than fit one pass."""


class ExtentMap:
    """The extents of some inodes by segment. Blocking; used from one thread at a time."""

    def __init__(
        self,
        snapshot: IndexSnapshot,
        inodes: array[int],
        *,
        moved: Mapping[int, Place],
        chunks: range | None = None,
    ) -> None:
        """
        Args:
            inodes: whose contents are wanted, sorted.
            moved: as `moved_frames` says.
            chunks: those of each file that are wanted; None: all.
        """
        self._snapshot = snapshot
        self._inodes = inodes
        self._moved = moved
        self._chunks = chunks

    def count(self, *, records_max: int = RECORDS_MAX) -> ExtentCounts:
        """One pass over all extents; most volumes need no other."""
        counts: dict[Place, int] = {}
        collected: dict[Place, bytearray] | None = {}
        size_bytes = total = 0
        for place, frame, piece in self._extents():
            counts[place] = counts.get(place, 0) + 1
            size_bytes += piece.length
            total += 1
            if collected is None:
                continue
            if total > records_max:
                collected = None
                continue
            records = collected.get(place)
            if records is None:
                records = collected[place] = bytearray()
            records += _RECORD.pack(frame, *piece)
        return ExtentCounts(counts, size_bytes, collected)

    def collect(self, places: Sequence[Place]) -> dict[Place, bytearray]:
        """One pass that keeps the extents of some segments, packed; `unpacked` reads them."""
        found = {place: bytearray() for place in places}
        for place, frame, piece in self._extents():
            records = found.get(place)
            if records is not None:
                records += _RECORD.pack(frame, *piece)
        return found

    def _extents(self) -> Iterator[tuple[Place, int, Piece]]:
        moved, main, chunks = self._moved, int(Stream.MAIN), self._chunks
        for inode, chunk, packed in self._rows():
            if chunks is not None and chunk not in chunks:
                continue
            base = chunk * CHUNK_SIZE
            for start, length, frame, frame_offset in unpack_extents(packed):
                place = moved.get(frame) or (main, split_frame_id(frame)[0])
                yield place, frame, Piece(inode, base + start, length, frame_offset)

    def _rows(self) -> Iterator[tuple[int, int, bytes]]:
        """The rows of the wanted inodes, those between them passed over: a few in place, many by a seek."""
        inodes = self._inodes
        at = 0
        while at < len(inodes):
            first_chunk = 0 if self._chunks is None else self._chunks.start
            passed = 0
            for inode, chunk, packed in self._snapshot.rows("extents", first=(inodes[at], first_chunk)):
                assert isinstance(inode, int) and isinstance(chunk, int) and isinstance(packed, bytes)
                if inode != inodes[at]:
                    at = bisect_left(inodes, inode, at)
                    if at == len(inodes):
                        return
                if inode == inodes[at]:
                    yield inode, chunk, packed
                    passed = 0
                    continue
                passed += 1
                if passed > PASSED_MAX:
                    break
            else:
                return


def moved_frames(snapshot: IndexSnapshot) -> dict[int, Place]:
    """Where each frame lies that was moved. All are held: there are rows only for those."""
    found = {}
    for fields in snapshot.rows("relocations", first=()):
        row = RelocationRow._make(fields)
        found[row.frame] = (row.stream, row.sequence)
    return found


def passes(counts: Mapping[Place, int], *, records_max: int = RECORDS_MAX) -> list[list[Place]]:
    """Segments in order, in groups whose extents fit together."""
    groups: list[list[Place]] = []
    room = 0
    for place in sorted(counts):
        if not groups or counts[place] > room:
            groups.append([])
            room = records_max
        groups[-1].append(place)
        room -= counts[place]
    return groups


def unpacked(records: bytes | bytearray) -> Iterator[tuple[int, list[Piece]]]:
    """(frame, its pieces) in order of frames."""
    rows = sorted(_RECORD.iter_unpack(records))
    for frame, group in groupby(rows, key=itemgetter(0)):
        yield frame, [Piece(*row[1:]) for row in group]
