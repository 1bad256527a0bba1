"""The bounded cache: what goes, what stays whatever happens, and what is read when it is gone."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from mirrorfs.engine import fetch
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ReadFailed, StoreUnavailable
from mirrorfs.ports import ObjectKey, ObjectVersion, Sealed
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_memory import MemoryStore

MIB = 1 << 20
CACHE = 40 * MIB
SIZE = 10 * MIB


class CountingStore(MemoryStore):
    """Counts reads of frames; can be away."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.reads = 0
        self.away = False

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        self._count()
        return await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        if self.away:
            raise StoreUnavailable(f"Store {self.name} is away.")
        await super().put(key, data)

    def _count(self) -> None:
        self.reads += 1
        if self.away:
            raise StoreUnavailable(f"Store {self.name} is away.")


@pytest.fixture
def stores() -> list[CountingStore]:
    return [CountingStore("home"), CountingStore("s3")]


def contents(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def local_bytes(machine: Machine) -> int:
    folders = (machine.root / "objects" / "segments", machine.root / "ranges")
    return sum(path.stat().st_blocks * 512 for folder in folders for path in folder.glob("*"))


async def fill(volume: MountedVolume, count: int) -> list[int]:
    return [await write_file(volume, b"file %d" % number, contents(number)) for number in range(count)]


def forget_frames(volume: MountedVolume) -> None:
    """As if other files had pushed everything out of memory."""
    volume._local.reader.cache = FrameCache()


async def shrunk(volume: MountedVolume) -> None:
    await volume.flush()
    await volume._local.cache.shrink()


async def test_a_volume_larger_than_its_cache(tmp_path: Path, stores: list[CountingStore]) -> None:
    machine = Machine(tmp_path, stores, cache_bytes=CACHE)
    async with machine.mounted() as volume:
        inodes = await fill(volume, 8)
        await shrunk(volume)
        assert local_bytes(machine) <= CACHE
        forget_frames(volume)
        for number, inode in enumerate(inodes):
            assert await read_file(volume, inode) == contents(number)
        reads = sum(store.reads for store in stores)
        # A request brings whole blocks, and read-ahead asks for runs of them.
        assert 0 < reads < 8 * SIZE / (1 * MIB)
        await shrunk(volume)
        assert local_bytes(machine) <= CACHE
    async with machine.mounted() as volume:
        for number, inode in reversed(list(enumerate(inodes))):
            assert await read_file(volume, inode) == contents(number)


async def test_what_was_fetched_is_kept(tmp_path: Path, stores: list[CountingStore]) -> None:
    machine = Machine(tmp_path, stores, cache_bytes=CACHE)
    async with machine.mounted() as volume:
        inodes = await fill(volume, 6)
        await shrunk(volume)
        forget_frames(volume)
        assert await read_file(volume, inodes[0]) == contents(0)
        before = sum(store.reads for store in stores)
        forget_frames(volume)
        assert await read_file(volume, inodes[0]) == contents(0)
        assert sum(store.reads for store in stores) == before
    async with machine.mounted() as volume:
        assert await read_file(volume, inodes[0]) == contents(0)
        assert sum(store.reads for store in stores) == before, "also by the next mount"


@pytest.mark.expects_warnings("store s3 is falling behind")  # on a slow machine it is away for long enough
async def test_nothing_goes_that_a_store_lacks(tmp_path: Path, stores: list[CountingStore]) -> None:
    machine = Machine(tmp_path, stores, cache_bytes=CACHE)
    stores[1].away = True
    async with machine.mounted(wait=False) as volume:
        inodes = await fill(volume, 6)
        await volume._local.quiesce()
        await volume._stores[0].mirror.wait_held()
        await volume._local.cache.shrink()
        assert local_bytes(machine) > 6 * SIZE
        stores[0].away = True
        forget_frames(volume)
        for number, inode in enumerate(inodes):
            assert await read_file(volume, inode) == contents(number)
        assert [store.reads for store in stores] == [0, 0]
        assert volume.filesystem.statfs().blocks_free > 0
        for store in stores:
            store.away = False
        await shrunk(volume)
        assert local_bytes(machine) <= CACHE


@pytest.mark.expects_warnings("has gone back to an earlier state")
async def test_the_index_and_the_newest_segments_stay(tmp_path: Path, stores: list[CountingStore]) -> None:
    """After a crash with an empty cache the local log alone gives the volume, with both stores away."""
    machine = Machine(tmp_path / "before", stores, cache_bytes=0)
    async with machine.mounted() as volume:
        await fill(volume, 3)
        await shrunk(volume)
        assert local_bytes(machine) < 3 * SIZE
        shutil.copytree(machine.root, tmp_path / "after")
    after = Machine(tmp_path / "after", [MemoryStore("home"), MemoryStore("s3")])
    async with after.mounted() as volume:
        assert volume.filesystem.lookup(1, b"file 2").size == SIZE


@pytest.mark.expects_warnings("is away", "No store answers")
async def test_with_all_stores_away_a_read_waits_and_then_fails(
    tmp_path: Path, stores: list[CountingStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "PATIENCE_S", 1.0)
    monkeypatch.setattr(fetch, "AGAIN_S", 0.1)
    machine = Machine(tmp_path, stores, cache_bytes=0)
    async with machine.mounted() as volume:
        inodes = await fill(volume, 3)
        await shrunk(volume)
        forget_frames(volume)
        for store in stores:
            store.away = True
        with pytest.raises(ReadFailed):
            await read_file(volume, inodes[0])

        async def come_back(which: Sequence[CountingStore]) -> None:
            await trio.sleep(0.3)
            for store in which:
                store.away = False

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_back, stores[1:])
            assert await read_file(volume, inodes[0]) == contents(0)
        stores[0].away = False


@pytest.mark.expects_warnings("segment header is cut short")
async def test_bad_copies_cost_nothing_but_a_request(tmp_path: Path, stores: list[CountingStore]) -> None:
    machine = Machine(tmp_path, stores, cache_bytes=0)
    async with machine.mounted() as volume:
        inodes = await fill(volume, 3)
        await shrunk(volume)
        forget_frames(volume)
        for key, data in stores[0].objects.items():
            if key.startswith("segments/"):
                stores[0].objects[key] = bytes(len(data))
        for number, inode in enumerate(inodes):
            assert await read_file(volume, inode) == contents(number)
        for path in (machine.root / "ranges").glob("*"):
            path.write_bytes(random.Random(1).randbytes(path.stat().st_size))
        forget_frames(volume)
        for number, inode in enumerate(inodes):
            assert await read_file(volume, inode) == contents(number)
