"""Restore as a tar stream: what other programs make of it is what the volume holds."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.tar_stream import DEVICES, SET_ID, SOCKETS, TarStream
from mirrorfs.engine import restore_archive
from mirrorfs.engine.restore import Restore, RestoreProgress, RestoreReport
from mirrorfs.errors import DiskError
from mirrorfs.format.acl import ACL_ACCESS, encode_acl
from mirrorfs.ports import Store
from tests.engine.test_restore import (
    FILE,
    PAST_NS,
    Item,
    data_frames,
    fill,
    flip,
    segments,
    tree_at,
    tree_of,
    without_atimes,
    write_file,
)
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS
from tests.unit.test_acl import acl


class Streamed:
    """A restore into a file, through a pipe."""

    def __init__(self, tmp_path: Path, stores: list[Store]) -> None:
        self._files = SqliteIndexFiles(str(tmp_path / "r.db"), os.urandom(32), digest_key=os.urandom(32))
        self._restore = Restore(stores, self._files, ThreadOffload(), KEYS, WRITER_KEY)
        self.path = tmp_path / "all.tar"
        self.progress: list[RestoreProgress] = []
        self.report: RestoreReport

    async def run(self, *, globs: tuple[str, ...] = (), special: bool = False) -> Streamed:
        source, target = os.pipe()
        with self.path.open("wb") as file, os.fdopen(source, "rb") as pipe:
            reader = threading.Thread(target=shutil.copyfileobj, args=(pipe, file))
            reader.start()
            try:
                await self._restore.plan()
                self.report = await self._restore.archive(
                    TarStream(target, preserve_special=special), globs=globs, on_progress=self.progress.append
                )
            finally:
                os.close(target)
                reader.join()
                self._restore.close()
                self._files.remove()
        return self

    def extracted(self, place: Path) -> dict[str, Item]:
        """What GNU tar makes of it."""
        place.mkdir()
        command = ["tar", "-C", str(place), "-xpf", str(self.path), "--numeric-owner", "--acls", "--xattrs"]
        done = subprocess.run([*command, "--xattrs-include=*"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return tree_at(place)


async def test_gnu_tar_makes_the_same_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that large files come in parts, and batches end between files.
    monkeypatch.setattr(restore_archive, "BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(restore_archive, "BATCH_NAMES", 50)
    built = BuiltVolume(tmp_path / "state")
    async with built.session() as volume:
        fs = volume.filesystem
        await fill(fs, random.Random(20))
        listed = await write_file(fs, 1, "listed", b"for some")
        fs.setxattr(listed, ACL_ACCESS, encode_acl(acl("u6 u1000:7 g4 m7 o0")))
        fs.setattr(listed, mtime_ns=-5, atime_ns=PAST_NS)
        far = fs.create(1, b"far", mode=FILE, uid=0, gid=0).inode
        await fs.write(far, 300 << 20, b"in the end")
    async with built.session() as volume:
        tree = without_atimes(await tree_of(volume.filesystem))
    streamed = await Streamed(tmp_path, [MemoryStore("a", built.objects())]).run()
    report = streamed.report
    assert report.complete and report.left_out == {SOCKETS: 1}
    del tree["docs/socket"]
    place = tmp_path / "extracted"
    found = streamed.extracted(place)
    assert found.keys() == tree.keys()
    assert [(name, item, found[name]) for name, item in tree.items() if found[name] != item] == []
    assert os.stat(place / "big").st_ino == os.stat(place / "docs" / "big again").st_ino
    for name in ("sparse", "far"):
        assert os.stat(place / name).st_blocks * 512 < 1 << 20
    assert report.written_bytes == streamed.progress[-1].done_bytes
    assert streamed.path.stat().st_size < 2 * report.written_bytes


@pytest.mark.expects_warnings("offset", "No good copy")
async def test_damaged_bytes_are_zeros_and_named(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path / "state")
    async with built.session() as volume:
        await write_file(volume.filesystem, 1, "good", b"good")
        await volume.filesystem.sync()
    sound = set(built.objects())
    async with built.session() as volume:
        await write_file(volume.filesystem, 1, "bad", b"bad" * 1000)
        await write_file(volume.filesystem, 1, "worse", b"worse")
    store = MemoryStore("a", built.objects())
    for key in set(segments(store)) - sound:
        for offset, size in data_frames(store, key):
            flip(store, key, offset + size // 2)
    streamed = await Streamed(tmp_path, [store]).run()
    assert sorted(streamed.report.incomplete) == ["bad", "worse"]
    assert (streamed.report.lost_bytes, streamed.report.written_bytes) == (3005, 4)
    with tarfile.open(streamed.path) as archive:
        found = {}
        for member in archive.getmembers():
            data = archive.extractfile(member)
            found[member.name] = b"" if data is None else data.read()
    assert found == {".": b"", "good": b"good", "bad": bytes(3000), "worse": bytes(5)}


async def test_only_some_names(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path / "state")
    async with built.session() as volume:
        fs = volume.filesystem
        docs = fs.create(1, b"docs", mode=stat.S_IFDIR | 0o755, uid=0, gid=0).inode
        for number in range(20):
            await write_file(fs, docs, f"small {number}", b"text")
        await write_file(fs, 1, "big", bytes(5000))
        await write_file(fs, 1, "other", b"not wanted")
    streamed = await Streamed(tmp_path, [MemoryStore("a", built.objects())]).run(
        globs=("docs/small 1?", "big")
    )
    with tarfile.open(streamed.path) as archive:
        names = archive.getnames()
    assert names == [".", "docs", *(f"docs/small {number}" for number in range(10, 20)), "big"]
    assert streamed.report.files == 11


async def test_special_files_only_on_request(tmp_path: Path) -> None:
    built = BuiltVolume(tmp_path / "state")
    async with built.session() as volume:
        fs = volume.filesystem
        fs.create(1, b"disk", mode=stat.S_IFBLK | 0o600, uid=0, gid=0, rdev=os.makedev(7, 300))
        program = await write_file(fs, 1, "program", b"#!")
        fs.setattr(program, mode=stat.S_IFREG | 0o4755)
    stores: list[Store] = [MemoryStore("a", built.objects())]
    plain = await Streamed(tmp_path, stores).run()
    assert plain.report.left_out == {DEVICES: 1, SET_ID: 1}
    with tarfile.open(plain.path) as archive:
        assert [(one.name, one.mode) for one in archive] == [(".", 0o755), ("program", 0o755)]
    special = await Streamed(tmp_path, stores).run(special=True)
    assert not special.report.left_out
    with tarfile.open(special.path) as archive:
        disk, program_ = archive.getmember("disk"), archive.getmember("program")
    assert (disk.type, disk.devmajor, disk.devminor) == (tarfile.BLKTYPE, 7, 300)
    assert program_.mode == 0o4755


def test_a_reader_that_goes_away_is_said() -> None:
    source, target = os.pipe()
    os.close(source)
    stream = TarStream(target)
    with pytest.raises(DiskError, match="went away"):
        stream.close()
    os.close(target)
