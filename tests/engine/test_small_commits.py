"""fsync in one step: what it makes durable, when it leaves the work to the writer task, what a kill finds."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.core.scan import scan_segment
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.engine.committer import Committer
from mirrorfs.engine.local import LocalVolume
from mirrorfs.engine.sealer import SEAL_NOW_MAX
from mirrorfs.engine.segment_writer import PREPARED_MIN, SMALL_COMMIT
from mirrorfs.errors import DiskError
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.signing import load_public_key
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.volumes import KEYS


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that syncs quickly, whatever the machine's does."""
    monkeypatch.setattr(ThreadOffload, "syncs_are_brief", lambda self: True)


@pytest.fixture
def left_to_the_task(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The commits that went through the writer task."""
    found: list[int] = []
    commit = Committer.commit

    async def counted(self: Committer, inodes: set[int] | None = None, *, seal: bool = False) -> None:
        found.append(0)
        await commit(self, inodes, seal=seal)

    monkeypatch.setattr(Committer, "commit", counted)
    yield found


def create(volume: LocalVolume, name: str) -> int:
    row = volume.filesystem.create(ROOT_INODE, name.encode(), mode=stat.S_IFREG | 0o644, uid=0, gid=0)
    volume.filesystem.opened(row.inode, writable=True)
    return row.inode


async def save(volume: LocalVolume, name: str, data: bytes) -> int:
    inode = create(volume, name)
    await volume.filesystem.write(inode, 0, data)
    await volume.filesystem.fsync(inode)
    return inode


async def after_a_kill(built: BuiltVolume, folder: Path) -> dict[str, bytes]:
    """What a mount finds in a copy of the state as it is on the disk now."""
    shutil.copytree(built.root, folder)
    found: dict[str, bytes] = {}
    async with BuiltVolume(folder).session() as volume:
        fs = volume.filesystem
        for name in fs.readdir(ROOT_INODE, after_cookie=0, limit=1000):
            size = fs.getattr(name.inode).size
            found[name.name.decode()] = await fs.read(name.inode, 0, size)
    return found


async def test_small_fsyncs_are_one_step_each_and_durable(
    tmp_path: Path, brief: None, left_to_the_task: list[int]
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await save(volume, "first", b"opens the segment")
        left_to_the_task.clear()
        expected = {"first": b"opens the segment"}
        for number in range(50):
            expected[f"f{number}"] = os.urandom(100 * number)
            await save(volume, f"f{number}", expected[f"f{number}"])
        assert left_to_the_task == []
        create(volume, "not synced")
        assert await after_a_kill(built, tmp_path / "copy") == expected


async def test_what_is_large_or_meets_a_slow_disk_goes_through_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief: None, left_to_the_task: list[int]
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await save(volume, "first", b"")
        left_to_the_task.clear()
        await save(volume, "large", bytes(SEAL_NOW_MAX + 1))
        assert len(left_to_the_task) == 1
        monkeypatch.setattr(ThreadOffload, "syncs_are_brief", lambda self: False)
        await save(volume, "slow", b"x")
        assert len(left_to_the_task) == 2
        copy = await after_a_kill(built, tmp_path / "copy")
        assert (len(copy["large"]), copy["slow"]) == (SEAL_NOW_MAX + 1, b"x")


@pytest.mark.expects_warnings("ends at its last durable byte")
@pytest.mark.parametrize("method", ["append", "sync"])
async def test_a_disk_that_fails_is_left_to_the_task_which_mends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    brief: None,
    left_to_the_task: list[int],
    method: str,
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await save(volume, "before", b"before")
        left_to_the_task.clear()
        current = volume.log.current
        assert current is not None

        def fail(*_args: object, **_options: object) -> None:
            raise DiskError("the disk failed")

        monkeypatch.setattr(current, method, fail)
        await save(volume, "during", b"during")
        assert len(left_to_the_task) == 1
        assert volume.log.current is not current
        await save(volume, "after", b"after")
        assert len(left_to_the_task) == 1
        expected = {"before": b"before", "during": b"during", "after": b"after"}
        assert await after_a_kill(built, tmp_path / "copy") == expected


async def test_a_rename_takes_its_data_along(tmp_path: Path, brief: None) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await save(volume, "document", b"old")
        temporary = create(volume, "temporary")
        await volume.filesystem.write(temporary, 0, b"new")
        volume.filesystem.rename(ROOT_INODE, b"temporary", new_parent=ROOT_INODE, new_name=b"document")
        await save(volume, "other", b"synced: all records so far are durable")
        assert (await after_a_kill(built, tmp_path / "copy"))["document"] == b"new"


async def test_an_open_segment_is_longer_than_its_frames_by_zeros_and_a_closed_one_is_not(
    tmp_path: Path, brief: None
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    writer_key = load_public_key(WRITER_KEY)
    async with built.session() as volume:
        await save(volume, "a", b"a")
        current = volume.log.current
        assert current is not None
        path = built.root / "objects" / current.key
        data = path.read_bytes()
        assert current.size < len(data) <= current.size + PREPARED_MIN
        assert not any(data[current.size :])
        scan = scan_segment(data, KEYS, writer_key)
        assert (scan.end, scan.trailer) == (current.size, None)
        sizes = set()
        for number in range(40):  # overwrite the zeros: the file grows in steps
            await save(volume, f"b{number}", os.urandom(3000))
            sizes.add(path.stat().st_size)
        assert 2 <= len(sizes) < 20
        await save(volume, "large", os.urandom(SMALL_COMMIT * 2))
        assert path.stat().st_size == current.size
    scan = scan_segment(path.read_bytes(), KEYS, writer_key)
    assert scan.trailer is not None
    assert scan.fault is None


async def test_the_index_lags_behind_the_log_and_is_brought_up_by_a_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief: None
) -> None:
    built = BuiltVolume(tmp_path / "volume")
    async with built.session() as volume:
        await save(volume, "first", b"")
        commits: list[int] = []
        commit = volume.index.commit

        def counted() -> None:
            commits.append(0)
            commit()

        monkeypatch.setattr(volume.index, "commit", counted)
        for number in range(30):
            await save(volume, f"f{number}", b"data")
        assert commits == []
        assert len(await after_a_kill(built, tmp_path / "copy")) == 31
        await volume.filesystem.sync()
        assert len(commits) == 1
