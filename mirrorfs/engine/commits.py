"""The commits of a stretch of the log, from its journal frames alone: who made what, when, with no contents.

Which segments there are, an index tells. Of a sealed one only header, trailer and journal frames are read;
of a small one all in one request. One without a trailer, or damaged, is read whole and looked through.

The log begins with the base: what lies before it is no log any more, and moments that are kept of that time
are named beside it. Frames authenticate themselves, and the journal is a chain. Where part of it is lost that
is said, and the commit that ends there is left out; of one that begins there only the rest is seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import trio

from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.kept import kept_of
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.restore_plan import RestorePlan
from mirrorfs.engine.salvage import CombiningSource
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, FormatError
from mirrorfs.format.frame import FrameCipher, Kind, unpack
from mirrorfs.format.ids import SegmentId, Stream, frame_id, segment_object_key
from mirrorfs.format.journal import Journal, decode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.record import Record, decode_records
from mirrorfs.format.rows import MomentRow, SegmentRow
from mirrorfs.format.segment import (
    FOOTER,
    HEADER_SIZE,
    SegmentHeader,
    Trailer,
    decode_header,
    open_trailer,
    read_footer,
    signer_of,
)
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index

logger = logging.getLogger(__name__)
T = TypeVar("T")

WHOLE_BYTES_MAX: Final = 256 * 1024
"""A segment of this size is one request rather than several."""
TAIL_BYTES: Final = 64 * 1024
"""Holds the trailers of nearly all segments."""
GAP_BYTES_MAX: Final = 64 * 1024
"""Bytes between two journal frames that are fetched in vain, rather than asking twice."""
SEGMENTS_AT_A_TIME: Final = 16
ROWS_PER_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Commit:
    """One moment that can be returned to."""

    position: int
    time_ns: int
    payloads: tuple[bytes, ...]
    """Encoded records, journal frame by journal frame."""

    def records(self) -> Iterator[Record]:
        """In the order they were made. Raises: FormatError."""
        for payload in self.payloads:
            yield from decode_records(payload)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the log: what comes after one moment, up to another."""

    after: Moment = NEWEST
    """NEWEST, which names no bound: from the first commit on. Commits at this time count, one at this
    position does not."""
    until: Moment = NEWEST

    def has(self, *, position: int, time_ns: int) -> bool:
        """Whether a commit lies in it."""
        after = self.after
        if after.position is not None and position <= after.position:
            return False
        if after.time_ns is not None and time_ns < after.time_ns:
            return False
        return self.until.has(position=position, time_ns=time_ns)

    def may_touch(self, row: SegmentRow) -> bool:
        """Whether a segment can hold such commits."""
        if self.after.position is not None and row.sequence < self.after.position >> 20:
            return False
        if self.until.position is not None and row.sequence > self.until.position >> 20:
            return False
        if not row.size:
            return True  # it was open: nothing is known of its times
        if self.after.time_ns is not None and row.last_ns < self.after.time_ns:
            return False
        return self.until.time_ns is None or row.first_ns <= self.until.time_ns


class _Found(NamedTuple):
    """A journal frame, authenticated."""

    position: int
    journal: Journal
    digest: bytes


_Journals = tuple[list[_Found], bool]
"""Those of one segment, and whether they are all."""


class CommitReader:
    """Reads commits of the log that an index stands at the end of."""

    def __init__(
        self, segments: Segments, index: Index, plan: RestorePlan, keys: VolumeKeys, writer: WriterPublicKey
    ) -> None:
        """
        Args:
            segments: the main stream, already looked at.
            index, plan: as `past.index_at` gave them.
        """
        self._segments = segments
        self._index = index
        self._end = plan.journal_sequence
        self.kept = kept_of(index)
        """Which moments there are; the commits that are read come after its base."""
        self._keys = keys
        self._writer = writer
        self._group: list[_Found] = []
        self._last: _Found | None = None
        self.lost: list[int] = []
        """Sequence numbers of segments of which no good copy was found, or not all of it."""

    async def run(
        self,
        stretch: Stretch,
        visit: Callable[[Commit], None],
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Have each commit of a stretch visited, the oldest first. `on_progress` hears of segments.

        Raises: StoreTooNew. FormatError: a record is none.
        """
        # A volume's first commit may have position 0.
        rows, is_pruned = self._rows(stretch), self.kept.base is not None
        for start in range(0, len(rows), SEGMENTS_AT_A_TIME):
            on_progress(start, len(rows))
            batch = rows[start : start + SEGMENTS_AT_A_TIME]
            for row, (found, is_whole) in zip(batch, await self._batch(batch), strict=True):
                if not is_whole:
                    self.lost.append(row.sequence)
                for one in found:
                    commit = self._add(one)
                    if commit is None or (is_pruned and commit.position <= self.kept.position):
                        continue
                    if stretch.has(position=commit.position, time_ns=commit.time_ns):
                        visit(commit)
        on_progress(len(rows), len(rows))

    def single(self, stretch: Stretch) -> list[MomentRow]:
        """The kept moments of a stretch up to the base, the oldest first."""
        rows = self.kept.single
        return [row for row in rows if stretch.has(position=row.position, time_ns=row.time_ns)]

    def _rows(self, stretch: Stretch) -> list[SegmentRow]:
        rows: list[SegmentRow] = []
        after = (self.kept.position >> 20) - 1
        while page := self._index.list_segments(from_sequence=after + 1, limit=ROWS_PER_PAGE):
            rows += [row for row in page if stretch.may_touch(row)]
            after = page[-1].sequence
        return rows

    def _add(self, found: _Found) -> Commit | None:
        """Take the next journal frame. Returns the commit that it ends, if all of that is there."""
        journal = found.journal
        last, self._last = self._last, found
        if journal.sequence > self._end:
            return None
        follows = last is not None and journal.sequence == last.journal.sequence + 1
        if follows and last is not None and journal.previous != last.digest:
            raise DamagedError(
                f"The log holds two histories in segment {found.position >> 20}; run `mirrorfs verify`."
            )
        if not follows:
            self._group.clear()
        self._group.append(found)
        if journal.continues:
            return None
        group, self._group = self._group, []
        return Commit(found.position, journal.time_ns, tuple(one.journal.records for one in group))

    async def _batch(self, rows: Sequence[SegmentRow]) -> list[_Journals]:
        found: list[_Journals] = [([], False)] * len(rows)

        async def read(at: int) -> None:
            found[at] = await self._read(rows[at])

        async with trio.open_nursery() as nursery:
            for at in range(len(rows)):
                nursery.start_soon(read, at)
        return found

    # --- one segment ---------------------------------------------------------------------------

    async def _read(self, row: SegmentRow) -> _Journals:
        segment = SegmentId(row.sequence, row.epoch, row.writer)
        if row.sealed:
            try:
                return await self._listed(_Parts(self._segments, segment, row.size)), True
            except DamagedError as exc:
                logger.warning("%s: %s Looking through all of it.", _key(segment), exc)
        return await self._scanned(segment, row)

    async def _listed(self, parts: _Parts) -> list[_Found]:
        """By the trailer's table. Raises: DamagedError: a part that is needed has no good copy."""
        if parts.size <= WHOLE_BYTES_MAX:
            await parts.load_all()

        def check_header(data: bytes) -> tuple[SegmentHeader, FrameCipher]:
            header, cipher = decode_header(data, self._keys, self._writer)
            if header.segment != parts.segment:
                raise FormatError("segment is another one than its name says.")
            return header, cipher

        header, cipher = await parts.read(0, HEADER_SIZE, check_header)
        signer = signer_of(header, self._keys, self._writer)
        tail = min(parts.size, TAIL_BYTES)

        def check_tail(data: bytes) -> int | Trailer:
            offset = read_footer(data)
            if offset is None or offset >= parts.size:
                raise FormatError("segment has no footer.")
            start = parts.size - len(data)
            return check_trailer(data[offset - start :], offset) if offset >= start else offset

        def check_trailer(data: bytes, offset: int) -> Trailer:
            frame = memoryview(data)[: -FOOTER.size]
            return open_trailer(frame, offset=offset, header=header, cipher=cipher, writer=signer)

        trailer = await parts.read(parts.size - tail, tail, check_tail)
        if isinstance(trailer, int):
            at = trailer
            trailer = await parts.read(at, parts.size - at, lambda data: check_trailer(data, at))
        found: list[_Found] = []
        for run in _runs(trailer):
            start, end = run[0][1], run[-1][2]
            found += await parts.read(
                start,
                end - start,
                lambda data, run=run: _open(cipher, data, run),  # type: ignore[misc]
            )
        return found

    async def _scanned(self, segment: SegmentId, row: SegmentRow) -> _Journals:
        """By looking through the copy that gives the most, or all of them put together."""
        best: list[_Found] = []
        async for where, data in CombiningSource(self._segments, self._keys, self._writer).copies(segment):
            try:
                scan = scan_segment(data, self._keys, self._writer)
            except DamagedError as exc:
                logger.warning("%s, object %s: %s", where, _key(segment), exc)
                continue
            if scan.header.segment != segment:
                continue
            found = [
                _Found(one.position, one.journal, one.digest)
                for one in scan.journals
                if not row.size or one.end <= row.size
            ]
            # An open one has no end that could be missing.
            if scan.journal_whole and scan.end >= row.size:
                return found, True
            best = max(best, found, key=len)
        return best, False


_Entry = tuple[int, int, int]
"""(ordinal, offset, end) of a journal frame."""


def _runs(trailer: Trailer) -> Iterator[list[_Entry]]:
    """Journal frames that are fetched together."""
    ends = [*(entry.offset for entry in trailer.frames), trailer.size][1:]
    run: list[_Entry] = []
    for ordinal, (entry, end) in enumerate(zip(trailer.frames, ends, strict=True)):
        if entry.kind != Kind.JOURNAL:
            continue
        if run and entry.offset - run[-1][2] > GAP_BYTES_MAX:
            yield run
            run = []
        run.append((ordinal, entry.offset, end))
    if run:
        yield run


def _open(cipher: FrameCipher, data: bytes, run: Sequence[_Entry]) -> list[_Found]:
    """Raises: FormatError, AuthenticationError."""
    start = run[0][1]
    found = []
    for ordinal, offset, end in run:
        plain, body = cipher.open_body(
            memoryview(data)[offset - start : end - start], offset=offset, ordinal=ordinal
        )
        if body.kind is not Kind.JOURNAL:
            raise FormatError("frame is not the one that the trailer lists.")
        payload = unpack(body)
        name = frame_id(plain.birth_sequence, plain.birth_ordinal)
        found.append(_Found(name, decode_journal(payload), journal_hash(payload)))
    return found


class _Parts:
    """Parts of one segment, each from the first copy in which it is good."""

    def __init__(self, segments: Segments, segment: SegmentId, size: int) -> None:
        self._segments = segments
        self.segment = segment
        self.size = size
        self._all: bytes | None = None

    async def load_all(self) -> None:
        """Fetch the whole of it in advance, from any copy."""
        async for _, data in self._segments.read_frame(self.segment, offset=0, size_bytes=self.size):
            self._all = data
            return

    async def read(self, offset: int, size: int, check: Callable[[bytes], T]) -> T:
        """What `check` makes of a part. Raises: DamagedError: it refuses all copies, or there is none."""
        if self._all is not None:
            try:
                return check(self._all[offset : offset + size])
            except DamagedError:
                self._all = None  # each part is asked for by itself from now on
        fault: DamagedError | None = None
        async for where, data in self._segments.read_frame(self.segment, offset=offset, size_bytes=size):
            try:
                return check(data)
            except DamagedError as exc:
                logger.warning("%s, object %s: %s", where, _key(self.segment), exc)
                fault = exc
        raise fault or DamagedError("no store that answers has it.")


def _key(segment: SegmentId) -> str:
    return segment_object_key(Stream.MAIN, segment)
