"""The commits of the log and the versions of a file, read from journal frames alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.core.file_history import FileHistory, Version, What
from mirrorfs.core.tally import Tally
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.commits import Commit, CommitReader, Stretch
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.past import index_at
from mirrorfs.engine.restore_plan import Planner, RestorePlan
from mirrorfs.engine.tree_walk import find_row
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.record import Create
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Disk, Index, ObjectKey, ObjectVersion, Store
from tests.engine.test_restore import DIRECTORY, flip, journal_frames, segments, write_file
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS

WRITER = load_public_key(WRITER_KEY)


class CountingStore(MemoryStore):
    """Counts the bytes of segments that are asked for."""

    read_bytes = 0

    async def get(
        self, key: ObjectKey, *, size_max: int = 1 << 25, version: ObjectVersion | None = None
    ) -> bytes:
        data = await super().get(key, size_max=size_max, version=version)
        self.read_bytes += len(data)
        return data

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        data = await super().get_range(key, offset=offset, size_bytes=size_bytes, version=version)
        self.read_bytes += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Looked:
    index: Index
    plan: RestorePlan
    planner: Planner

    async def commits(self, stretch: Stretch | None = None) -> tuple[list[Commit], list[int]]:
        """The commits of a stretch, and the segments that were lost."""
        found: list[Commit] = []
        reader = CommitReader(self.planner.main, self.index, self.plan, KEYS, WRITER)
        await reader.run(stretch or Stretch(), found.append)
        return found, reader.lost


@asynccontextmanager
async def looked(
    folder: Path,
    stores: Sequence[Store],
    moment: Moment = NEWEST,
    *,
    disk: Disk | None = None,
    needs_all: bool = True,
) -> AsyncIterator[Looked]:
    files = SqliteIndexFiles(
        str(folder / f"{os.urandom(4).hex()}.db"), os.urandom(32), digest_key=os.urandom(32)
    )
    planner = Planner(stores, files, ThreadOffload(), KEYS, WRITER_KEY, disk=disk)
    index, plan = await index_at(planner, moment, needs_all=needs_all)
    try:
        yield Looked(index, plan, planner)
    finally:
        index.close()
        files.remove()


@dataclass(slots=True)
class Built:
    volume: BuiltVolume
    positions: list[int]
    """Of the moments that the tests made, in order."""

    def store(self, name: str) -> CountingStore:
        return CountingStore(name, self.volume.objects())


async def moment(mounted: LocalVolume, positions: list[int]) -> None:
    await mounted.filesystem.sync()
    positions.append(mounted.committer.durable_position)


async def change(fs: FileSystem, name: bytes, data: bytes, at: int = 0) -> None:
    row = fs.lookup(1, name)
    await fs.write(row.inode, at, data)


@pytest.fixture
async def built(tmp_path: Path) -> Built:
    """Two sessions: small changes, and 20 MiB of data that fill more than a segment."""
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        await write_file(fs, 1, "letter", b"dear")
        await moment(mounted, positions)
        await change(fs, b"letter", b"dear sir")
        await moment(mounted, positions)
    async with volume.session(checkpoint=True) as mounted:
        fs = mounted.filesystem
        await write_file(fs, 1, "huge", os.urandom(20 << 20))
        await moment(mounted, positions)
        fs.rename(1, b"letter", new_parent=1, new_name=b"sent")
        await moment(mounted, positions)
        fs.unlink(1, b"huge")
        await moment(mounted, positions)
    return Built(volume, positions)


# --- commits ---------------------------------------------------------------------------------


async def test_every_moment_is_found_and_no_data_is_read(built: Built, tmp_path: Path) -> None:
    store = built.store("a")
    async with looked(tmp_path, [store]) as now:
        store.read_bytes = 0
        commits, lost = await now.commits()
        read_bytes = store.read_bytes
        assert not lost
        assert set(built.positions) <= {commit.position for commit in commits}
        assert [commit.position for commit in commits] == sorted(commit.position for commit in commits)
        assert commits[-1].position == now.plan.position
        assert read_bytes < 1 << 20 < 20 << 20 < sum(map(len, store.objects.values()))
        # The same as replay has: all records, in order.
        made = [r.inode for commit in commits for r in commit.records() if isinstance(r, Create)]
        assert made[0] == ROOT_INODE and len(made) == 3


async def test_a_stretch(built: Built, tmp_path: Path) -> None:
    one, two, three = built.positions[1:4]
    async with looked(tmp_path, [built.store("a")]) as now:
        every, _ = await now.commits()
        times = {commit.position: commit.time_ns for commit in every}
        for stretch, expected in (
            (Stretch(Moment(position=one), Moment(position=three)), [p for p in times if one < p <= three]),
            (Stretch(Moment(time_ns=times[two])), [p for p in times if times[p] >= times[two]]),
            (Stretch(until=Moment(time_ns=times[two])), [p for p in times if times[p] <= times[two]]),
            (Stretch(Moment(time_ns=now.plan.time_ns + 1)), []),
        ):
            found, _ = await now.commits(stretch)
            assert [commit.position for commit in found] == expected


async def test_counts(built: Built, tmp_path: Path) -> None:
    tally = Tally()
    async with looked(tmp_path, [built.store("a")]) as now:
        commits, _ = await now.commits()
        for commit in commits:
            tally.add(commit.records(), position=commit.position, time_ns=commit.time_ns)
        last = Tally()
        for commit in (await now.commits(Stretch(Moment(position=built.positions[2]))))[0]:
            last.add(commit.records(), position=commit.position, time_ns=commit.time_ns)
    assert (tally.created, tally.deleted, tally.renamed, tally.mounts) == (2, 1, 1, 2)
    assert tally.changed == 0, "what is new is not changed as well"
    assert tally.written_bytes == len(b"dear") + len(b"dear sir") + (20 << 20)
    assert (tally.moments, tally.last_position) == (len(commits), commits[-1].position)
    assert (last.created, last.changed, last.deleted, last.renamed, last.written_bytes) == (0, 0, 1, 1, 0)


async def test_while_it_is_mounted(tmp_path: Path) -> None:
    """The open segment counts up to its last commit, and is read from the local disk."""
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        await write_file(mounted.filesystem, 1, "letter", b"dear")
        await moment(mounted, positions)
        async with looked(tmp_path, [], disk=volume.world.disk) as now:
            commits, lost = await now.commits()
        assert commits[-1].position == positions[-1] and not lost


@pytest.mark.expects_warnings("does not verify", "Looking through all of it", "no copy", "segment header")
async def test_damage(built: Built, tmp_path: Path) -> None:
    one, two = built.store("a"), built.store("b")
    async with looked(tmp_path, [built.store("a")]) as now:
        every, _ = await now.commits()
    first = segments(one)[0]
    offsets = journal_frames(one, first)
    # A different frame in each copy: together they are whole.
    flip(one, first, offsets[0] + 60)
    flip(two, first, offsets[1] + 60)
    async with looked(tmp_path, [one, two]) as now:
        assert await now.commits() == (every, [])
    # The trailer of one copy, the header of the other: by looking through what is left.
    one, two = built.store("a"), built.store("b")
    flip(one, first, len(one.objects[first]) - 40)
    flip(two, first, 50)
    async with looked(tmp_path, [one, two]) as now:
        found, lost = await now.commits()
        assert found == every
    # No copy at all: what is there is shown, and the gap is said.
    one = built.store("a")
    del one.objects[first]
    async with looked(tmp_path, [one]) as now:
        found, lost = await now.commits()
        assert lost == [0]
        assert [commit for commit in every if commit.position >> 20] == found


# --- versions of a file ----------------------------------------------------------------------


async def history(folder: Path, store: Store, path: str, *, since: Moment = NEWEST) -> FileHistory:
    async with looked(folder, [store]) as now:
        names = [os.fsencode(name) for name in path.split("/")]
        if since == NEWEST:
            found = FileHistory(names, None)
            commits, _ = await now.commits()
        else:
            async with looked(folder, [store], since) as then:
                found = FileHistory(names, then.index)
                commits, _ = await now.commits(Stretch(Moment(position=then.plan.position)))
                for commit in commits:
                    found.add(commit.records(), position=commit.position, time_ns=commit.time_ns)
                return found
        for commit in commits:
            found.add(commit.records(), position=commit.position, time_ns=commit.time_ns)
    return found


def told(versions: Sequence[Version]) -> list[tuple[str, int | None, bytes | None]]:
    return [(version.what.value, version.size, version.other) for version in versions]


async def test_versions(tmp_path: Path) -> None:
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        folder = fs.create(1, b"folder", mode=DIRECTORY, uid=0, gid=0).inode
        inode = await write_file(fs, folder, "draft", b"1")
        await moment(mounted, positions)
        fs.rename(folder, b"draft", new_parent=folder, new_name=b"letter")
        await moment(mounted, positions)
        await fs.write(inode, 1, b"2")
        await moment(mounted, positions)
        # As editors save: written beside it, and renamed over it.
        await write_file(fs, folder, "letter.tmp", b"a whole new one")
        await moment(mounted, positions)
        fs.rename(folder, b"letter.tmp", new_parent=folder, new_name=b"letter")
        await moment(mounted, positions)
        fs.setattr(fs.lookup(folder, b"letter").inode, size=3)
        await moment(mounted, positions)
        fs.rename(1, b"folder", new_parent=1, new_name=b"archive")
        await moment(mounted, positions)
        fs.rename(1, b"archive", new_parent=1, new_name=b"folder")
        await moment(mounted, positions)
        fs.unlink(folder, b"letter")
        await moment(mounted, positions)
        again = await write_file(fs, folder, "letter", b"another")
        await moment(mounted, positions)
        fs.link(again, 1, b"letter too")
        fs.rename(folder, b"letter", new_parent=1, new_name=b"moved")
        await moment(mounted, positions)
    store = MemoryStore("a", volume.objects())
    versions = (await history(tmp_path, store, "folder/letter")).versions
    assert told(versions) == [
        ("renamed from", 1, b"folder/draft"),
        ("written", 2, None),
        ("replaced", 15, None),
        ("written", 3, None),
        ("went with its folder", None, None),
        ("came with its folder", 3, None),
        ("deleted", None, None),
        ("created", 7, None),
        ("renamed to", None, b"moved"),
    ]
    assert told((await history(tmp_path, store, "letter too")).versions) == [("linked", 7, None)]
    assert told((await history(tmp_path, store, "folder/draft")).versions) == [
        ("created", 1, None), ("renamed to", None, b"folder/letter"),
    ]  # fmt: skip
    assert not (await history(tmp_path, store, "folder/never")).versions
    # Each version is what the volume shows at its position.
    for version in versions:
        async with looked(tmp_path, [store], Moment(position=version.position)) as then:
            row = find_row(then.index, [b"folder", b"letter"])
            assert (None if row is None else row.size) == version.size
    # From a moment in between on.
    later = await history(tmp_path, store, "folder/letter", since=Moment(position=versions[1].position))
    assert later.first is not None and later.first.size == 2
    assert later.versions == versions[2:]
    # Where the directories are that a file comes from or goes to, an index tells as well.
    at = Moment(position=versions[-2].position)
    moved = (await history(tmp_path, store, "moved", since=at)).versions
    assert told(moved) == [("renamed from", 7, b"folder/letter")]


async def test_a_file_that_is_saved_in_one_commit(tmp_path: Path) -> None:
    volume, positions = BuiltVolume(tmp_path / "state"), []
    async with volume.session() as mounted:
        fs = mounted.filesystem
        await write_file(fs, 1, "new.tmp", b"12345")
        fs.rename(1, b"new.tmp", new_parent=1, new_name=b"new")
        await moment(mounted, positions)
        await write_file(fs, 1, "other", b"1")
        fs.rename(1, b"other", new_parent=1, new_name=b"new", exchange=True)
        await moment(mounted, positions)
    found = (await history(tmp_path, MemoryStore("a", volume.objects()), "new")).versions
    assert [version.what for version in found] == [What.CREATED, What.REPLACED]
    assert [version.position for version in found] == positions
    assert [version.size for version in found] == [5, 1]
