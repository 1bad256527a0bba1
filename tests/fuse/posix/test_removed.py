"""Files and directories that have no name any more, but are open."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.checks import MIB, pattern, refused
from tests.fuse.libc import AT_SYMLINK_FOLLOW, linkat, syncfs
from tests.fuse.posix.objects import exists, make, read, write


def write_and_read(descriptor: int) -> None:
    data = pattern(3 * MIB)[: 3 * MIB]
    assert os.pwrite(descriptor, data, 100) == len(data)
    assert os.pread(descriptor, 8, 0) == b"contents"
    assert os.pread(descriptor, len(data), 100) == data


def truncate(descriptor: int) -> None:
    os.ftruncate(descriptor, 3)
    assert os.pread(descriptor, 100, 0) == b"con"
    os.ftruncate(descriptor, 6)
    assert os.pread(descriptor, 100, 0) == b"con\0\0\0"


def attributes(descriptor: int) -> None:
    os.fchmod(descriptor, 0o604)
    os.fchown(descriptor, 11, 22)
    os.utime(descriptor, ns=(1, 2))
    status = os.fstat(descriptor)
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o604, 11, 22)
    assert (status.st_atime_ns, status.st_mtime_ns, status.st_nlink) == (1, 2, 0)


def synchronise(descriptor: int) -> None:
    os.write(descriptor, b"new")
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    syncfs(descriptor)
    assert os.pread(descriptor, 8, 0) == b"newtents"


def map_shared(descriptor: int) -> None:
    with mmap.mmap(descriptor, 0) as memory:
        memory[:3] = b"MAP"
        memory.flush()
    assert os.pread(descriptor, 8, 0) == b"MAPtents"


def lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    fcntl.lockf(descriptor, fcntl.LOCK_EX)


def link_again(descriptor: int) -> None:
    refused(errno.ENOENT, lambda: linkat(f"/proc/self/fd/{descriptor}", "again", AT_SYMLINK_FOLLOW))


def open_again(descriptor: int) -> None:
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    os.write(again, b"again")
    os.close(again)
    assert os.pread(descriptor, 8, 0) == b"againnts"


def duplicate(descriptor: int) -> None:
    second = os.dup(descriptor)
    os.pwrite(second, b"dup", 0)
    os.close(second)
    assert os.pread(descriptor, 8, 0) == b"duptents"


CALLS: dict[str, Callable[[int], None]] = {
    call.__name__.replace("_", "-"): call
    for call in (
        write_and_read, truncate, attributes, synchronise, map_shared, lock, link_again, open_again, duplicate
    )
}  # fmt: skip


def by_unlink() -> None:
    os.unlink("file")


def by_rename() -> None:
    write("other", b"other")
    os.rename("other", "file")


def by_unlink_of_two_names() -> None:
    os.link("file", "second")
    os.unlink("file")
    os.unlink("second")


def and_its_directory() -> None:
    os.mkdir("d")
    os.rename("file", "d/file")
    os.unlink("d/file")
    os.rmdir("d")


REMOVALS = [by_unlink, by_rename, by_unlink_of_two_names, and_its_directory]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: removal.__name__)
def test_removed_file(here: Path, removal: Callable[[], None], call: str) -> None:
    write("file", b"contents")
    descriptor = os.open("file", os.O_RDWR)
    removal()
    status = os.fstat(descriptor)
    assert (status.st_nlink, status.st_size) == (0, 8)
    CALLS[call](descriptor)
    os.close(descriptor)
    assert os.listdir() == (["file"] if removal is by_rename else [])
    if removal is by_rename:
        assert read("file") == b"other"


def test_a_file_made_and_removed_before_it_is_written(here: Path) -> None:
    descriptor = os.open("file", os.O_CREAT | os.O_RDWR)
    os.unlink("file")
    os.write(descriptor, b"x" * MIB)
    os.fsync(descriptor)
    assert (os.fstat(descriptor).st_size, os.pread(descriptor, 1, MIB - 1)) == (MIB, b"x")
    os.close(descriptor)


def test_a_new_file_of_the_same_name_is_another(here: Path) -> None:
    write("file", b"old")
    descriptor = os.open("file", os.O_RDWR)
    os.unlink("file")
    write("file", b"new one")
    os.write(descriptor, b"OLD and longer")
    assert (read("file"), os.fstat(descriptor).st_ino == os.stat("file").st_ino) == (b"new one", False)
    os.close(descriptor)


def test_a_mapping_outlives_name_and_descriptor(here: Path) -> None:
    write("file", bytes(10_000))
    descriptor = os.open("file", os.O_RDWR)
    with mmap.mmap(descriptor, 0) as memory:
        os.unlink("file")
        os.close(descriptor)
        memory[9_999] = 7
        memory.flush()
        assert (memory[9_999], memory[0]) == (7, 0)


# --- directories -----------------------------------------------------------------------------


@pytest.fixture
def removed(here: Path) -> Iterator[int]:
    """A descriptor of a directory that was removed."""
    os.mkdir("d")
    descriptor = os.open("d", os.O_RDONLY)
    os.rmdir("d")
    yield descriptor
    os.close(descriptor)


IN_REMOVED: dict[str, Callable[[int], object]] = {
    "creat": lambda d: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=d),
    "mkdir": lambda d: os.mkdir("new", dir_fd=d),
    "mkfifo": lambda d: os.mkfifo("new", dir_fd=d),
    "symlink": lambda d: os.symlink("x", "new", dir_fd=d),
    "link": lambda d: os.link("file", "new", dst_dir_fd=d),
    "rename": lambda d: os.rename("file", "new", dst_dir_fd=d),
    "open": lambda d: os.open("new", os.O_RDONLY, dir_fd=d),
    "stat": lambda d: os.stat("new", dir_fd=d),
    "unlink": lambda d: os.unlink("new", dir_fd=d),
    "rmdir": lambda d: os.rmdir("new", dir_fd=d),
}


@pytest.mark.parametrize("call", IN_REMOVED)
def test_in_a_removed_directory(removed: int, call: str) -> None:
    make("file", "file")
    refused(errno.ENOENT, lambda: IN_REMOVED[call](removed))
    assert os.listdir() == ["file"]


def test_a_removed_directory(removed: int) -> None:
    assert os.fstat(removed).st_nlink == 0
    assert os.listdir(removed) == []
    os.fchmod(removed, 0o700)
    os.utime(removed, ns=(1, 2))
    os.fsync(removed)
    status = os.fstat(removed)
    assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o700, 2)
    os.stat(".", dir_fd=removed)
    refused(errno.EPERM, lambda: linkat(f"/proc/self/fd/{removed}", "again", AT_SYMLINK_FOLLOW))
    os.mkdir("d")
    assert os.stat("d").st_ino != os.fstat(removed).st_ino


def test_a_directory_replaced_by_rename(here: Path) -> None:
    os.mkdir("d")
    os.mkdir("e")
    descriptor = os.open("d", os.O_RDONLY)
    os.rename("e", "d")
    refused(errno.ENOENT, lambda: os.mkdir("new", dir_fd=descriptor))
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    assert not exists("e")


def test_the_working_directory_removed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir("d")
    with monkeypatch.context() as inner:
        inner.chdir("d")
        os.rmdir("../d")
        refused(errno.ENOENT, os.getcwd)
        assert os.listdir() == []
        refused(errno.ENOENT, lambda: os.mkdir("new"))
        os.chdir("..")
