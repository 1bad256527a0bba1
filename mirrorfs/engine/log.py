"""The log: one stream of segments, appended to by this process alone.

Invariants
- Segment n is synced with its trailer, and the directory synced, before the first byte of n+1 (roll).
- `_undurable` holds every frame that was appended since the last good sync, ready to be sealed again.
  When a write or sync fails, the segment ends at its last durable offset and those frames go, under
  their birth names, into a new segment with a new key: nothing acknowledged is dropped, no nonce is
  repeated, and no fdatasync is tried twice (the kernel may have marked the pages clean).
- Where a frame lies is told (`on_relocated`) only when it lies there durably: while mending fails, readers
  go on finding it behind the cut of the old segment.
- All methods are called by the writer task, or in one step while that task waits for work: never
  concurrently.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from mirrorfs.engine.journals import journals_of_commit
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, Placed, SegmentWriter, WriterIdentity
from mirrorfs.errors import DiskError, DiskFull
from mirrorfs.format.frame import Body
from mirrorfs.format.ids import STREAM_PREFIX, Previous, Stream, frame_id, split_frame_id
from mirrorfs.format.journal import GENESIS_HASH, Journal, journal_hash
from mirrorfs.format.rows import RelocationRow, SegmentRow
from mirrorfs.ports import Disk, Entropy, Offload

logger = logging.getLogger(__name__)

INLINE_MAX = 64 * 1024
"""Bodies up to this many bytes are sealed on the loop: a thread hop costs more."""
ENTRIES_MAX = 60_000
"""Frames per segment, far below the format's limit."""

_DIRECTORY = LOCAL_PREFIX + STREAM_PREFIX[Stream.MAIN].rstrip("/")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where the log goes on: what recovery or a fresh volume hands over."""

    next_sequence: int
    previous: Previous | None
    journal_sequence: int
    """Of the last journal frame."""
    journal_hash: bytes


START = LogPosition(0, None, 0, GENESIS_HASH)


class Log:
    """The main stream."""

    def __init__(
        self,
        disk: Disk,
        offload: Offload,
        identity: WriterIdentity,
        entropy: Entropy,
        *,
        start: LogPosition,
        on_closed: Callable[[SegmentRow, str], None],
        on_relocated: Callable[[RelocationRow], None],
    ) -> None:
        """`on_closed` hears of every segment that became immutable, `on_relocated` of frames sealed again."""
        self._disk = disk
        self._offload = offload
        self.identity = identity
        """Of the segments that begin from now on."""
        self._entropy = entropy
        self._on_closed = on_closed
        self._on_relocated = on_relocated
        self._next_sequence = start.next_sequence
        self._previous = start.previous
        self.journal_sequence = start.journal_sequence
        self.journal_hash = start.journal_hash
        self._current: SegmentWriter | None = None
        self._broken = False
        self._undurable: list[tuple[int, Body, Journal | None]] = []
        self._moved: dict[int, Placed] = {}
        self._strays: list[Placed] = []
        self.bytes_appended = 0

    @property
    def current(self) -> SegmentWriter | None:
        """The open segment, if there is one."""
        return self._current

    def ready_for(self, bodies: Sequence[Body]) -> bool:
        """Whether the open segment is healthy and takes these frames."""
        current = self._current
        return current is not None and not self._broken and current.fits(bodies)

    def held(self, frame: int) -> Body | None:
        """A frame whose bytes on the disk cannot be relied on until it is sealed again; else None."""
        if not self._broken:
            return None
        return next((body for name, body, _ in self._undurable if name == frame), None)

    @property
    def unsynced(self) -> bool:
        """Whether frames were appended that are not known durable."""
        return bool(self._undurable)

    @property
    def unsynced_bytes(self) -> int:
        """Bytes of the open segment that are not known durable."""
        return self._current.size - self._current.durable_size if self._current is not None else 0

    @property
    def oldest_ns(self) -> int:
        """Commit time of the first journal frame in the open segment; 0 when there is none."""
        return self._current.first_ns if self._current is not None else 0

    # --- segments ----------------------------------------------------------------------------

    async def _open(self) -> SegmentWriter:
        def create() -> SegmentWriter:
            writer = SegmentWriter(
                self._disk,
                self.identity,
                self._entropy,
                stream=Stream.MAIN,
                sequence=self._next_sequence,
                previous=self._previous,
            )
            try:
                writer.sync()
                self._disk.sync_directory(_DIRECTORY)
            except DiskError:
                writer.close()
                self._disk.remove(LOCAL_PREFIX + writer.key)
                raise
            return writer

        # No other method runs meanwhile (one task), and the fields change only after it succeeded.
        try:
            self._current = await self._offload.sync(create)
        except DiskFull:
            raise
        except DiskError:
            logger.warning("A new segment of the local log could not be made; trying once more.")
            self._current = await self._offload.sync(create)
        self._next_sequence += 1
        return self._current

    async def ensure_room(self, bodies: Sequence[Body]) -> None:
        """Have an open, healthy segment that takes these frames, rolling or mending first."""
        if self._broken:
            await self._mend()
        current = self._current
        if current is not None and (not current.fits(bodies) or len(current.entries) > ENTRIES_MAX):
            await self.roll()
        if self._current is None:
            await self._open()

    async def roll(self) -> None:
        """Seal the open segment, make it durable and report it; nothing to do when it holds no frame.

        Where that fails, its frames lie in another one, which is sealed then.
        """
        while True:
            if self._broken:
                await self._mend()
            current = self._current
            if current is None or current.empty:
                return
            try:
                await self._offload.sync(partial(self._finish, current))
            except DiskError:
                # A half-written trailer is a torn tail: the segment ends at its last durable offset.
                current.sealed = False
                self._broken = True
                continue
            self._undurable.clear()
            return self._close(current)

    @staticmethod
    def _finish(segment: SegmentWriter) -> None:
        segment.seal()
        segment.sync()

    def _close(self, segment: SegmentWriter) -> None:
        previous = segment.previous()
        row = SegmentRow(
            segment.segment.sequence,
            segment.segment.epoch,
            segment.segment.writer,
            previous.size,
            int(segment.sealed),
            previous.digest,
            *segment.durable_times,
        )
        segment.close()
        self._previous = previous
        self._current = None
        self._on_closed(row, segment.key)

    async def _mend(self) -> None:
        """After a failed write or sync: end the segment at its durable offset, seal the rest again elsewhere.

        Raises DiskError, DiskFull when that fails as well; `_undurable` is then intact and the next call
        tries again with yet another segment.
        """
        if self._current is not None:
            logger.warning("A write to the local log failed; the segment ends at its last durable byte.")
            self._close(self._current)
        writer = await self._open()
        moved: list[Placed] = []
        try:
            for frame, body, journal in self._undurable:
                placed = writer.append(body, birth=split_frame_id(frame))
                if journal is not None:
                    writer.note_journal(journal)
                else:
                    moved.append(placed)
            await self._offload.sync(writer.sync)
        except DiskError:
            self._current = None
            writer.close()
            self._disk.remove(LOCAL_PREFIX + writer.key)
            self._next_sequence -= 1
            raise
        self._broken = False
        self._undurable.clear()
        for placed in moved:
            self._moved[placed.frame] = placed
            self._on_relocated(
                RelocationRow(
                    placed.frame,
                    Stream.MAIN,
                    writer.segment.sequence,
                    placed.ordinal,
                    placed.offset,
                    placed.size,
                )
            )

    # --- frames ------------------------------------------------------------------------------

    def _append_now(self, body: Body, journal: Journal | None = None) -> Placed:
        """Append to the open segment. On a failed write the frame is kept for mending, under this name."""
        current = self._current
        assert current is not None, "ensure_room comes first"
        name = frame_id(current.segment.sequence, len(current.entries))
        if not self._broken:
            try:
                placed = current.append(body)
            except DiskError:
                self._broken = True
                raise
            self._undurable.append((name, body, journal))
            self.bytes_appended += placed.size
            return placed
        raise DiskFull("The local log cannot be written; free space on the disk.")

    async def append_data(self, bodies: Sequence[Body], *, inline: bool = False) -> list[Placed]:
        """Append data frames in order. They are durable after the next `sync`, named after the next journal.

        `inline`: on the loop whatever their size, awaiting only where a segment ends.
        A failed write is mended, and the rest goes behind what was sealed again.
        Raises DiskError, DiskFull: mending failed as well. Try again with all of them; those that are in
        the log for good without ever being named are told by `take_strays`.
        """
        placed: list[Placed] = []
        self._moved.clear()
        try:
            while len(placed) < len(bodies):
                rest = bodies[len(placed) :]
                await self.ensure_room(rest[:1])
                assert self._current is not None
                part = rest[: self._current.count_fitting(rest)]
                append = partial(self._append_all, part, placed)
                if inline or sum(len(body.data) for body in part) <= INLINE_MAX:
                    append()
                else:
                    await self._run_and_hash(append)
        except DiskError:
            self._abandon(placed)
            raise
        return self._where_now(placed)

    async def _run_and_hash(self, append: Callable[[], None]) -> None:
        """Append in one thread and, in another, hash what was written before."""
        current = self._current
        assert current is not None

        def append_and_write_out() -> None:
            append()
            current.write_out()

        async with trio.open_nursery() as nursery:
            if current.unhashed_bytes > INLINE_MAX:
                nursery.start_soon(self._offload.run, current.hash_written)
            nursery.start_soon(self._offload.run, append_and_write_out)

    def append_now(self, bodies: Sequence[Body]) -> list[Placed]:
        """`append_data` in one step, of frames that the log is `ready_for`. Raises DiskError as that does."""
        placed: list[Placed] = []
        self._append_all(bodies, placed)
        if self._broken:
            self._abandon(placed)
            raise DiskError("A write to the local log failed; it has to be mended.")
        return placed

    def _append_all(self, bodies: Sequence[Body], placed: list[Placed]) -> None:
        """Append to the open segment, up to a failed write: that one and the rest are left to the caller."""
        for body in bodies:
            try:
                placed.append(self._append_now(body))
            except DiskError:
                return  # `_broken` is set: ensure_room mends, or raises.

    def _where_now(self, placed: Sequence[Placed]) -> list[Placed]:
        return [self._moved.get(place.frame, place) for place in placed]

    def _abandon(self, placed: Sequence[Placed]) -> None:
        """No record will name these frames: what is not durable yet need not be sealed again."""
        frames = {place.frame for place in placed}
        undurable = {name for name, _, _ in self._undurable} & frames
        self._undurable = [entry for entry in self._undurable if entry[0] not in undurable]
        self._strays += self._where_now([place for place in placed if place.frame not in undurable])

    def take_strays(self) -> list[Placed]:
        """Frames that are in the log although their append failed, told once: they are dead from birth."""
        strays, self._strays = self._strays, []
        return strays

    def prepare_commit(self, records: Sequence[bytes], *, time_ns: int) -> list[tuple[Journal, bytes]]:
        """Journal frames for one commit, and their payloads; nothing is written."""
        durable = self._current.durable_size if self._current is not None else 0
        return journals_of_commit(
            records,
            time_ns=time_ns,
            durable_size=durable,
            sequence=self.journal_sequence,
            digest=self.journal_hash,
        )

    def append_journal(self, journals: Sequence[tuple[Journal, bytes]], bodies: Sequence[Body]) -> int:
        """Append the journal frames of one commit. Synchronous: no operation slips in between.

        Returns the position: the name of the last journal frame. Raises DiskError, DiskFull: the log is
        unchanged for readers (the commit is incomplete), and mended before the next append.
        """
        current = self._current
        assert current is not None and current.fits(bodies), "ensure_room comes first"
        undurable = len(self._undurable)
        position = 0
        try:
            for (journal, _), body in zip(journals, bodies, strict=True):
                position = self._append_now(body, journal).frame
        except DiskError:
            # What was written of this commit is behind the durable offset: mending cuts it away.
            del self._undurable[undurable:]
            raise
        for journal, payload in journals:
            current.note_journal(journal)
            self.journal_sequence, self.journal_hash = journal.sequence, journal_hash(payload)
        return position

    async def sync(self) -> None:
        """Make everything appended durable, mending once if the disk fails.

        Raises DiskError, DiskFull: it could not be; what was acknowledged stays in memory for a later try.
        """
        if self._broken:
            await self._mend()
        current = self._current
        if current is None or not self._undurable:
            return
        try:
            await self._offload.sync(current.sync)
        except DiskError:
            self._broken = True
            await self._mend()
            return
        self._undurable.clear()

    def sync_now(self) -> bool:
        """The same without an await, for the rare step that must not let operations in.

        Returns False when the disk failed: nothing is lost, the next `sync` mends.
        """
        current = self._current
        if self._broken or current is None:
            return not self._undurable
        try:
            current.sync()
        except DiskError:
            self._broken = True
            return False
        self._undurable.clear()
        return True
