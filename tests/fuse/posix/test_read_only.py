"""A read-only mount: every change is EROFS, every look works. Of the mount alone; ext4 is not remounted."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse import libc
from tests.fuse.checks import refused
from tests.fuse.posix.objects import make, read
from tests.support.mounted import mounted_volume


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A volume with one object of each sort, mounted read-only."""
    with mounted_volume(tmp_path_factory.mktemp("read-only")) as volume:
        before = os.getcwd()
        os.chdir(volume.mountpoint)
        for kind in ("file", "directory", "symlink", "fifo"):
            make(kind, kind)
        make("directory/inner", "file")
        os.chdir(before)
        volume.umount()
        volume.mount("--read-only")
        yield volume.mountpoint
        volume.must("umount", str(volume.mountpoint))
        assert volume.warnings() == []


CHANGES: dict[str, Callable[[], object]] = {
    "open-for-writing": lambda: os.open("file", os.O_WRONLY),
    "open-for-both": lambda: os.open("file", os.O_RDWR),
    "open-truncating": lambda: os.open("file", os.O_WRONLY | os.O_TRUNC),
    "creat": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
    "creat-for-reading": lambda: os.open("new", os.O_CREAT | os.O_RDONLY),
    "mkdir": lambda: os.mkdir("new"),
    "mkfifo": lambda: os.mkfifo("new"),
    "mknod": lambda: os.mknod("new", stat.S_IFREG | 0o644),
    "symlink": lambda: os.symlink("x", "new"),
    "link": lambda: os.link("file", "new"),
    "unlink": lambda: os.unlink("file"),
    "rmdir": lambda: os.rmdir("directory"),
    "rename": lambda: os.rename("file", "new"),
    "exchange": lambda: libc.renameat2("file", "fifo", libc.RENAME_EXCHANGE),
    "chmod": lambda: os.chmod("file", 0o600),
    "chown": lambda: os.chown("file", 1, 1),
    "lchown": lambda: os.lchown("symlink", 1, 1),
    "utime": lambda: os.utime("file"),
    "truncate": lambda: os.truncate("file", 0),
    "access-for-writing": lambda: libc.access("file", os.W_OK),
}


@pytest.mark.parametrize("name", CHANGES)
def test_change(read_only: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(read_only)
    before = sorted(os.listdir()), os.lstat("file")
    refused(errno.EROFS, CHANGES[name])
    assert (sorted(os.listdir()), os.lstat("file")) == before


def test_looking(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(read_only)
    assert read("file") == b"contents"
    assert os.readlink("symlink") == "nowhere"
    assert sorted(os.listdir()) == ["directory", "fifo", "file", "symlink"]
    assert os.listdir("directory") == ["inner"]
    assert os.statvfs(".").f_flag & os.ST_RDONLY
    descriptor = os.open("fifo", os.O_RDWR)  # A FIFO is the kernel's, and nothing is written to the volume.
    os.write(descriptor, b"through")
    assert os.read(descriptor, 10) == b"through"
    os.close(descriptor)
    refused(errno.EEXIST, lambda: os.mkdir("directory"))
    refused(errno.ENOENT, lambda: os.stat("absent"))
