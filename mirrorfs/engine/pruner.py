"""Keeping what the policy keeps, and doing without the rest.

The order that makes a crash harmless, at any point:
1. every moment that is kept before the base gets a checkpoint of its own, which all stores hold;
2. one commit names the new base and drops moments; from here on nobody looks at what it dropped;
3. what is needed of the segments that go is copied, and every store holds the copies, read back;
4. one commit says where the frames lie now and collects the segments: it condemns them;
5. a checkpoint of a later position is held by every store, read back: nothing that is read first names a
   condemned segment any more;
6. only then, and after a grace for readers elsewhere, the Sweeper deletes them.
Whatever was written before its record, and is named by none, is garbage that the Sweeper finds. While a store
does not answer nothing goes on, and nothing is lost by that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from mirrorfs.core.compaction import Kept, Place, Victim, survey, victims
from mirrorfs.core.retention import Policy
from mirrorfs.engine.checkpointer import Checkpointer
from mirrorfs.engine.compactor import Compactor, Copied, wanted_frames
from mirrorfs.engine.holding import Holding
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.merger import Merger
from mirrorfs.engine.moments import Moments, OnProgress
from mirrorfs.engine.objects import PAGE, ObjectSource
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.reseal import Reseal
from mirrorfs.engine.store_tasks import StoreTasks
from mirrorfs.engine.sweeper import Sweeper
from mirrorfs.errors import DamagedError, StoreError
from mirrorfs.format.ids import Stream
from mirrorfs.format.limits import ORDINAL_BITS
from mirrorfs.format.retention import LISTED_MAX, Collected, pack_numbers
from mirrorfs.format.rows import MomentRow
from mirrorfs.ports import IndexFiles

logger = logging.getLogger(__name__)

ABANDON_S: Final = 10.0
"""For so long it is waited that requests end which send what is not used after all."""
LOOK_S: Final = 1.0
LOOKS_MAX: Final = 60
"""So often it is seen before each segment whether files are written or read."""
COPY_BYTES_MAX: Final = 1024 * 1024 * 1024
"""What one run copies at most: the next one goes on."""


class Pruner:
    """Prunes one mounted volume; one run at a time."""

    def __init__(
        self,
        world: World,
        local: LocalVolume,
        tasks: StoreTasks,
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
        self._compactor = Compactor(
            world.disk, world.entropy, world.offload, local.index, source, local.identity.keys, public_key,
            identity=lambda: local.identity,
        )  # fmt: skip
        self.copy_bytes_max = COPY_BYTES_MAX
        self.merger = Merger(local, world.offload)
        self._holding = Holding(world, local, tasks, checkpointer)
        self.moments = Moments(world, local, self._holding, checkpointer, source, scratch, public_key)
        self.sweeper = Sweeper(
            world, local, tasks.members, public_key, hold_checkpoint=self._holding.hold_checkpoint
        )
        self.reseal = Reseal(world.disk, local.index, local.identity.keys)
        """Whether what was sealed with keys that are out of use is sealed anew."""
        self.denied: list[str] = []
        """Stores that did not let this machine delete when they were last asked."""
        self.left: list[str] = []
        """Append-only stores that held something that is not needed when they were last looked at."""
        self._running = trio.Lock()

    async def run(
        self,
        policy: Policy,
        *,
        attended: bool = True,
        on_progress: OnProgress = lambda what, done, total: None,
    ) -> PruneReport:
        """Bring the volume in line with a policy, as far as this run comes.

        Args:
            attended: a person asked for it; else the window moves on by STEP_DAYS_MAX at most.
        Raises: StoreError: a store does not answer; the next run goes on. DiskError, DiskFull. WritesStopped.
        """
        async with self._running:
            report = PruneReport()
            self._holding.check_stores()
            await self.let_go()
            await self.moments.adopt()
            await self.moments.retain(policy, report, on_progress, attended=attended)
            if self.moments.base() is not None:
                await self._compact(report, on_progress, hurried=attended)
            await self.sweeper.run(report, on_progress)
            if self.reseal.is_wanted and self.reseal.state().left == 0:
                report.made += await self.moments.seal_anew(on_progress)
                await self.sweeper.run(report, on_progress)
            self.reseal.check_done()
            await self._merge(report, hurried=attended)
            self._tell(report)
            self.denied, self.left = report.denied, report.left
            return report

    async def let_go(self) -> None:
        """Do without the snapshots that were deleted long enough ago. Raises: DiskError, WritesStopped."""
        await self._local.snapshots.let_go()

    async def account(self, policy: Policy) -> PruneReport:
        """What a run would do; nothing is changed."""
        report = self.moments.plan(policy)
        base = self.moments.base()
        index = self._local.index
        # The moments that would be made are not known yet: what was alive then and died since is not counted
        # as needed, so that a little less may be freed.
        rows = [row for row in index.list_moments() if row.time_ns in report.moments]
        until = max(self._position_at(report.base_ns), base.position if base is not None else 0)
        hypothetical = MomentRow(until, 0, 0, bytes(8), bytes(32), report.base_ns, 1)
        rows = [row._replace(base=0) for row in rows if row.position < until]
        for victim in await self._choose(Kept.of([*rows, hypothetical]), copy_bytes_max=1 << 62):
            report.collected += 1
            report.collected_bytes += victim.size
            report.copied_bytes += victim.needed_bytes
        report.condemned = len(index.list_condemned(after=(0, 0), limit=1 << 62))
        return report

    def history(self) -> tuple[MomentRow | None, int, int]:
        """(moment from which on every one is kept, how many older ones are, segments that wait for deletion).

        No moment: nothing was ever dropped. Cheap.
        """
        index, base = self._local.index, self.moments.base()
        older = 0 if base is None else sum(row < base for row in index.list_moments())
        return base, older, len(index.list_condemned(after=(0, 0), limit=1 << 62))

    def _position_at(self, time_ns: int) -> int:
        """The end of the last segment that was closed before a time: all that a later base leaves."""
        index, sequence, found = self._local.index, 0, 0
        while rows := index.list_segments(from_sequence=sequence, limit=PAGE):
            for row in rows:
                if row.last_ns > time_ns:
                    return found
                found = (row.sequence + 1) << ORDINAL_BITS
            sequence = rows[-1].sequence + 1
        return found

    # --- compaction ----------------------------------------------------------------------------

    async def _compact(self, report: PruneReport, on_progress: OnProgress, *, hurried: bool) -> None:
        kept = Kept.of(self._local.index.list_moments())
        chosen = await self._choose(kept, copy_bytes_max=self.copy_bytes_max)
        if not chosen:
            return
        compactor, index = self._compactor, self._local.index
        snapshot = index.snapshot()
        try:
            places = [victim.place for victim in chosen]
            frames = await self._world.offload.run(partial(wanted_frames, snapshot, places, kept))
        finally:
            snapshot.close()
        compactor.begin()
        done: list[Victim] = []
        try:
            for count, victim in enumerate(chosen):
                on_progress("segments", count, len(chosen))
                if not hurried:
                    await self._give_way()
                try:
                    await compactor.copy(victim, frames[victim.place])
                except (DamagedError, StoreError) as exc:
                    # It stays, and `verify` says what is wrong with it.
                    logger.warning("Segment %d.%d is not rewritten: %s", *victim.place, exc)
                    continue
                done.append(victim)
            copied = await compactor.finish()
            await self._holding.hold({one.key: (one.size, one.digest) for one in copied})
        except BaseException:
            with trio.move_on_after(ABANDON_S, shield=True):
                keys = [one.key for one in compactor.written]
                for store in self._holding.members.members:
                    await store.mirror.abandon(keys)
                await compactor.abandon()
            raise
        await self._collect(copied, done)
        report.collected = len(done)
        report.collected_bytes = sum(victim.size for victim in done)
        report.copied_bytes = sum(one.size for one in copied)

    async def _give_way(self, *, to_uploads: bool = False) -> None:
        """Wait while people work, or `to_uploads` of what they wrote, but not for ever."""
        for _ in range(LOOKS_MAX):
            is_sending = to_uploads and self._holding.members.is_catching_up()
            if not is_sending and not self._local.is_busy():
                return
            await trio.sleep(LOOK_S)

    async def _merge(self, report: PruneReport, *, hurried: bool) -> None:
        """Write anew what lies in very many pieces and is older than every moment is kept."""
        base = self.moments.base()
        if base is None:
            return
        give_way = trio.lowlevel.checkpoint if hurried else partial(self._give_way, to_uploads=True)
        saved = self.merger.saved
        report.merged_bytes = await self.merger.run(base.position, give_way=give_way)
        report.merged_extents = self.merger.saved - saved

    async def _choose(self, kept: Kept, *, copy_bytes_max: int) -> list[Victim]:
        """Segments to do without. The index is committed first: what is looked at is its last commit."""
        await self._local.committer.commit(None)
        snapshot = self._local.index.snapshot()
        try:
            usage = await self._world.offload.run(
                lambda: survey(
                    snapshot.rows("frames", first=()),  # type: ignore[arg-type]  # all are numbers
                    snapshot.rows("relocations", first=()),  # type: ignore[arg-type]
                    kept,
                )
            )
        finally:
            snapshot.close()
        forced = self.reseal.is_old if self.reseal.is_wanted else lambda place: False
        return victims(self._candidates(kept), usage, copy_bytes_max=copy_bytes_max, forced=forced)

    def _candidates(self, kept: Kept) -> Iterator[tuple[Place, int]]:
        """(place, bytes) of the segments that are no part of the log that is kept."""
        index, sequence = self._local.index, 0
        while rows := index.list_segments(from_sequence=sequence, limit=PAGE):
            yield from (
                ((Stream.MAIN, row.sequence), row.size) for row in rows if not kept.is_log(row.sequence)
            )
            if kept.is_log(rows[-1].sequence):
                break
            sequence = rows[-1].sequence + 1
        sequence = 0
        while relocated := index.list_relocated(from_sequence=sequence, limit=PAGE):
            for one in relocated:
                yield (Stream.RELOCATED, one.sequence), one.size
            sequence = relocated[-1].sequence + 1

    async def _collect(self, copied: Iterable[Copied], done: Sequence[Victim]) -> None:
        """One commit: the frames lie in their new places, and nobody needs the old ones."""
        state = self._local.state
        state.check_writable()
        for one in copied:
            for record in one.records():
                state.record(record)
            self._local.cache.closed(one.key, one.size)
        now_ns = self._world.clock.now_ns()
        for stream in (Stream.MAIN, Stream.RELOCATED):
            numbers = sorted(victim.place[1] for victim in done if victim.place[0] == stream)
            for at in range(0, len(numbers), LISTED_MAX):
                state.record(Collected(stream, now_ns, pack_numbers(numbers[at : at + LISTED_MAX])))
        await self._local.committer.commit(None)

    def _tell(self, report: PruneReport) -> None:
        moments = self._local.index.list_moments()
        base = self.moments.base()
        report.base_ns = 0 if base is None else base.time_ns
        report.moments = sorted(row.time_ns for row in moments if base is not None and row < base)
        report.condemned = len(self._local.index.list_condemned(after=(0, 0), limit=1 << 62))
