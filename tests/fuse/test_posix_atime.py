"""Access times as relatime has them; first proven on the kernel's own filesystem (mounted relatime)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.checks import KIB, make


def uncached(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file none of whose pages the kernel has: what it has it reads without asking anybody."""
    descriptor = os.open(path, flags)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def read_file(path: Path) -> None:
    descriptor = uncached(path)
    assert os.read(descriptor, 10)
    os.close(descriptor)


READS: dict[str, Callable[[Path], object]] = {
    "file": read_file,
    "full": os.listdir,
    "symlink": os.readlink,
}


def set_times(path: Path, *, atime_s: float, mtime_s: float) -> None:
    os.utime(path, ns=(int(atime_s * 1e9), int(mtime_s * 1e9)), follow_symlinks=False)


@pytest.mark.parametrize("kind", READS)
def test_the_first_read_after_a_change(mountpoint: Path, kind: str) -> None:
    path = mountpoint / kind
    make(path, kind)
    now = time.time()
    set_times(path, atime_s=now - 200, mtime_s=now - 100)
    before = path.lstat()
    READS[kind](path)
    after = path.lstat()
    assert after.st_atime_ns > before.st_ctime_ns - 10**9
    assert after.st_atime_ns > before.st_atime_ns
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


@pytest.mark.parametrize("kind", READS)
def test_a_further_read_changes_nothing(mountpoint: Path, kind: str) -> None:
    path = mountpoint / kind
    make(path, kind)
    time.sleep(0.02)
    READS[kind](path)
    before = path.lstat()
    assert before.st_atime_ns > before.st_mtime_ns
    time.sleep(0.02)
    READS[kind](path)
    assert path.lstat().st_atime_ns == before.st_atime_ns


def test_an_access_time_ahead_of_all_changes_stays(mountpoint: Path) -> None:
    path = mountpoint / "file"
    make(path, "file")
    now = time.time()
    set_times(path, atime_s=now + 100, mtime_s=now)
    before = path.stat()
    read_file(path)
    assert path.stat().st_atime_ns == before.st_atime_ns


def test_o_noatime(mountpoint: Path) -> None:
    path = mountpoint / "file"
    make(path, "file")
    set_times(path, atime_s=1000, mtime_s=2000)
    descriptor = uncached(path, os.O_RDONLY | os.O_NOATIME)
    assert os.read(descriptor, 10)
    os.close(descriptor)
    assert path.stat().st_atime == 1000


def test_writing_a_part_of_a_page_is_no_read(mountpoint: Path) -> None:
    path = mountpoint / "file"
    path.write_bytes(b"x" * 64 * KIB)
    os.close(uncached(path, os.O_RDWR))
    set_times(path, atime_s=1000, mtime_s=2000)
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, b"y", 5000)
    os.fsync(descriptor)
    os.close(descriptor)
    assert path.stat().st_atime == 1000


def test_other_uses_are_no_reads(mountpoint: Path) -> None:
    path = mountpoint / "file"
    make(path, "file")
    set_times(path, atime_s=1000, mtime_s=2000)
    os.close(os.open(path, os.O_RDONLY))
    path.stat()
    path.chmod(0o600)
    path.rename(mountpoint / "moved")
    os.listdir(mountpoint)
    assert (mountpoint / "moved").stat().st_atime == 1000
