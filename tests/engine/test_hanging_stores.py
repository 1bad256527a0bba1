"""A store that takes requests and never answers delays a mount by one deadline, however often it is asked."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.stores import ONCE
from mirrorfs.engine.fetch import FAILED_FOR_LONGEST_S, FAILED_FOR_S, PATIENCE_S, Ciphers, Fetcher
from mirrorfs.engine.guarded_store import CHECK_DEADLINE_S, SILENT_S, GuardedStore
from mirrorfs.engine.hedge import HEDGE_S
from mirrorfs.engine.read_ahead import Place
from mirrorfs.engine.retry import RetryingStore
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import StoreUnavailable, UnknownOutcome
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import ObjectInfo, ObjectKey, ObjectVersion, Sealed, Store
from tests.sim.world import InlineOffload
from tests.support.machine import read_file, write_file
from tests.support.store_memory import MemoryStore
from tests.support.store_simulated import SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEADER, KEY_SET, KEYS

T = TypeVar("T")
SAID = (
    "cannot be listed", "cannot be read", "cannot be asked", "not held yet", "is falling behind",
    "could not be given back",
)  # fmt: skip


class HangingStore(SimulatedStore):
    """Takes requests and, while it hangs, never answers."""

    hangs = False

    async def _request(self, effect: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
        if self.hangs:
            await trio.sleep_forever()
        return await super()._request(effect, writes=writes)


class Pc(VirtualPc):
    """A PC that makes its stores anew for each mount, as a process does."""

    def __init__(self, root: Path) -> None:
        self.places = [HangingStore(entry.name, seed=1) for entry in HEADER.stores]
        for place, entry in zip(self.places, HEADER.stores, strict=True):
            instance = Instance(store=entry.name, instance=entry.instance)
            place.objects[INSTANCE_KEY] = seal_control(instance, keys=KEYS, seed=KEY_SET.writer)
        super().__init__(root, [])
        self.restart()

    def restart(self) -> None:
        self.stores = [
            guarded(place, entry.instance) for place, entry in zip(self.places, HEADER.stores, strict=True)
        ]


def guarded(place: SimulatedStore, instance: bytes) -> GuardedStore:
    return GuardedStore(
        RetryingStore(place, random=random.Random(5).random, policy=ONCE),
        instance=instance,
        keys=KEYS,
        public_key=HEADER.public_keys.writer,
        clock=TrioClock(),
    )


@pytest.mark.expects_warnings(*SAID)
@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_mount_waits_once(count: int, tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Pc(tmp_path)
    async with it.mounted() as volume:
        inode = await write_file(volume, b"a", b"x" * 1000)
    it.restart()
    for place in it.places[:count]:
        place.hangs = True
    began_s = trio.current_time()
    async with it.mounted(wait=False) as volume:
        assert trio.current_time() - began_s < (CHECK_DEADLINE_S + 5 if count else 5)
        assert await read_file(volume, inode) == b"x" * 1000
        await write_file(volume, b"b", b"y" * 1000)
        for place in it.places:
            place.hangs = False
        # Nobody is to wait much longer for a store that is back than for one that was never away.
        with trio.fail_after(2 * SILENT_S + CHECK_DEADLINE_S):
            await volume.flush()


@pytest.mark.expects_warnings(*SAID)
@pytest.mark.parametrize("after_s", [0.2, 1.0, 2.0, 4.0])
async def test_a_store_that_begins_to_hang_during_the_mount(
    after_s: float, tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Pc(tmp_path)
    async with it.mounted() as volume:
        await write_file(volume, b"a", b"x" * 1000)
    it.restart()
    for place in it.places:
        place.faults = place.faults.__class__(latency_min_s=0.1, latency_max_s=0.1)
    began_s = trio.current_time()

    async def hang() -> None:
        await trio.sleep(after_s)
        it.places[0].hangs = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        async with it.mounted(wait=False):
            # One deadline of the store's own, and one of the look that finds out that it hangs.
            assert trio.current_time() - began_s < 60 + CHECK_DEADLINE_S + 10


# --- the guard -------------------------------------------------------------------------------


@pytest.fixture
def place() -> HangingStore:
    entry = HEADER.stores[0]
    store = HangingStore(entry.name, seed=1)
    instance = Instance(store=entry.name, instance=entry.instance)
    store.objects[INSTANCE_KEY] = seal_control(instance, keys=KEYS, seed=KEY_SET.writer)
    return store


async def took_s(ask: Callable[[], Awaitable[object]]) -> float:
    began_s = trio.current_time()
    with pytest.raises((StoreUnavailable, UnknownOutcome)):
        await ask()
    return trio.current_time() - began_s


async def test_a_silent_store_is_left_alone_for_a_while(
    place: HangingStore, autojump_clock: MockClock
) -> None:
    store = guarded(place, HEADER.stores[0].instance)
    place.hangs = True
    assert await took_s(lambda: store.list("")) == pytest.approx(CHECK_DEADLINE_S)
    place.hangs = False
    for _ in range(10):
        assert await took_s(store.probe) == 0
    await trio.sleep(SILENT_S)
    await store.list("")


async def test_all_who_ask_at_once_wait_once(place: HangingStore, autojump_clock: MockClock) -> None:
    store = guarded(place, HEADER.stores[0].instance)
    place.hangs = True
    took: list[float] = []

    async def ask() -> None:
        took.append(await took_s(lambda: store.list("")))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert took == pytest.approx([CHECK_DEADLINE_S] * 20)


async def test_a_store_that_fell_silent_is_looked_at_first(
    place: HangingStore, autojump_clock: MockClock
) -> None:
    store = guarded(place, HEADER.stores[0].instance)
    await store.list("")
    place.hangs = True
    assert await took_s(lambda: store.list("")) == pytest.approx(ONCE.deadline_s)
    assert await took_s(lambda: store.list("")) == pytest.approx(CHECK_DEADLINE_S)
    assert await took_s(lambda: store.list("")) == 0


async def test_one_object_that_hangs_says_nothing_of_the_store(
    place: HangingStore, autojump_clock: MockClock
) -> None:
    store = guarded(place, HEADER.stores[0].instance)
    await store.list("")
    place.hangs = True
    assert await took_s(lambda: store.put(ObjectKey("segments/x"), Sealed(b"x"))) >= ONCE.deadline_s
    place.hangs = False
    await store.list("")


async def test_who_fails_at_once_is_asked_again_at_once(
    place: HangingStore, autojump_clock: MockClock
) -> None:
    store = guarded(place, HEADER.stores[0].instance)
    place.outage = True
    for _ in range(3):
        assert await took_s(lambda: store.list("")) == 0
    place.outage = False
    await store.list("")


# --- reading -----------------------------------------------------------------------------------

KEY = segment_object_key(Stream.MAIN, SegmentId(1, 1, b"writerAB"))
RUN = [Place(0, Stream.MAIN, 1, 0, 0, 100)]


class PlainFetcher(Fetcher):
    """Takes what the stores send for the frame; remembers which one sent it."""

    sent_by = ""

    async def _open(
        self,
        store: Store,
        key: str,
        run: Sequence[Place],
        start: int,
        end: int,
        version: ObjectVersion | None,
    ) -> tuple[list[bytes], dict[int, bytes]]:
        data = await store.get_range(ObjectKey(key), offset=start, size_bytes=end - start, version=version)
        self.sent_by = store.name
        return [data], {}


class Reading:
    """A reader of two stores."""

    def __init__(self) -> None:
        self.places = [HangingStore(entry.name, seed=1) for entry in HEADER.stores]
        for place, entry in zip(self.places, HEADER.stores, strict=True):
            instance = Instance(store=entry.name, instance=entry.instance)
            place.objects[INSTANCE_KEY] = seal_control(instance, keys=KEYS, seed=KEY_SET.writer)
            place.objects[KEY] = bytes(100)
        stores = [
            guarded(place, entry.instance) for place, entry in zip(self.places, HEADER.stores, strict=True)
        ]
        self.fetcher = PlainFetcher(
            Ciphers(KEYS, load_public_key(HEADER.public_keys.writer)),
            InlineOffload(random.Random(1)),
            stores=lambda: stores,
            ranges=None,
            on_bad_copy=lambda store, key: None,
        )

    async def read_s(self) -> float:
        """How long a read takes."""
        began_s = trio.current_time()
        assert await self.fetcher.load(KEY, RUN, size_bytes=100) == [bytes(100)]
        return trio.current_time() - began_s

    async def slow_reads_s(self, *, for_s: float) -> list[float]:
        """How long those took that took more than a second, of one a second."""
        end_s, took_s = trio.current_time() + for_s, []
        while trio.current_time() < end_s:
            took_s.append(await self.read_s())
            await trio.sleep(1)
        return [one for one in took_s if one > 1]


async def test_a_store_that_hangs_holds_readers_up_ever_more_seldom(autojump_clock: MockClock) -> None:
    it = Reading()
    first, second = (place.name for place in it.places)
    assert await it.read_s() == 0 and it.fetcher.sent_by == first
    it.places[0].hangs = True
    slow_s = await it.slow_reads_s(for_s=600)
    # Tried after 30, 60, 120, 240 s, each time by one reader.
    assert len(slow_s) == 5 and max(slow_s) < HEDGE_S + 0.1
    assert it.fetcher.sent_by == second
    assert len(await it.slow_reads_s(for_s=1200)) <= 1200 / FAILED_FOR_LONGEST_S + 1
    it.places[0].hangs = False
    assert await it.slow_reads_s(for_s=FAILED_FOR_LONGEST_S + SILENT_S) == []
    assert it.fetcher.sent_by == first
    it.places[0].hangs = True
    await it.read_s()
    await trio.sleep(FAILED_FOR_S + SILENT_S)
    it.places[0].hangs = False
    await it.read_s()
    assert it.fetcher.sent_by == first, "it was well in between: what it did before is forgotten"


async def test_many_readers_of_a_store_that_hangs_are_one_failure(autojump_clock: MockClock) -> None:
    it = Reading()
    await it.read_s()
    it.places[0].hangs = True
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(it.read_s)
    it.places[0].hangs = False
    await trio.sleep(FAILED_FOR_S)
    await it.read_s()
    assert it.fetcher.sent_by == it.places[0].name


async def test_a_reader_who_leaves_early_says_nothing_of_the_store(autojump_clock: MockClock) -> None:
    it = Reading()
    await it.read_s()
    it.places[0].hangs = True
    for _ in range(10):
        with trio.move_on_after(HEDGE_S / 2) as scope:
            await it.read_s()
        assert scope.cancelled_caught
    it.places[0].hangs = False
    await it.read_s()
    assert it.fetcher.sent_by == it.places[0].name


@pytest.mark.expects_warnings("cannot be reached")
async def test_a_short_break_of_the_line_is_soon_forgotten(autojump_clock: MockClock) -> None:
    it = Reading()
    await it.read_s()
    for place in it.places:
        place.outage = True

    async def mend() -> None:
        await trio.sleep(PATIENCE_S / 2)
        it.places[1].outage = False
        await trio.sleep(PATIENCE_S / 2)
        it.places[0].outage = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        await it.read_s()
    assert it.fetcher.sent_by == it.places[1].name
    await trio.sleep(FAILED_FOR_S)
    await it.read_s()
    assert it.fetcher.sent_by == it.places[0].name


# --- listing ---------------------------------------------------------------------------------


class SlowStore(MemoryStore):
    def __init__(self, name: str, delay_s: float) -> None:
        super().__init__(name, {segment_object_key(Stream.MAIN, SegmentId(1, 1, b"writerAB")): b""})
        self.delay_s = delay_s
        self.fails = False

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        await trio.sleep(self.delay_s)
        if self.fails:
            raise StoreUnavailable(f"Store {self.name} is away.")
        return await super().list(prefix, start_after=start_after)


@pytest.mark.expects_warnings("Store b cannot be listed")
async def test_stores_are_listed_at_once_and_read_in_their_order(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    stores = [SlowStore("a", 3.0), SlowStore("b", 2.0), SlowStore("c", 1.0)]
    stores[1].fails = True
    pc = VirtualPc(tmp_path, stores)
    segments = Segments(Stream.MAIN, disk=None, offload=pc.world.offload, stores=stores)
    began_s = trio.current_time()
    assert await segments.look() == ["b"]
    assert trio.current_time() - began_s == pytest.approx(3.0)
    (found,) = await segments.candidates(1)
    assert [where async for where, _ in segments.copies(found)] == ["store a", "store c"]
