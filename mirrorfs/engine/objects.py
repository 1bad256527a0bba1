"""The local copies of everything that is mirrored: what there is, how long, and how to read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import ObjectNotFound
from mirrorfs.format.ids import STREAM_PREFIX, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.ports import Disk, Index, Offload

_SEGMENTS_PAGE = 1000
_SMALL_PREFIXES = ("header/", STREAM_PREFIX[Stream.CHECKPOINT], "heads/")


class LocalObject(NamedTuple):
    """One immutable object on the local disk."""

    key: str
    size: int
    """Bytes that belong to it: a segment that a crash cut may be longer on the disk."""
    written_ns: int
    """Its changes were made after this moment; 0 of what holds none."""


class SegmentAges:
    """Since when the segments that are told in order may hold changes.

    A commit gathers what was written since the one before it, and a segment of nothing but data frames is
    named by a commit in a later one. So a segment's changes may be as old as the last commit before it.
    """

    def __init__(self, before_ns: int = 0) -> None:
        """`before_ns`: time of the last commit before the first segment; 0: there was none."""
        self._before_ns = before_ns

    def open_since_ns(self, first_ns: int) -> int:
        """Since when the segment that comes next may hold changes; `first_ns` of its first commit."""
        return self._before_ns or first_ns

    def closed(self, *, first_ns: int, last_ns: int) -> int:
        """The same of the next segment, which is done with; both times are 0 if it has no commit."""
        since_ns = self.open_since_ns(first_ns)
        self._before_ns = max(self._before_ns, last_ns)
        return since_ns


class LocalObjects:
    """Immutable objects of a volume on the local disk."""

    def __init__(self, disk: Disk, index: Index, offload: Offload) -> None:
        self._disk = disk
        self._index = index
        self._offload = offload

    def segments(self) -> Iterator[LocalObject]:
        """Closed segments of the main stream in order."""
        sequence = 0
        ages = SegmentAges()
        while True:
            rows = self._index.list_segments(from_sequence=sequence, limit=_SEGMENTS_PAGE)
            for row in rows:
                key = segment_object_key(Stream.MAIN, SegmentId(row.sequence, row.epoch, row.writer))
                yield LocalObject(key, row.size, ages.closed(first_ns=row.first_ns, last_ns=row.last_ns))
            if len(rows) < _SEGMENTS_PAGE:
                return
            sequence = rows[-1].sequence + 1

    def others(self) -> Iterator[LocalObject]:
        """Headers, checkpoints and heads."""
        for prefix in _SMALL_PREFIXES:
            for name in self._disk.list(LOCAL_PREFIX + prefix.rstrip("/")):
                yield LocalObject(prefix + name, self.size_of(prefix + name), 0)

    def size_of(self, key: str) -> int:
        """Bytes of an object on the disk."""
        file = self._disk.open(LOCAL_PREFIX + key)
        try:
            return file.size()
        finally:
            file.close()

    async def read(self, key: str) -> bytes:
        """The bytes of an object. Raises ObjectNotFound, DiskError."""
        size = None
        if key.startswith(STREAM_PREFIX[Stream.MAIN]):
            row = self._index.get_segment(parse_segment_object_key(key)[1].sequence)
            if row is not None:
                size = row.size

        def work() -> bytes:
            file = self._disk.open(LOCAL_PREFIX + key)
            try:
                return file.read(offset=0, size_bytes=file.size() if size is None else size)
            finally:
                file.close()

        try:
            return await self._offload.run(work)
        except FileNotFoundError as exc:
            raise ObjectNotFound(f"The local object {key} is missing; run mirrorfs doctor.") from exc
