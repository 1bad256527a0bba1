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
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import MIB, VolumeState
from mirrorfs.errors import DamagedError, DiskError, DiskFull, MirrorfsError, NoSpaceLeft, WritesStopped
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
RESERVE_BYTES = 16 * MIB
RESERVE_PATH = "reserve"


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
        """`on_commit(position, journal bytes)` is called after each durable commit, before any other begins."""
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
            self._space = trio.Event()
            self._wake.set()
            await self._space.wait()

    def made_space(self) -> None:
        """Dirty bytes became fewer."""
        self._space.set()

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
                self._recovered()
            except DiskError as exc:
                await self._stall(exc)
            except DamagedError as exc:
                self._stop(exc)
            if due:
                next_commit = trio.current_time() + COMMIT_INTERVAL_S
            if self._state.dirty_bytes > SEAL_AT or self._waiters:
                self._wake.set()

    def _roll_due(self) -> float:
        """When the open segment is old enough to be sealed."""
        first_ns = self._log.oldest_ns
        if not first_ns:
            return float("inf")
        age_s = (self._state.clock.now_ns() - first_ns) / 1e9
        return trio.current_time() + max(self._mirror_delay_s - age_s, 0.0)

    async def _serve_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        try:
            if any(waiter.everything for waiter in waiters):
                await self._commit(list(self._state.dirty))
            else:
                await self._commit(sorted({inode for waiter in waiters for inode in waiter.inodes}))
            if any(waiter.seal for waiter in waiters):
                await self._log.roll()
        except DiskError as exc:
            for waiter in waiters:
                waiter.error = _answer(exc)
            raise
        except DamagedError as exc:
            for waiter in waiters:
                waiter.error = WritesStopped(str(exc))
            raise
        finally:
            for waiter in waiters:
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
        for _ in range(NAMED_ROUNDS):
            if not state.named:
                break
            await self._sealer.seal_all(sorted(state.named))
        if not state.pending:
            await log.sync()
            return
        while True:
            journals = log.prepare_commit(state.pending, time_ns=state.clock.now_ns())
            bodies = [journal_body(payload) for _, payload in journals]
            current = log.current
            if current is not None and current.fits(bodies) and not state.named:
                break
            # Both awaits may let new records in, so the journal is prepared again after them. A rename of
            # a dirty file at every turn could keep this going, but each turn is a batch of its bytes.
            await self._sealer.seal_all(sorted(state.named))
            await log.ensure_room(bodies)
        # From here to commit() nothing awaits: the journal holds exactly what the index holds.
        position = log.append_journal(journals, bodies)
        try:
            self._commit_index(position, time_ns=journals[-1][0].time_ns)
        except DiskError as exc:
            # The log has these records, the index may not: only a new mount brings them together again.
            raise DamagedError(f"The local index could not be written ({exc}); unmount and mount again.") from exc
        await log.sync()
        self.durable_position = position
        self.durable_ns = journals[-1][0].time_ns
        self.commits += 1
        if not self._restart_wal and state.index.wal_bytes() > BACKFILL_AT:
            await self._backfill()
        self._on_commit(position, sum(len(payload) for _, payload in journals))

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
        self._space.set()
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

    def _recovered(self) -> None:
        if self._state.stalled and not self._state.pending and not self._space_guard.hard():
            self._state.stalled = False
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
        self._space.set()
        for waiter in self._waiters:
            waiter.error = WritesStopped(str(exc))
            waiter.done.set()
        self._waiters.clear()


def _answer(exc: DiskError) -> MirrorfsError:
    """What a waiting fsync hears of a failed disk."""
    if isinstance(exc, DiskFull):
        return NoSpaceLeft("The local disk is full; free space on it.")
    return WritesStopped(str(exc))
