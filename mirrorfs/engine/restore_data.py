"""Filling restored files: every segment that is needed is read once, each frame goes to where it belongs.

A frame that is bad in one store is read from the others; one that none gives leaves its part of the file
empty (zeros) and the file on one of two lists: of those for which no store has a good copy, and of those for
which a store that may have one did not answer. A few segments are read at a time, from
whichever stores are least busy, so that two stores give the bandwidth of both.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import trio

from mirrorfs.engine.restore_extents import ExtentMap, Piece, Place, moved_frames, passes, unpacked
from mirrorfs.engine.restore_spans import Span, WantedFrame, open_wanted, spans
from mirrorfs.engine.sources import MAY_ANSWER_LATER, Segments
from mirrorfs.errors import (
    DamagedError,
    FormatError,
    LimitError,
    MirrorfsError,
    ObjectNotFound,
    StoreError,
    StoreTooNew,
)
from mirrorfs.format.frame import FrameCipher
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key, split_frame_id
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index, IndexSnapshot, ObjectKey, ObjectVersion, Offload, Store

logger = logging.getLogger(__name__)

SEGMENTS_AT_A_TIME = 4
"""Segments being read or written out: at most 16 MiB each."""
SINGLE_FRAMES_MAX = 16
"""Up to so many frames are read one by one from a second store, more of them in one request."""
FAILURES_MAX = 3
"""After so many failures in a row a store is asked only for what no other has."""


class Fetched(NamedTuple):
    """What a store was asked for, or is to be asked for."""

    requests: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class DataResult:
    """What came of the contents."""

    written_bytes: int
    lost_bytes: int
    """Bytes of files for which there was no good copy."""
    incomplete: tuple[int, ...]
    """Inodes of the files that lack them, sorted."""
    unread_bytes: int
    """Bytes of files that may lie in a store that did not answer when it was asked for them."""
    unread: tuple[int, ...]
    """Inodes of the files that lack only such bytes, sorted."""
    unreached: frozenset[str]
    """Names of those stores."""
    bad_copies: frozenset[tuple[str, str]]
    """(store, object key) of copies that were met damaged or not there."""
    fetched: Mapping[str, Fetched]
    """By store, what was read from it."""


@dataclass(slots=True)
class _Source:
    """A store, and how it is doing."""

    store: Store
    busy: int = 0
    failures: int = 0
    requests: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class _Reading:
    """One segment on its way: what is still missing, and the cipher once a good header was seen."""

    segment: SegmentId
    key: str
    missing: list[WantedFrame]
    cipher: FrameCipher | None = None
    bad_header: bool = False
    written_bytes: int = 0
    unreached: set[str] = field(default_factory=set)
    """Names of stores that did not answer."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """(offset, what is wrong with it) in the copy read last."""


class Fillable(Protocol):
    """What takes contents; blocking, and called from several threads."""

    def write(self, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        """Take a part of a file."""


class DataRestorer:
    """Writes the contents of files from the stores."""

    def __init__(
        self,
        index: Index,
        segments: Mapping[int, Segments],
        stores: Sequence[Store],
        offload: Offload,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        tree: Fillable,
        *,
        open_segment: SegmentId | None,
        in_order: bool = False,
    ) -> None:
        """
        Args:
            segments: by stream, listed; what the index names is not looked for there.
            open_segment: the segment of the main stream that the index has no row for.
            in_order: ask a store only for what those before it do not give, rather than the least busy one.
        """
        self._index = index
        self._segments = segments
        self._sources = [_Source(store) for store in stores]
        self._offload = offload
        self._keys = keys
        self._writer = writer
        self._tree = tree
        self._open_segment = open_segment
        self._in_order = in_order
        self._written = self._lost = self._unread_bytes = 0
        self._incomplete: set[int] = set()
        self._unread: set[int] = set()
        self._unreached: set[str] = set()
        self._bad: set[tuple[str, str]] = set()
        self._error: MirrorfsError | None = None
        self._moved: dict[int, Place] | None = None

    async def run(
        self, inodes: array[int], *, on_bytes: Callable[[int, int], None], chunks: range | None = None
    ) -> DataResult:
        """Fill the files among some inodes (sorted). `on_bytes(done, total)` hears of each segment.

        May be called again, for other files or for other chunks: the result is of all together.
        Raises: DiskError, DiskFull.
        """
        snapshot = self._index.snapshot()
        try:
            extents = await self._extents(snapshot, inodes, chunks)
            counts = await self._offload.run(extents.count)
            on_bytes(0, counts.size_bytes)
            for places in passes(counts.records):
                records = counts.collected
                if records is None:
                    records = await self._collect(extents, places)
                await self._pass(places, records, lambda done: on_bytes(done, counts.size_bytes))
        finally:
            snapshot.close()
        return DataResult(
            self._written,
            self._lost,
            tuple(sorted(self._incomplete)),
            self._unread_bytes,
            tuple(sorted(self._unread - self._incomplete)),
            frozenset(self._unreached),
            frozenset(self._bad),
            {one.store.name: Fetched(one.requests, one.size_bytes) for one in self._sources},
        )

    async def survey(self, inodes: array[int]) -> tuple[int, Fetched]:
        """(bytes of contents, what `run` would ask the stores for while all copies are good)."""
        snapshot = self._index.snapshot()
        try:
            extents = await self._extents(snapshot, inodes, None)
            counts = await self._offload.run(extents.count)
            requests = size_bytes = 0
            for places in passes(counts.records):
                records = await self._collect(extents, places)
                for place in places:
                    found = spans(list(self._wanted(records[place])))
                    requests += len(found)
                    size_bytes += sum(span.end - span.start for span in found)
        finally:
            snapshot.close()
        return counts.size_bytes, Fetched(requests, size_bytes)

    async def _extents(self, snapshot: IndexSnapshot, inodes: array[int], chunks: range | None) -> ExtentMap:
        if self._moved is None:
            self._moved = await self._offload.run(lambda: moved_frames(snapshot))
        return ExtentMap(snapshot, inodes, moved=self._moved, chunks=chunks)

    async def _collect(self, extents: ExtentMap, places: Sequence[Place]) -> dict[Place, bytearray]:
        return await self._offload.run(lambda: extents.collect(places))

    async def _pass(
        self, places: Sequence[Place], records: dict[Place, bytearray], on_bytes: Callable[[int], None]
    ) -> None:
        todo = iter(places)

        async def work() -> None:
            for place in todo:
                try:
                    await self._restore(place, records.pop(place))
                except MirrorfsError as exc:
                    # One error is what the caller gets, not a group of them.
                    self._error = exc
                    nursery.cancel_scope.cancel()
                    return
                on_bytes(self._written + self._lost + self._unread_bytes)

        async with trio.open_nursery() as nursery:
            for _ in range(SEGMENTS_AT_A_TIME):
                nursery.start_soon(work)
        if self._error is not None:
            raise self._error

    # --- one segment ---------------------------------------------------------------------------

    async def _restore(self, place: Place, records: bytearray) -> None:
        missing = list(self._wanted(records))
        unreached: set[str] = set()
        for segment in await self._candidates(place):
            if not missing:
                break
            key = segment_object_key(Stream(place[0]), segment)
            reading = _Reading(segment, key, missing)
            await self._read(reading)
            if reading.missing:
                await self._read_earlier(reading)
            self._written += reading.written_bytes
            missing = reading.missing
            unreached |= reading.unreached
        for wanted in missing:
            if unreached:
                who = " and store ".join(sorted(unreached))
                logger.error("Store %s did not give segment %d, offset %d.", who, place[1], wanted.offset)
            else:
                logger.error("No good copy of segment %d, offset %d.", place[1], wanted.offset)
            self._give_up(wanted.pieces, unreached=unreached)

    def _wanted(self, records: bytearray) -> Iterator[WantedFrame]:
        for frame, pieces in unpacked(records):
            moved = self._index.get_relocation(frame)
            if moved is not None:
                yield WantedFrame(frame, moved.ordinal, moved.offset, moved.size, pieces)
                continue
            row = self._index.get_frame(frame)
            if row is None:
                logger.error("A file refers to frame %d, which is in no segment.", frame)
                self._give_up(pieces)
                continue
            yield WantedFrame(frame, split_frame_id(frame)[1], row.offset, row.size, pieces)

    def _give_up(self, pieces: Sequence[Piece], *, unreached: Collection[str] = ()) -> None:
        self._unreached.update(unreached)
        for piece in pieces:
            if unreached:
                self._unread_bytes += piece.length
                self._unread.add(piece.inode)
                continue
            self._lost += piece.length
            self._incomplete.add(piece.inode)

    async def _candidates(self, place: Place) -> list[SegmentId]:
        stream, sequence = place
        if stream != Stream.MAIN:
            if (named := self._index.get_relocated(sequence)) is not None:
                return [SegmentId(sequence, named.epoch, named.writer)]
            # Which one is right shows by its frames: they carry their birth names, authenticated.
            return await self._segments[stream].candidates(sequence) if stream in self._segments else []
        row = self._index.get_segment(sequence)
        if row is not None:
            return [SegmentId(sequence, row.epoch, row.writer)]
        if self._open_segment is not None and self._open_segment.sequence == sequence:
            return [self._open_segment]
        return []

    async def _read(self, reading: _Reading) -> None:
        """Read the missing frames of a segment from one store after the other."""
        first = True
        order = sorted(self._sources, key=self._rank)
        for turn, source in enumerate(order + order):
            if not reading.missing:
                return
            if turn >= len(order) and (reading.cipher is None or not reading.bad_header):
                # A second turn helps only where another store's header opens frames that were passed over.
                return
            source.busy += 1
            try:
                if first or len(reading.missing) > SINGLE_FRAMES_MAX or reading.cipher is None:
                    await self._read_whole(source, reading)
                else:
                    await self._read_singly(source, reading)
                source.failures = 0
                first = False
            except ObjectNotFound:
                logger.info("Store %s does not hold object %s.", source.store.name, reading.key)
                self._bad.add((source.store.name, reading.key))
            except (StoreError, LimitError) as exc:
                source.failures += 1
                if isinstance(exc, MAY_ANSWER_LATER):
                    reading.unreached.add(source.store.name)
                logger.warning("Store %s, object %s: %s", source.store.name, reading.key, exc)
            finally:
                source.busy -= 1

    async def _read_earlier(self, reading: _Reading) -> None:
        """Read what is missing from versions beneath those that stores show, one after the other."""
        for source in self._sources:
            try:
                for version in await source.store.versions(ObjectKey(reading.key)):
                    if reading.missing:
                        with suppress(ObjectNotFound, LimitError):
                            await self._read_whole(source, reading, version)
            except StoreError as exc:
                logger.warning("Store %s, object %s: %s", source.store.name, reading.key, exc)

    def _rank(self, source: _Source) -> tuple[bool, int]:
        return source.failures >= FAILURES_MAX, 0 if self._in_order else source.busy

    async def _read_whole(
        self, source: _Source, reading: _Reading, version: ObjectVersion | None = None
    ) -> None:
        for span in spans(reading.missing):
            data = await self._get(source, reading.key, span.start, span.end, version)
            await self._write_span(reading, data, span)
            self._report(source, reading)
            if reading.cipher is None:
                return

    async def _read_singly(self, source: _Source, reading: _Reading) -> None:
        for wanted in list(reading.missing):
            data = await self._get(source, reading.key, wanted.offset, wanted.offset + wanted.size)
            await self._write_one(reading, data, wanted)
            self._report(source, reading)

    async def _get(
        self, source: _Source, key: str, start: int, end: int, version: ObjectVersion | None = None
    ) -> bytes:
        source.requests += 1
        data = await source.store.get_range(
            ObjectKey(key), offset=start, size_bytes=end - start, version=version
        )
        source.size_bytes += len(data)
        return data

    async def _write_span(self, reading: _Reading, data: bytes, span: Span) -> None:
        work = self._write_out
        await self._offload.run(lambda: work(reading, data, base=span.start, frames=span.frames))

    async def _write_one(self, reading: _Reading, data: bytes, wanted: WantedFrame) -> None:
        work = self._write_out
        await self._offload.run(lambda: work(reading, data, base=wanted.offset, frames=[wanted]))

    def _report(self, source: _Source, reading: _Reading) -> None:
        for offset, fault in reading.faults:
            name, key = source.store.name, reading.key
            self._bad.add((name, key))
            logger.warning("Store %s, object %s, offset %d: %s", name, key, offset, fault)
        reading.faults.clear()

    # --- in a worker thread --------------------------------------------------------------------

    def _write_out(self, reading: _Reading, data: bytes, *, base: int, frames: Sequence[WantedFrame]) -> None:
        """Authenticate frames and write what they hold; those that are good are missing no longer."""
        if base == 0:
            try:
                header, cipher = decode_header(data, self._keys, self._writer)
                if segment_object_key(header.stream, header.segment) != reading.key:
                    raise FormatError("the object holds another segment.")
                reading.cipher = cipher
            except (DamagedError, StoreTooNew) as exc:
                reading.faults.append((0, str(exc)))
                reading.bad_header = True
        if reading.cipher is None:
            return
        view = memoryview(data)
        done = set()
        for wanted in frames:
            try:
                plain = open_wanted(reading.cipher, view[max(wanted.offset - base, 0) :], wanted)
            except DamagedError as exc:
                reading.faults.append((wanted.offset, str(exc)))
                continue
            for inode, offset, length, frame_offset in wanted.pieces:
                self._tree.write(inode, plain[frame_offset : frame_offset + length], offset=offset)
                reading.written_bytes += length
            done.add(wanted.frame)
        reading.missing = [wanted for wanted in reading.missing if wanted.frame not in done]
