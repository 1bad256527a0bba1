"""A hundred thousand segments: no operation costs more than with a thousand, and memory stays what it was.

What is compared is counted (tests/support/work.py), so that a busy machine changes nothing. `scripts/scale`
measures the same in milliseconds and bytes.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine.backoff import BACKOFF_CAP_S
from mirrorfs.engine.cache import PAGE, SegmentCache
from mirrorfs.engine.lease import RENEW_AGAIN_S
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.upload_queue import Item, UploadQueue
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.ports import LIST_PAGE_MAX
from tests.support.long_log import LongLog
from tests.support.outage import HOUR_S, Outage
from tests.support.scale import Costs, count_operations, count_outage, count_recovery, count_scrub

FEW, MANY = 1000, 100_000
HEADS = 1500
MIB = 1 << 20


async def costs_of(root: Path, count: int) -> Costs:
    """Everything that is done with a volume of so many segments."""
    log = LongLog(root, segments=count, heads=HEADS)
    await log.make()
    costs = Costs(log, lines=True)
    await count_recovery(costs)
    async with costs.mounted() as volume:
        await count_operations(costs, volume)
        report = await count_scrub(costs, volume)
        assert report.bad == [] and not report.unreachable
        assert min(place.listed for place in report.places) > count
        await count_outage(costs, volume)
    return costs


async def test_no_operation_costs_more_with_more_segments(autojump_clock: MockClock, tmp_path: Path) -> None:
    few, many = await costs_of(tmp_path / "few", FEW), await costs_of(tmp_path / "many", MANY)
    assert few.of.keys() == many.of.keys() and len(few.of) > 10
    # A checkpoint is written in a thread; what did not change is not written again.
    linear = {"mount", "the first checkpoint", "the daily look at sizes"}
    for name in few.of.keys() - linear:
        one, other = few.of[name], many.of[name]
        assert other.lines <= 1.2 * one.lines + 50, (name, one, other)
        assert other.statements <= one.statements + 5, (name, one, other)
        assert other.disk_calls <= one.disk_calls + 5, (name, one, other)
        assert other.requests <= one.requests + 8, (name, one, other)
    mount, look = many.of["mount"], many.of["the daily look at sizes"]
    # Each file is looked at once, each row and each key that is held is read once, in pages; and no store is
    # asked for what it is known to hold.
    assert mount.disk_calls <= MANY + 100
    # What two stores hold is read three times: for the standing, again under the leases, and for the mirrors.
    assert mount.statements <= 10 * MANY / PAGE + 100
    assert mount.requests <= few.of["mount"].requests + 20
    # What is small is listed once more, for what the local disk may have lost.
    assert look.requests <= 2 * (MANY + 2 * HEADS) / LIST_PAGE_MAX + 30
    # Of the local disk each file is measured; of the stores, what is small, to know what they must have.
    assert look.disk_calls <= MANY + 4 * HEADS + 100
    for work in (mount, look):
        assert work.longest_calls <= PAGE + 10, "others get their turn in between"


async def test_nothing_is_known_of_the_stores(autojump_clock: MockClock, tmp_path: Path) -> None:
    """A lost index, or a store that was replaced by a copy: everything is found there by its listing."""
    log = LongLog(tmp_path, segments=20_000)
    await log.make(held=False)
    costs = Costs(log, lines=False)
    async with costs.mounted() as volume:
        assert [one.mirror.snapshot().pending_count for one in volume._stores] == [0, 0]
        assert volume.status().stores[0].held_count > 20_000
    assert not any(key in store.objects for store in log.stores for key in log.segment_keys()), (
        "nothing was sent"
    )
    # Each store is listed for its standing, once more under the leases, and by its mirror.
    assert costs.of["mount"].requests <= 6 * 20_000 / LIST_PAGE_MAX + 60
    assert costs.of["mount"].longest_calls <= PAGE + 10


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.expects_warnings("is falling behind", "is passed over", "heads of store")  # of made-up heads
async def test_an_outage_takes_memory_for_what_waits_only(autojump_clock: MockClock, tmp_path: Path) -> None:
    # Blocks of memory, which cost nothing to count.
    outage = Outage(tmp_path, frames=150, hours=3, memory=sys.getallocatedblocks)
    await outage.run()
    first, _, last, healed = outage.hours
    assert (last.frames, healed.pending) == (150, 0)
    objects = 2 * (last.pending - first.pending)
    assert objects > 100
    assert last.memory_bytes - first.memory_bytes < 30 * objects, (first, last)
    assert last.requests - first.requests < 2 * 2 * (HOUR_S / RENEW_AGAIN_S + HOUR_S / BACKOFF_CAP_S + 300)
    assert outage.healed_s < 600
    assert outage.check_everything_arrived() >= last.pending
    assert outage.data_frames() == 150


def segment(sequence: int) -> str:
    return segment_object_key(Stream.MAIN, SegmentId(sequence, 1, b"writerAB"))


def traced_bytes() -> int:
    return tracemalloc.get_traced_memory()[0]


@pytest.fixture
def traced() -> AsyncIterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_an_object_that_waits_takes_400_bytes(traced: None) -> None:
    before = traced_bytes()
    queue = UploadQueue()
    for sequence in range(MANY):
        queue.offer(Item(segment(sequence), 1 << 24, sequence * 10**10, None))
    assert (traced_bytes() - before) / MANY < 400


@pytest.mark.parametrize("stuck", ["conflict", "withheld", "parked", "unconfirmed"])
def test_one_object_that_cannot_go_keeps_no_other_in_memory(traced: None, stuck: str) -> None:
    queue = UploadQueue()
    queue.offer(Item(segment(0), 16, 1, None))
    item = queue.pop()
    assert item is not None
    if stuck == "parked":
        queue.park(item)
    else:
        queue.settle_put(item)
        if stuck == "conflict":
            queue.settle_conflict(item)
        elif stuck == "withheld":
            queue.withhold(item.key)
    held = HeldKeys()
    before = traced_bytes()
    for sequence in range(1, 10_000):
        queue.offer(Item(segment(sequence), 16, 1 + sequence, None))
        item = queue.pop()
        assert item is not None and item.key == segment(sequence)
        queue.settle_put(item)
        queue.remove(item.key)
        held.add(item.key)
        assert queue.oldest_ns() == 1
    assert traced_bytes() - before < MIB
    assert len(queue) == 1 and len(held) == 9_999


@asynccontextmanager
async def cache_of(log: LongLog, held: HeldKeys) -> AsyncIterator[SegmentCache]:
    """A cache that may keep nothing, of an index that is settled."""

    async def settle() -> int:
        return (log.count + 1) << 20

    world = log.world
    cache = SegmentCache(
        world.disk, SpaceGuard(world.disk, world.clock), world.offload, limit_bytes=0,
        is_held=held.__contains__, settle_index=settle, on_removed=lambda path: None,
    )  # fmt: skip
    held.on_change = cache.judge
    yield cache


async def test_a_file_of_the_cache_takes_400_bytes(autojump_clock: MockClock, tmp_path: Path) -> None:
    log = LongLog(tmp_path, segments=20_000)
    log.disk.listed["objects/segments"] = {key.rpartition("/")[2] for key in log.segment_keys()}
    held = HeldKeys(log.segment_keys())
    async with cache_of(log, held) as cache:
        tracemalloc.start()
        await cache.load()
        await cache._settle()
        taken = traced_bytes()
        tracemalloc.stop()
        assert cache.removable_bytes() == cache.size_bytes > 0
        assert taken / log.count < 400


async def test_what_may_go_is_what_all_stores_hold(autojump_clock: MockClock, tmp_path: Path) -> None:
    """In whatever order it turns out: the sum is right, and nothing else is removed."""
    log = LongLog(tmp_path, segments=50)
    log.disk.listed["objects/segments"] = {key.rpartition("/")[2] for key in log.segment_keys()}
    keys, held = log.segment_keys(), HeldKeys()
    size_bytes = log.disk.allocated_bytes("objects/" + keys[0])
    async with cache_of(log, held) as cache:
        await cache.load()
        assert (cache.size_bytes, cache.removable_bytes()) == (50 * size_bytes, 0)
        for key in keys[10:30]:
            held.add(key)
        assert cache.removable_bytes() == 0, "the index is not settled"
        await cache._settle()
        assert cache.removable_bytes() == 20 * size_bytes
        for key in keys[10:15]:
            held.discard(key)
        held.add(keys[0])
        assert cache.removable_bytes() == 16 * size_bytes
        cache.used("objects/" + keys[20])
        cache._limit_bytes = 36 * size_bytes
        await cache.shrink()
        gone = [key for key in keys if key.rpartition("/")[2] not in log.disk.listed["objects/segments"]]
        assert gone == [key for key in (keys[0], *keys[15:30]) if key != keys[20]][: len(gone)]
        assert len(gone) == 14 and cache.removable_bytes() == 2 * size_bytes
        for key in keys[10:15]:
            held.add(key)
        cache._limit_bytes = 0
        await cache.shrink()
        left = {key.rpartition("/")[2] for key in keys if key not in held}
        assert log.disk.listed["objects/segments"] == left
        assert (cache.removable_bytes(), cache.size_bytes) == (0, len(left) * size_bytes)


class Steps(trio.abc.Instrument):
    """The most that a cache judged in one step."""

    def __init__(self, cache: SegmentCache, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self._now = 0
        judge = cache._judge

        def counting(*arguments: Any) -> None:
            self._now += 1
            self.most = max(self.most, self._now)
            judge(*arguments)

        monkeypatch.setattr(cache, "_judge", counting)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._now = 0


async def test_the_oldest_is_looked_for_in_steps(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LongLog(tmp_path, segments=5000)
    log.disk.listed["objects/segments"] = {key.rpartition("/")[2] for key in log.segment_keys()}
    keys = log.segment_keys()
    held = HeldKeys(keys)
    async with cache_of(log, held) as cache:
        await cache.load()
        await cache._settle()
        for _ in range(5):
            for key in keys:
                held.discard(key)
                held.add(key)
        assert len(cache._oldest) <= 2 * log.count + 2000
        for key in (*keys[1:], keys[0]):
            cache.used(f"objects/{key}")
        steps = Steps(cache, monkeypatch)
        trio.lowlevel.add_instrument(steps)
        cache.judge_all()
        cache._limit_bytes = cache.size_bytes - 1
        await cache.shrink()
        trio.lowlevel.remove_instrument(steps)
        assert steps.most <= PAGE + 10
        left = log.disk.listed["objects/segments"]
        assert [key for key in keys if key.rpartition("/")[2] not in left] == [keys[1]]


async def test_other_stores_may_count(autojump_clock: MockClock, tmp_path: Path) -> None:
    log = LongLog(tmp_path, segments=5)
    log.disk.listed["objects/segments"] = {key.rpartition("/")[2] for key in log.segment_keys()}
    async with cache_of(log, HeldKeys()) as cache:
        await cache.load()
        await cache._settle()
        cache._is_held = lambda key: True
        assert cache.removable_bytes() == 0
        cache.judge_all()
        cache._limit_bytes = 1 << 50
        await cache.shrink()
        assert cache.removable_bytes() == cache.size_bytes > 0
        cache._is_held = lambda key: False
        cache._limit_bytes = 0
        await cache.shrink()
        assert len(log.disk.listed["objects/segments"]) == 5, "each is judged once more before it goes"
