"""A volume over a rotation of its keys, and a thief who has the old ones."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import trio

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.format.control import LEASE_KEY, seal_control
from mirrorfs.format.ids import Previous
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import Index
from tests.sim.world import InlineOffload
from tests.support.machine import write_file
from tests.support.store_simulated import SimulatedStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import LEASE

Objects = dict[str, bytes]


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(20_000 + number)


def names(index: Index) -> list[bytes]:
    return sorted(row.name for row in index.list_dentries(1, after_cookie=0, limit=1000))


class Rotated:
    """A volume with files `old N` of before a rotation and `new N` of after it, and a thief's keys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places: list[Objects] = [{}, {}]
        self.pc = VirtualPc(root / "pc", self.view(), seed=2)
        self.old_keys: VolumeKeys = self.pc.keys
        self.old_set: KeySet = self.pc.key_set
        self.roots: list[str] = []
        """Object keys of the checkpoints of before."""

    def view(self) -> list[SimulatedStore]:
        return [
            SimulatedStore(name, seed=1, objects=place)
            for name, place in zip(("home", "s3"), self.places, strict=True)
        ]

    async def write(self) -> None:
        async with self.pc.mounted() as volume:
            for number in range(3):
                await write_file(volume, b"old %d" % number, contents(number))
                await volume.flush()
                await trio.sleep(1)
            await volume.flush()
            self.roots = sorted(key for key in self.places[0] if key.startswith("checkpoints/"))
            ends = await volume.ends()
        self.pc.rotate(ends)
        async with self.pc.mounted() as volume:
            await write_file(volume, b"new", contents(9))
        self.first = self.pc.keys.from_sequence

    @property
    def end(self) -> Previous:
        end = self.pc.keys.log_end(self.first - 1)
        assert end is not None
        return end

    def without_new(self, *, but: int = 0) -> list[SimulatedStore]:
        """Stores that hide the segments of the new keys, the last `but` of before, and all heads."""
        places = [
            {
                key: data
                for key, data in place.items()
                if not key.startswith("heads/")
                and not (key.startswith("segments/") and int(key[9:25], 16) >= self.first - but)
            }
            for place in self.places
        ]
        return [
            SimulatedStore(name, seed=1, objects=place)
            for name, place in zip(("home", "s3"), places, strict=True)
        ]

    async def restored(
        self, stores: list[SimulatedStore], moment: Moment = NEWEST
    ) -> tuple[list[bytes], RestorePlan]:
        keys = self.pc.keys
        files = SqliteIndexFiles(str(self.root / "restore.db"), keys.index_key, digest_key=keys.dedup_key)
        planner = Planner(
            stores, files, InlineOffload(random.Random(2)), keys, self.pc.header.public_keys.writer
        )
        index, plan = await planner.run(moment)
        try:
            return names(index), plan
        finally:
            index.close()

    async def forge_log(self, first: int, *, epoch: int) -> Objects:
        """Segments that a thief seals with the old keys, from a number on, in a place of his own."""
        thief = VirtualPc(self.root / f"thief {first}", [], seed=3)
        lease = replace(LEASE, epoch=epoch - 1, released=True, parent=b"")
        sealed = seal_control(lease, keys=self.old_keys, seed=self.old_set.writer)
        stores: list[Objects] = [{LEASE_KEY: sealed}, {LEASE_KEY: sealed}]
        for place, mine in zip(stores, self.places, strict=True):
            place.update(
                (key, data)
                for key, data in mine.items()
                if key.startswith("segments/") and int(key[9:25], 16) < first
            )
        thief.stores = [
            SimulatedStore(n, seed=1, objects=place) for n, place in zip(("home", "s3"), stores, strict=True)
        ]
        async with thief.mounted(take_over=True) as volume:
            for number in range(self.first + 2 - first):
                await write_file(volume, b"forged %d" % number, contents(50 + number))
                await volume.flush()
        return {key: data for key, data in stores[0].items() if key not in self.places[0]}
