"""A source of segments that puts damaged copies together before it gives up on a segment."""

from __future__ import annotations

from collections.abc import AsyncIterator

from mirrorfs.core.salvage import combine_copies
from mirrorfs.engine.replay import SegmentSource
from mirrorfs.format.ids import SegmentId
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey


class CombiningSource:
    """Segments from another source; after the copies of one, what they are together.

    A reader stops at the first copy that is whole, so that nothing is combined without need.
    """

    def __init__(self, source: SegmentSource, keys: VolumeKeys, writer: WriterPublicKey) -> None:
        self._source = source
        self._keys = keys
        self._writer = writer

    async def candidates(self, sequence: int) -> list[SegmentId]:
        """See SegmentSource."""
        return await self._source.candidates(sequence)

    async def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        copies = []
        async for where, data in self._source.copies(segment):
            copies.append(data)
            yield where, data
        if len(copies) > 1:
            combined = combine_copies(copies, self._keys, self._writer)
            if combined is not None:
                yield "all copies together", combined
