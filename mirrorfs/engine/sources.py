"""Where segments come from: the local log, the stores, or all of them together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence

from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import DiskError, FormatError, ObjectNotFound, StoreError, StoreUnavailable
from mirrorfs.format.ids import STREAM_PREFIX, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.ports import LIST_PAGE_MAX, Disk, ObjectKey, Offload, Store

logger = logging.getLogger(__name__)


class Segments:
    """The segments of one stream, known by listing and read on demand.

    Listings are taken once, when `look` runs: replay works on what was there then.
    """

    def __init__(
        self, stream: Stream, *, disk: Disk | None, offload: Offload, stores: Sequence[Store]
    ) -> None:
        self._stream = stream
        self._disk = disk
        self._offload = offload
        self._stores = stores
        self._by_sequence: dict[int, set[SegmentId]] = {}
        self._places: dict[SegmentId, list[Store]] = {}
        self._local: set[SegmentId] = set()

    async def look(self, *, from_sequence: int = 0, stores: bool = True) -> list[str]:
        """List what is there from a sequence number on. Returns the names of stores that could not be asked."""
        prefix = STREAM_PREFIX[self._stream]
        if self._disk is not None:
            for name in self._disk.list(LOCAL_PREFIX + prefix.rstrip("/")):
                segment = self._parse(prefix + name)
                if segment is not None and segment.sequence >= from_sequence:
                    self._local.add(segment)
                    self._by_sequence.setdefault(segment.sequence, set()).add(segment)
        silent = []
        for store in self._stores if stores else ():
            try:
                await self._list_store(store, prefix, from_sequence)
            except StoreError as exc:
                logger.warning("Store %s cannot be listed: %s", store.name, exc)
                silent.append(store.name)
        return silent

    async def _list_store(self, store: Store, prefix: str, from_sequence: int) -> None:
        after = f"{prefix}{from_sequence - 1:016x}~" if from_sequence else ""
        while True:
            page = await store.list(prefix, start_after=after)
            for info in page:
                segment = self._parse(info.key)
                if segment is not None:
                    self._by_sequence.setdefault(segment.sequence, set()).add(segment)
                    self._places.setdefault(segment, []).append(store)
            if len(page) < LIST_PAGE_MAX:
                return
            after = page[-1].key

    def _parse(self, key: str) -> SegmentId | None:
        try:
            stream, segment = parse_segment_object_key(key)
        except FormatError:
            logger.warning("Object %r has no name of a segment; left alone.", key[:120])
            return None
        return segment if stream is self._stream else None

    @property
    def sequences(self) -> list[int]:
        """All sequence numbers seen, ascending."""
        return sorted(self._by_sequence)

    async def candidates(self, sequence: int) -> list[SegmentId]:
        """See SegmentSource."""
        found = self._by_sequence.get(sequence, ())
        return sorted(found, key=lambda segment: (segment.epoch, segment.writer), reverse=True)

    async def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        key = segment_object_key(self._stream, segment)
        disk = self._disk
        if disk is not None and segment in self._local:
            path = LOCAL_PREFIX + key

            def read() -> bytes:
                file = disk.open(path)
                try:
                    return file.read(offset=0, size_bytes=file.size())
                finally:
                    file.close()

            try:
                yield "local log", await self._offload.run(read)
            except (DiskError, FileNotFoundError) as exc:
                logger.warning("Local object %s: %s", key, exc)
        for store in self._places.get(segment, ()):
            try:
                yield f"store {store.name}", await store.get(ObjectKey(key))
            except ObjectNotFound:
                continue
            except StoreError as exc:
                logger.warning("Store %s, object %s: %s", store.name, key, exc)

    async def read_frame(
        self, segment: SegmentId, *, offset: int, size_bytes: int
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Copies of a part of a segment, best first."""
        key = segment_object_key(self._stream, segment)
        disk = self._disk
        if disk is not None and segment in self._local:
            try:
                file = disk.open(LOCAL_PREFIX + key)
                try:
                    yield "local log", file.read(offset=offset, size_bytes=size_bytes)
                finally:
                    file.close()
            except (DiskError, FileNotFoundError) as exc:
                logger.warning("Local object %s: %s", key, exc)
        for store in self._places.get(segment, ()):
            try:
                yield (
                    f"store {store.name}",
                    await store.get_range(ObjectKey(key), offset=offset, size_bytes=size_bytes),
                )
            except (ObjectNotFound, StoreUnavailable) as exc:
                logger.warning("Store %s, object %s: %s", store.name, key, exc)
