"""Filling the cache in the background: newest first, within bounds, out of everybody's way."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import prefetch
from mirrorfs.engine.cache import SegmentCache
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.prefetch import AWAY_S, START_S, Prefetcher
from mirrorfs.engine.range_files import range_path
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.rows import SegmentRow
from mirrorfs.ports import ObjectKey, ObjectVersion
from tests.sim.world import InlineOffload
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_memory import MemoryStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEY_SET, KEYS

MIB = 1 << 20
SIZE = MIB
COUNT = 12
LIMIT = 64 * MIB
WRITER = b"w" * 8


def key_of(sequence: int) -> str:
    return segment_object_key(Stream.MAIN, SegmentId(sequence, 1, WRITER))


def data_of(sequence: int) -> bytes:
    return random.Random(sequence).randbytes(SIZE)


class SlowStore(MemoryStore):
    """Notes what is read, takes its time, and may be away or unplugged in the middle."""

    def __init__(self, name: str) -> None:
        super().__init__(name, {key_of(sequence): data_of(sequence) for sequence in range(COUNT)})
        self.read: list[int] = []
        self.away = False

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        await trio.sleep(1)
        if self.away:
            raise StoreUnavailable(f"Store {self.name} is away.")
        self.read.append(next(sequence for sequence in range(COUNT) if key_of(sequence) == key))
        return await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)


class RoomyDisk(LocalDisk):
    """As much free space as a test says."""

    free = 1 << 40

    def free_bytes(self) -> int:
        return self.free


class Place:
    """A new machine: an index of COUNT segments, none of them here."""

    def __init__(self, root: Path, stores: Sequence[SlowStore], *, limit_bytes: int = LIMIT) -> None:
        self.stores = list(stores)
        self.disk = RoomyDisk(root)
        offload = InlineOffload(random.Random(1))
        files = SqliteIndexFiles(str(root / "index.db"), KEYS.index_key, digest_key=KEYS.dedup_key)
        self.index = files.open()
        for sequence in range(COUNT):
            digest = hashlib.sha256(data_of(sequence)).digest()
            self.index.put_segment(SegmentRow(sequence, 1, WRITER, SIZE, 1, digest, 0, 0))
        self.busy = False
        self.bad: list[tuple[str | None, str]] = []
        self.cache = SegmentCache(
            self.disk, SpaceGuard(self.disk, TrioClock()), offload, limit_bytes=limit_bytes,
            is_held=lambda key: True, settle_index=self._settle, on_removed=lambda path: None,
        )  # fmt: skip
        source = ObjectSource(
            LocalObjects(self.disk, self.index, offload), offload, KEYS, KEY_SET.public_keys().writer,
            stores=lambda: self.stores,
        )  # fmt: skip
        self.prefetcher = Prefetcher(
            self.index, self.cache, source, stores=lambda: self.stores, is_busy=lambda: self.busy,
            on_bad_copy=lambda store, key: self.bad.append((store, key)),
        )  # fmt: skip

    async def _settle(self) -> int:
        return 1 << 40

    def here(self) -> list[int]:
        """Segments that lie here whole, with the right bytes."""
        found = []
        for sequence in range(COUNT):
            try:
                file = self.disk.open(range_path(key_of(sequence)))
            except FileNotFoundError:
                continue
            assert file.read(offset=0, size_bytes=SIZE + 1) == data_of(sequence)
            file.close()
            found.append(sequence)
        return found


@pytest.fixture
def store() -> SlowStore:
    return SlowStore("home")


async def test_newest_first(tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock) -> None:
    place = Place(tmp_path, [store])
    await place.prefetcher.run()
    assert store.read == list(range(COUNT - 1, -1, -1)) and place.here() == list(range(COUNT))
    assert place.prefetcher.brought_bytes == COUNT * SIZE == place.cache.size_bytes
    # The oldest data goes first, and all of it before what was here.
    assert min(place.cache._files, key=lambda path: place.cache._files[path].used) == range_path(key_of(0))


async def test_nothing_to_do(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(tmp_path, [store])
    await place.prefetcher.run()
    store.read.clear()
    again = Place(tmp_path / "other", [store])
    for sequence in range(COUNT):
        again.cache.closed(key_of(sequence), SIZE)
    await again.prefetcher.run()
    await place.prefetcher.run()
    assert store.read == []


async def test_stops_at_its_share(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(tmp_path, [store], limit_bytes=8 * MIB)
    await place.prefetcher.run()
    assert place.here() == [6, 7, 8, 9, 10, 11] and place.cache.size_bytes == 6 * MIB


async def test_stops_before_the_reserve(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(tmp_path, [store])
    place.disk.free = 5 * place.cache._space.soft_bytes // 2 + SIZE - 1
    await place.prefetcher.run()
    assert store.read == []
    place.disk.free += 1
    await trio.sleep(1)
    await place.prefetcher.run()
    assert len(store.read) == COUNT  # the disk of this test never gets fuller


async def test_what_had_to_go_is_not_brought_again(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(tmp_path, [store])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.prefetcher.run)
        await trio.sleep(START_S + 4.5)
        place.disk.free = place.cache._space.soft_bytes
        await place.cache.shrink()
        place.disk.free = 1 << 40
    assert store.read == [11, 10, 9, 8, 7]  # one was under way
    assert place.cache.evicted_count > 0


async def test_gives_way(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "PIECE_BYTES", SIZE // 4)
    place = Place(tmp_path, [store])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.prefetcher.run)
        await trio.sleep(START_S + 1.5)
        place.busy = True
        await trio.sleep(600)
        assert store.read == [11, 11]  # the piece under way, and no other
        place.busy = False
    assert place.here() == list(range(COUNT))


async def test_waits_for_a_store_that_is_away(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    place = Place(tmp_path, [store])
    store.away = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.prefetcher.run)
        await trio.sleep(10 * AWAY_S)
        assert place.here() == []
        store.away = False
    assert place.here() == list(range(COUNT))


async def test_one_store_away(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    other = SlowStore("s3")
    store.away = True
    place = Place(tmp_path, [store, other])
    began_s = trio.current_time()
    await place.prefetcher.run()
    assert place.here() == list(range(COUNT)) and len(other.read) == COUNT
    assert trio.current_time() - began_s < START_S + COUNT + 3


async def test_damaged_and_missing_copies(
    tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock
) -> None:
    other = SlowStore("s3")
    store.objects[key_of(9)] = bytes(SIZE)
    other.objects[key_of(5)] = store.objects[key_of(5)] = bytes(SIZE)
    del store.objects[key_of(3)], other.objects[key_of(3)]
    place = Place(tmp_path, [store, other])
    await place.prefetcher.run()
    assert place.here() == [sequence for sequence in range(COUNT) if sequence not in (3, 5)]
    assert place.bad == [("home", key_of(9)), ("home", key_of(5)), ("s3", key_of(5))]


async def test_cancelled(tmp_path: Path, store: SlowStore, autojump_clock: trio.testing.MockClock) -> None:
    place = Place(tmp_path, [store])
    with trio.move_on_after(START_S + 3.5):
        await place.prefetcher.run()
    assert place.here() == [9, 10, 11]
    store.read.clear()
    again = Place(tmp_path / "again", [store])
    shutil.copytree(tmp_path / "ranges", tmp_path / "again" / "ranges")
    await again.cache.load()
    await again.prefetcher.run()
    assert store.read == list(range(8, -1, -1))


async def test_a_new_machine_has_everything_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "START_S", 0.0)
    places: list[dict[str, bytes]] = [{}, {}]

    def stores() -> list[MemoryStore]:
        return [MemoryStore(name, place) for name, place in zip(("home", "s3"), places, strict=True)]

    contents = [random.Random(number).randbytes(3 * MIB) for number in range(6)]
    async with Machine(tmp_path / "old", stores()).mounted() as volume:
        inodes = [await write_file(volume, b"%d" % number, data) for number, data in enumerate(contents)]
    here = stores()
    async with Machine(tmp_path / "new", here, prefetch=True).mounted(wait=False) as volume:
        with trio.fail_after(60):
            while volume._prefetcher.brought_bytes < sum(map(len, contents)):  # noqa: ASYNC110 - a real thread
                await trio.sleep(0.05)
        for store in here:
            store.objects = {}
        for inode, data in zip(inodes, contents, strict=True):
            assert await read_file(volume, inode) == data
