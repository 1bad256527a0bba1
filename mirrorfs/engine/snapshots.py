"""Snapshots of a mounted volume: positions of the log with a name, made and let go of by records.

What was written before `create` is in the snapshot: it goes into the log first, and the name behind it, so
that no commit of something else can take the name along before the data is there. One that is deleted goes
into no record yet: until the delay is over it is there as before, and can be taken back.
"""

from __future__ import annotations

import trio

from mirrorfs.engine.committer import Committer
from mirrorfs.engine.snapshot_record import SnapshotRecord
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import LimitError, NoSpaceLeft, UsageError
from mirrorfs.format.limits import SNAPSHOTS_MAX
from mirrorfs.format.names import check_snapshot_name
from mirrorfs.format.record import Record, Snapshot, SnapshotGone
from mirrorfs.format.rows import SnapshotRow
from mirrorfs.ports import Disk


class Snapshots:
    """Those of one volume. What a method changed is durable in the local log when it returns.

    All of them raise ReadOnlyVolume, WritesStopped, NoSpaceLeft and, of a name that is none, FormatError.
    """

    def __init__(self, state: VolumeState, committer: Committer, space: SpaceGuard, disk: Disk) -> None:
        """`disk`: of the local state, where it is recorded what is to go."""
        self._state = state
        self._known_here = SnapshotRecord(disk, state.clock)
        self._committer = committer
        self._space = space
        self._changing = trio.Lock()

    def list(self) -> list[SnapshotRow]:
        """Those that there are, in the order of their positions."""
        # One that is just being made has no position yet.
        return [row for row in self._state.index.list_snapshots() if row.position]

    async def create(self, name: bytes, *, held: bool) -> SnapshotRow:
        """Give the present state a name.

        Raises: UsageError: the name is taken, if by one that is to go. LimitError: there are SNAPSHOTS_MAX.
        """
        check_snapshot_name(name)
        async with self._changing:
            index = self._state.index
            row = index.get_snapshot(name)
            if row is not None and self.goes_ns(row) is not None:
                raise UsageError(
                    "The name is that of a snapshot that was deleted, and that is kept for 30 days; choose"
                    " another, or take that one back with `mirrorfs snapshot keep`."
                )
            if row is not None:
                raise UsageError(
                    "The volume has a snapshot of that name; choose another, or delete it first."
                )
            if index.count_snapshots() >= SNAPSHOTS_MAX:
                raise LimitError(
                    f"A volume has at most {SNAPSHOTS_MAX} snapshots, those counted that were deleted within"
                    " 30 days; delete some and wait."
                )
            await self._committer.commit(None)
            if self._state.stalled or self._space.soft():
                raise NoSpaceLeft("The local disk is full; free space on it.")
            await self._record(Snapshot(self._state.clock.now_ns(), int(held), name))
            return self._known(name)

    async def hold(self, name: bytes, *, held: bool) -> SnapshotRow:
        """Hold a snapshot, so that it cannot be deleted, or release it. Raises: UsageError: there is none.

        One that is to go stays when it is held.
        """
        async with self._changing:
            row = self._known(name)
            if held and self.goes_ns(row) is not None:
                self._known_here.mark(row.position, leaves=False)
            if bool(row.held) != held:
                await self._record(Snapshot(self._state.clock.now_ns(), int(held), name))
            return self._known(name)

    async def delete(self, name: bytes) -> SnapshotRow:
        """Have a snapshot go, after the delay. Raises: UsageError: there is none, or it is held."""
        async with self._changing:
            row = self._known(name)
            if row.held:
                raise UsageError("That snapshot is held; `mirrorfs snapshot release` it first.")
            self._state.check_writable()
            if self.goes_ns(row) is None:
                self._known_here.mark(row.position, leaves=True)
            return row

    async def keep(self, name: bytes) -> SnapshotRow:
        """Take back that a snapshot was deleted. Raises: UsageError: there is none."""
        async with self._changing:
            row = self._known(name)
            if self.goes_ns(row) is not None:
                self._known_here.mark(row.position, leaves=False)
            return row

    def goes_ns(self, row: SnapshotRow) -> int | None:
        """When a snapshot goes; None: nobody deleted it."""
        return self._known_here.leaving().get(row.position)

    def leaving(self) -> dict[int, int]:
        """By position when each of those goes that are to; some may have no name any more."""
        return self._known_here.leaving()

    async def let_go(self) -> None:
        """Record that those are gone whose delay is over."""
        async with self._changing:
            due = self._known_here.look(self.list())
            self._state.check_writable()
            for row in due:
                await self._record(SnapshotGone(self._state.clock.now_ns(), row.name))
            if due:
                self._known_here.look(self.list())

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
