"""Replay: from a checkpoint (or nothing) and the segments after it to the tree at a position.

One function serves crash recovery, restore and the past. It follows the chain: a segment counts only
when its header names exactly the one before it (id, size, digest), or when nothing can come before it;
one without a trailer only up to the cut that the next header attests. The journal is checked as well:
its frames are numbered through the volume and each names the hash of the one before.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from mirrorfs.core.scan import ScannedFrame, ScannedJournal, ScannedSegment, cut_of, scan_segment
from mirrorfs.engine.apply import Applier
from mirrorfs.engine.branches import Branches, HeaderSource, begins_as, contradicts
from mirrorfs.engine.giving_way import Pause
from mirrorfs.errors import ChainError, DamagedError, StoreTooNew
from mirrorfs.format.ids import Previous, SegmentId, Stream, segment_object_key, split_frame_id
from mirrorfs.format.journal import GENESIS_HASH, Journal
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.record import decode_records
from mirrorfs.format.rows import FrameRow, RelocationRow, SegmentRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index

logger = logging.getLogger(__name__)

COMMITS_PER_TRANSACTION = 2000
RECORDS_PER_PAUSE = 50


class SegmentSource(HeaderSource, Protocol):
    """Where replay gets segments of the main stream from."""

    def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        """The copies of a segment, best first: (where, bytes). Unreachable ones are passed over."""


@dataclass(frozen=True, slots=True)
class ReplayEnd:
    """Where replay stopped."""

    position: int
    journal_sequence: int
    journal_hash: bytes
    time_ns: int
    last: Previous | None
    """The last segment of the chain, as a next header has to attest it."""
    next_sequence: int
    tail: ScannedSegment | None
    """The last segment when it is not sealed (local logs only)."""
    damage: str | None
    """Why replay could not go on although there is more; None when the log simply ends."""
    undecided: frozenset[int] = frozenset()
    """Frames that stay in the log and that no commit followed: the next commit is where they die."""
    sound: tuple[Previous | None, int] | None = None
    """Where `last` has damage, and its digest is nobody's word: where to read again (Replayer.follow)."""


@dataclass(slots=True)
class _Loaded:
    segment: SegmentId
    data: bytes
    scan: ScannedSegment


class Replayer:
    """Replays segments onto an index that stands at some position.

    Invariant: between two commits of the log, the rows, counters and `position`, `journal_sequence`,
    `journal_hash` and `time_ns` in the index's meta table belong to one position.
    """

    def __init__(
        self,
        index: Index,
        source: SegmentSource,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        stop_after: Callable[[int, Journal], bool] | None = None,
        vouched: Collection[Previous] = (),
        whole: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        pause: Pause | None = None,
    ) -> None:
        """`stop_after(position, journal)` is asked before a commit is applied; True ends replay before it.

        `vouched`: segments as heads name them. `whole`: a last segment with damage that nobody vouches for
        is not applied: who wrote on would vouch for it. `on_progress(sequence, time_ns)` hears of each one.
        `pause`, also within a commit: of an index that nobody looks at yet.
        """
        self._index = index
        self._source = source
        self._branches = Branches(source, keys, writer)
        self._keys = keys
        self._writer = writer
        self._stop_after = stop_after
        self._vouched = vouched
        self._whole = whole
        self._on_progress = on_progress
        self._pause = pause
        self._applier = Applier(index)
        self._group: list[ScannedJournal] = []
        self._frames: list[tuple[int, ScannedFrame]] = []  # (sequence, frame) since the last commit
        self._uncommitted = 0
        self._stopped = False
        self.position = self._int("position")
        self.journal_sequence = self._int("journal_sequence")
        digest = index.get_meta("journal_hash")
        self.journal_hash = digest if isinstance(digest, bytes) else GENESIS_HASH
        self.time_ns = self._int("time_ns")
        # The log contains the index's own position only if this is seen, or nothing was applied yet.
        self._anchored = self.journal_sequence == 0

    def _int(self, key: str) -> int:
        value = self._index.get_meta(key)
        return value if isinstance(value, int) else 0

    async def run(self, *, keep_tail: bool) -> ReplayEnd:
        """Follow the chain to its end.

        Args:
            keep_tail: whether an unsealed last segment counts up to its last whole commit (the local
                log), or not at all, as no header attests it (a store).
        Raises:
            ChainError: the log does not contain the position the index stands at.
        """
        sequence = self.position >> 20 if self.journal_sequence else 0
        before = self._index.get_segment(sequence - 1) if sequence else None
        last = previous_of(before) if before is not None else None
        anchored_start = before is not None or sequence == 0
        current = await self._load(sequence, last if anchored_start else None, check=anchored_start)
        return await self._go(current, last, sequence, keep_tail=keep_tail)

    async def follow(
        self, last: Previous | None, *, next_sequence: int, undecided: frozenset[int] = frozenset(),
        keep_tail: bool = False,
    ) -> ReplayEnd:  # fmt: skip
        """Go on where the index stands: at the end of the segment `last`, of which nothing is read again.

        `undecided` is of the replay that came to that end.
        """
        self._anchored = True
        self._applier.emptied |= undecided
        current = await self._load(next_sequence, last, check=True)
        if current is None:
            return ReplayEnd(
                self.position, self.journal_sequence, self.journal_hash, self.time_ns, last, next_sequence,
                None, None, undecided,
            )  # fmt: skip
        return await self._go(current, last, next_sequence, keep_tail=keep_tail)

    async def _go(
        self, current: _Loaded | None, last: Previous | None, sequence: int, *, keep_tail: bool
    ) -> ReplayEnd:
        damage: str | None = None
        tail: ScannedSegment | None = None
        sound: tuple[Previous | None, int] | None = None
        while current is not None and not self._stopped:
            following: _Loaded | None = None
            doubt: str | None = None
            if current.scan.trailer is not None:
                size, digest = len(current.data), current.scan.digest
                if current.scan.bad:
                    # The bytes are not what they were, so their digest comes from who vouched for it.
                    attested_digest = await self._attested_digest(current.segment, size=size)
                    digest = attested_digest or digest
                    if attested_digest is None:
                        doubt = f"segment {current.segment.sequence}: {current.scan.fault}"
                end = Previous(current.segment, size, digest)
                following, end = await self._after_sealed(current, end)
                if end.size < size:
                    doubt = None  # it was ended before its trailer, and is whole up to there
                whole = True
            else:
                attested = await self._attested(current)
                if attested is not None:
                    following, end = attested
                    whole = end.size <= current.scan.end
                elif keep_tail:
                    tail = current.scan
                    cut = cut_of(tail)
                    end = Previous(current.segment, cut, hashlib.sha256(current.data[:cut]).digest())
                    whole = True
                else:
                    break
            if doubt is not None and self._whole:
                damage = doubt
                self._anchored = True  # it may be in what is not applied
                break
            if not whole:
                logger.warning("Segment %d: %s", current.segment.sequence, current.scan.fault)
            damage = await self._apply_segment(current, end.size)
            if damage is not None or self._stopped:
                break
            if tail is None:
                self._close_segment(current, end)
            if doubt is not None:
                # Applied, but nobody may write on: the next header would attest a wrong digest.
                damage, sound = doubt, (last, current.segment.sequence)
            last = end
            if self._on_progress is not None:
                self._on_progress(current.segment.sequence, self.time_ns)
            current = following
        if not self._anchored:
            raise ChainError("the log does not contain the position of the index.")
        undecided = self._put_frames()
        self._save()
        next_sequence = last.segment.sequence + 1 if last is not None else sequence
        return ReplayEnd(
            self.position, self.journal_sequence, self.journal_hash, self.time_ns, last, next_sequence, tail,
            damage, undecided, sound,
        )  # fmt: skip

    async def _after_sealed(self, current: _Loaded, end: Previous) -> tuple[_Loaded | None, Previous]:
        """The segment after a sealed one, and what its header attests of it."""
        following = await self._load(current.segment.sequence + 1, end, check=True)
        if following is None and (attested := await self._attested(current)) is not None:
            # Its trailer was written but not durably, so that it was ended before it.
            return attested
        return following, end

    async def _load(self, sequence: int, previous: Previous | None, *, check: bool) -> _Loaded | None:
        """The segment under a sequence number that continues the chain, in its best copy; None for none."""
        best: _Loaded | None = None
        newer: StoreTooNew | None = None
        for segment in await self._branches.order(await self._source.candidates(sequence)):
            async for where, data in self._source.copies(segment):
                try:
                    scan = scan_segment(data, self._keys, self._writer)
                except DamagedError as exc:
                    logger.warning("%s, object %s: %s", where, segment_object_key(Stream.MAIN, segment), exc)
                    continue
                except StoreTooNew as exc:
                    # One flipped bit says so as well: believed only when no copy reads.
                    newer = exc
                    continue
                if scan.header.segment != segment or (check and scan.header.previous != previous):
                    continue
                if contradicts(self._keys.log_end(sequence), scan, data):
                    key = segment_object_key(Stream.MAIN, segment)
                    logger.warning("%s, object %s: other bytes than the header says", where, key)
                    continue
                if scan.fault is None and scan.trailer is not None:
                    return _Loaded(segment, data, scan)
                if scan.fault is not None:
                    key = segment_object_key(Stream.MAIN, segment)
                    logger.warning("%s, object %s: %s", where, key, scan.fault)
                # Without a trailer a copy that was cut between two frames looks whole: the longest counts.
                if best is None or _rank(scan) > _rank(best.scan):
                    best = _Loaded(segment, data, scan)
            if best is not None:
                break
        if best is None and newer is not None:
            raise newer
        return best

    async def _attested_digest(self, segment: SegmentId, *, size: int) -> bytes | None:
        """What the header of the next segment, or a head, says of a damaged one of this size."""
        for end in self._vouched:
            if (end.segment, end.size) == (segment, size):
                return end.digest
        for following in await self._source.candidates(segment.sequence + 1):
            previous = await self._branches.previous(following)
            if previous is not None and previous.segment == segment and previous.size == size:
                return previous.digest
        return None

    async def _attested(self, current: _Loaded) -> tuple[_Loaded | None, Previous] | None:
        """For one without trailer: the next whose header attests a cut of it, or a head that does."""
        for segment in await self._source.candidates(current.segment.sequence + 1):
            previous = await self._branches.previous(segment)
            if previous is None or previous.segment != current.segment:
                continue
            if begins_as(current.data, previous):
                following = await self._load(segment.sequence, previous, check=True)
                return None if following is None else (following, previous)
        for end in (*self._vouched, self._keys.log_end(current.segment.sequence)):
            if end is not None and end.segment == current.segment and begins_as(current.data, end):
                return None, end
        return None

    async def _apply_segment(self, loaded: _Loaded, end: int) -> str | None:
        """Apply the commits of a segment up to `end`. Returns why the journal breaks off, if it does."""
        sequence = loaded.segment.sequence
        rest = list(loaded.scan.rest)
        for at, found in enumerate(loaded.scan.journals):
            if found.end > end:
                rest = [frame for later in loaded.scan.journals[at:] for frame in later.frames]
                break
            journal = found.journal
            self._frames += [(sequence, frame) for frame in found.frames]
            if journal.sequence <= self.journal_sequence and not self._group:
                self._find_again()
                if journal.sequence == self.journal_sequence:
                    if found.digest != self.journal_hash:
                        raise ChainError("the log holds another history than the index.")
                    self._anchored = True
                continue
            if not self._anchored:
                raise ChainError("the log does not contain the position of the index.")
            expected, digest = self.journal_sequence, self.journal_hash
            if self._group:
                expected, digest = self._group[-1].journal.sequence, self._group[-1].digest
            if journal.sequence != expected + 1 or journal.previous != digest:
                return f"the journal breaks off after frame {expected} (segment {loaded.segment.sequence})"
            self._group.append(found)
            if not journal.continues:
                if self._stop_after is not None and self._stop_after(found.position, journal):
                    self._stopped = True
                    self._group.clear()
                    self._frames.clear()
                    return None
                await self._apply_commit()
        self._frames += [(sequence, frame) for frame in rest if frame.offset + frame.size <= end]
        cut_short = loaded.scan.trailer is None and loaded.scan.end < end
        if loaded.scan.fault is not None and (cut_short or not loaded.scan.journal_whole):
            return f"segment {sequence}: {loaded.scan.fault}"
        return None

    def _find_again(self) -> None:
        """Frames of commits that the index has already.

        Their relocation may be missing from it: an append that fails is mended after its commit entered
        the index, and a crash may come before the next one.
        """
        for sequence, frame in self._frames:
            row = self._index.get_frame(frame.frame)
            moved = split_frame_id(frame.frame)[0] != sequence
            if moved and row is not None and self._index.get_relocation(frame.frame) is None:
                self._index.put_frame(row._replace(offset=frame.offset))
                self._relocate(sequence, frame)
        self._frames.clear()

    def _relocate(self, sequence: int, frame: ScannedFrame) -> None:
        if split_frame_id(frame.frame)[0] != sequence:
            self._index.put_relocation(
                RelocationRow(frame.frame, Stream.MAIN, sequence, frame.ordinal, frame.offset, frame.size)
            )

    async def _apply_commit(self) -> None:
        applier, last = self._applier, self._group[-1]
        applier.emptied |= self._put_frames()
        for found in self._group:
            for count, record in enumerate(decode_records(found.journal.records)):
                applier.apply(record)
                if self._pause is not None and count % RECORDS_PER_PAUSE == 0:
                    await self._pause()
        applier.settle(last.position)
        self.position, self.time_ns = last.position, last.journal.time_ns
        self.journal_sequence, self.journal_hash = last.journal.sequence, last.digest
        self._group.clear()
        self._uncommitted += 1
        if self._uncommitted >= COMMITS_PER_TRANSACTION:
            self._save()

    def _put_frames(self) -> frozenset[int]:
        """Rows for the frames since the last commit, which nothing names yet. Returns their ids."""
        index = self._index
        found: set[int] = set()
        for sequence, frame in self._frames:
            if not frame.length and index.get_frame(frame.frame) is not None:
                continue  # a damaged frame, whose name is a guess
            index.put_frame(FrameRow(frame.frame, frame.offset, frame.size, frame.length, 0, 0))
            found.add(frame.frame)
            self._relocate(sequence, frame)
        self._frames.clear()
        return frozenset(found)

    def _close_segment(self, loaded: _Loaded, end: Previous) -> None:
        times = [found.journal.time_ns for found in loaded.scan.journals if found.end <= end.size] or [0]
        is_sealed = loaded.scan.trailer is not None and end.size == len(loaded.data)
        self._index.put_segment(
            SegmentRow(*loaded.segment, end.size, int(is_sealed), end.digest, times[0], times[-1])
        )

    def _save(self) -> None:
        index = self._index
        self._applier.save_counters()
        index.put_meta("position", self.position)
        index.put_meta("journal_sequence", self.journal_sequence)
        index.put_meta("journal_hash", self.journal_hash)
        index.put_meta("time_ns", self.time_ns)
        index.commit()
        self._uncommitted = 0


def _rank(scan: ScannedSegment) -> tuple[bool, bool, int, int]:
    """Which of two copies is of more use."""
    return scan.trailer is not None, scan.journal_whole, scan.end, -len(scan.bad)


def previous_of(row: SegmentRow) -> Previous:
    """What the header after a segment attests of it."""
    return Previous(SegmentId(row.sequence, row.epoch, row.writer), row.size, row.digest)
