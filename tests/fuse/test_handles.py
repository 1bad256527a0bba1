"""File handles, as an NFS server uses them; first proven on the kernel's own filesystem.

The kernel keeps what it looked up; dropped, it asks by the inode's number alone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import make, refused
from tests.fuse.conftest import needs_root
from tests.fuse.libc import name_to_handle, open_handle

pytestmark = needs_root("open_by_handle_at and drop_caches are root's")


def drop() -> None:
    """Have the kernel forget names and inodes that are not in use."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def keep() -> None:
    """Leave what the kernel has."""


@pytest.fixture(params=[keep, drop], ids=["known", "forgotten"])
def between(request: pytest.FixtureRequest) -> Callable[[], None]:
    """What happens to the kernel's cache between taking a handle and opening it."""
    action: Callable[[], None] = request.param
    return action


def test_a_file(mountpoint: Path, between: Callable[[], None]) -> None:
    path = mountpoint / "a" / "b" / "file"
    path.parent.mkdir(parents=True)
    make(path, "file")
    handle, number = name_to_handle(path), path.stat().st_ino
    between()
    descriptor = open_handle(mountpoint, handle)
    assert os.read(descriptor, 100) == b"contents of file"
    assert os.fstat(descriptor).st_ino == number
    os.close(descriptor)


def test_a_directory(mountpoint: Path, between: Callable[[], None]) -> None:
    path = mountpoint / "a" / "b"
    path.mkdir(parents=True)
    (path / "file").touch()
    handle = name_to_handle(path)
    between()
    descriptor = open_handle(mountpoint, handle, os.O_RDONLY | os.O_DIRECTORY)
    assert os.listdir(descriptor) == ["file"]
    parent = os.open("..", os.O_RDONLY, dir_fd=descriptor)
    assert os.fstat(parent).st_ino == (mountpoint / "a").stat().st_ino
    for each in (parent, descriptor):
        os.close(each)


def test_other_kinds(mountpoint: Path, between: Callable[[], None]) -> None:
    make(mountpoint / "symlink", "symlink")
    os.mkfifo(mountpoint / "fifo")
    for name in ("symlink", "fifo"):
        handle = name_to_handle(mountpoint / name)
        between()
        descriptor = open_handle(mountpoint, handle, os.O_PATH)
        assert os.fstat(descriptor).st_ino == (mountpoint / name).lstat().st_ino
        os.close(descriptor)


def test_after_a_rename(mountpoint: Path, between: Callable[[], None]) -> None:
    make(mountpoint / "file", "file")
    (mountpoint / "directory").mkdir()
    handle = name_to_handle(mountpoint / "file")
    (mountpoint / "file").rename(mountpoint / "directory" / "moved")
    between()
    descriptor = open_handle(mountpoint, handle)
    assert os.read(descriptor, 100) == b"contents of file"
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_after_removal(mountpoint: Path, between: Callable[[], None], kind: str) -> None:
    path = mountpoint / kind
    make(path, kind)
    handle = name_to_handle(path)
    path.rmdir() if kind == "directory" else path.unlink()
    between()
    refused(errno.ESTALE, lambda: open_handle(mountpoint, handle))
    for number in range(100):  # one of them would get the number if any were used again
        make(mountpoint / f"{kind}-{number}", kind)
    between()
    refused(errno.ESTALE, lambda: open_handle(mountpoint, handle))


def test_writing_by_handle(mountpoint: Path, between: Callable[[], None]) -> None:
    path = mountpoint / "file"
    make(path, "file")
    handle = name_to_handle(path)
    between()
    descriptor = open_handle(mountpoint, handle, os.O_RDWR)
    os.pwrite(descriptor, b"CONTENTS", 0)
    os.close(descriptor)
    assert path.read_bytes() == b"CONTENTS of file"
