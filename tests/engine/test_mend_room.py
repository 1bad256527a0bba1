"""A store that lost much is filled again within bounds of the local disk, and status says so meanwhile."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.config_alarm import AlarmConfig
from mirrorfs.cli.protection import Light, Protection, judge
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.mend import NO_ROOM
from mirrorfs.engine.mend_room import PATIENCE_S
from mirrorfs.engine.mend_turns import AGAIN_S
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.scrub import DEEP, SIZES, BadObject
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreUnavailable
from mirrorfs.ports import ObjectKey, Sealed
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc

MIB = 1 << 20
FILES = 16
SIZE = 1 * MIB
HOURS_NS = 3600 * 10**9
THRESHOLDS = AlarmConfig(max_drill_days=0, min_free_bytes=0)
pytestmark = pytest.mark.expects_warnings("is damaged", "is falling behind", "was damaged and is mended")


class SlowStore(MemoryStore):
    """Takes long for each object; can be away for uploads; notes how full the disk of the PC was at each."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.takes_s = 0.0
        self.away = False

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        await trio.sleep(self.takes_s)
        if self.away:
            raise StoreUnavailable(f"Store {self.name} is away.")
        await super().put(key, data)

    def segments(self) -> list[str]:
        return sorted(key for key in self.objects if key.startswith("segments/"))


class SmallDisk(LocalDisk):
    """A disk of 64 MiB on which only closed objects count, and as much as others take of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.others_bytes = 0
        self.peak_bytes = 0

    def used_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.root / "objects").rglob("*") if path.is_file())

    def write_whole(self, path: str, data: bytes) -> None:
        super().write_whole(path, data)
        self.peak_bytes = max(self.peak_bytes, self.used_bytes())

    def total_bytes(self) -> int:
        return 64 * MIB

    def free_bytes(self) -> int:
        return self.total_bytes() - self.others_bytes - self.used_bytes()


class Watch(trio.abc.Instrument):
    """At every step of every task: what the store is known to lack is pending."""

    def __init__(self, volume: MountedVolume, keys: list[str]) -> None:
        self._mirror = volume._stores[1].mirror
        self._keys = keys
        self.failures: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        queue = self._mirror._queue
        self.failures += [key for key in self._keys if not self._mirror.is_held(key) and key not in queue]


class Pc(VirtualPc):
    def __init__(self, root: Path, home: SlowStore, s3: SlowStore) -> None:
        self.home, self.s3 = home, s3
        super().__init__(root, [self.home, self.s3])
        self.small = SmallDisk(root)
        self.world = replace(self.world, disk=self.small)
        self.cache_bytes = 0
        self.began_ns = 0
        self.good: dict[str, bytes] = {}

    @asynccontextmanager
    async def filled(self, *, wait: bool = True) -> AsyncIterator[MountedVolume]:
        """With files of some hours ago, of which next to nothing lies here."""
        async with self.mounted(wait=wait) as volume:
            self.began_ns = self.clock.now_ns()
            for number in range(FILES):
                await write_file(volume, b"%d" % number, random.Random(number).randbytes(SIZE))
                await volume.flush()
                await volume._local.cache.shrink()
            self.clock.stepped_s += 3 * 3600
            volume._local.reader.cache = FrameCache()
            self.good = {key: self.s3.objects[key] for key in self.s3.segments()}
            assert self.small.used_bytes() < 4 * SIZE
            self.small.peak_bytes = 0
            yield volume

    async def found(self, volume: MountedVolume) -> list[BadObject]:
        return (await volume.scrubber.run(DEEP, places=["s3"], restart=True)).bad

    def protection(self, volume: MountedVolume) -> Protection:
        """What the clock says by itself: that copies were found bad is a risk besides."""
        status = asdict(volume.status()) | {"damaged": {}}
        asked_ns = self.clock.now_ns()
        return judge(status, asked_ns=asked_ns, written_back=True, thresholds=THRESHOLDS)

    def spoil(self, count: int) -> list[str]:
        keys = [key for key in self.s3.segments() if len(self.good[key]) > SIZE][:count]
        for key in keys:
            self.s3.objects[key] = self.good[key][:-9] + bytes(9)
        return keys


@pytest.fixture
def it(tmp_path: Path) -> Pc:
    return Pc(tmp_path / "pc", SlowStore("home"), SlowStore("s3"))


async def test_a_store_that_lost_everything_is_filled_again(it: Pc, autojump_clock: MockClock) -> None:
    """The disk takes nothing of it, and the clock goes back to before what is missing."""
    async with it.filled() as volume:
        assert it.protection(volume).light is Light.PROTECTED
        for key in it.good:
            del it.s3.objects[key]
        before_bytes = it.small.used_bytes()
        it.s3.takes_s = 30.0
        bad = (await volume.scrubber.run(SIZES)).bad
        watch = Watch(volume, list(it.good))
        trio.lowlevel.add_instrument(watch)
        began_s = trio.current_time()
        assert set((await volume.mender.mend(bad)).values()) == {None}
        assert trio.current_time() - began_s < 10, "nobody waits for the uploads"
        state = volume.status().stores[1]
        assert state.pending_count >= len(it.good) - 4
        said = it.protection(volume)
        assert said.light is Light.AT_RISK and said.reason == "Store s3 has lacked changes for 3 hours."
        assert said.stores[1].safe_until_ns <= it.began_ns + 10**9
        assert said.stores[0].safe_until_ns > it.began_ns + 3 * HOURS_NS
        await volume.flush()
        trio.lowlevel.remove_instrument(watch)
        assert it.protection(volume).light is Light.PROTECTED
        assert watch.failures == []
        assert it.small.peak_bytes <= before_bytes + MIB
        assert {key: it.s3.objects[key] for key in it.good} == it.good


async def test_what_is_damaged_goes_by_way_of_the_disk_bit_by_bit(
    it: Pc, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorfs.engine.mend_room.COPIES_BYTES_MAX", 3 * SIZE)
    async with it.filled() as volume:
        keys = it.spoil(FILES)
        assert len(keys) == FILES
        before_bytes = it.small.used_bytes()
        it.s3.takes_s = 20.0
        bad = await it.found(volume)
        watch = Watch(volume, keys)
        trio.lowlevel.add_instrument(watch)
        assert list((await volume.mender.mend(bad)).values()) == [None] * FILES
        await volume.flush()
        trio.lowlevel.remove_instrument(watch)
        assert watch.failures == []
        # The cache gives up what the store has again within some seconds.
        assert 2 * SIZE < it.small.peak_bytes - before_bytes <= 8 * SIZE
        assert await it.found(volume) == []
        await trio.sleep(30)
        assert it.small.used_bytes() <= before_bytes + MIB


async def test_a_store_that_is_away_holds_nobody_up(
    it: Pc, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so much lies here for it; readers' finds get their turn while mending waits for room."""
    monkeypatch.setattr("mirrorfs.engine.mend_room.COPIES_BYTES_MAX", 3 * SIZE)
    async with it.filled() as volume:
        keys = it.spoil(8)
        bad = await it.found(volume)
        before_bytes = it.small.used_bytes()
        it.s3.away = True
        async with trio.open_nursery() as nursery:
            results: dict[BadObject, str | None] = {}

            async def mend() -> None:
                results.update(await volume.mender.mend(bad))

            nursery.start_soon(mend)
            await trio.sleep(PATIENCE_S / 2)
            assert not results
            head = next(key for key in sorted(it.home.objects) if key.startswith("heads/"))
            good, it.home.objects[head] = it.home.objects[head], b""
            other = (await volume.scrubber.run(SIZES, places=["home"])).bad
            assert list((await volume.mender.mend(other)).values()) == [None]
            await volume._stores[0].mirror.wait_held([head])
            assert it.home.objects[head] == good and not results
        assert sorted(results[one] or "" for one in bad) == [""] * 2 + [NO_ROOM] * 6
        assert it.small.peak_bytes <= before_bytes + 3 * SIZE
        state = volume.status().stores[1]
        assert state.pending_count == 8, "none of them counts as held"
        assert it.protection(volume).stores[1].safe_until_ns <= it.began_ns + 10**9
        it.s3.away = False
        with trio.fail_after(3600):
            await volume.flush()
        assert {key: it.s3.objects[key] for key in keys} == {key: it.good[key] for key in keys}
        assert it.small.peak_bytes <= before_bytes + 7 * SIZE


async def test_a_full_disk_puts_mending_off(it: Pc, autojump_clock: MockClock) -> None:
    async with it.filled() as volume:
        keys = it.spoil(3)
        bad = await it.found(volume)
        before_bytes = it.small.used_bytes()
        it.small.others_bytes = 64 * MIB - it.small.used_bytes() - 7 * MIB  # of which the reserve takes 6.4
        await trio.sleep(1)  # free space is looked at four times a second
        assert list((await volume.mender.mend(bad)).values()) == [NO_ROOM] * 3
        assert it.small.used_bytes() < before_bytes + SIZE // 2, "nothing of them is written"
        began_s = trio.current_time()
        assert list((await volume.mender.mend(bad)).values()) == [NO_ROOM] * 3
        assert trio.current_time() - began_s < 1, "it is waited for once"
        await trio.sleep(10 * AGAIN_S)
        assert volume.status().stores[1].pending_count == 3
        assert all(it.s3.objects[key] != it.good[key] for key in keys), "nothing is removed without a copy"
        it.small.others_bytes = 0
        with trio.fail_after(600):
            await volume.flush()
        assert all(it.s3.objects[key] == it.good[key] for key in keys)


@pytest.mark.parametrize("harm", ["lose", "spoil"])
async def test_a_crash_in_the_middle(it: Pc, autojump_clock: MockClock, tmp_path: Path, harm: str) -> None:
    """What the store lacked then is pending in the next mount, and nothing of it counts as held."""

    async with it.filled(wait=False) as volume:
        keys = it.spoil(6)
        if harm == "lose":
            for key in keys:
                del it.s3.objects[key]
        bad = await it.found(volume)
        it.s3.away = True
        assert list((await volume.mender.mend(bad)).values()) == [None] * 6
        shutil.copytree(it.root, tmp_path / "after")
    after = Pc(tmp_path / "after", it.home, it.s3)
    after.clock = it.clock
    async with after.mounted() as volume:
        assert not any(volume._stores[1].mirror.is_held(key) for key in keys)
        assert volume.status().stores[1].pending_count >= 6
        assert after.protection(volume).stores[1].safe_until_ns <= it.began_ns + 10**9
        it.s3.away = False
        await volume.flush()
        assert {key: it.s3.objects[key] for key in it.good} == it.good


async def test_the_age_of_one_segment_is_that_of_the_listing(it: Pc, autojump_clock: MockClock) -> None:
    async with it.filled(wait=False) as volume:
        index, objects = volume._local.index, volume._objects
        for _ in range(2):
            ages = {found.key: found.written_ns for found in objects.segments()}
            assert len(set(ages.values())) > 5
            for key, since_ns in ages.items():
                row = objects.row_of(key)
                assert row is not None and objects.since_ns(row) == since_ns
            last = index.last_segment()
            assert last is not None
            gone = [*range(3, 9), *range(11, 13)]
            assert gone[-1] < last.sequence
            for sequence in gone:
                index.delete_segment(sequence)
        await volume._local.quiesce()
