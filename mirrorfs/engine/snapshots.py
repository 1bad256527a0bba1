"""Snapshots of a mounted volume: positions of the log with a name, made and deleted by records.

What was written before `create` is in the snapshot: it goes into the log first, and the name behind it, so
that no commit of something else can take the name along before the data is there.
"""

from __future__ import annotations

import trio

from mirrorfs.engine.committer import Committer
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import LimitError, NoSpaceLeft, UsageError
from mirrorfs.format.limits import SNAPSHOTS_MAX
from mirrorfs.format.names import check_snapshot_name
from mirrorfs.format.record import Record, Snapshot, SnapshotGone
from mirrorfs.format.rows import SnapshotRow


class Snapshots:
    """Those of one volume. What a method changed is durable in the local log when it returns.

    All of them raise ReadOnlyVolume, WritesStopped, NoSpaceLeft and, of a name that is none, FormatError.
    """

    def __init__(self, state: VolumeState, committer: Committer, space: SpaceGuard) -> None:
        self._state = state
        self._committer = committer
        self._space = space
        self._changing = trio.Lock()

    def list(self) -> list[SnapshotRow]:
        """Those that there are, in the order of their positions."""
        # One that is just being made has no position yet.
        return [row for row in self._state.index.list_snapshots() if row.position]

    async def create(self, name: bytes, *, held: bool) -> SnapshotRow:
        """Give the present state a name.

        Raises: UsageError: the name is taken. LimitError: there are SNAPSHOTS_MAX.
        """
        check_snapshot_name(name)
        async with self._changing:
            index = self._state.index
            if index.get_snapshot(name) is not None:
                raise UsageError(
                    "The volume has a snapshot of that name; choose another, or delete it first."
                )
            if index.count_snapshots() >= SNAPSHOTS_MAX:
                raise LimitError(f"A volume has at most {SNAPSHOTS_MAX} snapshots; delete some first.")
            await self._committer.commit(None)
            if self._state.stalled or self._space.soft():
                raise NoSpaceLeft("The local disk is full; free space on it.")
            await self._record(Snapshot(self._state.clock.now_ns(), int(held), name))
            return self._known(name)

    async def hold(self, name: bytes, *, held: bool) -> SnapshotRow:
        """Hold a snapshot, so that it cannot be deleted, or release it. Raises: UsageError: there is none."""
        async with self._changing:
            if bool(self._known(name).held) != held:
                await self._record(Snapshot(self._state.clock.now_ns(), int(held), name))
            return self._known(name)

    async def delete(self, name: bytes) -> SnapshotRow:
        """Delete a snapshot. Returns: what it was. Raises: UsageError: there is none, or it is held."""
        async with self._changing:
            row = self._known(name)
            if row.held:
                raise UsageError("That snapshot is held; `mirrorfs snapshot release` it first.")
            await self._record(SnapshotGone(self._state.clock.now_ns(), name))
            return row

    def _known(self, name: bytes) -> SnapshotRow:
        check_snapshot_name(name)
        row = self._state.index.get_snapshot(name)
        if row is None:
            raise UsageError("The volume has no snapshot of that name; `mirrorfs snapshot list` shows them.")
        return row

    async def _record(self, record: Record) -> None:
        self._state.check_writable()
        self._state.record(record)
        await self._committer.commit(set())
