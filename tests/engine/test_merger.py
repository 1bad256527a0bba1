"""Merging what lies in very many pieces: the bytes, the past and the times stay as they are."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.core.extents import unpack_extents
from mirrorfs.core.retention import Policy
from mirrorfs.engine.merged_files import without_merged
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.tree_diff import How, TreeDiff
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.ports import Index
from tests.engine.test_pruner import look_back
from tests.support.machine import FILE, read_file
from tests.support.practice import Pc, Practice
from tests.support.volumes import HEADER, KEYS

KEEP_A_DAY = Policy(every_moment=1)
PAGE, PAGES = 4096, 128
NAME = b"practice.db"


class Database:
    """A file that is changed page by page, each change in a commit of its own."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.data = bytearray(self.rng.randbytes(PAGE * PAGES))
        self.inode = 0

    async def make(self, volume: MountedVolume) -> None:
        fs = volume.filesystem
        self.inode = fs.create(1, NAME, mode=FILE, uid=0, gid=0, umask=0).inode
        fs.opened(self.inode, writable=True)
        await fs.write(self.inode, 0, bytes(self.data))
        await fs.fsync(self.inode)

    async def change(self, volume: MountedVolume, count: int) -> None:
        for _ in range(count):
            at = self.rng.randrange(PAGES) * PAGE
            page = self.rng.randbytes(PAGE)
            self.data[at : at + PAGE] = page
            await volume.filesystem.write(self.inode, at, page)
            await volume.filesystem.fsync(self.inode)

    def extents(self, index: Index) -> int:
        return sum(
            len(unpack_extents(row.packed)) for row in index.list_extents(self.inode, from_chunk=0, limit=100)
        )


def pass_days(pc: Pc, count: float) -> None:
    pc.world.clock.stepped_s += count * 24 * 3600


async def grow_old(pc: Pc, volume: MountedVolume) -> None:
    """What was written so far gets older than the horizon: the base lies in a later segment."""
    await volume._local.quiesce()
    pass_days(pc, 3)
    name = b"day %d" % pc.world.clock.now_ns()
    fs = volume.filesystem
    inode = fs.create(1, name, mode=FILE, uid=0, gid=0, umask=0).inode
    fs.opened(inode, writable=True)
    await fs.write(inode, 0, name)
    fs.released(inode, writable=True)
    await fs.sync()
    await volume._local.quiesce()
    pass_days(pc, 1.5)


async def test_a_database_changed_page_by_page_is_merged(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice, database = Practice(tmp_path), Database(1)
    pc = practice.pc("pc")
    async with pc.mounted() as volume:
        volume.pruner.sweeper.grace_ns = 0
        await database.make(volume)
        await database.change(volume, 100)
        old = bytes(database.data)
        named = await volume.snapshots.create(b"old", held=False)
        await grow_old(pc, volume)
        index = volume._local.index
        many = database.extents(index)
        row = index.get_inode(database.inode)
        report = await volume.pruner.run(KEEP_A_DAY)
        assert many > 90 and report.merged_extents == many - 1 and database.extents(index) == 1
        assert report.merged_bytes == len(database.data)
        # Neither size nor times are others, and nothing is written twice for the same changes.
        assert index.get_inode(database.inode) == row
        assert await read_file(volume, database.inode) == database.data
        assert (await volume.pruner.run(KEEP_A_DAY)).merged_bytes == 0
        # What is younger than the horizon stays where it is, and is merged when it is not.
        await database.change(volume, 100)
        assert (await volume.pruner.run(KEEP_A_DAY)).merged_bytes == 0
        young = bytes(database.data)
        await grow_old(pc, volume)
        assert (await volume.pruner.run(KEEP_A_DAY)).merged_extents > 64
        await grow_old(pc, volume)
        await volume.pruner.run(KEEP_A_DAY)
        assert volume._local.state.sense.burst is None
        await volume.flush()
    assert old != young
    for store in practice.places:
        assert (await look_back(practice, store, Moment(position=named.position)))[1][NAME] == old
        found = (await look_back(practice, store, Moment()))[1]
        assert found[NAME] == young


@asynccontextmanager
async def view_at(practice: Practice, position: int) -> AsyncIterator[ReadOnlyVolume]:
    pc = practice.new_pc()
    async with trio.open_nursery() as nursery:
        view = await ReadOnlyVolume.open(
            nursery=nursery, world=pc.world, files=pc.files, keys=KEYS, writer_key=HEADER.public_keys.writer,
            stores=list(pc.links.values()), moment=Moment(position=position), random=random.Random(1).random,
        )  # fmt: skip
        yield view
        view.close()
        nursery.cancel_scope.cancel()


async def differences(practice: Practice, one: int, two: int) -> tuple[list[How], list[How]]:
    """As the extents say, and as the bytes do."""
    async with view_at(practice, one) as old, view_at(practice, two) as new:
        compared = TreeDiff(old._index, new._index)
        found = compared.run()
        kept = await without_merged(compared, found, old.reader, new.reader)
        return [one.how for one in found], [one.how for one in kept]


async def test_a_merged_file_is_no_difference(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice, database = Practice(tmp_path), Database(4)
    pc = practice.pc("pc")
    async with pc.mounted() as volume:
        await database.make(volume)
        await database.change(volume, 100)
        await grow_old(pc, volume)
        positions = [volume._local.committer.durable_position]
        assert (await volume.pruner.run(KEEP_A_DAY)).merged_bytes
        positions.append(volume._local.committer.durable_position)
        # The kernel has not told its times yet: the bytes decide.
        await database.change(volume, 1)
        positions.append(volume._local.committer.durable_position)
        volume.filesystem.setattr(database.inode, mode=0o600)
        volume.filesystem.rename(1, NAME, new_parent=1, new_name=b"other.db")
        await volume.filesystem.sync()
        positions.append(volume._local.committer.durable_position)
        await volume.flush()
    first, merged, changed, renamed = positions
    assert await differences(practice, first, merged) == ([How.CHANGED], [])
    assert await differences(practice, merged, changed) == ([How.CHANGED], [How.CHANGED])
    assert await differences(practice, changed, renamed) == ([How.RENAMED], [How.RENAMED])
    assert await differences(practice, first, renamed) == ([How.RENAMED_CHANGED], [How.RENAMED_CHANGED])


async def test_a_write_that_comes_between_wins(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice, database = Practice(tmp_path), Database(2)
    pc = practice.pc("pc")
    async with pc.mounted() as volume:
        await database.make(volume)
        await database.change(volume, 100)
        await grow_old(pc, volume)
        await volume.pruner.moments.retain(KEEP_A_DAY, PruneReport(), lambda *told: None, attended=True)
        base = volume.pruner.moments.base()
        assert base is not None
        merger, local = volume.pruner.merger, volume._local
        move = local.committer.move

        async def late(payloads: list[bytes], name: object) -> None:
            await database.change(volume, 1)
            await move(payloads, name)  # type: ignore[arg-type]  # what it was called with

        local.committer.move = late  # type: ignore[method-assign,assignment]
        await merger.run(base.position, give_way=trio.lowlevel.checkpoint)
        assert merger.saved == 0
        assert await read_file(volume, database.inode) == database.data
        local.committer.move = move  # type: ignore[method-assign]

        async def write() -> None:
            await volume.filesystem.write(database.inode, 0, b"dirty")

        # A file that is being written to is left alone.
        database.data[:5] = b"dirty"
        assert await merger.run(base.position, give_way=write) == 0
        await volume.filesystem.sync()
        assert await merger.run(base.position, give_way=trio.lowlevel.checkpoint) > 0
        assert await read_file(volume, database.inode) == database.data
        await volume.flush()
    async with practice.new_pc().mounted() as volume:
        assert await read_file(volume, database.inode) == database.data


async def test_a_chunk_with_a_lost_frame_stays_as_it_is(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice, database = Practice(tmp_path), Database(3)
    pc = practice.pc("pc")
    async with pc.mounted() as volume:
        await database.make(volume)
        await database.change(volume, 100)
        await grow_old(pc, volume)
        await volume.pruner.moments.retain(KEEP_A_DAY, PruneReport(), lambda *told: None, attended=True)
        base = volume.pruner.moments.base()
        assert base is not None
        index, merger = volume._local.index, volume.pruner.merger
        first = unpack_extents(index.get_extents(database.inode, 0))[3]
        frame = index.get_frame(first.frame)
        assert frame is not None
        volume._local.reader.cache.put(first.frame, b"")
        assert await merger.run(base.position, give_way=trio.lowlevel.checkpoint) == 0
        assert merger.saved == 0
        # One that other bytes of files refer to as well is not stored twice: too few are left.
        index.put_frame(frame._replace(live=frame.length + 1))
        merger.gain_min = database.extents(index) - 1
        assert await merger.run(base.position, give_way=trio.lowlevel.checkpoint) == 0
        index.put_frame(frame)
