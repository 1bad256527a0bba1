"""LocalDisk on a real directory: modes, links, atomic replacement, errors as the port states them."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.drivers import local_disk
from mirrorfs.drivers.local_disk import TEMPORARY_PREFIX, LocalDisk
from mirrorfs.errors import DiskError, DiskFull, LimitError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def disk(tmp_path: Path) -> LocalDisk:
    return LocalDisk(tmp_path / "root")


@pytest.fixture
def root(disk: LocalDisk, tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_everything_made_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        disk = LocalDisk(tmp_path / "state")
        disk.create("objects/segments/a").close()
        disk.write_whole("heads/pin", b"pin")
    finally:
        os.umask(before)
    for directory in ("state", "state/objects", "state/objects/segments", "state/heads"):
        assert mode(tmp_path / directory) == 0o700
    for file in ("state/objects/segments/a", "state/heads/pin"):
        assert mode(tmp_path / file) == 0o600


def test_file_reads_what_was_written_anywhere(disk: LocalDisk) -> None:
    file = disk.create("a")
    file.write(b"world", offset=6)
    file.write(memoryview(b"hello "), offset=0)
    file.sync()
    assert file.size() == 11
    assert file.read(offset=0, size_bytes=11) == b"hello world"
    assert file.read(offset=6, size_bytes=100) == b"world"
    assert file.read(offset=11, size_bytes=5) == b""
    file.truncate(5)
    assert file.read(offset=0, size_bytes=100) == b"hello"
    file.close()
    file.close()
    reader = disk.open("a")
    assert reader.read(offset=1, size_bytes=3) == b"ell"
    with pytest.raises(DiskError):
        reader.write(b"x", offset=0)
    reader.close()
    with pytest.raises(DiskError):
        reader.read(offset=0, size_bytes=1)


def test_short_writes_and_reads_are_continued(disk: LocalDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: write(fd, bytes(data)[:3], offset))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: read(fd, min(size, 2), offset))
    file = disk.create("a")
    file.write(bytearray(b"0123456789"), offset=4)
    assert file.read(offset=4, size_bytes=10) == b"0123456789"
    file.close()


def test_create_refuses_what_exists_and_open_what_does_not(disk: LocalDisk) -> None:
    disk.create("a/b").close()
    with pytest.raises(DiskError):
        disk.create("a/b")
    with pytest.raises(DiskError):
        disk.create("a/b/c")  # a file in place of a directory
    with pytest.raises(FileNotFoundError):
        disk.open("a/c")
    with pytest.raises(FileNotFoundError):
        disk.open("x/y")


def test_links_fifos_and_directories_are_not_followed(disk: LocalDisk, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    for path in ("link", "fifo", "directory"):
        with pytest.raises(DiskError):
            disk.open(path)
        with pytest.raises(DiskError):
            disk.create(path)
    disk.write_whole("link", b"inside")
    assert (tmp_path / "outside").read_bytes() == b"outside"
    assert not (root / "link").is_symlink()


@pytest.mark.parametrize("path", ["../a", "a/../b", "/etc/passwd", "a//b", "./a", "a/.", "a\0b"])
def test_paths_cannot_leave_the_root(disk: LocalDisk, path: str) -> None:
    for call in (disk.create, disk.open, disk.list, disk.remove, disk.sync_directory):
        with pytest.raises(LimitError):
            call(path)
    with pytest.raises(LimitError):
        disk.write_whole(path, b"")


def test_list_and_remove(disk: LocalDisk) -> None:
    assert disk.list("d") == []
    for name in ("d/b", "d/a", "d/c", "e"):
        disk.create(name).close()
    assert disk.list("d") == ["a", "b", "c"]
    assert disk.list("") == ["d", "e"]
    disk.remove("d/b")
    disk.remove("d/b")
    disk.remove("no/such/directory")
    assert disk.list("d") == ["a", "c"]
    with pytest.raises(DiskError):
        disk.remove("d")
    with pytest.raises(DiskError):
        disk.list("e")


def test_a_long_list_is_in_order(disk: LocalDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_disk, "_SORTED_AT_ONCE", 3)
    names = [f"{number * 7 % 20:02}" for number in range(20)]
    for count in (3, 4, 20):
        for name in names[:count]:
            disk.write_whole(f"d/{name}", b"")
        assert disk.list("d") == sorted(names[:count])


def test_write_whole_replaces_and_ignores_what_a_crash_left(disk: LocalDisk, root: Path) -> None:
    disk.write_whole("d/pin", b"old")
    held = os.open(root / "d/pin", os.O_RDONLY)
    (root / "d" / f"{TEMPORARY_PREFIX}pin").write_bytes(b"half of something longer than the new")
    assert disk.list("d") == ["pin"]
    disk.write_whole("d/pin", b"new")
    assert (root / "d/pin").read_bytes() == b"new"
    assert os.read(held, 10) == b"old"  # replaced by a rename, not overwritten
    os.close(held)
    assert os.listdir(root / "d") == ["pin"]


@pytest.mark.parametrize("failing", ["fdatasync", "rename"])
def test_write_whole_leaves_nothing_when_it_fails(
    disk: LocalDisk, root: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """What was written of it would be what fills the disk."""
    disk.write_whole("d/pin", b"old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(DiskFull):
        disk.write_whole("d/pin", b"new")
    assert os.listdir(root / "d") == ["pin"]
    assert (root / "d/pin").read_bytes() == b"old"


def test_write_whole_syncs_before_the_rename_and_the_directories_after(
    disk: LocalDisk, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fdatasync, fsync, rename = os.fdatasync, os.fsync, os.rename

    def traced_fdatasync(fd: int) -> None:
        done.append("sync file")
        fdatasync(fd)

    def traced_fsync(fd: int) -> None:
        done.append("sync " + os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), root))
        fsync(fd)

    def traced_rename(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    disk.sync_directory("")  # what making the root left to be synced
    monkeypatch.setattr(os, "fdatasync", traced_fdatasync)
    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "rename", traced_rename)
    disk.write_whole("x/y/file", b"data")
    assert done == ["sync file", "rename", "sync .", "sync x", "sync x/y"]
    done.clear()
    disk.create("x/y/other").close()
    assert done == []
    disk.sync_directory("x/y")
    assert done == ["sync x/y"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_errors_of_the_disk(disk: LocalDisk, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    file = disk.create("a")

    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        for name in ("pwrite", "pread", "fdatasync", "ftruncate", "rename"):
            patch.setattr(os, name, fail)
        for call in (
            lambda: file.write(b"secret", offset=0),
            lambda: file.read(offset=0, size_bytes=1),
            file.sync,
            lambda: file.truncate(1),
            lambda: disk.write_whole("b", b"secret"),
        ):
            with pytest.raises(DiskError) as caught:
                call()
            assert isinstance(caught.value, DiskFull) == (number != errno.EIO)
            assert "secret" not in str(caught.value)
    file.close()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """A real limit at which writes fall short and then fail. Python ignores SIGXFSZ.

    It holds for the whole process, so no test report may be written under it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_system_cuts_short_is_an_error(disk: LocalDisk) -> None:
    file = disk.create("a")
    with file_size_limit(10_000), pytest.raises(DiskError):
        file.write(b"x" * 10_001, offset=0)
    assert file.size() == 10_000
    file.close()


def test_space(disk: LocalDisk) -> None:
    assert 0 < disk.free_bytes() <= disk.total_bytes()
