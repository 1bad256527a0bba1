"""Deciding what to restore: the newest checkpoint that serves, and the log behind it, up to a moment.

The stores are only read. A checkpoint that is damaged, that the log does not continue, or from which it does
not lead to where the last writer published a head, is passed over for an older one, or for none at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mirrorfs.core.scan import scan_segment
from mirrorfs.engine.branches import Branches
from mirrorfs.engine.checkpoint_loader import OnLoaded
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.giving_way import Pause
from mirrorfs.engine.heads import holds_head, is_left_behind, newest_heads, usable_heads, vouched_by
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.replay import ReplayEnd, Replayer
from mirrorfs.engine.restore_kept import KeptMoments, end_of, leads_to, named_roots
from mirrorfs.engine.salvage import CombiningSource
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, StoreUnavailable, UsageError
from mirrorfs.format.checkpoint import Root
from mirrorfs.format.control import Head
from mirrorfs.format.ids import Previous, SegmentId, Stream, format_position
from mirrorfs.format.journal import Journal
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Disk, Index, IndexFiles, Offload, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """What will be restored."""

    position: int
    time_ns: int
    """Commit time of the position."""
    journal_sequence: int
    inodes: int
    """Files, directories and all else."""
    size_bytes: int
    """Bytes of file contents, holes not counted."""
    damage: str | None
    """Why newer commits that the stores seem to have cannot be restored; None when there are none."""
    open_segment: SegmentId | None
    """The segment in which the position lies, where the index has no row for it."""
    stores: tuple[str, ...]
    """Names of the stores that take part."""
    silent: tuple[str, ...]
    """Names of the stores that could not be listed."""
    unreached: tuple[str, ...]
    """Names of the stores that did not answer when the log was read; then `damage` may be just that."""
    suspects: frozenset[tuple[str, str]]
    """(store, object key) of copies that were listed and of no use; some of them may be good."""
    head: Head | None
    """The newest valid head that a store has: how far the log is known to go."""
    next_ns: int | None = None
    """Where single moments are kept, and this is the one before what was asked for: commit time of the one
    after it."""


class Planner:
    """Fills an index with the tree at a moment."""

    def __init__(
        self,
        stores: Sequence[Store],
        files: IndexFiles,
        offload: Offload,
        keys: VolumeKeys,
        writer_key: bytes,
        *,
        on_progress: Callable[[int, int], None] | None = None,
        on_loaded: OnLoaded | None = None,
        disk: Disk | None = None,
        pause: Pause | None = None,
        overlays: bool = True,
    ) -> None:
        """
        Args:
            files: of an index of its own, to be thrown away; what it holds is removed.
            disk: local objects that count as well, with an open segment up to its last commit.
            writer_key: the volume's public key of the writer role, 32 bytes.
            on_progress: hears (sequence, time_ns) of each segment replayed.
            on_loaded: hears how much of a checkpoint is loaded.
            pause: for work beside a mount.
            overlays: whether the index says where frames lie now; else it is what the log says up to there.
        """
        self._stores = stores
        self._files = files
        self._offload = offload
        self._keys = keys
        self._writer_key = writer_key
        self._overlays = overlays
        self._writer = load_public_key(writer_key)
        self._on_progress = on_progress
        self._on_loaded = on_loaded
        self._disk = disk
        self._pause = pause
        self._stopped = False
        self._bad_heads: set[tuple[str, str]] = set()
        self._vouched: list[Previous] = []
        self._named_roots: set[SegmentId] = set()
        self._are_heads_known = True
        self._next_ns: int | None = None
        self._kept: KeptMoments
        self.main = Segments(Stream.MAIN, disk=disk, offload=offload, stores=stores, keys=keys)
        self._checkpoints = Segments(Stream.CHECKPOINT, disk=disk, offload=offload, stores=stores)
        self.end: ReplayEnd
        """After `run`: where replay ended."""
        self.left_out_ns: int | None = None
        """After `run`: commit time of the first commit behind the moment; None when there is none."""

    @property
    def has_no_head(self) -> bool:
        """After `run`: whether the stores that were asked answered, and none has a head."""
        return self._are_heads_known and not self._vouched

    async def run(self, moment: Moment) -> tuple[Index, RestorePlan]:
        """The index at the moment, open, and what it means.

        Raises:
            StoreUnavailable: no store can be listed, or nothing be restored while one does not answer.
            UsageError: the volume had no commit yet at that moment, or no such snapshot.
            DamagedError: the stores hold segments, but nothing can be restored from them.
        """
        if moment.snapshot is not None:
            moment = await self._named(moment)
        found = await newest_heads(self._stores, keys=self._keys, public_key=self._writer_key)
        silent = set(await self.main.look()) | set(await self._checkpoints.look())
        if len(silent) == len(self._stores) and not self.main.local_sequences:
            raise StoreUnavailable("No store can be listed: check the network, the disks and the URLs.")
        heads, rejected, self._are_heads_known = usable_heads(
            {name: one for name, one in found.items() if name not in silent}
        )
        self._bad_heads |= rejected
        self._named_roots = await named_roots(heads, self._disk, self._offload, self._keys, self._writer_key)
        head = max(heads, key=lambda head: (head.epoch, head.counter), default=None)
        self._vouched = [vouched for one in heads if (vouched := vouched_by(one)) is not None]
        try:
            index, end = await self._best(moment)
        except DamagedError as exc:
            if self._who_failed():
                raise StoreUnavailable(self._nothing()) from exc
            raise
        self.end = end
        if not end.journal_sequence and moment != NEWEST and index.get_inode(ROOT_INODE) is None:
            index.close()
            raise UsageError("The volume had no commit yet at that moment; choose a later one.")
        inodes, size_bytes = index.totals()
        damage = await self._unreached(end)
        beyond = [
            one for one in heads if not holds_head(index, one) and not is_left_behind(index, one, self._keys)
        ]
        if damage is None and not self._stopped and beyond:
            position = format_position(max(one.position for one in beyond))
            damage = f"the newest head of a store names position {position}, and no store has the log there"
        if damage is None and not self._stopped and end.next_sequence < self._keys.from_sequence:
            first = self._keys.from_sequence
            damage = f"keys were rotated at segment {first}, and no store has the log up to there"
        if damage is not None and not end.journal_sequence:
            index.close()
            if self._who_failed():
                raise StoreUnavailable(self._nothing())
            raise DamagedError(f"Nothing can be restored: {damage}.")
        if damage is not None and self._who_failed():
            damage = (
                f"store {self._who_failed()} did not answer when they were read; run it again when it does"
            )
        plan = RestorePlan(
            position=end.position,
            time_ns=end.time_ns,
            journal_sequence=end.journal_sequence,
            inodes=inodes,
            size_bytes=size_bytes,
            damage=damage,
            open_segment=await self._open_segment(index, end),
            stores=tuple(store.name for store in self._stores if store.name not in silent),
            silent=tuple(sorted(silent)),
            unreached=tuple(sorted(self.main.unreached | self._checkpoints.unreached)),
            suspects=frozenset(self.main.passed_over | self._checkpoints.passed_over | self._bad_heads),
            head=head,
            next_ns=self._next_ns,
        )
        return index, plan

    async def _named(self, moment: Moment) -> Moment:
        """The moment of a snapshot. The newest state knows it, so the log is followed twice."""
        index, plan = await self.run(NEWEST)
        try:
            return moment.resolved(index)
        except UsageError as exc:
            if plan.damage is None:
                raise
            kind = StoreUnavailable if plan.unreached else DamagedError
            raise kind(f"No such snapshot was found, and there are newer commits: {plan.damage}.") from exc
        finally:
            index.close()

    def _who_failed(self) -> str:
        return " and store ".join(sorted(self.main.unreached | self._checkpoints.unreached))

    def _nothing(self) -> str:
        return (
            f"Store {self._who_failed()} did not answer when the log was read, and without it nothing can be"
            " restored: run it again when it does."
        )

    # --- where from ----------------------------------------------------------------------------

    async def _best(self, moment: Moment) -> tuple[Index, ReplayEnd]:
        """The index at a moment: by replay, or before the base from the checkpoint of a kept moment."""
        reader = CheckpointReader(self._checkpoints, self._keys, self._writer, pause=self._pause)
        self._kept = KeptMoments(reader, self.main, self._keys, self._writer)
        await self._kept.learn(self._named_roots)
        self._stopped, self.left_out_ns, self._next_ns = False, None, None
        if self._kept.kept.is_before_base(moment):
            index, end, self._next_ns = await self._kept.fill(moment, self._fresh, self._on_loaded)
            self._stopped = end.damage is None
        else:
            index, end = await self._replayed(reader, moment)
        if self._overlays:
            await self._kept.overlay(index, end.position)
        return index, end

    async def _replayed(self, reader: CheckpointReader, moment: Moment) -> tuple[Index, ReplayEnd]:
        """Replay from the newest checkpoint that the log continues, or from nothing."""
        tried: set[SegmentId] = set()
        astray: Root | None = None
        alone: Root | None = None
        failure: DamagedError | None = None
        while (root := await self._kept.checkpoint_for(moment, tried)) is not None:
            index = self._fresh()
            try:
                await reader.load(root, index, self._on_loaded)
                alone = alone or root
                end = await self._replay(index, moment)
            except DamagedError as exc:
                index.close()
                logger.warning("A checkpoint cannot be used, trying an older one: %s", exc)
                failure = failure or exc
                continue
            except BaseException:
                index.close()
                raise
            if await self._is_followed(index):
                return index, end
            logger.warning("A checkpoint is of a writer that was fenced; trying an older one.")
            index.close()
            astray = astray or root
        if not self._kept.kept.position:
            found = await self._from_nothing(moment, astray, is_last=astray is None and failure is None)
            if found is not None:
                return found
        if astray is not None:
            # Nothing leads to the newest segment: then as far as the log goes, and that is said.
            return await self._from(reader, astray, moment)
        damage = "the log behind the newest checkpoint is missing or damaged"
        if alone is not None:
            # No log leads to any checkpoint: then the newest checkpoint by itself is what there is.
            index = self._fresh()
            await reader.load(alone, index, self._on_loaded)
            return index, end_of(alone, damage)
        if failure is not None and not self._kept.kept.position:
            raise failure
        anyone = replace(moment, is_exact=False)
        index, end, self._next_ns = await self._kept.fill(anyone, self._fresh, self._on_loaded)
        return index, replace(end, damage=end.damage or damage)

    async def _from_nothing(
        self, moment: Moment, astray: Root | None, *, is_last: bool
    ) -> tuple[Index, ReplayEnd] | None:
        """Replay from the first segment. None: it leads to nothing, and there is another way."""
        index = self._fresh()
        try:
            end = await self._replay(index, moment)
            if is_last or (end.journal_sequence and (astray is None or await self._is_followed(index))):
                return index, end
        except DamagedError:
            if is_last:
                index.close()
                raise
        index.close()
        return None

    async def _from(self, reader: CheckpointReader, root: Root, moment: Moment) -> tuple[Index, ReplayEnd]:
        """Replay from a checkpoint. Raises: DamagedError: it cannot be loaded, or the log has it not."""
        index = self._fresh()
        try:
            await reader.load(root, index, self._on_loaded)
            return index, await self._replay(index, moment)
        except BaseException:
            index.close()
            raise

    async def _is_followed(self, index: Index) -> bool:
        """Whether what was replayed lies on the branch that readers follow, as far as can be told."""
        last, segments = index.last_segment(), self.main.by_writer()
        if last is None or not segments:
            return True
        end = segments[0]
        branches = Branches(self.main, self._keys, self._writer)
        return await leads_to(end, last, index.get_segment(end.sequence), self.main, branches)

    def _fresh(self) -> Index:
        self._files.remove()
        return self._files.open()

    async def _replay(self, index: Index, moment: Moment) -> ReplayEnd:
        def stop_after(position: int, journal: Journal) -> bool:
            self._stopped = not moment.has(position=position, time_ns=journal.time_ns)
            if self._stopped:
                self.left_out_ns = journal.time_ns
            return self._stopped

        self._stopped, self.left_out_ns = False, None
        replayer = Replayer(
            index,
            CombiningSource(self.main, self._keys, self._writer),
            self._keys,
            self._writer,
            stop_after=stop_after,
            vouched=self._vouched,
            on_progress=self._on_progress,
            pause=self._pause,
        )
        return await replayer.run(keep_tail=self._disk is not None)

    # --- what it means -------------------------------------------------------------------------

    async def _unreached(self, end: ReplayEnd) -> str | None:
        """Why replay ended although the stores seem to have more; None when it ended as it should."""
        if self._stopped:
            return None
        later = [sequence for sequence in self.main.sequences if sequence >= end.next_sequence]
        if not later:
            # Bad frames in the last segment of all are no end of the log: its commits were applied. But who
            # had the old keys can make one such of the segment with which those ended.
            is_end = end.last is None or self._keys.log_end(end.last.segment.sequence) is not None
            return end.damage if is_end else None
        if end.damage is not None:
            return end.damage
        count = len(later) - 1
        if later[0] > end.next_sequence:
            missing = f"segment {end.next_sequence} is in no store, {count + 1} later ones cannot be used"
            if self._vouched and self._are_heads_known:
                # Segments are sent several at a time. What was never all there, no head vouches for.
                logger.warning("The log ends where its writer was cut off: %s.", missing)
                return None
            return missing
        if not await self._should_continue(later[0], end.last, last=count == 0):
            return None
        return f"segment {later[0]} is damaged in every store, {count} later ones cannot be used"

    async def _should_continue(self, sequence: int, previous: Previous | None, *, last: bool) -> bool:
        """Whether some segment of that number was meant to follow `previous`, as far as can be told."""
        for segment in await self.main.candidates(sequence):
            given = False
            async for _, data in self.main.copies(segment):
                given = True
                try:
                    scan = scan_segment(data, self._keys, self._writer)
                except DamagedError:
                    return True
                if scan.header.previous != previous:
                    # The branch of a writer that was fenced off: kept in the store, never followed.
                    continue
                if not last or scan.fault is not None:
                    return True
                # A whole segment without trailer, left by a crash: only a next one could vouch for it.
            if not given and self._who_failed():
                return True
        return False

    async def _open_segment(self, index: Index, end: ReplayEnd) -> SegmentId | None:
        """The segment that holds the position when replay ended inside it: the index has no row for it."""
        sequence = end.position >> 20
        if not end.journal_sequence or index.get_segment(sequence) is not None:
            return None
        if end.last is None and (known := await self._kept.segment_at(sequence)) is not None:
            return known
        candidates = await self.main.candidates(sequence)
        for segment in candidates:
            async for _, data in self.main.copies(segment):
                try:
                    header, _ = decode_header(data, self._keys, self._writer)
                except DamagedError:
                    continue
                if header.segment == segment and header.previous == end.last:
                    return segment
                break
        # The checkpoint alone, or a first segment whose predecessor is gone: the newest writer's.
        return candidates[0] if candidates else None
