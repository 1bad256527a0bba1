"""The simulation of mirrors.py, with pruning at any moment: nothing that is kept may be lost by it.

Snapshots are made at random, and the policy keeps nothing else but the newest state: so each run does away
with all it may. Some are deleted, and no seed lasts as long as it takes that one goes. Whatever else
happens to machines and stores, every snapshot that the volume lists at the end
is restored from each store alone, bit for bit.
"""

from __future__ import annotations

import random
from contextlib import suppress
from datetime import UTC
from pathlib import Path
from unittest import mock

import trio

from mirrorfs.core import compaction
from mirrorfs.core.retention import Policy
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError, StoreError, WritesStopped
from mirrorfs.errors import ReadOnlyVolume as ReadOnly
from tests.sim.mirrors import MirrorSimulation, Session
from tests.sim.model import Violation
from tests.support.store_simulated import SimulatedStore
from tests.support.volumes import HEADER, KEYS

NOTHING_BUT_NOW = Policy(every_moment=0)


class PruningSimulation(MirrorSimulation):
    """One seed."""

    def __init__(self, seed: int, directory: Path) -> None:
        super().__init__(seed, directory)
        self._prune_rng = random.Random(seed)
        self._named: dict[bytes, int] = {}
        """State that each snapshot is of."""
        self._left: list[tuple[bytes, int]] = []
        """(name, position) of the snapshots that there are at the end."""
        self.pruned = 0
        """Runs that came to their end."""
        self.collected = 0
        self.merged = 0
        """Extents that there were less."""
        self.deleted = 0
        """Snapshots that are to go, and were there to the end."""

    async def _between(self, session: Session) -> None:
        if self._prune_rng.random() < 0.15:
            await self._snapshot(session)
        if self._prune_rng.random() < 0.1:
            await self._delete(session)
        if self._prune_rng.random() < 0.2:
            await self._prune(session)

    async def _snapshot(self, session: Session) -> None:
        name = b"snapshot %d" % len(self._named)
        self._named[name] = session.line.newest
        try:
            await session.volume.snapshots.create(name, held=False)
        except (ReadOnly, WritesStopped):
            self._check_fenced(session)

    async def _fill(self, session: Session, inode: int, at: int, data: bytes) -> None:
        """Some files come in pieces, each with a commit of its own: so they are worth merging."""
        rng, filesystem = self._prune_rng, session.volume.filesystem
        step = len(data) // rng.choice((1, 1, 4, 7)) + 1
        for start in range(0, len(data), step):
            await filesystem.write(inode, at + start, data[start : start + step])
            if step < len(data):
                await filesystem.fsync(inode)

    async def _delete(self, session: Session) -> None:
        names = session.volume.snapshots
        rows = names.list()
        if not rows:
            return
        row = self._prune_rng.choice(rows)
        try:
            await names.delete(row.name)
            self.deleted += 1
            if self._prune_rng.random() < 0.3:
                await names.keep(row.name)
        except (ReadOnly, WritesStopped):
            self._check_fenced(session)

    async def _prune(self, session: Session) -> None:
        rng = self._prune_rng
        with trio.move_on_after(rng.choice((1.0, 60.0, 3600.0))):
            try:
                await self._run(session.volume, rng.choice((0, 0, 3600 * 10**9)))
            except* StoreError:
                pass
            except* MirrorfsError:
                if not self.weather.is_troubled and not self._is_fenced(session):
                    raise

    async def _run(self, volume: MountedVolume, grace_ns: int) -> None:
        volume.pruner.moments.zone = UTC
        volume.pruner.sweeper.grace_ns = grace_ns
        volume.pruner.copy_bytes_max = self._prune_rng.choice((1, 100_000, 1 << 30))
        volume.pruner.merger.gain_min = 1
        volume.pruner.merger.bytes_max = self._prune_rng.choice((1, 100_000, 1 << 30))
        before = {row.name for row in volume.snapshots.list()}
        with mock.patch.object(compaction, "JOINED_MIN", self._prune_rng.choice((2, 3, 16))):
            report = await volume.pruner.run(NOTHING_BUT_NOW)
        if not before <= {row.name for row in volume.snapshots.list()}:
            raise Violation("a snapshot is gone before its time")
        self.pruned += 1
        self.merged += report.merged_extents
        self.collected += report.collected

    async def _healed(self, volume: MountedVolume) -> None:
        await self._run(volume, 0)
        await self._mend_all(volume)
        self._left = [(row.name, row.position) for row in volume.snapshots.list()]

    async def _look_alone(self, place: SimulatedStore, newest: int) -> None:
        await super()._look_alone(place, newest)
        for name, position in self._left:
            await self._look_back(place, name, position)

    async def _look_back(self, place: SimulatedStore, name: bytes, position: int) -> None:
        """A fresh machine with one store shows a snapshot."""
        machine = self._fresh()
        self._machines.remove(machine)
        expected = self.chronicle.states[self._named[name]]
        async with trio.open_nursery() as nursery:
            view = await ReadOnlyVolume.open(
                nursery=nursery, world=self._world(machine), files=machine.files, keys=KEYS,
                writer_key=HEADER.public_keys.writer, stores=self._stores([place], machine),
                moment=Moment(position=position), random=self.rng.random,
            )  # fmt: skip
            entries = view._index.list_dentries(1, after_cookie=0, limit=10_000)
            found = {
                entry.name: await view.filesystem.read(entry.inode, 0, 1 << 30)
                for entry in entries
                if not entry.name.startswith(b".")
            }
            if found != expected:
                raise Violation(f"{name!r} shows something else in store {place.name}")
            view.close()
            nursery.cancel_scope.cancel()
        with suppress(MirrorfsError):
            machine.files.close_all()
