"""Deleting what nothing refers to any more: condemned segments, old checkpoints, what a crash left half done.

Nothing is deleted but what an index says is of no use, and a checkpoint of that index is held by every store,
read back; and not because of an error. A name that is not known to be this chain's is left alone. Deleting is
begun again as often as it takes; a store that denies it keeps what it has, and that is no fault.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.attached import AttachedStore, StoreSet
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.kept import root_segment
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.old_checkpoints import FoundRoot, found_root, old_checkpoints
from mirrorfs.engine.old_heads import old_heads
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.retention import LISTED_MAX, Deleted, pack_numbers
from mirrorfs.format.rows import CondemnedRow
from mirrorfs.format.signing import load_public_key

logger = logging.getLogger(__name__)

GRACE_NS: Final = 24 * 3600 * 10**9
"""So long a condemned object stays, for readers elsewhere that began before."""
BATCH: Final = 100
"""Objects that are deleted between two words of how far it is."""
OnProgress = Callable[[str, int, int], None]


class Sweeper:
    """Deletes for one mounted volume. The Pruner runs it, and nothing else meanwhile."""

    def __init__(
        self,
        world: World,
        local: LocalVolume,
        members: StoreSet,
        public_key: bytes,
        *,
        hold_checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            public_key: Ed25519 of the writer role, 32 bytes.
            hold_checkpoint: writes a checkpoint of now and returns when every store has it, read back.
        """
        self._world = world
        self._local = local
        self._members = members
        self._public_key = public_key
        self._hold_checkpoint = hold_checkpoint
        self.grace_ns = GRACE_NS
        self._roots: dict[SegmentId, FoundRoot | None] = {}
        """Of checkpoint segments: position of the root there, and the segments it names; None: no root."""

        self._covered: frozenset[str] = frozenset()
        """Keys that may be deleted since a checkpoint that every store has, read back."""

    async def run(self, report: PruneReport, on_progress: OnProgress) -> None:
        """Delete what is due. Raises: StoreError: a store does not answer. DiskError. WritesStopped."""
        now_ns = self._world.clock.now_ns()
        rows = self._local.index.list_condemned(after=(0, 0), limit=1 << 62)
        # One of the far future was condemned under another clock.
        due = [row for row in rows if abs(now_ns - row.time_ns) >= self.grace_ns]
        garbage = await self._unknown(rows)
        if not due and not garbage and not report.dropped and not report.made:
            return
        unused = [segment_object_key(Stream.RELOCATED, one) for one in garbage]
        keys = frozenset([*map(_key, due), *unused])
        if not keys <= self._covered or report.dropped or report.made:
            await self._hold_checkpoint()
        # What a store denies comes again with each run, and needs no new checkpoint each time.
        self._covered = keys
        gone = await self._delete([_key(row) for row in due], report, on_progress)
        await self._forget([row for row in due if _key(row) in gone])
        await self._delete(unused, report, on_progress)
        try:
            await self._sweep_checkpoints(report, on_progress)
        except DamagedError as exc:
            # What cannot be read now may name what would be deleted.
            logger.info("no old checkpoints are deleted now: %s", exc)
        await self._sweep_heads(report, on_progress)

    # --- deleting ------------------------------------------------------------------------------

    async def _delete(
        self, keys: Sequence[str], report: PruneReport, on_progress: OnProgress
    ) -> Collection[str]:
        """Delete objects everywhere. Returns: the keys of those that no store has any more."""
        gone = set(keys)
        for one in self._members.members:
            gone &= await self._delete_there(one, keys, report, on_progress)
        # Not only those: what a store keeps for ever would lie here for ever, for it counts as held by none.
        await self._local.cache.remove(keys)
        if self._members.faults is not None:
            self._members.faults.gone(keys)
        report.deleted += len(gone)
        return gone

    async def _delete_there(
        self, one: AttachedStore, keys: Sequence[str], report: PruneReport, on_progress: OnProgress
    ) -> set[str]:
        done = await one.delete(keys, on_deleted=lambda count: on_progress("objects", count, len(keys)))
        if done.denied and one.store.name not in report.denied:
            report.denied.append(one.store.name)
        elif done.fault is not None and not done.denied:
            raise done.fault
        if one.mirror.append_only and len(done.gone) < len(keys) and one.store.name not in report.left:
            report.left.append(one.store.name)
        return set(done.gone)

    async def _forget(self, rows: Iterable[CondemnedRow]) -> None:
        """The objects are gone: so may be what is known of them."""
        state = self._local.state
        by_stream: dict[int, list[int]] = {}
        for row in rows:
            by_stream.setdefault(row.stream, []).append(row.sequence)
        for stream, numbers in by_stream.items():
            for at in range(0, len(numbers), LISTED_MAX):
                state.check_writable()
                state.record(Deleted(stream, pack_numbers(numbers[at : at + LISTED_MAX])))
        if by_stream:
            await self._local.committer.commit(None)

    # --- what nobody names ---------------------------------------------------------------------

    async def _unknown(self, condemned: Iterable[CondemnedRow]) -> list[SegmentId]:
        """Relocated segments that a run which came to nothing left, here or in a store."""
        segments = await self._look(Stream.RELOCATED)
        named = {SegmentId(row.sequence, row.epoch, row.writer) for row in condemned}
        found = []
        for segment in segments.by_writer():
            row = self._local.index.get_relocated(segment.sequence)
            is_used = row is not None and (row.epoch, row.writer) == segment[1:]
            # A later epoch is of one who took over: it is for him to say what his objects are for.
            is_ours = segment.epoch <= self._local.identity.epoch and not segments.is_deleted(segment)
            if not is_used and segment not in named and is_ours:
                found.append(segment)
        return found

    async def _look(self, stream: Stream) -> Segments:
        stores = [one.store for one in self._members.members]
        segments = Segments(stream, disk=self._world.disk, offload=self._world.offload, stores=stores)
        await segments.look()
        return segments

    # --- checkpoints ---------------------------------------------------------------------------

    async def _sweep_checkpoints(self, report: PruneReport, on_progress: OnProgress) -> None:
        """Delete checkpoint segments that no kept moment, and none of the newest checkpoints, needs."""
        moments = self._local.index.list_moments()
        base = self._local.index.base_moment()
        if base is None:
            return
        segments = await self._look(Stream.CHECKPOINT)
        reader = CheckpointReader(segments, self._local.identity.keys, load_public_key(self._public_key))
        unneeded = await old_checkpoints(
            segments, partial(self._root, reader), map(root_segment, moments), base.position
        )
        await self._delete(
            [segment_object_key(Stream.CHECKPOINT, one) for one in unneeded], report, on_progress
        )

    async def _sweep_heads(self, report: PruneReport, on_progress: OnProgress) -> None:
        """Delete old heads, where every store lets them go: else they all stay, here too."""
        base = self._local.index.base_moment()
        members = self._members.members
        if base is None or report.denied or any(one.snapshot().can_delete is False for one in members):
            return
        if any(one.locks is not None or one.mirror.append_only for one in members):
            return
        keys = await old_heads(self._world, self._local, base, self._public_key)
        if keys:
            await self._delete(keys, report, on_progress)

    async def _root(self, reader: CheckpointReader, segment: SegmentId) -> FoundRoot | None:
        if segment not in self._roots:
            self._roots[segment] = found_root(await reader.root_of(segment))
            await trio.lowlevel.checkpoint()
        return self._roots[segment]


def _key(row: CondemnedRow) -> str:
    return segment_object_key(Stream(row.stream), SegmentId(row.sequence, row.epoch, row.writer))
