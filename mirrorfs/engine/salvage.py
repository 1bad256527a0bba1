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

    def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        return _Combining(self._source.copies(segment), self._keys, self._writer)

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        return self._source.beginnings(segment)


class _Combining:
    """Copies as they come, and in the end one more; no generator, for readers do not finish it."""

    def __init__(
        self, copies: AsyncIterator[tuple[str, bytes]], keys: VolumeKeys, writer: WriterPublicKey
    ) -> None:
        self._copies = copies
        self._keys = keys
        self._writer = writer
        self._seen: list[bytes] = []

    def __aiter__(self) -> _Combining:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        try:
            where, data = await anext(self._copies)
        except StopAsyncIteration:
            seen, self._seen = self._seen, []
            if len(seen) < 2:
                raise
            combined = combine_copies(seen, self._keys, self._writer)
            if combined is None:
                raise
            return "all copies together", combined
        self._seen.append(data)
        return where, data
