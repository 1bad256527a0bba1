"""Which of several branches of the log is the volume's: the one that was written last, as its end says.

A writer that was fenced may have sent a segment that its successor never saw: then two segments continue one,
and what counts is where each leads. Epochs rise along a branch, so its end says who wrote last. Before all
epochs stands the key generation: who has but the keys of before a rotation ends no branch with later ones.
Only headers are read, in step along all branches, until one is known to win: of an orphan that is soon.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from mirrorfs.core.scan import ScannedSegment
from mirrorfs.errors import DamagedError, StoreTooNew
from mirrorfs.format.ids import Previous, SegmentId
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import WriterPublicKey


class HeaderSource(Protocol):
    """Where the headers of segments of the main stream come from."""

    async def candidates(self, sequence: int) -> list[SegmentId]:
        """All segments known under a sequence number, the highest epoch first."""

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """Copies of at least the header of a segment, best first: (where, bytes)."""


class End(NamedTuple):
    """Where a branch ends; the later end is the greater."""

    era: int
    """The key generation, `VolumeKeys.era`."""
    epoch: int
    sequence: int
    writer: bytes


def end_at(segment: SegmentId, keys: VolumeKeys) -> End:
    """A branch that ends with a segment. The one with which a key generation ended leads to the next."""
    ended = keys.log_end(segment.sequence)
    era = keys.era(segment.sequence) + (ended is not None and ended.segment == segment)
    return End(era, segment.epoch, segment.sequence, segment.writer)


def begins_as(data: bytes, end: Previous) -> bool:
    """Whether bytes of a segment go at least to an attested end, and are those up to there."""
    return len(data) >= end.size and hashlib.sha256(memoryview(data)[: end.size]).digest() == end.digest


def contradicts(end: Previous | None, scan: ScannedSegment, data: bytes) -> bool:
    """Whether a whole copy of the segment with which keys went out of use is not what is attested of it.

    It can be forged by who had those keys. Of a damaged copy nothing is known but what its good frames say.
    """
    if end is None or end.segment != scan.header.segment or scan.trailer is None or scan.bad:
        return False
    return not begins_as(data, end)


class Branches:
    """The branches of one volume's log, as far as their headers can be read."""

    def __init__(self, source: HeaderSource, keys: VolumeKeys, writer: WriterPublicKey) -> None:
        self._source = source
        self._keys = keys
        self._writer = writer
        self._previous: dict[SegmentId, Previous | None] = {}

    async def order(self, candidates: Sequence[SegmentId]) -> list[SegmentId]:
        """Segments of one sequence number, that of the winning branch first."""
        if len(candidates) < 2:
            return list(candidates)
        ends = await self.ends(candidates)
        return sorted(candidates, key=lambda segment: (ends[segment], segment.epoch), reverse=True)

    async def ends(self, roots: Sequence[SegmentId]) -> dict[SegmentId, End]:
        """Where the branches that begin with these segments of one sequence number lead.

        Of the winner it may be a place on the way, where it is known to win.
        """
        ends = {root: end_at(root, self._keys) for root in roots}
        frontier = {root: root for root in roots}
        sequence = roots[0].sequence
        while frontier and not _is_decided(ends, set(frontier.values())):
            sequence += 1
            following: dict[SegmentId, SegmentId] = {}
            for segment in await self._source.candidates(sequence):
                previous = await self.previous(segment)
                root = frontier.get(previous.segment) if previous is not None else None
                if root is not None:
                    following[segment] = root
                    ends[root] = max(ends[root], end_at(segment, self._keys))
            frontier = following
        return ends

    async def leads(self, start: SegmentId, end: SegmentId) -> bool:
        """Whether a branch goes from one segment to a later one; where that cannot be read, it may."""
        numbers = range(start.sequence, end.sequence + 1)
        if all([len(await self._source.candidates(number)) < 2 for number in numbers]):
            return True
        segment = end
        while segment.sequence > start.sequence:
            previous = await self.previous(segment)
            if previous is None:
                return True
            segment = previous.segment
        return segment == start

    async def previous(self, segment: SegmentId) -> Previous | None:
        """What the header of a segment attests of the one before; None where no copy can be read."""
        if segment not in self._previous:
            self._previous[segment] = await self._read(segment)
        return self._previous[segment]

    async def _read(self, segment: SegmentId) -> Previous | None:
        async for _, data in self._source.beginnings(segment):
            try:
                header, _ = decode_header(data, self._keys, self._writer)
            except (DamagedError, StoreTooNew):
                continue
            if header.segment == segment:
                return header.previous
        return None


def _is_decided(ends: dict[SegmentId, End], alive: set[SegmentId]) -> bool:
    """Whether but one branch goes on, and is written later than all others already."""
    if len(ends) < 2 or len(alive) != 1:
        return False
    (winner,) = alive
    return all(end[:2] < ends[winner][:2] for root, end in ends.items() if root != winner)
