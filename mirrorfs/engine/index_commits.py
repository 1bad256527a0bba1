"""When the index commits, and when its write-ahead log moves into its file.

The index is committed only with some of the log's commits: what it lacks after a crash is replayed from
the log, within the limits below. A SQLite transaction for each fsync cost more than all the rest of it.

Invariants
- The open transaction is committed only in the step in which a journal frame was appended, or when no
  record is pending: it then equals the log, position included.
- The write-ahead log of the index is moved into the database only while every commit is durable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mirrorfs.engine.log import Log
from mirrorfs.engine.reserve import Reserve
from mirrorfs.engine.state import MIB, VolumeState
from mirrorfs.errors import DamagedError, DiskError
from mirrorfs.format.journal import Journal
from mirrorfs.ports import Offload

LAG_BYTES_MAX: Final = 1 * MIB
"""Bytes of journal that the index may lack."""
LAG_COMMITS_MAX: Final = 1000
BACKFILL_AT: Final = 8 * MIB


class IndexCommits:
    """The index's half of the commits of one volume."""

    def __init__(self, state: VolumeState, log: Log, offload: Offload, reserve: Reserve) -> None:
        self._state = state
        self._log = log
        self._offload = offload
        self._reserve = reserve
        self._lag_bytes = 0
        self._lag_commits = 0
        self._restart_wal = False
        self._wanted = False
        self.settled_position = 0
        """Up to here the index stands in its own file, for good; 0: not known yet."""

    def want_settled(self) -> None:
        """Move the write-ahead log with the next commits, however short it is."""
        self._wanted = True

    def note(self, position: int, journals: Sequence[tuple[Journal, bytes]], *, commit: bool = False) -> None:
        """All pending records were appended to the journal; call it in the same step.

        With `commit`, or when it lags too far behind, the index is committed too. Raises DamagedError.
        """
        state, log, put = self._state, self._log, self._state.index.put_meta
        state.applier.settle(position)
        state.applier.save_counters()
        put("position", position)
        put("journal_sequence", log.journal_sequence)
        put("journal_hash", log.journal_hash)
        put("time_ns", journals[-1][0].time_ns)
        state.pending.clear()
        state.pending_bytes = 0
        self._lag_bytes += sum(len(payload) for _, payload in journals)
        self._lag_commits += 1
        if commit or self._wanted or self._lag_bytes > LAG_BYTES_MAX or self._lag_commits > LAG_COMMITS_MAX:
            self.commit()

    def commit(self) -> None:
        """COMMIT and BEGIN, if there is anything to commit; no record is pending.

        Raises DamagedError: the log has the records, the index may not.
        """
        index = self._state.index
        if not self._lag_commits and not self._restart_wal:
            return
        try:
            self._reserve.spend_for_index()
            index.commit()
            self._lag_bytes = self._lag_commits = 0
            if self._restart_wal and self._log.sync_now():
                # Still the same step: every commit is durable and no operation has come since.
                index.finish_backfill()
                self._restart_wal = False
                if not index.wal_bytes():
                    position = index.get_meta("position")
                    self.settled_position = position if isinstance(position, int) else 0
                    self._wanted = False
        except DiskError as exc:
            # Only a new mount brings the log and the index together again.
            raise DamagedError(
                f"The local index could not be written ({exc}); unmount and mount again."
            ) from exc

    async def backfill(self) -> None:
        """Move the index's write-ahead log into its file, when that has grown and every commit is durable.

        No commit may run before this returns. Operations go on meanwhile, in an open transaction that
        reads from the write-ahead log; so that log restarts only when the small remainder is moved
        between a COMMIT and a BEGIN.
        """
        if self._restart_wal or self._log.unsynced:
            return
        if not self._wanted and self._state.index.wal_bytes() <= BACKFILL_AT:
            return
        await self._offload.run(self._state.index.backfill)
        self._restart_wal = True
