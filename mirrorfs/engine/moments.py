"""The moments that can be returned to when the log before the base is gone: made, kept and dropped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import tzinfo
from functools import partial

from mirrorfs.core.retention import Policy, kept_moments, slowed, wanted_times, window_start
from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.checkpointer import Checkpointer
from mirrorfs.engine.giving_way import GiveWay
from mirrorfs.engine.holding import Holding
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.objects import ObjectSource
from mirrorfs.engine.past import index_at
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import DamagedError, UsageError
from mirrorfs.format.ids import (
    SegmentId,
    Stream,
    parse_segment_object_key,
    segment_object_key,
    split_frame_id,
)
from mirrorfs.format.retention import Checkpointed, Retain, pack_numbers
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import IndexFiles

OnProgress = Callable[[str, int, int], None]
"""Hears (what is being done, done, of so many)."""


class Moments:
    """Those of one mounted volume."""

    def __init__(
        self,
        world: World,
        local: LocalVolume,
        holding: Holding,
        checkpointer: Checkpointer,
        source: ObjectSource,
        scratch: Callable[[], IndexFiles] | None,
        public_key: bytes,
    ) -> None:
        """
        Args:
            source: reads objects, whole and verified.
            scratch: makes the files of an empty index that is thrown away; None: no moment can be made.
            public_key: Ed25519 of the writer role, 32 bytes.
        """
        self._world = world
        self._local = local
        self._holding = holding
        self._checkpointer = checkpointer
        self._source = source
        self._scratch = scratch
        self._public_key = public_key
        self.zone: tzinfo | None = None
        """Where days end at midnight; None: the local one."""
        self._known: dict[MomentRow, frozenset[SegmentId]] = {}
        """The checkpoint segments of moments that were read since the mount: the row's digest binds them."""

    def base(self) -> MomentRow | None:
        """The moment from which on every one is kept; None: nothing was ever dropped."""
        return self._local.index.base_moment()

    def plan(self, policy: Policy) -> PruneReport:
        """What the moments would be; touches nothing."""
        report = PruneReport()
        now_ns = self._now(policy, attended=True)
        start_ns = self._start(policy, now_ns)
        moments, times, positions = self._wanted(policy, now_ns, start_ns)
        old = [moment for moment in moments if moment.time_ns <= start_ns]
        begun_ns, missing = self._begun_ns(start_ns), self._missing_times(times, start_ns)
        kept = kept_moments(old, [time_ns for time_ns in times if time_ns < begun_ns], positions)
        # The base goes when there is a later one, unless it is kept for another reason.
        report.dropped = sum(
            1
            for moment in old
            if moment.position not in kept and not (moment.base and start_ns <= moment.time_ns)
        )
        known = {moment.position for moment in moments}
        snapshots = self._local.index.list_snapshots()
        missing += {
            row.position: row.time_ns for row in snapshots if row.position in positions - known
        }.values()
        report.made = len(missing)
        report.base_ns = max(start_ns, begun_ns) if start_ns > begun_ns or self.base() is not None else 0
        report.moments = sorted([moment.time_ns for moment in old if moment.position in kept] + missing)
        return report

    def _now(self, policy: Policy, *, attended: bool) -> int:
        """The time that is gone by."""
        now_ns = self._world.clock.now_ns()
        if attended:
            return now_ns
        base = self.base()
        after = 0 if base is None else split_frame_id(base.position)[0] + 1
        rows = self._local.index.list_segments(from_sequence=after, limit=1)
        next_ns = rows[0].first_ns if rows else 0
        return slowed(policy, now_ns, begun_ns=self._begun_ns(now_ns), next_ns=next_ns)

    def _begun_ns(self, else_ns: int) -> int:
        """The time from which on every moment is kept now; `else_ns`: nothing is there yet."""
        base = self.base()
        if base is not None:
            return base.time_ns
        rows = self._local.index.list_segments(from_sequence=0, limit=1)
        return rows[0].first_ns if rows else else_ns

    def _start(self, policy: Policy, now_ns: int) -> int:
        """The time from which on every moment is to be kept."""
        burst = self._local.bursts.open
        return window_start(policy, now_ns, pins=() if burst is None else (burst.clean_ns,))

    def _wanted(
        self, policy: Policy, now_ns: int, start_ns: int
    ) -> tuple[list[MomentRow], list[int], set[int]]:
        """The moments there are, the times whose moments are kept, and the positions of snapshots before."""
        index = self._local.index
        times = wanted_times(policy, now_ns, start_ns, self.zone)
        positions = {row.position for row in index.list_snapshots() if row.time_ns <= start_ns}
        return index.list_moments(), times, positions | self._local.snapshots.leaving().keys()

    def _missing_times(self, times: Sequence[int], start_ns: int) -> list[int]:
        """Those since the base: of them nobody made a moment yet."""
        begun_ns = self._begun_ns(start_ns)
        return [time_ns for time_ns in times if begun_ns <= time_ns <= start_ns]

    async def retain(
        self, policy: Policy, report: PruneReport, on_progress: OnProgress, *, attended: bool
    ) -> None:
        """Make what is to be kept, and drop what is not. Raises: StoreError, DiskError, WritesStopped."""
        now_ns = self._now(policy, attended=attended)
        start_ns = self._start(policy, now_ns)
        before = self.base()
        moments, times, _ = self._wanted(policy, now_ns, start_ns)
        made: dict[int, MomentRow] = {}
        if before is None or start_ns > before.time_ns:
            wanted = [Moment(time_ns=start_ns)]
            wanted += [Moment(time_ns=time_ns) for time_ns in self._missing_times(times, start_ns)]
            await self._make_all(wanted, moments, made, on_progress)
        rows = sorted([*moments, *made.values()])
        old = [row for row in rows if row.time_ns <= start_ns or row.base]
        if not old:
            return
        base = max(old)
        # A snapshot before the base is kept by its own checkpoint, whatever its time says.
        positions = {
            row.position for row in self._local.index.list_snapshots() if row.position < base.position
        }
        # Of one that the log let go of the moment may be gone with a branch that nobody follows.
        leaving = {at for at in self._local.snapshots.leaving() if at < base.position}
        wished = positions | leaving
        lacking = [Moment(position=at) for at in sorted(wished - {row.position for row in rows})]
        await self._make_all(lacking, moments, made, on_progress)
        if lacking and not positions <= {*made, *(row.position for row in moments)}:
            raise DamagedError("A snapshot cannot be read: nothing is pruned, run `mirrorfs verify --deep`.")
        rows = sorted([*moments, *made.values()])
        old = [row for row in rows if row.position <= base.position]
        kept = kept_moments(old, times, wished) | {base.position}
        dropped = [row.position for row in old if row.position not in kept]
        if not made and not dropped:
            return
        report.made, report.dropped = len(made), len(dropped)
        await self._record(made.values(), Retain(base.position, pack_numbers(dropped)))

    async def adopt(self) -> None:
        """Have on this machine what the checkpoints of all moments need: so it is looked after everywhere.

        Raises: DamagedError: one cannot be read. StoreError. DiskError, DiskFull.
        """
        world, moments = self._world, self._local.index.list_moments()
        if not moments:
            return
        segments, reader = await self._look()
        needed: set[SegmentId] = set()
        self._known = {row: self._known[row] for row in moments if row in self._known}
        for row in moments:
            if row not in self._known:
                self._known[row] = frozenset(await _segments_of(reader, row))
            needed |= self._known[row]
        for segment in sorted(needed - segments.local):
            key = segment_object_key(Stream.CHECKPOINT, segment)
            data = await self._source.read(key)
            await world.offload.sync(partial(world.disk.write_whole, LOCAL_PREFIX + key, data))
            self._holding.offer(key, len(data))

    async def seal_anew(self, on_progress: OnProgress) -> int:
        """Give every moment a checkpoint that is all under the keys in use, where its own is not.

        Returns: how many got one. Raises: as `adopt`; WritesStopped.
        """
        segments, reader = await self._look()
        rows = self._local.index.list_moments()
        old = [row for row in rows if await self._is_old(segments, await _segments_of(reader, row))]
        if not old:
            return 0
        # What is made names chunks of the newest one, which is to have none of before.
        self._checkpointer.begin_whole()
        await self._holding.hold_checkpoint()
        made: dict[int, MomentRow] = {}
        await self._make_all([Moment(position=row.position) for row in old], (), made, on_progress)
        if made.keys() != {row.position for row in old}:
            raise DamagedError(
                "A moment cannot be read: it is not sealed anew, run `mirrorfs verify --deep`."
            )
        await self._record(made.values())
        return len(made)

    async def _is_old(self, segments: Segments, needed: Collection[SegmentId]) -> bool:
        """Whether one of some checkpoint segments was sealed with keys that are out of use."""
        keys, writer = self._local.identity.keys, load_public_key(self._public_key)
        for segment in needed:
            async for _, data in segments.beginnings(segment):
                try:
                    header, _ = decode_header(data, keys, writer)
                except DamagedError:
                    continue
                if header.key_generation != keys.generation:
                    return True
                break
        return False

    async def _look(self) -> tuple[Segments, CheckpointReader]:
        """The checkpoint segments that there are."""
        world, stores = self._world, self._holding.members.stores()
        segments = Segments(Stream.CHECKPOINT, disk=world.disk, offload=world.offload, stores=stores)
        await segments.look()
        writer = load_public_key(self._public_key)
        return segments, CheckpointReader(segments, self._local.identity.keys, writer)

    async def _record(self, made: Iterable[MomentRow], *retain: Retain) -> None:
        """One commit says which checkpoints there are now."""
        state = self._local.state
        state.check_writable()
        for row in made:
            state.record(
                Checkpointed(row.position, row.time_ns, row.sequence, row.epoch, row.writer, row.digest)
            )
        for record in retain:
            state.record(record)
        await self._local.committer.commit(None)

    async def _make_all(
        self,
        wanted: Sequence[Moment],
        known: Sequence[MomentRow],
        made: dict[int, MomentRow],
        on_progress: OnProgress,
    ) -> None:
        for count, moment in enumerate(wanted):
            on_progress("moments", count, len(wanted))
            row = await self._make(moment, {*made, *(one.position for one in known)})
            if row is not None:
                made[row.position] = row

    async def _make(self, moment: Moment, known: Collection[int]) -> MomentRow | None:
        """A checkpoint of a moment that every store holds; None: there is one already, or no such moment."""
        if self._scratch is None:
            raise UsageError("This mount cannot look at the past; mount the volume with its configuration.")
        stores = self._holding.members.stores()
        files = self._scratch()
        try:
            planner = Planner(
                stores, files, self._world.offload, self._local.identity.keys, self._public_key,
                disk=self._world.disk, pause=GiveWay(), overlays=False,
            )  # fmt: skip
            try:
                index, plan = await index_at(planner, moment)
            except UsageError:
                return None  # the volume had no commit yet
            try:
                if not plan.position or plan.position in known:
                    return None  # before the first commit of all there is nothing to do without
                if moment.position not in (None, plan.position):
                    return None  # the log has no commit there
                if plan.open_segment is not None:
                    # What stands for it in an index that is only read is not true of any position.
                    index.delete_segment(plan.open_segment.sequence)
                index.commit()
                written = await self._checkpointer.of_past(index.snapshot())
            finally:
                index.close()
        finally:
            files.remove()
        await self._holding.hold_written(written)
        segment = parse_segment_object_key(written.keys[-1])[1]
        return MomentRow(written.root.position, *segment, written.previous.digest, written.root.time_ns, 0)


async def _segments_of(reader: CheckpointReader, row: MomentRow) -> set[SegmentId]:
    """The segments that the checkpoint of a moment lies in. Raises: DamagedError: it cannot be read."""
    root = await reader.of_moment(row)
    return {SegmentId(row.sequence, row.epoch, row.writer), *(ref.segment for ref in root.chunks)}
