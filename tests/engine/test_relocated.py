"""Relocated segments in a mounted volume: read, cached, looked after and mended like those of the log."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.engine.local import World
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.reader import FrameCache
from mirrorfs.engine.restore import Restore
from mirrorfs.engine.scrub import DEEP, LOCAL, SIZES, BadObject, Fault
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ReadFailed, StoreDenied
from mirrorfs.format.ids import Stream
from mirrorfs.format.retention import Collected, pack_numbers
from mirrorfs.ports import ObjectKey, ObjectVersion
from tests.sim.world import InlineOffload
from tests.support.built_volume import WRITER_KEY
from tests.support.machine import Machine, read_file, write_file
from tests.support.relocation import Moved, copy_frames, forget_old, let_go, relocate, segments_of
from tests.support.store_memory import MemoryStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEYS

SIZE = 300_000


class Meddled(MemoryStore):
    """Has something else happen before it answers the next read, once."""

    meddle = staticmethod(lambda: None)
    reads = 0
    keeps = False

    async def delete(self, key: ObjectKey) -> None:
        if self.keeps:
            raise StoreDenied(f"Store {self.name} does not allow deleting.")
        await super().delete(key)

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        self.reads += 1
        meddle, self.meddle = self.meddle, lambda: None  # type: ignore[method-assign,assignment]
        meddle()
        return await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)


@pytest.fixture
def stores() -> list[Meddled]:
    return [Meddled("home"), Meddled("s3")]


def machine(root: Path, stores: list[Meddled], *, cache_bytes: int = 1 << 30) -> Machine:
    world = World(LocalDisk(root), TrioClock(), random.Random(1).randbytes, InlineOffload(random.Random(1)))
    return Machine(root, stores, cache_bytes=cache_bytes, world=world)


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


async def fill(volume: MountedVolume, count: int = 3) -> list[int]:
    """Files, each in a segment of its own."""
    inodes = []
    for number in range(count):
        inodes.append(await write_file(volume, b"%d" % number, contents(number)))
        await volume.flush()
    return inodes


async def check_all(volume: MountedVolume, inodes: list[int]) -> None:
    volume._local.reader.cache = FrameCache()
    for number, inode in enumerate(inodes):
        assert await read_file(volume, inode) == contents(number)


async def moved_first(volume: MountedVolume, inodes: list[int]) -> Moved:
    """The first two files lie in a relocated segment now."""
    index = volume._local.index
    return await relocate(volume, sorted({one for inode in inodes[:2] for one in segments_of(index, inode)}))


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


# --- reading ---------------------------------------------------------------------------------


async def test_what_was_moved_is_read_where_it_lies_now(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        assert moved.key.startswith("relocated/") and len(moved.old) == 2
        forget_old(volume, moved, *(store.objects for store in stores))
        await check_all(volume, inodes)
        assert [store.reads for store in stores] == [0, 0]
    async with pc.mounted() as volume:
        await check_all(volume, inodes)
        assert [store.reads for store in stores] == [0, 0]


async def test_one_that_was_evicted_is_read_from_a_store(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores, cache_bytes=0)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        forget_old(volume, moved, *(store.objects for store in stores))
        await volume._local.cache.shrink()
        assert not (tmp_path / "objects" / moved.key).exists()
        await check_all(volume, inodes)
        assert sum(store.reads for store in stores) > 0


async def test_one_that_a_store_lacks_stays_here(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores, cache_bytes=0)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        volume._stores[1].mirror.forget(moved.key)
        await volume._local.cache.shrink()
        assert (tmp_path / "objects" / moved.key).exists()
    async with pc.mounted() as volume:
        # Taken stock of by the next mount, which sends it again.
        await volume.flush()
        await volume._local.cache.shrink()
        assert not (tmp_path / "objects" / moved.key).exists()
        assert stores[1].objects[moved.key] == stores[0].objects[moved.key]


async def test_parts_of_both_streams_are_kept_apart(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    """One writer's segments of the two streams may have one number."""
    pc = machine(tmp_path, stores, cache_bytes=0)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        last = segments_of(volume._local.index, inodes[2])[0]
        first = segments_of(volume._local.index, inodes[0])
        moved = await relocate(volume, first, number=last)
        forget_old(volume, moved, *(store.objects for store in stores))
        await write_file(volume, b"so that it is not the newest", b"x")
        await volume.flush()
        await volume._local.cache.shrink()
        volume._local.cache._limit_bytes = 1 << 30
        await check_all(volume, inodes)
        before = [store.reads for store in stores]
        assert sum(before) >= 2
        await check_all(volume, inodes)
        assert [store.reads for store in stores] == before


@pytest.mark.parametrize("both", [False, True])
async def test_what_is_moved_while_a_store_is_asked_for_it(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled], both: bool
) -> None:
    """The old object is gone when the store looks for it: no copy is at fault, and nobody sees an error."""
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        index, state = volume._local.index, volume._local.state
        sequences = segments_of(index, inodes[0])
        record, key = await copy_frames(volume, sequences, number=0)
        if both:  # the new place is in the stores only
            data = (tmp_path / "objects" / key).read_bytes()
            for store in stores:
                store.objects[key] = data
            (tmp_path / "objects" / key).unlink()
        row = index.get_segment(sequences[0])
        assert row is not None
        old = next(name for name in stores[0].objects if name.startswith(f"segments/{sequences[0]:016x}"))
        (tmp_path / "objects" / old).unlink()

        def collect() -> None:
            state.record(record)
            let_go(volume, sequences)
            state.record(Collected(Stream.MAIN, 1, pack_numbers(sequences)))
            for store in stores:
                del store.objects[old]
                store.meddle = lambda: None  # type: ignore[method-assign]

        for store in stores:
            store.meddle = collect  # type: ignore[method-assign]
        await check_all(volume, inodes)
        assert volume.mender._suspects == {}


@pytest.mark.expects_warnings("No good copy", "s3, object", "home, object", "is missing")
async def test_what_is_gone_and_was_not_moved_is_an_error(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted(wait=False) as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        volume._local.reader.close()
        (tmp_path / "objects" / moved.key).unlink()
        for store in stores:
            del store.objects[moved.key]
        volume._local.reader.cache = FrameCache()
        with pytest.raises(ReadFailed):
            await read_file(volume, inodes[0])
        assert await read_file(volume, inodes[2]) == contents(2)


# --- looking after them ----------------------------------------------------------------------


async def test_a_scrub_looks_at_them_and_not_at_what_was_collected(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        first, second = moved.old
        del stores[0].objects[first]
        stores[1].objects[second] = flip(stores[1].objects[second])
        (tmp_path / "objects" / first).write_bytes(b"")
        await volume.flush()
        report = await volume.scrubber.run(DEEP)
        assert report.bad == [] and not report.unreachable
        expected = {key for key in stores[0].objects if key != "lease"} - {second}
        assert moved.key in expected
        assert [place.read for place in report.places] == [len(expected)] * 3
        # Nor is what an earlier look found brought back.
        old = BadObject("home", first, Fault.MISSING, "the store does not have it.")
        assert await volume.mender.mend([old]) == {old: None}
        volume.mender.suspect("s3", second)
        assert volume.mender._suspects == {}
        await volume.flush()
        assert first not in stores[0].objects
        for one in volume._stores:
            assert (await one.delete(moved.old)).gone == tuple(moved.old)
    async with pc.mounted() as volume:
        assert (tmp_path / "objects" / second).exists()
        await volume.flush()
        for store in stores:
            assert not store.objects.keys() & set(moved.old)
        assert (await volume.scrubber.run(DEEP)).bad == []


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize(
    ("place", "harm"),
    [("s3", "missing"), ("s3", "flip"), ("s3", "short"), (LOCAL, "flip"), (LOCAL, "short")],
)
async def test_harm_to_one_is_found_and_mended(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled], harm: str, place: str
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        path = tmp_path / "objects" / moved.key
        good = path.read_bytes()
        if place == LOCAL:
            path.write_bytes(flip(good) if harm == "flip" else good[:-7])
        elif harm == "missing":
            del stores[1].objects[moved.key]
        else:
            stores[1].objects[moved.key] = flip(good) if harm == "flip" else good[:-7]
        report = await volume.scrubber.run(DEEP if harm == "flip" else SIZES)
        fault = {"missing": Fault.MISSING, "flip": Fault.DAMAGED, "short": Fault.SIZE}[harm]
        assert [(bad.place, bad.key, bad.fault) for bad in report.bad] == [(place, moved.key, fault)]
        assert list((await volume.mender.mend(report.bad)).values()) == [None]
        await volume.flush()
        assert path.read_bytes() == good == stores[1].objects[moved.key] == stores[0].objects[moved.key]
        assert (await volume.scrubber.run(DEEP)).bad == []


@pytest.mark.expects_warnings("is damaged")
async def test_one_that_is_damaged_everywhere_is_put_together(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        path = tmp_path / "objects" / moved.key
        good = path.read_bytes()
        path.unlink()
        stores[0].objects[moved.key] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
        stores[1].objects[moved.key] = good[:-5000] + bytes([good[-5000] ^ 1]) + good[-4999:]
        report = await volume.scrubber.run(DEEP)
        assert {bad.place for bad in report.bad} == {"home", "s3"}
        assert set((await volume.mender.mend(report.bad)).values()) == {None}
        await volume.flush()
        assert path.read_bytes() == good == stores[1].objects[moved.key] == stores[0].objects[moved.key]


async def test_nothing_here_is_kept_of_what_is_removed(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        cache = volume._local.cache
        await cache.ranges.keep(moved.old[0], {0: b"part"})
        before = cache.size_bytes
        await cache.remove(moved.old)
        assert before - cache.size_bytes > 2 * SIZE
        assert not any((tmp_path / "objects" / key).exists() for key in moved.old)
        assert list((tmp_path / "ranges").iterdir()) == []
        await check_all(volume, inodes)


async def test_a_machine_that_lost_its_cache_fetches_them_ahead(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores, cache_bytes=0)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        forget_old(volume, moved, *(store.objects for store in stores))
        await volume._local.cache.shrink()
    pc.cache_bytes, pc.prefetch = 1 << 30, True
    async with pc.mounted() as volume:
        await trio.sleep(60)
        assert volume._local.cache.has_whole(moved.key, len(stores[0].objects[moved.key]))
        before = [store.reads for store in stores]
        await check_all(volume, inodes)
        assert [store.reads for store in stores] == before


async def test_what_a_store_keeps_takes_no_room_here(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled]
) -> None:
    pc = machine(tmp_path, stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
        volume.pruner.sweeper.grace_ns = 0
        for keeps in (True, False):
            stores[1].keeps = keeps
            report = PruneReport()
            await volume.pruner.sweeper.run(report, lambda what, done, total: None)
            assert report.denied == ["s3"] * keeps
            assert not any((tmp_path / "objects" / key).exists() for key in moved.old)
            assert not stores[0].objects.keys() & set(moved.old)
            assert stores[1].objects.keys() & set(moved.old) == (set(moved.old) if keeps else set())
            assert len(volume._local.index.list_condemned(after=(0, 0), limit=9)) == 2 * keeps
            assert (await volume.scrubber.run(DEEP)).bad == []
            await check_all(volume, inodes)


# --- restoring -------------------------------------------------------------------------------


@pytest.mark.expects_warnings("frame does not verify", "the object holds another segment")
@pytest.mark.parametrize("named", [True, False])
async def test_restoring_reads_the_segment_that_the_index_names(
    autojump_clock: MockClock, tmp_path: Path, stores: list[Meddled], named: bool
) -> None:
    """Not what a writer that was taken over left under the same number; without a name all are tried."""
    pc = machine(tmp_path / "pc", stores)
    async with pc.mounted() as volume:
        inodes = await fill(volume)
        moved = await moved_first(volume, inodes)
    for key in moved.old:  # the log is there, and nothing else of them
        data = stores[0].objects[key]
        stores[0].objects[key] = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
    zombie = "relocated/0000000000000000-000000ff-" + "ab" * 8
    stores[0].objects[zombie] = stores[0].objects[moved.key][:-9] + b"\0" * 9
    files = SqliteIndexFiles(str(tmp_path / "index"), bytes(32), digest_key=bytes(32))
    restore = Restore([stores[0]], files, InlineOffload(random.Random(1)), KEYS, WRITER_KEY)
    plan = await restore.plan()
    if not named:
        assert restore._index is not None
        restore._index.delete_relocated(0)
        restore._index.commit()
    report = await restore.execute(RestoreDirectory(str(tmp_path / "dest")))
    restore.close()
    assert report.complete and plan.damage is None
    for number in range(3):
        assert (tmp_path / "dest" / str(number)).read_bytes() == contents(number)
    assert (zombie in {key for _, key in report.bad_objects}) is not named
