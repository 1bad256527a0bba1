"""Where segments come from: the local log, the stores, or all of them together."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from math import inf
from typing import Final

import trio

from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import (
    DiskError,
    FormatError,
    LimitError,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.ids import STREAM_PREFIX, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.ports import LIST_PAGE_MAX, Disk, ObjectKey, ObjectVersion, Offload, Store

logger = logging.getLogger(__name__)

MAY_ANSWER_LATER: Final = (StoreUnavailable, StoreDenied, UnknownOutcome)
"""Failures that say nothing of the object: it may be had when the network, or the credentials, are right."""


class Segments:
    """The segments of one stream, known by listing and read on demand.

    Listings are taken once, when `look` runs: replay works on what was there then.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        disk: Disk | None,
        offload: Offload,
        stores: Sequence[Store],
        keys: VolumeKeys | None = None,
        is_local_log: bool = False,
    ) -> None:
        """`keys`: of the main stream, stores are not believed a segment that has the number of one with which
        keys went out of use, and is another. `is_local_log`: of segments with one number one on the disk is
        meant, whatever the stores have: they only fill gaps.
        """
        self._stream = stream
        self._disk = disk
        self.offload = offload
        self._stores = stores
        self._keys = keys
        self._is_local_log = is_local_log
        self._by_sequence: dict[int, set[SegmentId]] = {}
        self._places: dict[SegmentId, list[Store]] = {}
        self._local: set[SegmentId] = set()
        self._hidden: dict[SegmentId, int] = {}
        self.unreached: set[str] = set()
        """Names of stores that did not answer when they were asked for a segment."""
        self.passed_over: set[tuple[str, str]] = set()
        """(store, object key) of copies after which a reader asked for another one: mostly bad ones."""

    async def look(
        self, *, from_sequence: int = 0, stores: bool = True, patience_s: float = inf
    ) -> list[str]:
        """List what is there from a sequence number on. Returns the stores that could not be asked.

        `patience_s`: once one store has answered, the others have so long.
        """
        prefix = STREAM_PREFIX[self._stream]
        if self._disk is not None:
            names = await self.offload.run(partial(self._disk.list, LOCAL_PREFIX + prefix.rstrip("/")))
            # There may be a hundred thousand before it, and a follower looks every few seconds.
            for count, name in enumerate(names[bisect_left(names, f"{from_sequence:016x}") :], 1):
                segment = self._parse(prefix + name)
                if segment is not None:
                    self._local.add(segment)
                    self._by_sequence.setdefault(segment.sequence, set()).add(segment)
                if count % LIST_PAGE_MAX == 0:
                    await trio.lowlevel.checkpoint()
        return await self._look_at_stores(prefix, from_sequence, patience_s) if stores else []

    async def _look_at_stores(self, prefix: str, from_sequence: int, patience_s: float) -> list[str]:
        found: list[list[SegmentId]] = [[] for _ in self._stores]
        silent = {store.name for store in self._stores}

        async def look(number: int, store: Store) -> None:
            try:
                await self._list_store(store, prefix, from_sequence, found[number])
            except StoreError as exc:
                logger.warning("Store %s cannot be listed: %s", store.name, exc)
            else:
                silent.discard(store.name)
                scope = nursery.cancel_scope
                scope.deadline = min(scope.deadline, trio.current_time() + patience_s)

        # At once, or one that hangs would hold up the others.
        async with trio.open_nursery() as nursery:
            for number, store in enumerate(self._stores):
                nursery.start_soon(look, number, store)
        # In the order of the stores, whichever answered first: copies are read in that order.
        for store, segments in zip(self._stores, found, strict=True):
            for count, segment in enumerate(segments, 1):
                self._by_sequence.setdefault(segment.sequence, set()).add(segment)
                self._places.setdefault(segment, []).append(store)
                if count % LIST_PAGE_MAX == 0:
                    await trio.lowlevel.checkpoint()
        return [store.name for store in self._stores if store.name in silent]

    async def _list_store(
        self, store: Store, prefix: str, from_sequence: int, found: list[SegmentId]
    ) -> None:
        """Add to `found` what a store lists; what was added before it failed counts. Raises: StoreError."""
        # The last key that a segment before could have.
        after = f"{prefix}{from_sequence - 1:016x}-ffffffff-ffffffffffffffff" if from_sequence else ""
        while True:
            page = await store.list(prefix, start_after=after)
            for info in page:
                segment = self._parse(info.key)
                if segment is not None and not self._is_another_end(segment):
                    found.append(segment)
                    if info.is_hidden:
                        self._hidden[segment] = self._hidden.get(segment, 0) + 1
            if len(page) < LIST_PAGE_MAX:
                return
            after = page[-1].key

    def _is_another_end(self, segment: SegmentId) -> bool:
        end = None if self._keys is None else self._keys.log_end(segment.sequence)
        return end is not None and end.segment != segment

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

    @property
    def local(self) -> frozenset[SegmentId]:
        """Those on the local disk."""
        return frozenset(self._local)

    @property
    def local_sequences(self) -> list[int]:
        """Those of segments on the local disk."""
        return sorted(segment.sequence for segment in self._local)

    def by_writer(self) -> list[SegmentId]:
        """All segments seen, those of the highest epoch first, and of one epoch the last first."""
        found = (segment for same in self._by_sequence.values() for segment in same)
        return sorted(
            found, key=lambda segment: (segment.epoch, segment.sequence, segment.writer), reverse=True
        )

    def is_deleted(self, segment: SegmentId) -> bool:
        """Whether it is only beneath delete markers, in stores that keep versions, and nowhere else."""
        count = self._hidden.get(segment, 0)
        return 0 < count == len(self._places.get(segment, ())) and segment not in self._local

    def stores_of(self, segment: SegmentId) -> list[str]:
        """Names of the stores that list a segment."""
        return [store.name for store in self._places.get(segment, ())]

    async def candidates(self, sequence: int) -> list[SegmentId]:
        """See SegmentSource."""
        found = self._by_sequence.get(sequence, set())
        if self._is_local_log:
            found = found & self._local or found
        return sorted(found, key=lambda segment: (segment.epoch, segment.writer), reverse=True)

    def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        return self._parts(segment, offset=0, size_bytes=None)

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """See SegmentSource."""
        return self._parts(segment, offset=0, size_bytes=HEADER_SIZE)

    def read_frame(
        self, segment: SegmentId, *, offset: int, size_bytes: int
    ) -> AsyncIterator[tuple[str, bytes]]:
        """Copies of a part of a segment, best first."""
        return self._parts(segment, offset=offset, size_bytes=size_bytes)

    def _parts(
        self, segment: SegmentId, *, offset: int, size_bytes: int | None
    ) -> AsyncIterator[tuple[str, bytes]]:
        key = segment_object_key(self._stream, segment)
        disk = self._disk
        attempts: list[_Attempt] = []

        def from_disk() -> bytes:
            assert disk is not None
            file = disk.open(LOCAL_PREFIX + key)
            try:
                return file.read(offset=offset, size_bytes=file.size() if size_bytes is None else size_bytes)
            finally:
                file.close()

        def from_store(store: Store, version: ObjectVersion | None = None) -> Callable[[], Awaitable[bytes]]:
            async def read() -> bytes:
                try:
                    if size_bytes is None:
                        return await store.get(ObjectKey(key), version=version)
                    return await store.get_range(
                        ObjectKey(key), offset=offset, size_bytes=size_bytes, version=version
                    )
                except MAY_ANSWER_LATER:
                    self.unreached.add(store.name)
                    raise

            return read

        if disk is not None and segment in self._local:
            attempts.append(("local log", lambda: self.offload.run(from_disk)))
        stores = self._places.get(segment, [])
        attempts += [(_STORE + store.name, from_store(store)) for store in stores]

        async def earlier() -> list[_Attempt]:
            return [
                (_STORE + store.name, from_store(store, version))
                for store in stores
                for version in await store.versions(ObjectKey(key))
            ]

        return _Copies(key, attempts, earlier, on_passed_over=self._passed_over)

    def _passed_over(self, where: str, key: str) -> None:
        if where.startswith(_STORE):
            self.passed_over.add((where.removeprefix(_STORE), key))


_STORE: Final = "store "
_Attempt = tuple[str, Callable[[], Awaitable[bytes]]]


class _Copies:
    """What attempts to read one object yield, those that fail left out; in the end, of earlier versions.

    Not an async generator: readers stop at the first good copy, and an unfinished generator would have to
    be closed at each such place.
    """

    def __init__(
        self,
        key: str,
        attempts: Sequence[_Attempt],
        earlier: Callable[[], Awaitable[Sequence[_Attempt]]],
        *,
        on_passed_over: Callable[[str, str], None],
    ) -> None:
        """`earlier` is asked for further attempts once the first have been in vain. Raises StoreError."""
        self._key = key
        self._attempts = iter(attempts)
        self._earlier: Callable[[], Awaitable[Sequence[_Attempt]]] | None = earlier
        self._on_passed_over = on_passed_over
        self._last: str | None = None

    def __aiter__(self) -> _Copies:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        if self._last is not None:
            self._on_passed_over(self._last, self._key)
            self._last = None
        while True:
            for where, read in self._attempts:
                try:
                    data = await read()
                    self._last = where
                    return where, data
                except (ObjectNotFound, FileNotFoundError):
                    self._on_passed_over(where, self._key)
                    continue
                except (StoreError, DiskError, LimitError) as exc:
                    logger.warning("%s, object %s: %s", where, self._key, exc)
            if self._earlier is None:
                raise StopAsyncIteration
            earlier, self._earlier = self._earlier, None
            try:
                self._attempts = iter(await earlier())
            except StoreError as exc:
                logger.warning("object %s: %s", self._key, exc)
