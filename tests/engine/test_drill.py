"""Restore drills: one store alone is restored and compared; what is wrong with it is found and named."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from mirrorfs.drivers.drill_tree import DrillTree
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.store_directory import DirectoryStore
from mirrorfs.engine.drill import Drill, DrillProgress, DrillResult, Reference
from mirrorfs.engine.tree_walk import entries
from mirrorfs.errors import MirrorfsError, StoreUnavailable, UsageError
from mirrorfs.format.drill import DrillFault
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Disk, Index, Store
from tests.engine.test_restore import (
    Failing,
    Filled,
    data_frames,
    failing_store,
    flip,
    journal_frames,
    segments,
    write_file,
)
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS


class Drilled:
    """A drill in a folder, and what it left there."""

    def __init__(self, folder: Path, store: Store, disk: Disk, copies: Sequence[Store] = ()) -> None:
        self.folder = folder
        self.progress: list[DrillProgress] = []
        self.choose: Callable[[array[int]], array[int]] = lambda inodes: inodes
        self._store = store
        self._reference = Reference(disk=disk, log=copies, copies=copies)

    async def run(self) -> DrillResult:
        self.folder.mkdir()
        one, two = (
            SqliteIndexFiles(str(self.folder / name), os.urandom(32), digest_key=os.urandom(32))
            for name in ("one", "two")
        )
        key = os.urandom(32)
        drill = Drill(
            self._store, self._reference, (one, two), ThreadOffload(), KEYS, WRITER_KEY,
            make_tree=lambda: DrillTree(key), choose=self.choose, on_progress=self.progress.append,
        )  # fmt: skip
        try:
            return await drill.run()
        finally:
            one.remove()
            two.remove()
            assert not list(self.folder.iterdir())


def drilled(filled: Filled, folder: Path, store: Store) -> Drilled:
    """The local log is what the store is compared with."""
    local = DirectoryStore("local state", filled.volume.root / "objects")
    return Drilled(folder / "drill", store, LocalDisk(filled.volume.root), [local])


@pytest.fixture
async def filled(tmp_path: Path) -> Filled:
    return await Filled(tmp_path / "state").build()


@pytest.fixture
async def with_checkpoint(tmp_path: Path) -> Filled:
    return await Filled(tmp_path / "state").build(checkpoint=True)


# --- it passes -------------------------------------------------------------------------------


async def test_everything_comes_back(filled: Filled, tmp_path: Path) -> None:
    drill = drilled(filled, tmp_path, filled.store("a"))
    found = await drill.run()
    assert not found.faults and not found.objects and not found.paths and found.damage is None
    files = [item for item in filled.tree.values() if item.mode & 0o170000 == 0o100000]
    assert found.names == len(filled.tree)
    # One of them is a second name of another.
    assert found.files == found.drilled_files == found.compared_files == len(files) - 1
    assert found.drilled_bytes == found.size_bytes > 20 << 20
    assert not found.missing_since_ns and len(found.journal_hash) == 32 and found.position
    assert {one.reference for one in drill.progress} == {False, True}
    assert max(one.done_bytes for one in drill.progress) == found.drilled_bytes


async def test_from_a_checkpoint(with_checkpoint: Filled, tmp_path: Path) -> None:
    found = await drilled(with_checkpoint, tmp_path, with_checkpoint.store("a")).run()
    assert not found.faults and found.compared_files == found.files


async def test_nothing_lies_in_the_clear(
    filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all was restored the folder holds two indexes, and in them neither a name nor what a file held."""
    drill = drilled(filled, tmp_path, filled.store("a"))
    seen: list[int] = []

    def look(self: DrillTree, inodes: Sequence[object]) -> None:
        files = [path.read_bytes() for path in drill.folder.iterdir()]
        seen.append(sum(map(len, files)))
        for secret in (b"the last file", b"the new one", b"small 1", b"../nowhere", b"user.directory"):
            assert not any(secret in data for data in files)

    monkeypatch.setattr(DrillTree, "finish", look)
    assert not (await drill.run()).faults
    assert seen and min(seen) > 10_000


async def test_a_sample(filled: Filled, tmp_path: Path) -> None:
    store = filled.store("a")
    drill = drilled(filled, tmp_path, store)
    drill.choose = lambda inodes: inodes[:3]
    found = await drill.run()
    assert not found.faults
    assert (found.drilled_files, found.compared_files) == (3, 3) and found.files > 100
    assert found.names == len(filled.tree) and found.drilled_bytes < found.size_bytes


async def test_a_store_that_is_behind_is_compared_where_it_is(filled: Filled, tmp_path: Path) -> None:
    store = filled.store("a")
    async with filled.volume.session() as mounted:
        await write_file(mounted.filesystem, 1, "later", b"later")
    found = await drilled(filled, tmp_path, store).run()
    assert not found.faults and found.missing_since_ns > found.time_ns
    assert found.names == len(filled.tree)


async def test_what_only_this_store_has_is_not_compared(filled: Filled, tmp_path: Path) -> None:
    before = filled.store("b")
    async with filled.volume.session() as mounted:
        await write_file(mounted.filesystem, 1, "later", b"later")
    empty = tmp_path / "empty"
    (empty / "objects").mkdir(parents=True)
    found = await Drilled(tmp_path / "drill", filled.store("a"), LocalDisk(empty), [before]).run()
    assert not found.faults and found.names == len(filled.tree)


@pytest.mark.expects_warnings("No good copy")
async def test_contents_that_are_nowhere_else(filled: Filled, tmp_path: Path) -> None:
    found = await Drilled(tmp_path / "drill", filled.store("a"), LocalDisk(filled.volume.root)).run()
    # Only files without contents need no other copy.
    assert not found.faults and found.compared_files < found.drilled_files == found.files


# --- it fails --------------------------------------------------------------------------------


@pytest.mark.expects_warnings("does not verify", "No good copy", "copies together")
async def test_one_flipped_frame(filled: Filled, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = filled.store("a")
    key = segments(store)[1]
    offset, size = max(data_frames(store, key), key=lambda frame: frame[1])
    flip(store, key, offset + size // 2)
    found = await drilled(filled, tmp_path, store).run()
    assert found.faults == {DrillFault.DAMAGED} and found.damaged_files == 1 and found.objects == (key,)
    assert found.paths == (b"huge",) and "huge" not in caplog.text
    assert found.compared_files == found.drilled_files - 1


@pytest.mark.expects_warnings("No good copy")
async def test_a_missing_object(with_checkpoint: Filled, tmp_path: Path) -> None:
    names = segments(with_checkpoint.store("all"))
    store = with_checkpoint.store("a", lacking=lambda key: key == names[1])
    found = await drilled(with_checkpoint, tmp_path, store).run()
    assert found.faults == {DrillFault.DAMAGED} and found.objects == (names[1],)


async def test_a_missing_object_of_the_log(filled: Filled, tmp_path: Path) -> None:
    names = segments(filled.store("all"))
    found = await drilled(filled, tmp_path, filled.store("a", lacking=lambda key: key == names[1])).run()
    assert found.faults == {DrillFault.LOG} and found.missing_since_ns > found.time_ns
    assert found.damage is not None and "segment 1" in found.damage


@pytest.mark.expects_warnings("does not verify", "no copy is good")
async def test_a_bad_journal(filled: Filled, tmp_path: Path) -> None:
    store = filled.store("a")
    key = segments(store)[0]
    flip(store, key, journal_frames(store, key)[2] + 60)
    found = await drilled(filled, tmp_path, store).run()
    assert DrillFault.LOG in found.faults and found.names < len(filled.tree)


@pytest.mark.expects_warnings("segment header", "cut short")
async def test_nothing_comes_back(filled: Filled, tmp_path: Path) -> None:
    store = filled.store("a")
    flip(store, segments(store)[0], 20)
    found = await drilled(filled, tmp_path, store).run()
    assert found.faults == {DrillFault.NOTHING} and found.damage and not found.position


async def test_an_empty_store(filled: Filled, tmp_path: Path) -> None:
    found = await drilled(filled, tmp_path, MemoryStore("a")).run()
    assert found.faults == {DrillFault.NOTHING} and found.damage is None


async def test_another_log_with_the_same_keys(tmp_path: Path) -> None:
    """A clone wrote on: its store has another tree at a position of its own."""
    one, two = BuiltVolume(tmp_path / "one"), BuiltVolume(tmp_path / "two")
    for volume, data in ((one, b"one"), (two, b"two")):
        async with volume.session() as mounted:
            await write_file(mounted.filesystem, 1, "file", data)
    local = DirectoryStore("local state", one.root / "objects")
    store = MemoryStore("a", two.objects())
    found = await Drilled(tmp_path / "drill", store, LocalDisk(one.root), [local]).run()
    assert DrillFault.HISTORY in found.faults and DrillFault.NAMES in found.faults
    assert b"file" in found.paths


async def test_contents_that_differ(filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Authentic bytes that the restore puts in a wrong place: what the drill is there to notice."""
    write = DrillTree.write
    shifted = False

    def off_by_one(self: DrillTree, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        nonlocal shifted
        if not shifted and len(data) > 1000:
            shifted, offset = True, offset + 1
        write(self, inode, data, offset=offset)

    monkeypatch.setattr(DrillTree, "write", off_by_one)
    found = await drilled(filled, tmp_path, filled.store("a")).run()
    assert found.faults == {DrillFault.CONTENTS} and found.differing_files == 1 and len(found.paths) == 1


async def test_names_that_differ(filled: Filled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[int] = []

    def once(index: Index, directory: int) -> Iterator[tuple[bytes, InodeRow]]:
        for name, row in entries(index, directory):
            if name == b"last" and not changed:
                changed.append(row.inode)
                yield name, row._replace(atime_ns=row.atime_ns + 1)
            else:
                yield name, row

    monkeypatch.setattr("mirrorfs.engine.tree_diff.entries", once)
    found = await drilled(filled, tmp_path, filled.store("a")).run()
    assert found.faults == {DrillFault.NAMES} and found.paths == (b"last",)


# --- it cannot be carried out ----------------------------------------------------------------


@pytest.mark.expects_warnings("does not answer", "did not give segment")
async def test_a_store_that_stops_answering(tmp_path: Path) -> None:
    filled, store, _ = await failing_store(tmp_path)
    assert isinstance(store, Failing)
    with pytest.raises(StoreUnavailable, match="stopped answering"):
        await drilled(filled, tmp_path, store).run()


async def test_nothing_was_ever_written(tmp_path: Path) -> None:
    root = tmp_path / "state"
    (root / "objects").mkdir(parents=True)
    with pytest.raises(UsageError, match="Nothing was written"):
        await Drilled(tmp_path / "drill", MemoryStore("a"), LocalDisk(root), [MemoryStore("b")]).run()


async def test_nothing_to_compare_with(filled: Filled, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    (root / "objects").mkdir(parents=True)
    with pytest.raises(MirrorfsError, match="nothing to compare"):
        await Drilled(tmp_path / "drill", filled.store("a"), LocalDisk(root)).run()


# --- the tree that keeps nothing -------------------------------------------------------------


def row(inode: int, mode: int) -> InodeRow:
    return InodeRow(inode, 1, mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b"")


def test_digests() -> None:
    def tree(key: bytes, *parts: tuple[int, bytes | memoryview, int]) -> DrillTree:
        made = DrillTree(key)
        made.make(
            [
                (1, b"a", row(7, 0o100644), False),
                (1, b"b", row(5, 0o100644), False),
                (1, b"c", row(6, 0o120777), False),
            ]
        )
        made.make([(1, b"d", row(7, 0o100644), False)])
        made.made()
        assert made.regular() == array("q", [5, 7])
        made.expect(made.regular())
        for inode, data, offset in parts:
            made.write(inode, data, offset=offset)
        return made

    key = b"k" * 32
    one = tree(key, (5, b"first", 0), (5, b"second", 5), (7, b"x", 0))
    assert one.digest(5) == tree(key, (5, b"second", 5), (5, b"first", 0)).digest(5)
    assert one.digest(7) == tree(key, (7, memoryview(b"x"), 0)).digest(7)
    for other in (
        tree(key, (5, b"first", 0)),
        tree(key, (5, b"first", 0), (5, b"second", 6)),
        tree(key, (5, b"first", 0), (5, b"Second", 5)),
        tree(key, (5, b"first", 0), (7, b"second", 5)),
        tree(b"j" * 32, (5, b"first", 0), (5, b"second", 5)),
    ):
        assert one.digest(5) != other.digest(5)
    assert tree(key).digest(5) == bytes(32)
    one.finish([(row(5, 0o100644), ())])
    assert one.finished == 1 and one.path_of(5) == "inode 5" and not one.refused_count
