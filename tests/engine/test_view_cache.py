"""A read-only view keeps what it fetched: sealed, within its bound, and never at the price of a read."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.cache import SegmentCache
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.range_files import BLOCK_BYTES, RANGES, range_path
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.view_cache import view_cache
from mirrorfs.errors import DiskError
from mirrorfs.ports import Disk, ObjectKey, ObjectVersion
from tests.sim.disk import SimulatedDisk
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEADER, KEYS

KIB = 1024
MIB = 1 << 20
COUNT = 6
SIZE = MIB
SMALL_COUNT = 20
SMALL_SIZE = 4 * KIB
PAST = Moment(time_ns=1 << 62)
"""All there is, of a view that follows nobody: what it asks for, its readers asked for."""


class CountingStore(MemoryStore):
    """Counts what is read of segments, by requests and bytes."""

    requests = 0
    sent_bytes = 0

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        data = await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)
        if key.startswith("segments/"):
            self.requests += 1
            self.sent_bytes += len(data)
        return data


class TightDisk(LocalDisk):
    """A disk that has as much free space as a test says, or does not even say how much."""

    free = 1 << 40
    broken = False

    def free_bytes(self) -> int:
        if self.broken:
            raise DiskError("Cannot look at the local disk: Input/output error.")
        return self.free


def contents(number: int) -> bytes:
    """No two files have anything in common, and nothing of them is compressed."""
    return random.Random(number).randbytes(SIZE)


class Seat:
    """A PC that looks at the stores of another one."""

    def __init__(self, root: Path, places: list[dict[str, bytes]]) -> None:
        self.root = root
        self.stores = [
            CountingStore(entry.name, place) for entry, place in zip(HEADER.stores, places, strict=True)
        ]
        self.disk = TightDisk(root)
        self.view_root = root / "views" / "one"
        self.pc = VirtualPc(root, self.stores, seed=5)
        self.pc.world = replace(self.pc.world, disk=self.disk)

    def cache(self, *, limit_bytes: int = 1 << 40, disk: Disk | None = None) -> SegmentCache:
        return view_cache(self.pc.world, disk or LocalDisk(self.view_root), limit_bytes=limit_bytes)

    @asynccontextmanager
    async def view(self, cache: SegmentCache | None, moment: Moment = PAST) -> AsyncIterator[ReadOnlyVolume]:
        async with trio.open_nursery() as nursery:
            view = await ReadOnlyVolume.open(
                nursery=nursery, world=self.pc.world, files=self.pc.files, keys=KEYS,
                writer_key=HEADER.public_keys.writer, stores=self.stores, moment=moment,
                random=random.Random(1).random, cache=cache,
            )  # fmt: skip
            self.forget_requests()
            yield view
            view.close()
            nursery.cancel_scope.cancel()

    def forget_requests(self) -> None:
        for store in self.stores:
            store.requests = store.sent_bytes = 0

    @property
    def requests(self) -> int:
        return sum(store.requests for store in self.stores)

    @property
    def sent_bytes(self) -> int:
        return sum(store.sent_bytes for store in self.stores)

    def kept(self) -> list[Path]:
        """Files of fetched parts."""
        return sorted(self.view_root.glob(f"{RANGES}/*"))

    def kept_bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.kept())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """What the stores hold: COUNT files in a segment each, and small ones in one. Not to be changed."""
    stores = [MemoryStore(entry.name) for entry in HEADER.stores]

    async def write() -> None:
        pc = VirtualPc(tmp_path_factory.mktemp("writer"), stores)
        async with pc.mounted() as volume:
            for number in range(COUNT):
                await write_file(volume, b"file %d" % number, contents(number))
                await volume._local.quiesce()
            for number in range(SMALL_COUNT):
                await write_file(volume, b"small %d" % number, contents(number)[:SMALL_SIZE])
                await volume.filesystem.sync()  # a commit each, and so a frame

    trio.run(write, clock=MockClock(autojump_threshold=0))
    return [store.objects for store in stores]


@pytest.fixture
def seat(tmp_path: Path, written: list[dict[str, bytes]]) -> Seat:
    return Seat(tmp_path / "seat", [dict(place) for place in written])


def segment_bytes(seat: Seat) -> int:
    return sum(len(data) for key, data in seat.stores[0].objects.items() if key.startswith("segments/"))


async def read(view: ReadOnlyVolume, number: int, offset: int = 0, size: int = SIZE) -> bytes:
    return await view.filesystem.read(view.filesystem.lookup(1, b"file %d" % number).inode, offset, size)


async def read_all(view: ReadOnlyVolume) -> None:
    """As if other files had pushed everything out of memory before."""
    view.reader.cache = FrameCache()
    for number in range(COUNT):
        assert await read(view, number) == contents(number)


@pytest.mark.parametrize("moment", [PAST, NEWEST])
async def test_what_was_fetched_is_asked_for_once(
    autojump_clock: MockClock, seat: Seat, moment: Moment
) -> None:
    async with seat.view(seat.cache(), moment) as view:
        await read_all(view)
        assert seat.requests > 0
        assert COUNT * SIZE < seat.sent_bytes <= segment_bytes(seat) + COUNT * 4 * KIB
        seat.forget_requests()
        await read_all(view)
        await read_all(view)
        assert (seat.requests, seat.sent_bytes) == (0, 0)


@pytest.mark.parametrize("is_kept", [True, False])
async def test_small_reads(autojump_clock: MockClock, seat: Seat, is_kept: bool) -> None:
    """What lies next to a frame comes along where it is kept; else it would be thrown away."""
    async with seat.view(seat.cache() if is_kept else None) as view:
        for number in range(SMALL_COUNT):
            inode = view.filesystem.lookup(1, b"small %d" % number).inode
            assert await view.filesystem.read(inode, 0, MIB) == contents(number)[:SMALL_SIZE]
        if is_kept:
            assert seat.requests == 1
        else:
            assert seat.requests == SMALL_COUNT + 1, "and the header of the segment"
            assert seat.sent_bytes < 1.2 * SMALL_COUNT * SMALL_SIZE


async def test_what_is_kept_is_what_the_stores_have(autojump_clock: MockClock, seat: Seat) -> None:
    async with seat.view(seat.cache()) as view:
        await read_all(view)
    assert len(seat.kept()) == COUNT
    sealed = {seat.view_root / range_path(key): data for key, data in seat.stores[0].objects.items()}
    plain = [contents(number)[offset : offset + 64] for number in range(COUNT) for offset in (0, SIZE // 2)]
    blocks = 0
    for path in seat.kept():
        found = path.read_bytes()
        for offset in range(0, len(found), BLOCK_BYTES):
            block = found[offset : offset + BLOCK_BYTES]
            if any(block):
                assert block == sealed[path][offset : offset + BLOCK_BYTES]
                blocks += 1
    assert blocks >= COUNT * SIZE // BLOCK_BYTES
    for path in (path for path in seat.root.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert not any(piece in data for piece in plain), path


async def test_the_bound_holds_and_the_least_recently_used_go(autojump_clock: MockClock, seat: Seat) -> None:
    limit_bytes = 3 * (SIZE + BLOCK_BYTES)
    cache = seat.cache(limit_bytes=limit_bytes)
    async with seat.view(cache) as view:
        await read_all(view)
        await trio.sleep(1)
        assert COUNT * SIZE > limit_bytes >= seat.kept_bytes() > SIZE
        assert cache.size_bytes == seat.kept_bytes()
        seat.forget_requests()
        view.reader.cache = FrameCache()
        assert await read(view, COUNT - 1) == contents(COUNT - 1)
        assert seat.requests == 0
        assert await read(view, 0) == contents(0)
        assert seat.requests > 0
        await read_all(view)
        await trio.sleep(1)
        assert limit_bytes >= seat.kept_bytes() > SIZE


async def test_it_gives_way_to_the_disk(autojump_clock: MockClock, seat: Seat) -> None:
    cache = seat.cache()
    async with seat.view(cache) as view:
        await read_all(view)
        assert seat.kept_bytes() > COUNT * SIZE
        seat.disk.free = 0
        await trio.sleep(30)
        assert seat.kept() == []
        await read_all(view)
        assert seat.kept() == []
        seat.disk.broken = True
        await trio.sleep(1)
        await read_all(view)


@pytest.mark.parametrize("capacity_bytes", [0, SIZE // 2, 3 * SIZE])
async def test_a_full_disk_fails_no_read(autojump_clock: MockClock, seat: Seat, capacity_bytes: int) -> None:
    """Full as by a quota, which nobody sees coming: a write is cut short."""
    disk = SimulatedDisk(random.Random(1))
    disk.capacity_bytes = capacity_bytes
    cache = seat.cache(disk=disk)
    async with seat.view(cache) as view:
        await read_all(view)
        await read_all(view)
        assert cache.size_bytes == disk.used_bytes() <= capacity_bytes
        disk.capacity_bytes = 1 << 40
        await read_all(view)
        seat.forget_requests()
        await read_all(view)
        assert seat.requests == 0


@pytest.mark.parametrize("garbage", [True, False])
async def test_what_is_damaged_or_gone_there_is_fetched_again(
    autojump_clock: MockClock, seat: Seat, garbage: bool
) -> None:
    async with seat.view(seat.cache()) as view:
        await read_all(view)
        for path in seat.kept():
            if garbage:
                path.write_bytes(random.Random(1).randbytes(path.stat().st_size))
            else:
                path.unlink()
        seat.forget_requests()
        await read_all(view)
        assert seat.requests > 0
