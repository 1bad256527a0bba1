"""The writer: appends to the log and commits the index.

One commit: seal what must be durable; then, without an await, put all records so far into the journal
and write its position into the index's open transaction; then one fdatasync for all who wait. A commit
that is asked for while one runs shares the next (group commit).

A small fsync, on a disk that syncs quickly, is served by `commit_now` in the caller's step, without a
task switch or a thread; everything else goes through the writer task. The two never run at once:
`commit_now` does nothing unless the task is waiting for work.

Invariants
- No record comes between a journal frame and the index's note of it: both are in one step.
- A record that names an inode (rename, link, exchange), or follows its truncate and close, enters no
  journal frame before that inode's data: `state.named` is empty when the journal frame is built.
- On failure everything stays in memory, is tried again, and nothing is reported durable.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from mirrorfs.engine.index_commits import IndexCommits
from mirrorfs.engine.journals import journal_body
from mirrorfs.engine.log import Log
from mirrorfs.engine.reserve import Reserve
from mirrorfs.engine.sealer import BATCH_BYTES, Sealer
from mirrorfs.engine.segment_writer import Placed, SegmentWriter
from mirrorfs.engine.space import SpaceGuard
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
RETRY_S = 1.0
NAMED_ROUNDS = 4
SYNC_NOW_MAX = 256 * 1024
"""Bytes in the log that a sync on the loop may have to write out."""
APPEND_TRIES = 3


@dataclass(slots=True)
class _Waiter:
    inodes: set[int]
    everything: bool
    seal: bool
    done: trio.Event
    move: Callable[[], Awaitable[None]] | None = None
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
        self._space_guard = space
        self._offload = offload
        self._mirror_delay_s = mirror_delay_s
        self._on_commit = on_commit
        self._wake = trio.Event()
        self._waiters: list[_Waiter] = []
        self._space = trio.Event()
        self._reserve = Reserve(disk, space, offload)
        self._index = IndexCommits(state, log, offload, self._reserve)
        self._waiting = False
        """The task waits for work: `commit_now` may do it."""
        self._appended: tuple[int, int] | None = None
        """(position, time) of the last commit, while it is not durable."""
        self._appended_bytes = 0
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
        await self._served(_Waiter(inodes or set(), inodes is None, seal, trio.Event()))

    async def move(self, payloads: Sequence[bytes], name: Callable[[Sequence[Placed]], None]) -> None:
        """Write frames with bytes that are in the log already, and commit what `name` records of them.

        Returns when that is durable. Raises as `commit`.
        """
        bodies = await self._sealer.make(payloads)
        move = partial(self._sealer.move, bodies, name)
        await self._served(_Waiter(set(), False, False, trio.Event(), move))

    async def _served(self, waiter: _Waiter) -> None:
        if self._state.fatal is not None:
            raise WritesStopped(self._state.fatal)
        self._waiters.append(waiter)
        self._wake.set()
        await waiter.done.wait()
        if waiter.error is not None:
            raise waiter.error

    async def settle_index(self) -> int:
        """Bring the index's own file up to date, unless a snapshot is open.

        Returns: the position up to which it stands there for good. Raises as `commit`.
        """
        self._index.want_settled()
        for _ in range(2):  # the first moves what it can in a thread, the second the remainder
            await self.commit(None)
        return self._index.settled_position

    def commit_now(self, inode: int) -> bool:
        """What `commit` of one inode does, done at once if that is quick; False: use `commit`.

        After False everything is as it was, or further on the way that `commit` takes it.
        """
        state = self._state
        if not self._waiting or self._waiters or state.stalled or state.fatal is not None:
            return False
        if not self._offload.syncs_are_brief() or self._log.unsynced_bytes > SYNC_NOW_MAX:
            return False
        if not self._sealer.seal_now({inode, *state.named}):
            return False
        try:
            if state.pending and not self._append_now():
                return False
        except DiskError:
            return False  # the task mends the log
        except DamagedError as exc:
            self._stop(exc)
            return False
        if self._log.unsynced and not self._offload.sync_here(self._log.sync_now):
            return False
        self._note_durable()
        return True

    def _append_now(self) -> bool:
        """All records so far into the journal, if the open segment takes them. Raises as `_note_appended`."""
        log = self._log
        journals = log.prepare_commit(self._state.pending, time_ns=self._state.clock.now_ns())
        bodies = [journal_body(payload) for _, payload in journals]
        if not log.ready_for(bodies):
            return False
        self._note_appended(log.append_journal(journals, bodies), journals)
        return True

    # --- the task ----------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. A failure of the disk is retried; any other stops writing for good."""
        await self._reserve.restore()
        task_status.started()
        next_commit = trio.current_time() + COMMIT_INTERVAL_S
        while True:
            self._waiting = True
            with trio.move_on_at(min(next_commit, self._roll_due())):
                await self._wake.wait()
            self._waiting = False
            self._wake = trio.Event()
            due = (
                trio.current_time() >= next_commit
                or self._state.pending_bytes > PENDING_MAX
                or self._state.stalled
            )
            await self._turn(due=due)
            if self._stopped:
                return
            if self._state.dirty_bytes <= DIRTY_MAX:
                self.made_space()  # also when truncates and removals made it
            if due:
                next_commit = trio.current_time() + COMMIT_INTERVAL_S
            if self._state.dirty_bytes > SEAL_AT or self._waiters:
                self._wake.set()

    async def _turn(self, *, due: bool) -> None:
        """What there is to do now, but not after `commit_now` stopped the writing."""
        if self._stopped:
            return
        try:
            if self._waiters:
                await self._serve_waiters()
            elif due:
                await self._commit_everything()
            elif self._state.dirty_bytes > SEAL_AT:
                await self._sealer.seal_some()
            if trio.current_time() >= self._roll_due():
                await self._log.roll()
                self._note_durable()
            await self._index.backfill()
            await self._recovered()
        except DiskError as exc:
            await self._stall(exc)
        except DamagedError as exc:
            self._stop(exc)

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
            for waiter in waiters:
                if waiter.move is not None:
                    await waiter.move()
            if any(waiter.everything for waiter in waiters):
                await self._commit(list(self._state.dirty), with_index=True)
            else:
                await self._commit(sorted({inode for waiter in waiters for inode in waiter.inodes}))
            if any(waiter.seal for waiter in waiters):
                await self._log.roll()
                self._note_durable()
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
        await self._commit(list(self._state.dirty), with_index=True)

    async def _commit(self, inodes: list[int], *, with_index: bool = False) -> None:
        state, log = self._state, self._log
        await self._sealer.seal_all(inodes)
        # From the append to the COMMIT nothing awaits: the journal holds exactly what the index holds.
        if state.pending:
            self._note_appended(*await self._append_journal(), with_index=with_index)
        elif with_index:
            self._index.commit()
        await log.sync()
        self._note_durable()

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

    def _note_appended(
        self, position: int, journals: Sequence[tuple[Journal, bytes]], *, with_index: bool = False
    ) -> None:
        """All records are in the log; call it in the same step. Raises DamagedError."""
        self._appended = position, journals[-1][0].time_ns
        self._appended_bytes += sum(len(payload) for _, payload in journals)
        self._state.sense.committed(*self._appended)
        if self._aging is not self._log.current:
            self._wake.set()  # a segment began to age: the task may have to wake earlier now
        self._index.note(position, journals, commit=with_index)

    def _note_durable(self) -> None:
        """The log was synced: tell of the last commit, before another begins."""
        if self._appended is None or self._log.unsynced:
            return
        (self.durable_position, self.durable_ns), size = self._appended, self._appended_bytes
        self._appended, self._appended_bytes = None, 0
        self.commits += 1
        self._on_commit(self.durable_position, size)

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
        self._reserve.spend()  # the next try uses it for the journal
        await trio.sleep(RETRY_S)
        self._wake.set()

    async def _recovered(self) -> None:
        if self._state.stalled and not self._state.pending and not self._space_guard.hard():
            self._state.stalled = False
            await self._reserve.restore()
            logger.warning("The local disk has space again; writing goes on.")
        elif not self._state.stalled:
            await self._reserve.restore_spent()

    def _stop(self, exc: MirrorfsError) -> None:
        logger.critical("Writing stopped: %s", exc)
        self._state.fatal = str(exc)
        self._stopped = True
        self._wake.set()
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
