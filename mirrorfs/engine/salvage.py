"""Replay that goes on behind damaged frames: for restore, where nothing is appended afterwards.

A store that rotted, or was cut while it was copied, has segments with single bad frames. Replay proper
stops there, as it must when it decides where to write on. For restore the rest of such a segment counts
as long as the writer vouched for the segment as a whole: by its trailer, or by the header that follows.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from mirrorfs.core.salvage import SalvagedSegment, salvage_segment
from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.replay import Replayer, _Loaded
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.segment import Previous, Trailer, decode_header

logger = logging.getLogger(__name__)


class SalvagingReplayer(Replayer):
    """A Replayer that combines the copies of a damaged segment, and reads on behind what no copy has."""

    async def _load(self, sequence: int, previous: Previous | None, *, check: bool) -> _Loaded | None:
        best = await super()._load(sequence, previous, check=check)
        if best is None or best.scan.fault is None:
            return best
        copies = [data async for _, data in self._source.copies(best.segment)]
        salvaged = salvage_segment(copies, self._keys, self._writer)
        if salvaged is None or salvaged.scan.header.segment != best.segment:
            return best
        if not salvaged.lost:
            scan = scan_segment(salvaged.data, self._keys, self._writer)
            if scan.fault is None and scan.trailer is not None:
                logger.warning(
                    "Object %s is damaged everywhere; its copies together are whole.",
                    segment_object_key(Stream.MAIN, best.segment),
                )
                return _Loaded(best.segment, salvaged.data, scan)
        return await self._vouched_for(best, salvaged)

    async def _vouched_for(self, best: _Loaded, salvaged: SalvagedSegment) -> _Loaded:
        """The segment with its gaps, if the writer's word for the whole of it is there; else as it was."""
        data, scan = salvaged.data, salvaged.scan
        attested = await self._attested_digest(best.segment, size=len(data))
        if attested is None and scan.trailer is None:
            return best
        if attested is not None:
            # The digest of the bytes as they were: the next header is held against it.
            scan = replace(scan, digest=attested)
        if scan.trailer is None:
            scan = replace(scan, trailer=Trailer(0, 0, 0, 0, len(data), bytes(32), ()))
        key = segment_object_key(Stream.MAIN, best.segment)
        for offset in salvaged.lost:
            logger.warning("Object %s, offset %d: no copy is good; reading on behind it.", key, offset)
        return _Loaded(best.segment, data, scan)

    async def _attested_digest(self, segment: SegmentId, *, size: int) -> bytes | None:
        for following in await self._source.candidates(segment.sequence + 1):
            async for _, data in self._source.copies(following):
                try:
                    header, _ = decode_header(data, self._keys, self._writer)
                except DamagedError:
                    continue
                previous = header.previous
                if header.segment == following and previous is not None:
                    if previous.segment == segment and previous.size == size:
                        return previous.digest
                    break
        return None
