"""What the stores say of the moments that are kept, before any log is read; and the moments before the base.

That is in the newest checkpoint that the log leads to. Nothing is deleted before such a one says where it
lies now: so its map of moved frames is right for every moment, whatever that one's own checkpoint says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

from mirrorfs.engine.branches import Branches
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.closed_segments import newest_local_head
from mirrorfs.engine.kept import Kept, has_row, root_segment
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.replay import ReplayEnd
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, UsageError
from mirrorfs.format.checkpoint import Fields, Root, Table
from mirrorfs.format.control import Head
from mirrorfs.format.ids import SegmentId, format_position, parse_segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import RelocatedRow, RelocationRow, SegmentRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, Offload

logger = logging.getLogger(__name__)


class KeptMoments:
    """One volume's, as the newest checkpoint that can be read has them."""

    def __init__(
        self, reader: CheckpointReader, main: Segments, keys: VolumeKeys, writer: WriterPublicKey
    ) -> None:
        """`main`: the main stream, already looked at."""
        self._reader = reader
        self._main = main
        self._branches = Branches(main, keys, writer)
        self.newest: tuple[Root, SegmentId] | None = None
        """The checkpoint that this is of; None where there is none."""
        self.kept = Kept()

    async def learn(self, named: Collection[SegmentId] = ()) -> None:
        """Find it. One that cannot be read is passed over for an older one, which may know less.

        `named`: checkpoint segments that heads name.
        """
        tried: set[SegmentId] = set()
        while looked := await self._reader.latest(tried, named=named):
            for root, segment in looked:
                try:
                    kept = Kept(tuple(await self._reader.moments(root)))
                    if not kept.moments or await self._is_followed(root):
                        self.newest, self.kept = (root, segment), kept
                        return
                except DamagedError as exc:
                    logger.warning(
                        "What a checkpoint says is kept cannot be read, trying an older one: %s", exc
                    )

    async def _is_followed(self, root: Root) -> bool:
        """Whether readers follow the branch that a checkpoint is of, as far as can be told."""
        last, segments = await self._reader.segment_row(root), self._main.by_writer()
        if last is None or not segments:
            return True
        row = await self._reader.segment_row(root, segments[0].sequence)
        return await leads_to(segments[0], last, row, self._main, self._branches)

    async def segment_at(self, sequence: int) -> SegmentId | None:
        """The log's segment of that number; None where that is not known."""
        if self.newest is None:
            return None
        try:
            row = await self._reader.segment_row(self.newest[0], sequence)
        except DamagedError as exc:
            logger.warning("Which segment %d is of the log cannot be read: %s", sequence, exc)
            return None
        return segment_of(row) if row is not None and row.sequence == sequence else None

    async def checkpoint_for(self, moment: Moment, tried: set[SegmentId]) -> Root | None:
        """The latest checkpoint from which the log leads to a moment, but for those `tried`, as it is now."""
        kept, found = self.kept, self.newest

        def accept(root: Root) -> bool:
            return root.position >= kept.position and moment.has(position=root.position, time_ns=root.time_ns)

        # Of the kept moments it is known where they are; all others have to be looked for.
        rows = {root_segment(row): row for row in kept.moments}
        if found is None or found[1] in tried or not accept(found[0]):
            tried |= {found[1]} if found is not None else set()
            found = await self._reader.newest(accept, but={*tried, *rows})
        for row in reversed(kept.moments):
            if found is not None and row.position < found[0].position:
                break
            if row.position >= kept.position and has_row(moment, row) and root_segment(row) not in tried:
                tried.add(root_segment(row))
                try:
                    return await self._reader.of_moment(row)
                except DamagedError as exc:
                    logger.warning("A checkpoint cannot be used, trying another one: %s", exc)
        if found is not None:
            tried.add(found[1])
        return None if found is None else found[0]

    async def fill(
        self, moment: Moment, fresh: Callable[[], Index], on_loaded: OnLoaded | None
    ) -> tuple[Index, ReplayEnd, int | None]:
        """The index of the newest kept moment that belongs to a moment, and the time of the next kept one.

        That is None where nothing lies between the one that was asked for and what is given.
        Raises: UsageError: none is kept. DamagedError: none of those that are can be read.
        """
        rows = [row for row in reversed(self.kept.moments) if has_row(moment, row)]
        if not rows or (moment.is_exact and rows[0].position != moment.position):
            raise UsageError(self._not_kept(moment))
        damage: str | None = None
        for row in rows:
            index = fresh()
            try:
                root = await self._reader.of_moment(row)
                await self._reader.load(root, index, on_loaded)
            except DamagedError as exc:
                index.close()
                logger.warning("A kept moment cannot be used, trying an older one: %s", exc)
                damage = damage or str(exc)
                if moment.is_exact:
                    break
                continue
            except BaseException:
                index.close()
                raise
            after = self.kept.after(row)
            is_gap = after is not None and row.position != moment.position
            return index, end_of(root, damage), after.time_ns if after is not None and is_gap else None
        raise DamagedError(f"Nothing can be restored of that time: {damage}.")

    def _not_kept(self, moment: Moment) -> str:
        rows = self.kept.moments
        earlier = self.kept.at(moment)
        if earlier is None:
            return (
                f"Nothing is kept of that time any more: the oldest moment is position"
                f" {format_position(rows[0].position)}; `mirrorfs log` shows which there are."
            )
        after = self.kept.after(earlier) or earlier
        return (
            "What that snapshot names is not kept any more: the moments next to it are positions"
            f" {format_position(earlier.position)} and {format_position(after.position)}."
        )

    async def overlay(self, index: Index, position: int) -> None:
        """Tell an index of the past where the frames lie that were moved since."""
        if self.newest is None or self.newest[0].position <= position:
            return

        def put(table: Table, rows: list[Fields]) -> None:
            for row in rows:
                if table.name == "relocated":
                    index.put_relocated(RelocatedRow(*row))  # type: ignore[arg-type]
                elif row[0] < position:  # type: ignore[operator]
                    index.put_relocation(RelocationRow(*row))  # type: ignore[arg-type]
            index.commit()

        try:
            await self._reader.read(self.newest[0], ["relocations", "relocated"], put)
        except DamagedError as exc:
            logger.warning("Where contents were moved to cannot be read; some may be missing: %s", exc)


async def named_roots(
    heads: Sequence[Head], disk: Disk | None, offload: Offload, keys: VolumeKeys, public_key: bytes
) -> set[SegmentId]:
    """The segments that heads, and the newest on a disk, name as that of the newest checkpoint."""
    found = {head.checkpoint for head in heads}
    if disk is not None:
        look = partial(newest_local_head, disk, keys=keys, public_key=public_key)
        local = await offload.run(look)
        found |= set() if local is None else {local[0].checkpoint}
    return {parse_segment_object_key(key)[1] for key in found if key}


async def leads_to(
    end: SegmentId, last: SegmentRow, same: SegmentRow | None, main: Segments, branches: Branches
) -> bool:
    """Whether the log of an index lies on the branch whose last writer's last segment is `end`.

    Args:
        last: its last segment. same: its segment of the number of `end`, or another one.
    """
    if end.sequence > last.sequence:
        return await branches.leads(segment_of(last), end)
    # Of what is before the checkpoint there may be no row.
    return same is None or same.sequence != end.sequence or same[1:3] == end[1:3]


def segment_of(row: SegmentRow) -> SegmentId:
    """The name of a segment."""
    return SegmentId(row.sequence, row.epoch, row.writer)


def end_of(root: Root, damage: str | None) -> ReplayEnd:
    """A checkpoint by itself, as the end of a replay."""
    return ReplayEnd(
        root.position, root.journal_sequence, root.journal_hash, root.time_ns, None,
        (root.position >> 20) + 1, None, damage,
    )  # fmt: skip
