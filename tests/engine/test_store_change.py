"""Stores come and go while a volume is mounted: simulated stores, a virtual clock, the engine as it is."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.lease_documents import next_epoch
from mirrorfs.engine.local import World
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.scrub import DEEP
from mirrorfs.engine.store_tasks import StoreChange
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.engine.volume_status import VolumeStatus
from mirrorfs.errors import ChainError, InUseError
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, Lease, open_lease, seal_control
from mirrorfs.format.header import StoreEntry
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.ports import Store
from tests.sim.world import InlineOffload
from tests.support.machine import Machine, read_file, write_file
from tests.support.relocation import forget_old, relocate
from tests.support.store_simulated import Faults, SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import HEADER, KEY_SET, KEYS, WRITER

HOME, S3 = HEADER.stores
USB = StoreEntry(name="usb", instance=b"\x22" * 16)
NEW_S3 = StoreEntry(name="s3", instance=b"\x23" * 16)
SLOW = Faults(latency_min_s=1.0, latency_max_s=3.0)
SIZE = 3_000_000


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def place(entry: StoreEntry) -> SimulatedStore:
    """An empty store that was claimed for the volume."""
    store = SimulatedStore(entry.name, seed=1)
    document = seal_control(
        Instance(store=entry.name, instance=entry.instance), keys=KEYS, seed=KEY_SET.writer
    )
    store.objects[INSTANCE_KEY] = document
    return store


def lease_of(store: SimulatedStore) -> Lease:
    return open_lease(store.objects[LEASE_KEY], keys=KEYS, public_key=KEY_SET.public_keys().writer)


class Practice(Machine):
    """A machine with a virtual clock, whose stores change."""

    def __init__(self, root: Path, stores: Sequence[Store], **options: object) -> None:
        world = World(
            LocalDisk(root), TrioClock(), random.Random(1).randbytes, InlineOffload(random.Random(1))
        )
        super().__init__(root, stores, world=world, **options)  # type: ignore[arg-type]

    async def change(
        self, volume: MountedVolume, *entries: StoreEntry, opens: Sequence[SimulatedStore] = ()
    ) -> None:
        """As the session does it, once `mirrorfs store` has written header and configuration."""
        if tuple(entries) != self.header.stores:
            self.next_header(*entries)
        by_name = {store.name: store for store in opens}
        await volume.change_stores(
            StoreChange(
                header=self.header,
                header_bytes=self.header_bytes,
                rotating=self.rotating,
                open_store=lambda entry: by_name[entry.name],
            )
        )
        known = {store.name: store for store in self.stores}
        self.stores = [by_name.get(entry.name) or known[entry.name] for entry in entries]


@pytest.fixture
def stores() -> list[SimulatedStore]:
    return [place(HOME), place(S3)]


@pytest.fixture
def machine(tmp_path: Path, stores: list[SimulatedStore]) -> Practice:
    return Practice(tmp_path / "machine", stores)


async def fill(volume: MountedVolume, first: int, count: int) -> list[int]:
    return [
        await write_file(volume, b"file %d" % number, contents(number))
        for number in range(first, first + count)
    ]


def generations(store: SimulatedStore) -> set[int]:
    """Header generations that the segments of a store name."""
    found = set()
    for key, data in store.objects.items():
        if key.startswith(("segments/", "checkpoints/")):
            found.add(int.from_bytes(data[:HEADER_SIZE][36:40], "little"))
    return found


async def alone(lost: Practice, store: SimulatedStore, numbers: range) -> None:
    """A new machine with this store alone shows all these files."""
    store.faults = Faults()
    machine = Practice(lost.root.with_name("alone"), [store])
    machine.header, machine.header_bytes = lost.header, lost.header_bytes
    async with machine.mounted(wait=False) as volume:
        for number in numbers:
            inode = volume.filesystem.lookup(1, b"file %d" % number).inode
            assert await read_file(volume, inode) == contents(number), number


def state_of(volume: MountedVolume, name: str) -> StateWord:
    return next(store.state for store in volume.status().stores if store.store == name)


async def until(condition: Callable[[], bool], *, within_s: float) -> None:
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110 - what the engine is asked for has no event
            await trio.sleep(0.5)


# --- add -------------------------------------------------------------------------------------


async def test_who_judges_late_stores_hears_which_rotate(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    """What one alone has overrules nothing; and a store that does not rotate any more counts."""
    usb = place(USB)
    async with machine.mounted() as volume:
        taker = volume._tasks_of_stores._taker
        assert taker.rotating == frozenset()
        machine.rotating = frozenset({"usb"})
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        assert taker.rotating == {"usb"} and taker.places.keys() == {"home", "s3", "usb"}
        machine.rotating = frozenset()
        await machine.change(volume, HOME, S3, USB)
        assert taker.rotating == frozenset()
        await volume.flush()


async def test_a_store_is_added_while_files_are_written(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    usb = place(USB)
    usb.faults = SLOW
    async with machine.mounted() as volume:
        await fill(volume, 0, 8)
        await volume.flush()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill, volume, 8, 4)
            await machine.change(volume, HOME, S3, USB, opens=[usb])
        assert list(volume.instances) == ["home", "s3", "usb"]
        await volume.flush()
        ours = lease_of(stores[0])
        assert (lease_of(usb).writer, lease_of(usb).epoch) == (ours.writer, ours.epoch)
        await fill(volume, 12, 1)
        await volume.flush()
        assert state_of(volume, "usb") is StateWord.UP_TO_DATE
        assert (await volume.scrubber.run(DEEP)).bad == []
    assert {key for key in usb.objects if key != LEASE_KEY} >= {
        key for key in stores[0].objects if key not in (LEASE_KEY, INSTANCE_KEY)
    }
    assert generations(usb) == {1, 2}, "what is written from then on names the new header"
    await alone(machine, usb, range(13))


async def test_no_object_lies_where_its_header_is_missing(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    """At every moment, in every store: a segment of generation 2 only beside header 2."""
    usb = place(USB)
    for store in (*stores, usb):
        store.faults = SLOW
    async with machine.mounted() as volume:
        await fill(volume, 0, 2)

        async def watch() -> None:
            while True:
                for store in (*stores, usb):
                    headers = {int(key[7:15], 16) for key in store.objects if key.startswith("header/")}
                    assert generations(store) <= headers, store.name
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await machine.change(volume, HOME, S3, USB, opens=[usb])
            await fill(volume, 2, 3)
            await volume.flush()
            nursery.cancel_scope.cancel()
    assert generations(usb) == {1, 2}


async def test_what_only_another_store_has_is_fetched_from_there(
    tmp_path: Path, stores: list[SimulatedStore], autojump_clock: MockClock
) -> None:
    machine = Practice(tmp_path / "machine", stores, cache_bytes=0)
    async with machine.mounted() as volume:
        await fill(volume, 0, 12)
        await volume.flush()
        await volume._local.cache.shrink()
        held = {key for key in stores[0].objects if key.startswith("segments/")}
        local = {f"segments/{path.name}" for path in (machine.root / "objects" / "segments").iterdir()}
        assert held - local, "some are not here any more"
        new = place(NEW_S3)
        new.faults = SLOW
        await machine.change(volume, HOME, NEW_S3, opens=[new])
        # One store is left that holds everything: what it alone holds is not given up here.
        await fill(volume, 12, 4)
        await volume._local.cache.shrink()
        unsafe = [key for key in held | set(stores[0].objects) if key.startswith("segments/")]
        gone = [key for key in unsafe if not (machine.root / "objects" / key).exists()]
        assert set(gone) <= held - local, "nothing goes that only one store holds"
        reads_before = [volume.filesystem.lookup(1, b"file %d" % number).inode for number in range(12)]
        assert await read_file(volume, reads_before[3]) == contents(3)
        await volume.flush()
        report = await volume.scrubber.run(DEEP)
        assert report.bad == []
        assert not report.unreachable
    assert not [key for key in stores[1].objects if key.startswith("segments/") and key not in held], "left"
    await alone(machine, new, range(16))


@pytest.mark.expects_warnings("cannot be reached")
async def test_a_new_store_is_given_what_was_moved_and_nothing_that_was_collected(
    tmp_path: Path, stores: list[SimulatedStore], autojump_clock: MockClock
) -> None:
    machine = Practice(tmp_path / "machine", stores, cache_bytes=0)
    usb = place(USB)
    async with machine.mounted() as volume:
        inodes = await fill(volume, 0, 8)
        await volume.flush()
        first = volume._local.index.list_segments(from_sequence=0, limit=1)[0]
        moved = await relocate(volume, [first.sequence])
        forget_old(volume, moved, stores[0].objects)
        await volume.flush()
        await volume._local.cache.shrink()
        oldest_ns = volume._local.index.list_segments(from_sequence=1, limit=1)[0].first_ns
        usb.faults = SLOW
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        await until(lambda: any(key.startswith("segments/") for key in usb.objects), within_s=100)
        one = volume._tasks_of_stores.members.find("usb")
        assert one is not None and not one.filled
        queued = one.mirror._queue.item(moved.key)
        assert queued is not None and queued.written_ns == oldest_ns, "it counts as what it is: old"
        await volume.flush()
        assert usb.objects[moved.key] == stores[0].objects[moved.key]
        assert not usb.objects.keys() & set(moved.old)
        assert stores[1].objects.keys() >= set(moved.old), "though there is one that could be had"
        report = await volume.scrubber.run(DEEP)
        assert report.bad == [] and all(place.pending == 0 for place in report.places)
        for store in stores:
            store.outage = True
        volume._local.reader.cache = FrameCache()
        for number, inode in enumerate(inodes):
            assert await read_file(volume, inode) == contents(number)
        for store in stores:
            store.outage = False
    async with machine.mounted() as volume:
        await volume.flush()
        assert not usb.objects.keys() & set(moved.old) and not stores[0].objects.keys() & set(moved.old)


async def test_what_may_leave_the_cache_is_counted_anew(
    tmp_path: Path, stores: list[SimulatedStore], autojump_clock: MockClock
) -> None:
    machine = Practice(tmp_path / "machine", stores)
    async with machine.mounted() as volume:
        cache = volume._local.cache
        await fill(volume, 0, 6)
        await volume.flush()
        await cache._settle()
        both_hold = cache.removable_bytes()
        assert both_hold > 0
        new = place(NEW_S3)
        new.faults = SLOW
        await machine.change(volume, HOME, NEW_S3, opens=[new])
        await cache.shrink()
        assert not any(key.startswith("segments/") for key in new.objects)
        assert cache.removable_bytes() == 0, "one store alone holds it"
        await volume.flush()
        assert cache.removable_bytes() >= both_hold
        await machine.change(volume, HOME, opens=[])
        await cache.shrink()
        assert cache.removable_bytes() >= both_hold


@pytest.mark.expects_warnings("Store usb is full")
async def test_a_third_store_does_not_fill_the_local_disk(
    tmp_path: Path, stores: list[SimulatedStore], autojump_clock: MockClock
) -> None:
    machine = Practice(tmp_path / "machine", stores, cache_bytes=0)
    usb = place(USB)
    async with machine.mounted() as volume:
        await fill(volume, 0, 6)
        await volume.flush()
        usb.full = True
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        await fill(volume, 6, 6)
        for one in volume._stores[:2]:
            await one.mirror.wait_held()
        await volume._local.cache.shrink()
        assert len(list((machine.root / "objects" / "segments").iterdir())) <= 2
        usb.full = False
        await volume.flush()
    await alone(machine, usb, range(12))


async def test_a_flush_under_way_waits_for_the_new_store(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    usb = place(USB)
    usb.faults = SLOW
    async with machine.mounted() as volume:
        await fill(volume, 0, 4)
        stores[0].faults = SLOW
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush)
            await trio.sleep(0.5)
            await machine.change(volume, HOME, S3, USB, opens=[usb])
        assert all(not store.pending_count for store in volume.status().stores)
        assert {key for key in usb.objects if key.startswith("segments/")}


async def test_progress_of_one_store(autojump_clock: MockClock, machine: Practice) -> None:
    usb = place(USB)
    usb.faults = SLOW
    seen: list[int] = []

    def progress(status: VolumeStatus) -> None:
        seen.append(next(store.pending_bytes for store in status.stores if store.store == "usb"))

    async with machine.mounted() as volume:
        await fill(volume, 0, 10)
        await volume.flush()
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        await volume.wait_filled("usb", progress)
        assert next(store for store in volume.status().stores if store.store == "usb").pending_count == 0
    assert max(seen) > 10 * SIZE
    falling = seen[seen.index(max(seen)) :]
    # What the session itself still writes may come in between; no file does.
    assert all(later - earlier < SIZE for earlier, later in pairwise(falling))


@pytest.mark.expects_warnings("is empty, or its disk is not there", "after taking it; sending it again")
async def test_what_is_sent_to_a_place_that_was_emptied_does_not_count(
    autojump_clock: MockClock, tmp_path: Path, stores: list[SimulatedStore]
) -> None:
    """Emptied under a mount, and back: what went into the empty place in between is sent again."""
    guarded = GuardedStore(
        stores[0],
        instance=HOME.instance,
        keys=KEYS,
        public_key=KEY_SET.public_keys().writer,
        clock=SystemClock(),
    )
    machine = Practice(tmp_path / "machine", [guarded, stores[1]])
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        kept = dict(stores[0].objects)
        stores[0].wipe()
        await fill(volume, 1, 4)
        await trio.sleep(100)
        astray = set(stores[0].objects)
        assert any(key.startswith("segments/") for key in astray), "so quickly it is not noticed"
        stores[0].wipe()
        stores[0].objects.update(kept)
        await volume.flush()
        assert {key for key in stores[1].objects if key.startswith("segments/")} <= set(stores[0].objects)
    machine.stores = stores
    await alone(machine, stores[0], range(5))


async def test_a_store_is_filled_although_there_is_always_something_new(
    autojump_clock: MockClock, machine: Practice
) -> None:
    usb = place(USB)
    usb.faults = SLOW
    async with machine.mounted() as volume:
        await fill(volume, 0, 10)
        await volume.flush()
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        usb_state = volume._stores[2]
        await volume._tasks_of_stores.remember()
        assert not usb_state.filled
        for number in range(100):
            await write_file(volume, b"small %d" % number, b"x")
            await trio.sleep(1)
        assert usb_state.mirror.snapshot().pending_count
        await volume._tasks_of_stores.remember()
        assert usb_state.filled


# --- broken off ------------------------------------------------------------------------------


async def test_filling_goes_on_with_the_next_mount(
    autojump_clock: MockClock, machine: Practice, tmp_path: Path
) -> None:
    usb = place(USB)
    usb.faults = SLOW
    async with machine.mounted(wait=False) as volume:
        await fill(volume, 0, 10)
        await volume.flush()
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        await until(lambda: any(key.startswith("segments/") for key in usb.objects), within_s=200)
        # What is on the disk now is what a kill would leave.
        shutil.copytree(machine.root, tmp_path / "killed")
        left = dict(usb.objects)
    usb.objects.clear()
    usb.objects.update(left)
    headers = machine.header, machine.header_bytes
    machine = Practice(tmp_path / "killed", machine.stores)
    machine.header, machine.header_bytes = headers
    already = {key for key in usb.objects if key.startswith("segments/")}
    assert 0 < len(already) < 11
    async with machine.mounted() as volume:
        state = next(store for store in volume.status().stores if store.store == "usb")
        assert state.filling
        await volume.flush()
        await volume._tasks_of_stores.remember()
        state = next(store for store in volume.status().stores if store.store == "usb")
        assert not state.filling
    await alone(machine, usb, range(10))


async def test_the_same_change_again_is_no_change(autojump_clock: MockClock, machine: Practice) -> None:
    usb = place(USB)
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        before = list(volume._stores)
        await machine.change(volume, HOME, S3, USB)
        assert volume._stores == before
        await volume.flush()


async def test_an_older_header_changes_nothing(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    usb = place(USB)
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        old = machine.header, machine.header_bytes
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        newest = machine.header, machine.header_bytes
        machine.header, machine.header_bytes = old
        with pytest.raises(ChainError):
            await machine.change(volume, HOME, S3)
        machine.header, machine.header_bytes = newest
        assert list(volume.instances) == ["home", "s3", "usb"]
        await volume.flush()


@pytest.mark.expects_warnings("cannot be asked")
async def test_a_change_that_is_cancelled_while_the_store_is_asked(
    autojump_clock: MockClock, machine: Practice
) -> None:
    usb = place(USB)
    usb.faults = Faults(latency_min_s=50, latency_max_s=50)
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        with trio.move_on_after(5) as scope:
            await machine.change(volume, HOME, S3, USB, opens=[usb])
        assert scope.cancelled_caught
        assert list(volume.instances) == ["home", "s3"]
        usb.faults = Faults()
        await machine.change(volume, HOME, S3, USB, opens=[usb])
        await volume.flush()
        assert {key for key in usb.objects if key.startswith("segments/")}


# --- remove ----------------------------------------------------------------------------------


async def test_a_store_is_removed_and_comes_back(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    async with machine.mounted() as volume:
        await fill(volume, 0, 2)
        await volume.flush()
        await machine.change(volume, HOME)
        await until(lambda: lease_of(stores[1]).released, within_s=30)
        requests = stores[1].request_count
        await fill(volume, 2, 2)
        await volume.flush()
        await trio.sleep(1000)
        assert stores[1].request_count == requests, "nothing is asked of it any more"
        # Whoever has the place now removed something: what it was known to hold counts for nothing.
        lost = next(key for key in stores[1].objects if key.startswith("segments/"))
        stores[1].lose(lost)
        await machine.change(volume, HOME, S3, opens=[stores[1]])
        await volume.flush()
        assert lost in stores[1].objects
        assert not lease_of(stores[1]).released
    await alone(machine, stores[1], range(4))


async def test_it_counts_for_nothing_either_when_it_is_added_between_two_mounts(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    async with machine.mounted() as volume:
        await fill(volume, 0, 2)
        await volume.flush()
    both = machine.stores
    machine.next_header(HOME)
    machine.stores = both[:1]
    async with machine.mounted() as volume:
        await fill(volume, 2, 1)
        await trio.sleep(60)
    lost = next(key for key in stores[1].objects if key.startswith("segments/"))
    stores[1].lose(lost)
    machine.next_header(HOME, S3)
    machine.stores = both
    async with machine.mounted() as volume:
        await volume.flush()
        assert lost in stores[1].objects


async def test_a_store_that_hangs_can_be_removed_under_a_flush(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        stores[1].faults = Faults(latency_min_s=1e6, latency_max_s=1e6)
        await fill(volume, 1, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.flush)
            await trio.sleep(100)
            with trio.fail_after(100):
                await machine.change(volume, HOME)
        assert list(volume.instances) == ["home"]
        await trio.sleep(30)


# --- fencing ---------------------------------------------------------------------------------


async def test_a_place_with_a_later_epoch_is_not_taken(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    usb = place(USB)
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        lease = lease_of(stores[0])
        later = Lease(
            writer=WRITER, epoch=lease.epoch + 1, parent=b"", counter=0, released=True, period_ms=60_000,
            box=lease.box,
        )  # fmt: skip
        usb.objects[LEASE_KEY] = seal_control(later, keys=KEYS, seed=KEY_SET.writer)
        with pytest.raises(InUseError, match="mount it again"):
            await machine.change(volume, HOME, S3, USB, opens=[usb])
        assert list(volume.instances) == ["home", "s3"]
        await fill(volume, 1, 1)
        await volume.flush()
        assert volume.status().fenced is None
    machine.stores = [*stores, usb]
    with pytest.raises(ExceptionGroup) as refused:
        async with machine.mounted():
            pass
    assert refused.group_contains(InUseError, match="have not come to the stores")
    async with machine.mounted(take_over=True) as volume:
        await volume.flush()
        assert lease_of(usb).epoch == next_epoch([later], local=0)


async def test_a_fenced_volume_changes_no_stores(
    autojump_clock: MockClock, machine: Practice, stores: list[SimulatedStore]
) -> None:
    async with machine.mounted(wait=False) as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        volume._stores[1].lease._fenced = "Store s3 was taken over: by another."
        with pytest.raises(InUseError):
            await machine.change(volume, HOME)
        assert list(volume.instances) == ["home", "s3"]
