"""Locks of what is needed never end while the PC is used, at few requests, switched off or not."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.lock_keeper import FIRST_S, HEADS_LOCKED, RECORD_PREFIX, LockKeeper, forget_locks
from mirrorfs.engine.objects import LocalObject, LocalObjects
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.object_lock import DAY_NS, LONG_LIVED_DAYS, LockMode, ObjectLock
from mirrorfs.ports import ObjectKey, Sealed
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.store_versioned import VersionedStore
from tests.support.trio_clock import TrioClock
from tests.support.virtual_pc import VirtualPc

DAY_S = 86400.0
DAYS = 32
LOCK = ObjectLock(LockMode.COMPLIANCE, DAYS)
INSTANCE = "20" * 16


class Objects:
    """What is on the local disk, as LocalObjects tells it."""

    def __init__(self) -> None:
        self.all: dict[str, LocalObject] = {}
        self.useless: set[str] = set()

    def condemned(self) -> frozenset[str]:
        return frozenset(self.useless)

    async def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.all if key.startswith(prefix))

    async def under(self, prefix: str, *, lost: Iterable[str] = ()) -> AsyncGenerator[LocalObject, None]:
        for key in await self.keys(prefix):
            yield self.all[key]


class Practice:
    """A PC with one store that locks."""

    def __init__(self, root: Path) -> None:
        self.disk = LocalDisk(root)
        self.clock = TrioClock()
        self.objects = Objects()
        self.store = VersionedStore("s3", lock=LOCK)
        self.days = DAYS
        self.keeper = self.start()

    def start(self) -> LockKeeper:
        """As after a mount."""
        self.keeper = LockKeeper(
            self.store, ObjectLock(LockMode.COMPLIANCE, self.days), cast(LocalObjects, self.objects),
            self.disk, self.clock, instance=INSTANCE, is_held=lambda key: key != "segments/on-its-way",
        )  # fmt: skip
        return self.keeper

    async def send(self, key: str, *, locked: bool = True) -> None:
        self.store.now_ns = self.clock.now_ns()
        self.store.lock = LOCK if locked else None
        await self.store.put(ObjectKey(key), Sealed(b"data"))
        written_ns = self.clock.now_ns() if key.startswith("segments/") else 0
        self.objects.all[key] = LocalObject(key, 4, written_ns)

    async def run(self, days: float) -> None:
        with trio.move_on_after(days * DAY_S):
            await self.keeper.run()

    def left_days(self, key: str) -> float:
        return (max(one.until_ns for one in self.store.kept[key]) - self.clock.now_ns()) / DAY_NS


@pytest.fixture
async def it(tmp_path: Path) -> Practice:
    practice = Practice(tmp_path)
    for key in ("header/1", "instance", "segments/0", "checkpoints/0"):
        await practice.send(key)
    del practice.objects.all["instance"]  # which is written where the store is made
    return practice


async def test_what_is_needed_stays_locked_at_few_requests(it: Practice, autojump_clock: MockClock) -> None:
    days = 0
    for day in range(0, 320, 4):
        await it.send(f"segments/{day + 1}")
        await it.run(4)
        days += 4
        for key in [*it.objects.all, "instance"]:
            assert it.left_days(key) > DAYS / 4 - 1, (day, key)
        assert it.left_days("header/1") > LONG_LIVED_DAYS
        state = it.keeper.state()
        assert state.until_ns is not None and state.error is None
        assert min(it.left_days(key) for key in it.objects.all) * DAY_NS >= state.until_ns - it.clock.now_ns()
    # A round in half of the days: 20 of them.
    assert it.store.locked.count("segments/0") == math.ceil(days / (DAYS / 2))
    # What was sent lately costs nothing: its lock is long enough.
    assert it.store.locked.count("segments/317") == 0


async def test_the_first_round_locks_what_was_there_before(it: Practice, autojump_clock: MockClock) -> None:
    await it.send("segments/old", locked=False)
    await it.send("segments/useless")
    it.objects.useless.add("segments/useless")
    it.objects.all["segments/on-its-way"] = LocalObject("segments/on-its-way", 4, 0)
    assert it.keeper.state().until_ns is None
    await it.run(0.1)
    assert it.left_days("segments/old") > DAYS - 1
    assert "segments/on-its-way" not in it.store.locked
    assert "segments/0" in it.store.locked and "segments/useless" not in it.store.locked
    assert it.keeper.state().until_ns is not None


async def test_a_round_goes_on_after_the_pc_was_off(it: Practice, autojump_clock: MockClock) -> None:
    for number in range(300):
        await it.send(f"segments/{number:04}", locked=False)
    await it.run((FIRST_S + 150) / DAY_S)
    assert 100 < it.keeper.state().behind_count < 250
    done = len(it.store.locked)
    it.start()
    await it.run(0.1)
    assert it.keeper.state().behind_count == 0
    assert 305 <= len(it.store.locked) <= 305 + 100 < 305 + done, "it began anew"
    # It is remembered when the last one was.
    until_ns = it.keeper.state().until_ns
    assert it.start().state().until_ns == until_ns


async def test_other_settings_begin_anew(it: Practice, autojump_clock: MockClock) -> None:
    await it.run(0.1)
    it.days = 2 * DAYS
    assert it.start().state().until_ns is None
    await it.run(0.1)
    assert it.left_days("segments/0") > 2 * DAYS - 1
    # Used without locks in between, what was sent meanwhile may have none.
    forget_locks(it.disk, INSTANCE)
    assert it.start().state().until_ns is None


@pytest.mark.parametrize("record", [b"", b"[]", b'{"mode": "compliance"}', b'{"odd": 1}'])
async def test_an_unreadable_record_begins_anew(
    it: Practice, record: bytes, autojump_clock: MockClock
) -> None:
    it.disk.write_whole(RECORD_PREFIX + INSTANCE, record)
    assert it.start().state().until_ns is None


async def test_a_record_of_another_clock_begins_anew(it: Practice, autojump_clock: MockClock) -> None:
    later_ns = it.clock.now_ns() + 100 * DAY_NS
    record = {"mode": "compliance", "days": DAYS, "renewed_ns": later_ns, "begun_ns": 0, "after": ""}
    it.disk.write_whole(RECORD_PREFIX + INSTANCE, json.dumps(record).encode())
    it.start()
    await it.run(0.1)
    assert "segments/0" in it.store.locked


@pytest.mark.expects_warnings("locks of store s3 are not renewed")
async def test_that_it_is_not_allowed_is_told_and_tried_again(
    it: Practice, autojump_clock: MockClock
) -> None:
    it.store.may_lock = False
    await it.run(0.5)
    assert "does not let these credentials lock" in str(it.keeper.state().error)
    it.store.may_lock = True
    await it.run(0.5)
    assert it.keeper.state().error is None
    assert it.keeper.state().until_ns is not None


async def test_a_store_that_is_away_and_an_object_that_is_gone(
    it: Practice, autojump_clock: MockClock
) -> None:
    class Away(VersionedStore):
        failures = 3

        async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("Store s3 is away.")
            await super().lock_until(key, until_ns=until_ns, size_bytes=size_bytes)

    away = Away("s3", lock=LOCK)
    away.kept = it.store.kept
    it.store = away
    it.objects.all["segments/gone"] = LocalObject("segments/gone", 4, 0)
    it.start()
    await it.run(0.5)
    assert it.left_days("segments/0") > DAYS - 1
    assert it.keeper.state().until_ns is not None and it.keeper.state().error is None


async def test_of_heads_the_newest_are_locked(it: Practice, autojump_clock: MockClock) -> None:
    for number in range(HEADS_LOCKED + 5):
        await it.send(f"heads/{number:04}")
    await it.run(0.1)
    assert [key for key in it.store.locked if key.startswith("heads/")] == [
        f"heads/{number:04}" for number in range(5, HEADS_LOCKED + 5)
    ]


async def test_a_mounted_volume_renews_and_tells(tmp_path: Path, autojump_clock: MockClock) -> None:
    store = VersionedStore("s3", lock=LOCK)
    pc = VirtualPc(tmp_path, [MemoryStore("home"), store])

    async def work(volume: MountedVolume) -> None:
        await write_file(volume, b"letter", b"text")
        await volume.flush()
        home, s3 = volume.status().stores
        assert home.lock is None
        assert s3.lock is not None and (s3.lock.mode, s3.lock.days, s3.lock.until_ns) == (
            "compliance",
            32,
            None,
        )
        await trio.sleep(2 * FIRST_S)
        after = volume.status().stores[1].lock
        assert after is not None and after.until_ns is not None and after.behind_count == 0

    async with pc.mounted() as volume:
        await work(volume)
    assert {key.partition("/")[0] for key in store.locked} >= {"segments", "heads", "header"}
