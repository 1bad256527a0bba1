"""Waiting until every store holds what was written, and reading it back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.attached import StoreSet
from mirrorfs.engine.checkpointer import Checkpointer
from mirrorfs.engine.checkpoints import WrittenCheckpoint
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.store_tasks import StoreTasks
from mirrorfs.errors import DamagedError, DiskError, StoreUnavailable
from mirrorfs.format.record import Epoch
from mirrorfs.ports import Disk, ObjectKey, Store

HELD_S: Final = 6 * 3600.0
"""So long it is waited for the stores to hold what was written."""
CHECKPOINT_TRIES: Final = 5


class Holding:
    """What the stores of one mounted volume hold for sure."""

    def __init__(
        self, world: World, local: LocalVolume, tasks: StoreTasks, checkpointer: Checkpointer
    ) -> None:
        self._world = world
        self._local = local
        self._tasks = tasks
        self._checkpointer = checkpointer

    @property
    def members(self) -> StoreSet:
        """The stores that there are now."""
        return self._tasks.members

    def check_stores(self) -> None:
        """Raises: StoreUnavailable: nothing is done without while a store lacks something."""
        for one in self.members.members:
            word = one.snapshot().state
            if word not in (StateWord.UP_TO_DATE, StateWord.CATCHING_UP) or not one.filled:
                raise StoreUnavailable(
                    f"Store {one.store.name} does not hold everything now ({word});"
                    " nothing is deleted until it does."
                )

    async def hold_written(self, written: WrittenCheckpoint) -> None:
        """Return when every store has a checkpoint, read back."""
        disk = self._world.disk
        sums: dict[str, tuple[int, bytes]] = {}
        for key in written.keys:
            data = await self._world.offload.run(partial(_read_all, disk, key))
            sums[key] = len(data), hashlib.sha256(data).digest()
        await self.hold(sums)

    def offer(self, key: str, size_bytes: int) -> None:
        """Have an object that holds no change of its own sent to every store."""
        self._tasks.offer(key, size_bytes, written_ns=self._world.clock.now_ns(), after=0)

    async def hold_checkpoint(self) -> None:
        """Return when every store has a checkpoint of now, read back, and the log up to it."""
        local, checkpointer = self._local, self._checkpointer
        await local.quiesce()
        position = local.committer.durable_position
        for _ in range(CHECKPOINT_TRIES):
            checkpointer.want()
            # A record that changes nothing: a checkpoint is made of a commit.
            local.state.check_writable()
            local.state.record(Epoch(local.identity.epoch, self._world.clock.now_ns(), local.identity.writer))
            await local.quiesce()
            written = await checkpointer.settled()
            if written is not None and written.root.position >= position:
                break
        else:
            raise DiskError("No checkpoint could be written; see the log.")
        await self.hold_written(written)

    async def hold(self, sums: Mapping[str, tuple[int, bytes]]) -> None:
        """Return when every store has some objects, (bytes, SHA-256) of each, read back.

        Raises: StoreUnavailable: not in time. DamagedError: a store holds something else. StoreError.
        """
        for key, (size, _) in sums.items():
            self.offer(key, size)
        for one in self.members.members:
            with trio.move_on_after(HELD_S) as patience:
                await one.mirror.wait_held(sums)
            if patience.cancelled_caught:
                raise StoreUnavailable(f"Store {one.store.name} did not take what was written in time.")
            for key, expected in sums.items():
                await self._check(one.store, key, expected)

    async def _check(self, store: Store, key: str, expected: tuple[int, bytes]) -> None:
        data = await store.get(ObjectKey(key))
        if (len(data), hashlib.sha256(data).digest()) != expected:
            raise DamagedError(f"Store {store.name} gives other bytes for {key} than it was sent.")


def _read_all(disk: Disk, key: str) -> bytes:
    file = disk.open(LOCAL_PREFIX + key)
    try:
        return file.read(offset=0, size_bytes=file.size())
    finally:
        file.close()
