"""Restore to where something is: what is replaced, what stays, and going on after a restore was cut off."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.restore_directory import RestoreDirectory
from mirrorfs.drivers.restore_existing import Overwrite
from mirrorfs.drivers.restore_rehearsal import RehearsedTree
from mirrorfs.engine.restore import Rehearsal, Restore, RestoreReport
from mirrorfs.errors import DiskError, UsageError
from mirrorfs.format.acl import ACL_DEFAULT, encode_acl
from tests.engine.test_restore import DIRECTORY, PAST_NS, data_frames, flip, segments, write_file
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS
from tests.unit.test_acl import acl

BIG = bytes(range(256)) * 8192  # more than is made in one go


class Place:
    """A small volume, and a directory that it is restored to again and again."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self.dest = tmp_path / "dest"
        self.store: MemoryStore
        self.big: int

    async def build(self) -> Place:
        built = BuiltVolume(self._tmp_path / "state")
        async with built.session() as volume:
            fs = volume.filesystem
            docs = fs.create(1, b"docs", mode=DIRECTORY, uid=0, gid=0).inode
            for name, data in ((b"one", b"first"), (b"two", b"second"), (b"big", BIG)):
                inode = await write_file(fs, docs, os.fsdecode(name), data)
                await fs.sync()
                fs.setattr(inode, mtime_ns=PAST_NS, atime_ns=PAST_NS)
            self.big = inode
            fs.link(inode, 1, b"big again")
            link = fs.create(docs, b"link", mode=stat.S_IFLNK | 0o777, uid=0, gid=0, target=b"one").inode
            fs.setattr(link, mtime_ns=PAST_NS, atime_ns=PAST_NS)
        self.store = MemoryStore("a", built.objects())
        return self

    def _restore(self) -> tuple[Restore, SqliteIndexFiles]:
        files = SqliteIndexFiles(str(self._tmp_path / "r.db"), os.urandom(32), digest_key=os.urandom(32))
        return Restore([self.store], files, ThreadOffload(), KEYS, WRITER_KEY), files

    async def run(self, overwrite: Overwrite | None) -> RestoreReport:
        restore, files = self._restore()
        try:
            await restore.plan()
            return await restore.execute(RestoreDirectory(str(self.dest), overwrite=overwrite))
        finally:
            restore.close()
            files.remove()

    async def rehearse(self, overwrite: Overwrite) -> tuple[Rehearsal, RehearsedTree]:
        restore, files = self._restore()
        try:
            await restore.plan()
            tree = RehearsedTree(str(self.dest), overwrite)
            return await restore.rehearse(tree), tree
        finally:
            restore.close()
            files.remove()

    def contents(self) -> Mapping[str, bytes]:
        found = {}
        for path in sorted(self.dest.rglob("*")):
            name = str(path.relative_to(self.dest))
            if path.is_symlink():
                found[name] = b"-> " + os.fsencode(os.readlink(path))
            elif path.is_file():
                found[name] = path.read_bytes()
        return found


WHOLE = {
    "big again": BIG,
    "docs/big": BIG,
    "docs/link": b"-> one",
    "docs/one": b"first",
    "docs/two": b"second",
}


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return await Place(tmp_path).build()


def change(path: Path, data: bytes, *, mtime_ns: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


async def test_by_default_nothing_that_is_there_is_touched(place: Place) -> None:
    place.dest.mkdir()
    (place.dest / "mine").write_bytes(b"mine")
    with pytest.raises(UsageError, match="--overwrite"):
        await place.run(None)
    assert place.contents() == {"mine": b"mine"}


@pytest.mark.parametrize(
    ("overwrite", "newer", "older", "kept"),
    [
        (Overwrite.NEVER, b"newer", b"older", 5),
        (Overwrite.IF_NEWER, b"newer", b"second", 4),
        (Overwrite.IF_CHANGED, b"first", b"second", 3),
        (Overwrite.ALWAYS, b"first", b"second", 0),
    ],
)
async def test_policies(place: Place, overwrite: Overwrite, newer: bytes, older: bytes, kept: int) -> None:
    await place.run(None)
    change(place.dest / "docs" / "one", b"newer", mtime_ns=PAST_NS + 1)
    change(place.dest / "docs" / "two", b"older", mtime_ns=PAST_NS - 1)
    (place.dest / "docs" / "mine").write_bytes(b"mine")
    (place.dest / "docs" / "other name").hardlink_to(place.dest / "docs" / "one")
    rehearsal, tree = await place.rehearse(overwrite)
    assert (tree.kept_count, tree.refused_count) == (kept, 0)
    assert tree.replaced_count == 5 - kept
    report = await place.run(overwrite)
    assert report.kept_count == kept and report.complete
    assert rehearsal.size_bytes == report.written_bytes
    expected = WHOLE | {"docs/one": newer, "docs/two": older, "docs/mine": b"mine"}
    # A file that is replaced is another one: further names of the old one keep what they had.
    assert place.contents() == expected | {"docs/other name": b"newer"}
    big, again = (os.stat(place.dest / name) for name in ("docs/big", "big again"))
    assert big.st_ino == again.st_ino and big.st_mtime_ns == PAST_NS


async def test_a_restore_that_was_cut_off_goes_on(place: Place) -> None:
    await place.run(None)
    done = os.stat(place.dest / "docs" / "one").st_ino
    # What a kill leaves: a file that is not there yet, one that is not whole, one beside what it replaces.
    os.unlink(place.dest / "docs" / "two")
    change(place.dest / "docs" / "big", BIG[:5] + bytes(len(BIG) - 5), mtime_ns=PAST_NS + 10**9)
    (place.dest / "docs" / f".mirrorfs-restore-{place.big:x}").write_bytes(b"half of it")
    report = await place.run(Overwrite.IF_CHANGED)
    assert place.contents() == WHOLE and report.complete
    assert os.stat(place.dest / "docs" / "one").st_ino == done
    assert report.written_bytes == len(b"second") + len(BIG)


async def test_what_is_in_the_way_is_named(place: Place) -> None:
    (place.dest / "docs" / "one").mkdir(parents=True)
    (place.dest / "docs" / "one" / "mine").write_bytes(b"mine")
    report = await place.run(Overwrite.ALWAYS)
    assert report.refused == (("docs/one", "a directory is in the way"),)
    assert place.contents() == {
        name: data for name, data in WHOLE.items() if name != "docs/one"
    } | {"docs/one/mine": b"mine"}  # fmt: skip
    outside = place.dest.parent / "outside"
    outside.mkdir()
    os.rename(place.dest / "docs", place.dest.parent / "away")
    (place.dest / "docs").symlink_to(outside)
    report = await place.run(Overwrite.ALWAYS)
    assert ("docs", "something that is not a directory is in the way") in report.refused
    # A link to a directory is not followed, and nothing lands behind it.
    assert list(outside.iterdir()) == [] and (place.dest / "docs").is_symlink()


@pytest.mark.expects_warnings("offset", "No good copy")
async def test_what_cannot_be_had_replaces_nothing(place: Place) -> None:
    await place.run(None)
    change(place.dest / "docs" / "one", b"mine", mtime_ns=PAST_NS + 1)
    change(place.dest / "docs" / "big", b"my big one", mtime_ns=PAST_NS + 1)
    os.unlink(place.dest / "docs" / "two")
    for key in segments(place.store):
        for offset, size in data_frames(place.store, key):
            flip(place.store, key, offset + size // 2)
    report = await place.run(Overwrite.ALWAYS)
    assert report.incomplete_count == 3 and report.lost_bytes == len(BIG) + 11
    # What is new is there in full length, of zeros, as ever; what was there stays.
    assert place.contents() == WHOLE | {
        "docs/one": b"mine", "docs/big": b"my big one", "big again": b"my big one", "docs/two": bytes(6),
    }  # fmt: skip


async def test_lists_of_the_place_are_not_inherited(place: Place) -> None:
    place.dest.mkdir()
    os.setxattr(place.dest, ACL_DEFAULT, encode_acl(acl("u7 u1000:7 g7 m7 o0")))
    (place.dest / "mine").write_bytes(b"mine")
    await place.run(Overwrite.NEVER)
    for name in ("docs", "docs/one", "docs/big"):
        assert os.listxattr(place.dest / name) == []
    # The policy that replaces nothing leaves the directory itself alone, too.
    assert os.listxattr(place.dest) == [os.fsdecode(ACL_DEFAULT)]


async def test_a_file_that_was_swapped_is_noticed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.dest.mkdir()
    victim = place.dest.parent / "victim"
    victim.write_bytes(b"v" * 10)
    write = RestoreDirectory.write

    def swap(self: RestoreDirectory, inode: int, data: bytes | memoryview, *, offset: int) -> None:
        if len(data) > 100:
            os.unlink(place.dest / "docs" / "big")
            os.link(victim, place.dest / "docs" / "big")
            monkeypatch.setattr(RestoreDirectory, "write", write)
        write(self, inode, data, offset=offset)

    monkeypatch.setattr(RestoreDirectory, "write", swap)
    with pytest.raises(DiskError, match="took the place"):
        await place.run(None)
    assert victim.read_bytes() == b"v" * 10
