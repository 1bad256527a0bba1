"""How this machine's log stands to what the stores hold: whether it may be gone on with.

Forks come from machines that could not see each other. Epochs do not tell them apart: one that is mounted
without a network counts them up as well. What tells is what reached the stores, under leases that were held
there. So the log of this machine counts up to its last segment that a store has; and
- a lease of another writer is known if that segment is that writer's, or a later one's: what its holder wrote
  is in our log, or was left behind by somebody who is in it;
- a branch in a store that parts from our log and ends later than that segment has overtaken us: later in the
  order that readers follow (engine/branches.py), or two writers of one epoch would keep everybody out;
  What a crash left of a segment is none, unless the next one or a head says where it ended. Where not all
  heads can be read, one may say so: then it counts like any other, if we were not told to go on without it;
- one that goes on from another state of a segment of ours says that this machine was put back in time.
What is none of these is an orphan: the end of a writer that was fenced, which nobody follows.
What cannot be read here may be any of them, and whole in another store: see `Standing.unread`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import trio

from mirrorfs.core.held import HeldKeys
from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.branches import Branches, End, end_at
from mirrorfs.engine.replay import previous_of
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import ChainError, DamagedError, InUseError, StoreTooNew
from mirrorfs.format.control import Lease
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Index

logger = logging.getLogger(__name__)

_PAGE: Final = 1000
WHAT_NEXT: Final = (
    "nothing is written: `mirrorfs restore --from-state` exports what is only here, then `mirrorfs attach"
    " --again` goes on with the stores."
)


class Known(NamedTuple):
    """The last writer whose changes this machine's log has, as far as stores have them too.

    Compared as engine.branches.End.
    """

    era: int
    epoch: int
    sequence: int
    """Of the last segment of that writer; -1 if it is known by its lease alone."""
    writer: bytes

    def has(self, lease: Lease) -> bool:
        """Whether what the holder of a lease wrote is behind us."""
        return lease.epoch < self.epoch or (lease.epoch, lease.writer) == (self.epoch, self.writer)

    def loses_to(self, end: End) -> bool:
        """Whether a reader would follow a branch with that end, and not ours.

        It may be of the very writer that we followed, who went on where we could not see it.
        """
        return end > self


def known_by_lease(epoch: int, writer: bytes, keys: VolumeKeys) -> Known:
    """A writer of whom no segment is known: it has the newest keys."""
    return Known(keys.generation, epoch, -1, writer)


NOBODY: Final = Known(0, 0, -1, b"")


async def first_unsent(index: Index, held: Sequence[HeldKeys]) -> int:
    """The first sequence number whose segment is not known to be in every store; the next one if all are.

    `held`: what each of the stores is known to hold.
    """
    sequence = 0
    while rows := index.list_segments(from_sequence=sequence, limit=_PAGE):
        for row in rows:
            key = segment_object_key(Stream.MAIN, _id(row))
            if not all(key in one for one in held):
                return row.sequence
        sequence = rows[-1].sequence + 1
        await trio.lowlevel.checkpoint()
    return sequence


class Standing:
    """One look at what stores have from some sequence number on."""

    def __init__(
        self,
        index: Index,
        segments: Segments,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        first: int,
        held: Mapping[str, HeldKeys],
        may_leave: Collection[SegmentId] | None = None,
    ) -> None:
        """
        Args:
            segments: of the main stream, already looked at from `first` on.
            first: a number before which every segment is in the stores that were looked at.
            held: what each of the stores that count is known to hold, by name: those that do not rotate. A
                disk that travels with one machine keeps nobody else from writing.
            may_leave: what of the segments that a crash left may be left behind; None: all of them.
        """
        self._index = index
        self._segments = segments
        self._keys = keys
        self._writer = writer
        self._branches = Branches(segments, keys, writer)
        self._first = first
        self._held = held
        self._may_leave = may_leave
        self.left: set[SegmentId] = set()
        """What a crash left, and stood in nobody's way."""

    async def known(self, leases: Iterable[Lease], own: Collection[bytes]) -> Known:
        """Args: leases: those found in stores. own: writer ids of this machine's mounts that were settled."""
        found = NOBODY
        if self._first and (row := self._index.get_segment(self._first - 1)) is not None:
            found = self._known_by(row)
        async with aclosing(self._rows()) as rows:
            async for row in rows:
                key = segment_object_key(Stream.MAIN, _id(row))
                is_held = any(key in one for one in self._held.values())
                if is_held or not self._held.keys().isdisjoint(self._segments.stores_of(_id(row))):
                    found = self._known_by(row)
        return max(
            [
                found,
                *(
                    known_by_lease(lease.epoch, lease.writer, self._keys)
                    for lease in leases
                    if lease.writer in own
                ),
            ]
        )

    def _known_by(self, row: SegmentRow) -> Known:
        return Known(*end_at(_id(row), self._keys))

    async def check(self, known: Known) -> None:
        """Raises: ChainError: the stores' log does not go on from this machine's. InUseError: another machine
        goes on from its end just now.
        """
        before = self._index.get_segment(self._first - 1) if self._first else None
        async with aclosing(self._rows()) as rows:
            async for row in rows:
                if before is not None and before.sequence != row.sequence - 1:
                    before = None  # that one was collected
                others = [one for one in await self._segments.candidates(row.sequence) if one != _id(row)]
                await self._check_others(others, before, known)
                before = row
        # What goes on from our last segment was followed, unless it goes on from another state of it.
        following = [] if before is None else await self._segments.candidates(before.sequence + 1)
        strange: list[SegmentId] = []
        for one in following:
            if not await self._is_no_fork(one, before, known):
                strange.append(one)
            elif self._may_leave is None and await self._is_unfinished(one):
                self._leave(one, is_end=True)
        await self._check_others(strange, before, known, is_end=True)

    async def unread(self, known: Known) -> set[SegmentId]:
        """Segments later than all that is `known`, of which `check` could not tell where they belong.

        They cannot be read, or follow one that is not there.
        """
        found: set[SegmentId] = set()
        for count, sequence in enumerate(self._segments.sequences, 1):
            for one in await self._segments.candidates(sequence):
                if not known.loses_to(end_at(one, self._keys)) or one in self.left or self._is_ours(one):
                    continue
                is_by_known = (one.epoch, one.writer) == (known.epoch, known.writer)
                if not is_by_known or not await self._is_joined(one, known):
                    found.add(one)
            if count % _PAGE == 0:
                await trio.lowlevel.checkpoint()
        return found

    def _is_ours(self, segment: SegmentId) -> bool:
        row = self._index.get_segment(segment.sequence)
        return row is not None and _id(row) == segment

    async def _is_joined(self, segment: SegmentId, known: Known) -> bool:
        """Whether a later segment of the known writer follows one that is there, or ours.

        It may have written many since: of those that their numbers join only the first is read.
        """
        before = segment._replace(sequence=segment.sequence - 1)
        if before.sequence > known.sequence and before in await self._segments.candidates(before.sequence):
            return True
        previous = await self._branches.previous(segment)
        if previous is None:
            return False
        before = previous.segment
        return self._is_ours(before) or before in await self._segments.candidates(before.sequence)

    async def _rows(self) -> AsyncGenerator[SegmentRow, None]:
        sequence = self._first
        while rows := self._index.list_segments(from_sequence=sequence, limit=_PAGE):
            for row in rows:
                yield row
            sequence = rows[-1].sequence + 1
            await trio.lowlevel.checkpoint()

    async def _is_no_fork(self, following: SegmentId, before: SegmentRow | None, known: Known) -> bool:
        """Whether the writer that we followed sent a segment just now that goes on from our very end."""
        if before is None or await self._branches.previous(following) != previous_of(before):
            return False
        return (following.epoch, following.writer) == (known.epoch, known.writer)

    async def _is_unfinished(self, segment: SegmentId) -> bool:
        """Whether a crash left a segment, behind which nothing says where it ends: no reader follows it.

        A head that can be read may say so; that is compared by itself (engine/publisher.py).
        """
        for following in await self._segments.candidates(segment.sequence + 1):
            previous = await self._branches.previous(following)
            if previous is not None and previous.segment == segment:
                return False
        is_torn = False
        async for _, data in self._segments.copies(segment):
            try:
                scan = scan_segment(data, self._keys, self._writer)
            except (DamagedError, StoreTooNew):
                continue
            if scan.trailer is not None:
                return False  # other copies have lost their ends
            is_torn = is_torn or scan.fault is None
        return is_torn

    def _leave(self, segment: SegmentId, *, is_end: bool) -> None:
        """Raises: InUseError, ChainError: a head that cannot be read now may say where it ends."""
        if self._may_leave is not None and segment not in self._may_leave:
            if is_end:
                raise InUseError(
                    f"A crash left segment {segment.sequence}, and not all heads can be read, which may say"
                    " where it ends: make all stores reachable, or go on without it with --take-over."
                )
            raise ChainError(
                f"Another machine may have gone on from an earlier state than this one's; {WHAT_NEXT}"
            )
        self.left.add(segment)
        logger.warning(
            "Segment %d was left by a crash, and nobody says where it ends: it is left behind.",
            segment.sequence,
        )

    async def _check_others(
        self,
        others: Sequence[SegmentId],
        before: SegmentRow | None,
        known: Known,
        *,
        is_end: bool = False,
    ) -> None:
        for other in others:
            previous = await self._branches.previous(other)
            if before is None:
                # Where the one before was collected, its name is not known any more: the end alone tells.
                parts = previous is None or other.sequence > 0
            else:
                parts = previous is not None and previous.segment == _id(before)
                if parts and previous != previous_of(before):
                    raise ChainError(
                        "The stores have a later state of this very machine's log: it was put back in time;"
                        f" {WHAT_NEXT}"
                    )
            if not parts:
                continue
            end = (await self._branches.ends([other]))[other]
            if known.loses_to(end):
                if await self._is_unfinished(other):
                    self._leave(other, is_end=is_end)
                    continue
                if is_end:
                    # It came after the log was read, and has all that ours has: it could be followed.
                    raise InUseError(
                        "Another machine writes to the volume just now; unmount it there, and mount again."
                    )
                raise ChainError(
                    f"Another machine went on from an earlier state than this one's; {WHAT_NEXT}"
                )


def _id(row: SegmentRow) -> SegmentId:
    return SegmentId(row.sequence, row.epoch, row.writer)
