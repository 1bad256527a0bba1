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


class LocalObjects:
    """Immutable objects of a volume on the local disk."""

    def __init__(self, disk: Disk, index: Index, offload: Offload) -> None:
        self._disk = disk
        self._index = index
        self._offload = offload

    def segments(self) -> Iterator[LocalObject]:
        """Closed segments of the main stream in order."""
        sequence = 0
        while True:
            rows = self._index.list_segments(from_sequence=sequence, limit=_SEGMENTS_PAGE)
            for row in rows:
                key = segment_object_key(Stream.MAIN, SegmentId(row.sequence, row.epoch, row.writer))
                yield LocalObject(key, row.size, row.first_ns)
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
