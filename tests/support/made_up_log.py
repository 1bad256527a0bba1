"""Made-up segments of several writers, headers alone, in a store: for what is told from headers."""

from __future__ import annotations

import random

from mirrorfs.engine.sources import Segments
from mirrorfs.format.ids import Previous, SegmentId, Stream, segment_object_key
from mirrorfs.format.rows import SegmentRow
from mirrorfs.ports import Store
from tests.sim.world import InlineOffload
from tests.support.segment_bytes import SegmentBytes
from tests.support.store_memory import MemoryStore


def writer_of(epoch: int) -> bytes:
    """Each epoch has a writer of its own."""
    return b"writer%02d" % epoch


class MadeUpLog:
    """Segments that continue one another as a test says."""

    def __init__(self) -> None:
        self.store = MemoryStore("home", {})
        self.rows: dict[SegmentId, SegmentRow] = {}

    def add(
        self,
        sequence: int,
        epoch: int,
        previous: SegmentId | None = None,
        *,
        writer: bytes | None = None,
        state: int = 0,
        sent: bool = True,
        crashed: bool = False,
    ) -> SegmentId:
        """A segment.

        `writer`: where it is not that of the epoch. `state`: other than 0, it attests another state of
        `previous` than the one there is. `crashed`: it has no trailer.
        """
        segment = SegmentId(sequence, epoch, writer or writer_of(epoch))
        attested = None
        if previous is not None:
            row = self.rows[previous]
            attested = Previous(previous, row.size + state, row.digest)
        made = SegmentBytes(segment=segment, previous=attested)
        if not crashed:
            made.seal()
        end = made.previous()
        self.rows[segment] = SegmentRow(*segment, end.size, 0, end.digest, 0, 0)
        if sent:
            self.store.objects[self.key(segment)] = bytes(made.data)
        return segment

    @staticmethod
    def key(segment: SegmentId) -> str:
        """Its object key."""
        return segment_object_key(Stream.MAIN, segment)

    async def segments(self, *more: Store) -> Segments:
        """The store, and `more`, looked at."""
        offload = InlineOffload(random.Random(1))
        segments = Segments(Stream.MAIN, disk=None, offload=offload, stores=[self.store, *more])
        assert not await segments.look(from_sequence=0)
        return segments
