"""statvfs: the numbers that `df` shows, for every way to ask."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.posix.objects import make, write
from tests.fuse.posix.users import ANNA

WAYS: dict[str, Callable[[], os.statvfs_result]] = {
    "directory": lambda: os.statvfs("."),
    "file": lambda: os.statvfs("file"),
    "link": lambda: os.statvfs("link"),
    "fifo": lambda: os.statvfs("fifo"),
    "unprivileged": lambda: ANNA.does(lambda: os.statvfs("file")),
}


@pytest.mark.parametrize("way", WAYS)
def test_statvfs(here: Path, way: str) -> None:
    write("file", b"x")
    os.symlink("file", "link")
    make("fifo", "fifo")
    space = WAYS[way]()
    assert space.f_namemax == 255
    assert space.f_frsize in (512, 1024, 2048, 4096)
    assert space.f_blocks > space.f_bfree >= space.f_bavail > 0
    assert space.f_files > space.f_ffree >= space.f_favail > 0
