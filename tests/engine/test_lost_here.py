"""engine/lost_here.py: what a store took from here and the local disk has no longer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from trio.testing import MockClock

from mirrorfs.core.held import HeldKeys
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import objects as local_objects
from mirrorfs.engine.lost_here import find_lost
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import LocalObjects
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.format.control import head_key
from mirrorfs.ports import ObjectInfo
from tests.sim.world import InlineOffload
from tests.support.store_simulated import SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEYS


def head(counter: int) -> str:
    return head_key(counter=counter, epoch=1, writer=b"writerAB")


class Place:
    """A local disk, and stores that took from it."""

    def __init__(self, root: Path) -> None:
        self.disk = LocalDisk(root)
        files = SqliteIndexFiles(str(root / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
        self.objects = LocalObjects(self.disk, files.open(), InlineOffload(random.Random(1)))

    def write(self, *keys: str) -> None:
        for key in keys:
            self.disk.write_whole(f"objects/{key}", b"bytes")

    def mirror(self, store: SimulatedStore, held: HeldKeys) -> Mirror:
        clock = TrioClock()
        return Mirror(
            store, instance="00" * 16, read_object=self.objects.read, lease_fresh=_fresh, held=held,
            save_held=lambda key: None, forget_held=lambda key: None, clock=clock,
            pace=UploadPace(clock, written_ns=lambda: 0, delay_s=10.0), random=random.Random(1).random,
        )  # fmt: skip


async def _fresh() -> None:
    raise AssertionError("nothing is sent")


class BusyStore(SimulatedStore):
    """Gets one more object, which is written on the local disk just before, while it is listed."""

    def __init__(self, place: Place, held: HeldKeys, key: str) -> None:
        super().__init__("busy", seed=1)
        self._place, self._held, self._key = place, held, key

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        if prefix == "heads/" and self._key not in self._held:
            self._place.write(self._key)
            self.objects[self._key] = b"bytes"
            self._held.add(self._key)
        return await super().list(prefix, start_after=start_after)


async def test_what_is_lost(autojump_clock: MockClock, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(head(1), head(2), head(5))
    held = HeldKeys([head(1), head(2), head(3), head(6)])
    store = SimulatedStore("home", seed=1)
    store.objects.update(dict.fromkeys([head(2), head(3), head(4)], b"bytes"))
    # Head 4 is somebody else's, 6 is not in the store either, and 5 was not sent yet.
    assert await find_lost(place.objects, [place.mirror(store, held)]) == {head(3)}


async def test_what_came_while_the_store_was_listed(autojump_clock: MockClock, tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.write(head(1))
    held = HeldKeys([head(1), head(2)])
    store = BusyStore(place, held, head(3))
    store.objects.update(dict.fromkeys([head(1), head(2)], b"bytes"))
    assert await find_lost(place.objects, [place.mirror(store, held)]) == {head(2)}
    assert head(3) in held


async def test_more_than_a_page(autojump_clock: MockClock, tmp_path: Path) -> None:
    place = Place(tmp_path)
    keys = [head(counter) for counter in range(1, 2 * local_objects.PAGE + 300)]
    held = HeldKeys(keys)
    away, home = SimulatedStore("away", seed=1), SimulatedStore("home", seed=1)
    away.outage = True
    home.objects.update(dict.fromkeys(keys, b"bytes"))
    place.write(keys[0], keys[-1])
    mirrors = [place.mirror(away, held), place.mirror(home, held)]
    assert await find_lost(place.objects, mirrors) == set(keys[1:-1])
