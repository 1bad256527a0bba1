"""The writer task: the only one that appends to the log and commits the index.

One commit: seal what must be durable; then, without an await, put all records so far into the journal,
write its position into the index, COMMIT and BEGIN; then one fdatasync for all who wait. A commit that
is asked for while one runs shares the next (group commit).

Invariants
- The index is committed only with its journal frame appended before it, in the same step.
- The write-ahead log of the index is moved into the database only while every commit is durable.
- A record that names an inode (rename, link, exchange), or follows its truncate and close, enters no
  journal frame before that inode's data: `state.named` is empty when the journal frame is built.
- On failure everything stays in memory, is tried again, and nothing is reported durable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mirrorfs.engine.log import Log, journal_body
from mirrorfs.engine.sealer import BATCH_BYTES, Sealer
from mirrorfs.engine.segment_writer import SegmentWriter
from mirrorfs.engine.space import RESERVE_PATH, SpaceGuard
from mirrorfs.engine.state import MIB, VolumeState
from mirrorfs.errors import DamagedError, DiskError, DiskFull, MirrorfsError, NoSpaceLeft, WritesStopped
from mirrorfs.format.journal import Journal
from mirrorfs.ports import Disk, Offload

logger = logging.getLogger(__name__)

COMMIT_INTERVAL_S = 5.0
DIRTY_MAX = 64 * MIB
"""Writers wait above this many bytes in memory."""
SEAL_AT = 4 * MIB
"""Sealing begins in the background above this many dirty bytes."""
PENDING_MAX = 1 * MIB
"""Bytes of records that make a commit happen early."""
BACKFILL_AT = 8 * MIB
RETRY_S = 1.0
NAMED_ROUNDS = 4
APPEND_TRIES = 3
RESERVE_BYTES = 16 * MIB


@dataclass(slots=True)
class _Waiter:
    inodes: set[int]
    everything: bool
    seal: bool
    done: trio.Event
    error: MirrorfsError | None = None


class Committer:
    """Owns the log and the commits of one mounted volume."""

    def __init__(
        self,
        state: VolumeState,
        log: Log,
        sealer: Sealer,
        disk: Disk,
        space: SpaceGuard,
        offload: Offload,
        *,
        mirror_delay_s: float,
        on_commit: Callable[[int, int], None],
    ) -> None:
        """`on_commit(position, journal bytes)` hears of each durable commit, before another begins."""
        self._state = state
        self._log = log
        self._sealer = sealer
        self._disk = disk
        self._space_guard = space
        self._offload = offload
        self._mirror_delay_s = mirror_delay_s
        self._on_commit = on_commit
        self._wake = trio.Event()
        self._waiters: list[_Waiter] = []
        self._space = trio.Event()
        self._reserve = False
        self._restart_wal = False
        self._stopped = False
        self._aging: SegmentWriter | None = None
        self._aging_since = 0.0
        self.durable_position = 0
        self.durable_ns = 0
        self.commits = 0

    # --- for the filesystem ------------------------------------------------------------------

    def poke(self) -> None:
        """Look at the thresholds soon: called after writes and records."""
        state = self._state
        if state.dirty_bytes > SEAL_AT or state.pending_bytes > PENDING_MAX:
            self._wake.set()

    async def wait_for_space(self) -> None:
        """Back-pressure: return when dirty bytes are below DIRTY_MAX. Raises NoSpaceLeft, WritesStopped."""
        while self._state.dirty_bytes > DIRTY_MAX:
            self._state.check_writable()
            if self._state.stalled:
                raise NoSpaceLeft("The local disk is full; free space on it.")
            self._wake.set()
            await self._space.wait()

    def made_space(self) -> None:
        """Dirty bytes became fewer, or will not: all who wait look again."""
        self._space.set()
        self._space = trio.Event()

    async def commit(self, inodes: set[int] | None = None, *, seal: bool = False) -> None:
        """Make all records so far and the data of these inodes (None: all) durable in the local log.

        `seal` also closes the segment, so that the stores get it. Raises NoSpaceLeft, WritesStopped.
        """
        if self._state.fatal is not None:
            raise WritesStopped(self._state.fatal)
        waiter = _Waiter(inodes or set(), inodes is None, seal, trio.Event())
        self._waiters.append(waiter)
        self._wake.set()
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error

    # --- the task ----------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. A failure of the disk is retried; any other stops writing for good."""
        await self._restore_reserve()
        task_status.started()
        next_commit = trio.current_time() + COMMIT_INTERVAL_S
        while True:
            with trio.move_on_at(min(next_commit, self._roll_due())):
                await self._wake.wait()
            self._wake = trio.Event()
            due = (
                trio.current_time() >= next_commit
                or self._state.pending_bytes > PENDING_MAX
                or self._state.stalled
            )
            try:
                if self._waiters:
                    await self._serve_waiters()
                elif due:
                    await self._commit_everything()
                elif self._state.dirty_bytes > SEAL_AT:
                    await self._sealer.seal_some()
                if trio.current_time() >= self._roll_due():
                    await self._log.roll()
                await self._recovered()
            except DiskError as exc:
                await self._stall(exc)
            except DamagedError as exc:
                self._stop(exc)
            if self._stopped:
                return
            if self._state.dirty_bytes <= DIRTY_MAX:
                self.made_space()  # also when truncates and removals made it
            if due:
                next_commit = trio.current_time() + COMMIT_INTERVAL_S
            if self._state.dirty_bytes > SEAL_AT or self._waiters:
                self._wake.set()

    def _roll_due(self) -> float:
        """When the open segment is old enough to be sealed."""
        current = self._log.current
        if current is None or not current.last_journal:
            return float("inf")
        if self._aging is not current:
            # On trio's clock, which no step of the wall clock moves.
            self._aging, self._aging_since = current, trio.current_time()
        return self._aging_since + self._mirror_delay_s

    async def _serve_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        # What an fsync is told if this task ends in a way nobody foresaw.
        error: MirrorfsError | None = WritesStopped("The writer of the volume stopped; mount it again.")
        try:
            if any(waiter.everything for waiter in waiters):
                await self._commit(list(self._state.dirty))
            else:
                await self._commit(sorted({inode for waiter in waiters for inode in waiter.inodes}))
            if any(waiter.seal for waiter in waiters):
                await self._log.roll()
            error = None
        except DiskError as exc:
            error = _answer(exc)
            raise
        except DamagedError as exc:
            error = WritesStopped(str(exc))
            raise
        finally:
            for waiter in waiters:
                waiter.error = error
                waiter.done.set()

    async def _commit_everything(self) -> None:
        """The periodic commit. Large backlogs are sealed first, batch by batch, letting fsyncs pass."""
        for _ in range(DIRTY_MAX // BATCH_BYTES):
            if self._waiters or self._state.dirty_bytes <= BATCH_BYTES:
                break
            await self._sealer.seal_some()
        if self._waiters:
            await self._serve_waiters()
        await self._commit(list(self._state.dirty))

    async def _commit(self, inodes: list[int]) -> None:
        state, log = self._state, self._log
        await self._sealer.seal_all(inodes)
        if not state.pending:
            await log.sync()
            return
        position, journals = await self._append_journal()
        # From the append to the COMMIT nothing awaits: the journal holds exactly what the index holds.
        try:
            self._commit_index(position, time_ns=journals[-1][0].time_ns)
        except DiskError as exc:
            # The log has these records, the index may not: only a new mount brings them together again.
            raise DamagedError(
                f"The local index could not be written ({exc}); unmount and mount again."
            ) from exc
        await log.sync()
        self.durable_position = position
        self.durable_ns = journals[-1][0].time_ns
        self.commits += 1
        if not self._restart_wal and state.index.wal_bytes() > BACKFILL_AT:
            await self._backfill()
        self._on_commit(position, sum(len(payload) for _, payload in journals))

    async def _append_journal(self) -> tuple[int, list[tuple[Journal, bytes]]]:
        """All records so far, in the log. Returns in the step in which they were appended.

        Raises DiskError: the log could not be mended, or cannot be appended to after mending.
        """
        state, log = self._state, self._log
        failures = rounds = 0
        while True:
            journals = log.prepare_commit(state.pending, time_ns=state.clock.now_ns())
            bodies = [journal_body(payload) for _, payload in journals]
            if not state.named and log.ready_for(bodies):
                try:
                    return log.append_journal(journals, bodies), journals
                except DiskError:
                    failures += 1
                    if failures == APPEND_TRIES:
                        raise
            # Both awaits may let new records in, so the journal is prepared again after them. Many renames
            # of large files could keep this going: after some rounds the loop waits for the sealing.
            await self._seal_named(inline=rounds >= NAMED_ROUNDS)
            await log.ensure_room(bodies)
            rounds += 1

    async def _seal_named(self, *, inline: bool) -> None:
        """Seal what is dirty now in the inodes that got a name; what is written to them later need not be."""
        state = self._state
        inodes, state.named = state.named, set()
        try:
            await self._sealer.seal_all(sorted(inodes), inline=inline)
        except BaseException:
            state.named |= inodes
            raise

    def _commit_index(self, position: int, *, time_ns: int) -> None:
        """The index's half of a commit, in the same step as the journal's. Raises DiskError."""
        state, log, index = self._state, self._log, self._state.index
        state.applier.settle_deaths(position)
        state.applier.save_counters()
        index.put_meta("position", position)
        index.put_meta("journal_sequence", log.journal_sequence)
        index.put_meta("journal_hash", log.journal_hash)
        index.put_meta("time_ns", time_ns)
        index.commit()
        state.pending.clear()
        state.pending_bytes = 0
        if self._restart_wal and log.sync_now():
            # Still the same step: every commit is durable and no operation has come since.
            index.finish_backfill()
            self._restart_wal = False

    async def _backfill(self) -> None:
        """Every commit is durable now, and none runs before this returns (one task).

        Operations go on meanwhile, in an open transaction that reads from the write-ahead log; so that
        log restarts only when the small remainder is moved between a COMMIT and a BEGIN.
        """
        await self._offload.run(self._state.index.backfill)
        self._restart_wal = True

    # --- failures ----------------------------------------------------------------------------

    async def _stall(self, exc: DiskError) -> None:
        """The disk failed even after mending. Full: wait for space. Anything else: stop writing."""
        if not isinstance(exc, DiskFull):
            self._stop(exc)
            return
        if not self._state.stalled:
            logger.critical("The local disk is full; writing goes on when space returns.")
        self._state.stalled = True
        self.made_space()
        for waiter in self._waiters:
            waiter.error = _answer(exc)
            waiter.done.set()
        self._waiters.clear()
        if self._reserve:
            # The space kept back for this: the next try uses it for the journal.
            self._disk.remove(RESERVE_PATH)
            self._reserve = False
        await trio.sleep(RETRY_S)
        self._wake.set()

    async def _recovered(self) -> None:
        if self._state.stalled and not self._state.pending and not self._space_guard.hard():
            self._state.stalled = False
            await self._restore_reserve()
            logger.warning("The local disk has space again; writing goes on.")

    async def _restore_reserve(self) -> None:
        """Keep space back for the journal, while there is plenty."""
        self._disk.remove(RESERVE_PATH)
        if self._space_guard.soft(extra_bytes=RESERVE_BYTES):
            return

        def fill() -> None:
            file = self._disk.create(RESERVE_PATH)
            file.write(bytes(RESERVE_BYTES), offset=0)
            file.sync()
            file.close()

        await self._offload.run(fill)
        self._reserve = True

    def _stop(self, exc: MirrorfsError) -> None:
        logger.critical("Writing stopped: %s", exc)
        self._state.fatal = str(exc)
        self._stopped = True
        self.made_space()
        for waiter in self._waiters:
            waiter.error = WritesStopped(str(exc))
            waiter.done.set()
        self._waiters.clear()


def _answer(exc: DiskError) -> MirrorfsError:
    """What a waiting fsync hears of a failed disk."""
    if isinstance(exc, DiskFull):
        return NoSpaceLeft("The local disk is full; free space on it.")
    return WritesStopped(str(exc))
